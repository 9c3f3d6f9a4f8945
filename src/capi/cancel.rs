//! pthread_cancel and this library.

use std::ffi::c_int;
use std::ptr;

/// While it lives, pthread_cancel of this thread waits: the C library cancels by unwinding, which
/// must not go through frames of this library.
pub(super) struct Uncancelled(c_int);

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

impl Uncancelled {
    /// PTHREAD_CANCEL_DISABLE. Source: <pthread.h> of glibc and musl.
    const DISABLE: c_int = 1;

    /// Disables cancellation of this thread.
    pub(super) fn begin() -> Self {
        let mut before = 0;
        // SAFETY: the pointer is to a live int.
        unsafe { pthread_setcancelstate(Self::DISABLE, &mut before) };
        Self(before)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: sets the state that begin() found.
        unsafe { pthread_setcancelstate(self.0, ptr::null_mut()) };
    }
}
