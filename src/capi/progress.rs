//! Progress of long work.

use std::ffi::c_void;

use crate::capi::enumeration::{Enumeration, c_enum};
use crate::error::Result;
use crate::os::parallel::{Phase, Progress};

/// A phase of long work.
pub type wb_phase = i32;
/// Faulting pages in.
pub const WB_PHASE_FAULT: wb_phase = 1;
/// Registering pages with the device.
pub const WB_PHASE_PIN: wb_phase = 2;
/// Reading or copying.
pub const WB_PHASE_READ: wb_phase = 3;
/// Quantizing.
pub const WB_PHASE_QUANTIZE: wb_phase = 4;
/// Compressing.
pub const WB_PHASE_COMPRESS: wb_phase = 5;

/// Receives the bytes done and the total bytes of a phase, on the thread that made the call. A
/// result other than 0 cancels the call, which fails with WB_ERR_CANCELLED. It may call the
/// library, except wb_device_drain.
pub type wb_progress =
    Option<unsafe extern "C" fn(user: *mut c_void, phase: wb_phase, done: u64, total: u64) -> i32>;

c_enum!(Phase {
    WB_PHASE_FAULT => Fault,
    WB_PHASE_PIN => Pin,
    WB_PHASE_READ => Read,
    WB_PHASE_QUANTIZE => Quantize,
    WB_PHASE_COMPRESS => Compress,
});

/// A caller's progress callback.
pub(super) struct Reporter {
    callback: wb_progress,
    user: *mut c_void,
}

impl Reporter {
    /// A callback and its argument.
    ///
    /// # Safety
    /// The callback may be called with `user` as long as the reporter lives.
    pub unsafe fn new(callback: wb_progress, user: *mut c_void) -> Self {
        Self { callback, user }
    }

    /// Runs a body that reports to the callback.
    pub fn run<R>(&self, body: impl FnOnce(&mut Progress<'_>) -> Result<R>) -> Result<R> {
        let Some(callback) = self.callback else { return body(&mut None) };
        let mut report = |phase: Phase, done, total| {
            // SAFETY: the promise of new().
            unsafe { callback(self.user, phase.code(), done, total) == 0 }
        };
        body(&mut Some(&mut report))
    }
}
