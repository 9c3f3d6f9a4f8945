//! Structs of the interface, which are read and written by the size that the caller's header gave
//! them.

use std::borrow::Cow;
use std::ffi::c_char;
use std::ptr;

use crate::capi::arguments::Output;
use crate::error::{Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_STRUCT_SIZE};

/// A struct of the interface, in which zero is the default of every field. Implemented by
/// [`c_struct`].
///
/// # Safety
/// The type is `repr(C)`, begins with `struct_size: u32`, and any bytes are a valid value
/// of it.
pub(super) unsafe trait CStruct: Sized {
    /// The name in C.
    const NAME: &'static str;

    /// The value of `WB_*_INIT`: the size, and zeros.
    fn init() -> Self {
        // SAFETY: any bytes are a valid value, and the first field is the size.
        unsafe {
            let mut value: Self = std::mem::zeroed();
            (&raw mut value).cast::<u32>().write(size_of::<Self>() as u32);
            value
        }
    }

    /// Fails if a reserved field is not zero.
    fn check_reserved(&self) -> Result<()>;
}

/// Implements [`CStruct`]; an input struct names its reserved fields.
macro_rules! c_struct {
    ($name:ident $(, $reserved:ident)*) => {
        // SAFETY: repr(C), begins with its size; numbers, pointers and nullable functions.
        unsafe impl $crate::capi::structs::CStruct for $name {
            const NAME: &'static str = stringify!($name);

            fn check_reserved(&self) -> $crate::error::Result<()> {
                $(if !$crate::capi::structs::is_zero(&self.$reserved) {
                    $crate::error::fail!(
                        $crate::status::WB_ERR_INVALID_ARGUMENT,
                        concat!(stringify!($name), ".", stringify!($reserved), " is not 0")
                    );
                })*
                Ok(())
            }
        }
    };
}
pub(super) use c_struct;

/// Whether a reserved field is zero.
pub(super) fn is_zero<T: Default + PartialEq>(field: &T) -> bool {
    *field == T::default()
}

/// The size that the caller wrote, if this library knows structs of that size.
///
/// # Safety
/// `given` points to a struct of the interface.
unsafe fn checked_size<T: CStruct>(given: *const T) -> Result<usize> {
    // SAFETY: every struct begins with its size.
    let size = unsafe { *given.cast::<u32>() } as usize;
    let known = size_of::<T>();
    if size < size_of::<u32>() || size > known {
        let name = T::NAME;
        fail!(
            WB_ERR_STRUCT_SIZE,
            "{name}.struct_size is {size}; this library knows up to {known}: begin with the \
             struct's WB_*_INIT, and do not load a library that is older than the header"
        );
    }
    Ok(size)
}

/// Reads an input struct. Fields that an older header lacks, and all fields if `given` is NULL, are
/// zero.
///
/// # Safety
/// `given` is NULL or points to a struct of the interface.
pub(super) unsafe fn read_struct<T: CStruct>(given: *const T) -> Result<T> {
    let mut value = T::init();
    if !given.is_null() {
        // SAFETY: not NULL; both are valid for `size` bytes, and any bytes are a T.
        unsafe {
            let size = checked_size(given)?;
            ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut value).cast(), size);
        }
    }
    value.check_reserved()?;
    Ok(value)
}

/// The elements of an array of structs, which lie as far apart as the first one's size says.
///
/// # Safety
/// `first` is NULL or points to `count` structs of the interface.
pub(super) unsafe fn elements<T: CStruct>(
    first: *const T,
    count: u64,
    name: &str,
) -> impl Iterator<Item = Result<*const T>> {
    // SAFETY: every struct begins with its size.
    let size_of = |element: *const T| unsafe { *element.cast::<u32>() } as usize;
    let step = if first.is_null() || count == 0 { 0 } else { size_of(first) };
    (0..count).map(move |index| {
        if first.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL and there are {count} {}", T::NAME);
        }
        let element = first.wrapping_byte_add(index as usize * step);
        if size_of(element) != step {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "{} {index} of {name} has another struct_size than the first: begin each with its \
                 WB_*_INIT",
                T::NAME
            );
        }
        Ok(element)
    })
}

/// Writes as much of `value` as the caller's header knows, except the size.
///
/// # Safety
/// `to` points to a struct of the interface whose size was checked.
unsafe fn write_struct<T: CStruct>(to: *mut T, value: &T) {
    const HEAD: usize = size_of::<u32>();
    // SAFETY: both are valid for `size` bytes, which is at least HEAD.
    unsafe {
        let size = *to.cast::<u32>() as usize;
        let from = ptr::from_ref(value).cast::<u8>().add(HEAD);
        ptr::copy_nonoverlapping(from, to.cast::<u8>().add(HEAD), size - HEAD);
    }
}

// SAFETY of both implementations: the contract of mod.rs; check() was called before store().
impl<T: CStruct> Output for *mut T {
    type Value = T;

    unsafe fn check(&self, name: &str) -> Result<()> {
        if self.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL: give the {} to fill", T::NAME);
        }
        // SAFETY: not NULL.
        unsafe { checked_size(*self) }.map(drop)
    }

    unsafe fn store(self, value: T) {
        // SAFETY: it was checked.
        unsafe { write_struct(self, &value) };
    }
}

/// Checks the size of every struct of an array.
///
/// # Safety
/// `first` is NULL or points to `count` structs of the interface.
pub(super) unsafe fn check_elements<T: CStruct>(
    first: *const T,
    count: u64,
    name: &str,
) -> Result<()> {
    // SAFETY: the promise above.
    unsafe { elements(first, count, name) }
        .try_for_each(|each| unsafe { checked_size(each?) }.map(drop))
}

/// An array of structs, and how many there are. Only the first is checked here: a caller's count
/// may be wrong. The function calls [`check_elements`] once it knows that there are so many.
impl<T: CStruct> Output for (*mut T, u64) {
    type Value = Vec<T>;

    unsafe fn check(&self, name: &str) -> Result<()> {
        // SAFETY: as above.
        unsafe { check_elements(self.0, self.1.min(1), name) }
    }

    unsafe fn store(self, values: Vec<T>) {
        // SAFETY: as above.
        unsafe {
            for (element, value) in elements(self.0, self.1, "").flatten().zip(&values) {
                write_struct(element.cast_mut(), value);
            }
        }
    }
}

/// An output struct that may be NULL.
pub(super) struct Optional<T>(pub *mut T);

impl<T: CStruct> Output for Optional<T> {
    type Value = T;

    unsafe fn check(&self, name: &str) -> Result<()> {
        // SAFETY: as above.
        if self.0.is_null() { Ok(()) } else { unsafe { self.0.check(name) } }
    }

    unsafe fn store(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as above.
            unsafe { self.0.store(value) };
        }
    }
}

/// A text without the NUL characters at which C would stop to read: they are written as `\0`.
pub(super) fn without_nul(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => Cow::Owned(text.replace('\0', "\\0")),
        false => Cow::Borrowed(text),
    }
}

/// A text as an array of a struct: truncated at a character, and ending in NUL.
pub(super) fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let text = without_nul(text);
    let mut chars = [0; N];
    let end = text.floor_char_boundary(N - 1);
    for (to, from) in chars.iter_mut().zip(&text.as_bytes()[..end]) {
        *to = *from as c_char;
    }
    chars
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;
    use crate::capi::error::{store, wb_error};
    use crate::error::Error;
    use crate::status::WB_ERR_FORMAT;

    #[test]
    fn a_nul_in_a_message_does_not_end_it() {
        let error = Error::new(WB_ERR_FORMAT, "before \0 and after");
        let logged = wb_error::from(&error);
        let mut stored = wb_error::init();
        // SAFETY: the struct begins with its size, and its message ends in NUL.
        unsafe {
            store(&raw mut stored, &error);
            for message in [&logged.message, &stored.message] {
                let text = CStr::from_ptr(message.as_ptr());
                assert_eq!(text.to_str(), Ok("before \\0 and after"));
            }
        }
    }
}
