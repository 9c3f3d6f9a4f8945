//! The process's environment variables.

use std::ffi::{CStr, CString, c_char};

unsafe extern "C" {
    /// The C library's; the `libc` crate does not have it.
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// A variable of the environment: the only place that reads it. A program that runs with more rights
/// than who started it (set-user-ID) has none, since who started it chose the environment.
pub fn variable(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends in NUL; the engine does not change its environment meanwhile.
    let value = unsafe { secure_getenv(name.as_ptr()) };
    // SAFETY: not NULL, so a string that ends in NUL.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}
