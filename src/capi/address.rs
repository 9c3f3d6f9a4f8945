//! Addresses of memory that a caller names.

use std::ffi::c_void;
use std::fmt;
use std::fmt::Display;

use crate::capi::arguments::Input;
use crate::error::{Result, fail};
use crate::os::span::Span;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW};
use crate::tensor::layout::Layout;

/// An address that C passed. By the contract of [`capi`](super) the bytes that a function says it
/// uses there stay valid until the work with them is done.
#[derive(Clone, Copy)]
pub(super) struct Address(pub u64);

impl Address {
    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The `bytes` bytes from here on, none at NULL; `what` names them in errors.
    pub fn span(self, bytes: u64, what: &str) -> Result<Span> {
        let Self(start) = self;
        if bytes == 0 {
            return Ok(Span::EMPTY);
        }
        if self.is_null() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "the address of {what} is NULL; there are {bytes} bytes"
            );
        }
        // SAFETY: the contract of mod.rs.
        match unsafe { Span::checked(start, bytes) } {
            Some(span) => Ok(span),
            None => {
                fail!(WB_ERR_OVERFLOW, "{what} at {self}: {bytes} bytes go past the last address")
            }
        }
    }

    /// The bytes of a tensor whose layout's offset counts from here.
    pub fn tensor(self, layout: &Layout, offset: u64, what: &str) -> Result<Span> {
        let bytes = layout.span_bytes();
        if bytes == 0 || self.is_null() {
            return self.span(bytes, what);
        }
        Self(self.lowest(layout, offset, what)?).span(bytes, what)
    }

    /// The address of a tensor's lowest byte.
    pub fn lowest(self, layout: &Layout, offset: u64, what: impl Display) -> Result<u64> {
        let Self(start) = self;
        match start.checked_add(offset).and_then(|first| first.checked_sub(layout.bytes_before())) {
            Some(lowest) => Ok(lowest),
            None => fail!(
                WB_ERR_OVERFLOW,
                "{what} at {self}: offset {offset} goes past the last address"
            ),
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Input<Address> for *const c_void {
    unsafe fn convert(self, _: &str) -> Result<Address> {
        Ok(Address(self as u64))
    }
}

impl Input<Address> for *mut c_void {
    unsafe fn convert(self, _: &str) -> Result<Address> {
        Ok(Address(self as u64))
    }
}
