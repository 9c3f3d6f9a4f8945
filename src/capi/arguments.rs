//! Arguments of exported functions: inputs become Rust values, outputs are checked before the work
//! and written after it. Both rest on the contract of [`capi`](super), and [`call`](super::call) is
//! their only caller.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::capi::handle::{Opaque, borrow, give, share};
use crate::device::backend::Stream;
use crate::error::{Result, fail};
use crate::os::sync::Arc;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// An argument that C passes, as a `T`.
pub(super) trait Input<T> {
    /// Reads and checks it; `name` is the parameter's in the header.
    ///
    /// # Safety
    /// The argument keeps the contract of [`capi`](super).
    unsafe fn convert(self, name: &str) -> Result<T>;
}

/// A place for a result.
pub(super) trait Output {
    /// What is written there.
    type Value;

    /// Fails if nothing can be written there; `name` is the parameter's in the header.
    ///
    /// # Safety
    /// The argument keeps the contract of [`capi`](super).
    unsafe fn check(&self, name: &str) -> Result<()>;

    /// Writes the result.
    ///
    /// # Safety
    /// [`check`](Self::check) succeeded.
    unsafe fn store(self, value: Self::Value);
}

/// The bytes of a string.
///
/// # Safety
/// The string is NULL, or ends in NUL and lives as long as the result is used.
unsafe fn bytes<'a>(string: *const c_char, name: &str) -> Result<&'a [u8]> {
    if string.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL");
    }
    // SAFETY: not NULL.
    Ok(unsafe { CStr::from_ptr(string) }.to_bytes())
}

impl<'a> Input<&'a str> for *const c_char {
    unsafe fn convert(self, name: &str) -> Result<&'a str> {
        // SAFETY: the contract.
        match str::from_utf8(unsafe { bytes(self, name) }?) {
            Ok(text) => Ok(text),
            Err(_) => fail!(WB_ERR_INVALID_ARGUMENT, "{name} is not UTF-8"),
        }
    }
}

impl<'a> Input<&'a Path> for *const c_char {
    unsafe fn convert(self, name: &str) -> Result<&'a Path> {
        // SAFETY: the contract.
        Ok(Path::new(OsStr::from_bytes(unsafe { bytes(self, name) }?)))
    }
}

/// A timeout in milliseconds. A day is as good as no limit, and cannot overflow the clock.
impl Input<Duration> for u64 {
    unsafe fn convert(self, _: &str) -> Result<Duration> {
        Ok(Duration::from_millis(self.min(86_400_000)))
    }
}

/// An array of strings, and how many there are.
impl Input<Vec<String>> for (*const *const c_char, u32) {
    unsafe fn convert(self, name: &str) -> Result<Vec<String>> {
        let (first, count) = self;
        if first.is_null() && count > 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL and {name}_count is {count}");
        }
        let text = |at| -> Result<&str> {
            let name = format!("{name}[{at}]");
            // SAFETY: the contract.
            unsafe { (*first.add(at)).convert(&name) }
        };
        (0..count as usize).map(|at| Ok(text(at)?.to_owned())).collect()
    }
}

/// An array of numbers, and how many there are.
impl<T: Copy> Input<Vec<T>> for (*const T, u64) {
    unsafe fn convert(self, name: &str) -> Result<Vec<T>> {
        let (first, count) = self;
        if first.is_null() && count > 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL and {name}_count is {count}");
        }
        // SAFETY: the contract: `first` points to `count` numbers.
        Ok((0..count as usize).map(|at| unsafe { first.add(at).read() }).collect())
    }
}

impl Input<Stream> for *mut c_void {
    unsafe fn convert(self, _: &str) -> Result<Stream> {
        Ok(Stream(self as usize))
    }
}

impl<'a, O: Opaque> Input<&'a O::Object> for *const O {
    unsafe fn convert(self, _: &str) -> Result<&'a O::Object> {
        // SAFETY: the contract of mod.rs.
        unsafe { borrow(self) }
    }
}

impl<O: Opaque> Input<Arc<O::Object>> for *const O {
    unsafe fn convert(self, _: &str) -> Result<Arc<O::Object>> {
        // SAFETY: the contract of mod.rs.
        unsafe { share(self) }
    }
}

impl<O: Opaque> Output for *mut *mut O {
    type Value = Arc<O::Object>;

    unsafe fn check(&self, name: &str) -> Result<()> {
        if self.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "the output {name} is NULL");
        }
        Ok(())
    }

    unsafe fn store(self, object: Arc<O::Object>) {
        // SAFETY: it was checked.
        unsafe { *self = give(object) };
    }
}

/// Numbers and addresses.
macro_rules! plain_output {
    ($($type:ty),*) => {$(
        impl Output for *mut $type {
            type Value = $type;

            unsafe fn check(&self, name: &str) -> Result<()> {
                if self.is_null() {
                    fail!(WB_ERR_INVALID_ARGUMENT, "the output {name} is NULL");
                }
                Ok(())
            }

            unsafe fn store(self, value: $type) {
                // SAFETY: it was checked.
                unsafe { *self = value };
            }
        }
    )*};
}
plain_output!(i32, u64, f64, *const c_char, *mut c_void);

impl<A: Output, B: Output> Output for (A, B) {
    type Value = (A::Value, B::Value);

    unsafe fn check(&self, name: &str) -> Result<()> {
        // SAFETY: the contract.
        unsafe { self.0.check(name).and_then(|()| self.1.check(name)) }
    }

    unsafe fn store(self, (first, second): Self::Value) {
        // SAFETY: both were checked.
        unsafe {
            self.0.store(first);
            self.1.store(second);
        }
    }
}
