//! The calls of a step.

use std::ffi::{c_char, c_void};

use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::offloader::handle::wb_offloader;
use crate::device::backend::Stream;
use crate::offload::offloader::Offloader;
use crate::status::wb_status;

/// Gets the index of the group with a name: groups count from 0 in the order in which the plan's
/// parameters first name them. Fails with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_find_group(
    offloader: *const wb_offloader,
    name: *const c_char,
    group: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, name: &str| -> group {
        offloader.find_group(name).map(|group| group as u64)
    })
}

/// Makes `stream` wait until the group's parameters are at their addresses, and keeps them there
/// until the group is released as often as it was acquired. Copies of parameters that are not in
/// place yet are queued now: an unexpected order of groups costs time only.
///
/// Stream order: work queued on `stream` after the call finds the parameters; the host does not
/// wait. Capturable; one thread at a time in a capture. Fails with WB_ERR_OUT_OF_RANGE, with
/// WB_ERR_BUSY if an acquired group occupies the slot, and, like every call of a step, with
/// WB_ERR_DEVICE_MEMORY if a failed change left no slots: see wb_offloader_compact.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_acquire_group(
    offloader: *const wb_offloader,
    group: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| {
        offloader.acquire_group(group as usize, stream)
    })
}

/// Ends a use of the group: the work queued on `stream` now is the last one, and the copies that
/// wait for its slot follow. In a capture, the release of the step's last group makes `stream` wait
/// for every copy.
///
/// Stream order: the copies run after the work queued on `stream`; the host does not wait.
/// Capturable; one thread at a time in a capture. Fails with WB_ERR_OUT_OF_RANGE, and with
/// WB_ERR_INVALID_ARGUMENT for a group that is not acquired.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_release_group(
    offloader: *const wb_offloader,
    group: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| {
        offloader.release_group(group as usize, stream)
    })
}

/// Makes `stream` wait for every queued copy. The capture of a part of a step ends with it; the
/// graphs of the parts must be replayed in the order in which they were captured. Capturable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_join(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.join(stream))
}

/// Begins a step that relies on no copy that was queued before: what the step acquires is copied
/// again, after the work queued on `stream`, so that it reads what was written to host memory in
/// the meantime, and a captured step can be replayed after any other. From the first call on,
/// every step must begin with it, and the last groups of a step prefetch nothing for the next. A
/// group that is acquired keeps its copy. Capturable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_begin_step(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.begin_step(stream))
}

/// Ends an abandoned step: every group counts as released on `stream`, and the first groups are
/// copied to their slots. Required before a captured step is replayed after an abandoned one. Fails
/// with WB_ERR_CAPTURING.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reset(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.reset(stream))
}
