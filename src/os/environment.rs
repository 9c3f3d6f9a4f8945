//! The process's environment.

use std::ffi::{CStr, CString, c_char};

unsafe extern "C" {
    /// Declared here because the `libc` crate lacks it.
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// The value of an environment variable. A set-user-ID program sees none, because the user who
/// started it chose the environment.
pub fn variable(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends in NUL; no other thread changes the environment meanwhile, as getenv
    // demands of every program.
    let value = unsafe { secure_getenv(name.as_ptr()) };
    // SAFETY: not NULL, so a string that ends in NUL.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}
