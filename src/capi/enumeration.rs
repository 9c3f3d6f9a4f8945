//! Named constants of the interface and the Rust enums that they stand for.

use crate::capi::arguments::Input;
use crate::error::{Result, fail};
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// A Rust enum whose variants have constants in C. Implemented by [`c_enum`].
pub(super) trait Enumeration: Copy + 'static {
    /// Every constant with its variant.
    const TABLE: &'static [(i32, Self)];

    /// The constant of this variant.
    fn code(self) -> i32;

    /// The variant of a constant; `field` names it in the error.
    fn read(code: i32, field: &str) -> Result<Self> {
        one_of(code, field, Self::TABLE)
    }
}

/// Implements [`Enumeration`]; a variant without a constant does not compile.
macro_rules! c_enum {
    ($type:ident { $($constant:ident => $variant:ident),* $(,)? }) => {
        impl $crate::capi::enumeration::Enumeration for $type {
            const TABLE: &'static [(i32, Self)] = &[$(($constant, $type::$variant)),*];

            fn code(self) -> i32 {
                match self { $($type::$variant => $constant),* }
            }
        }
    };
}
pub(super) use c_enum;

impl<E: Enumeration> Input<E> for i32 {
    unsafe fn convert(self, name: &str) -> Result<E> {
        E::read(self, name)
    }
}

/// A field that is 0 or 1.
pub(super) fn flag(value: i32, field: &str) -> Result<bool> {
    one_of(value, field, &[(0, false), (1, true)])
}

/// Looks a number up among the values that a field may have.
pub(super) fn one_of<T: Copy>(value: i32, field: &str, known: &[(i32, T)]) -> Result<T> {
    match known.iter().find(|(number, _)| *number == value) {
        Some((_, meaning)) => Ok(*meaning),
        None => {
            let numbers: Vec<_> = known.iter().map(|(number, _)| number).collect();
            fail!(WB_ERR_INVALID_ARGUMENT, "{field} is {value}; known are {numbers:?}")
        }
    }
}
