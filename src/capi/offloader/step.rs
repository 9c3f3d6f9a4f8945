//! The calls of a step.

use std::ffi::{c_char, c_void};
use std::time::Duration;

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
/// A captured step can be replayed after any other step, since no step relies on a copy of another
/// once one was captured. Eager steps are then to begin with wb_offloader_begin_step: without it
/// they prefetch nothing, because a replay may come before each call. The stream of a replay must
/// be ordered after the eager steps of other streams.
///
/// Stream order: work queued on `stream` after the call finds the parameters; the host does not
/// wait. Capturable; one thread at a time in a capture. Fails with WB_ERR_OUT_OF_RANGE, with
/// WB_ERR_BUSY if an acquired group occupies the slot, and, like every call of a step, with
/// WB_ERR_CAPTURING while a step is captured on another stream, before anything is queued, and with
/// WB_ERR_DEVICE_MEMORY if a failed change left no slots: see wb_offloader_compact. Outside of
/// captures it fails with WB_ERR_CAPTURING if this thread or `stream` has captured a step since its
/// eager step began, and the group is to be copied: replays could not repeat that between the parts
/// of a captured step. See wb_offloader_begin_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_acquire_group(
    offloader: *const wb_offloader,
    group: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| {
        offloader.acquire_group(group as usize, stream, None)
    })
}

/// As wb_offloader_acquire_group; but while an acquired group of another thread and another stream
/// occupies the slot, the host waits until it is released, for at most `timeout_ms` milliseconds.
///
/// A thread never waits for what it has acquired itself, nor for what its stream has, nor in a
/// capture: these fail with WB_ERR_BUSY at once. Two threads that each keep a group which the other
/// waits for wait until a timeout: release before waiting, or acquire in the order of the plan.
/// Waiting threads are served in no particular order. Fails with WB_ERR_TIMEOUT, which names the
/// groups in the way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_acquire_group_within(
    offloader: *const wb_offloader,
    group: u64,
    stream: *mut c_void,
    timeout_ms: u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream, timeout_ms: Duration| {
        offloader.acquire_group(group as usize, stream, Some(timeout_ms))
    })
}

/// Ends a use of the group: the work queued on `stream` now is the last one, and the copies that
/// wait for its slot follow. In a capture, the release of the last group that a step is expected to
/// acquire makes `stream` wait for every copy. `stream` may be another one than that of the
/// acquire. A group that was acquired in a capture is released in one of the same step, and any
/// other outside of captures, since replays repeat captured calls and no others.
///
/// Stream order: the copies run after the work queued on `stream`; the host does not wait.
/// Capturable; one thread at a time in a capture. Fails with WB_ERR_OUT_OF_RANGE, and with
/// WB_ERR_INVALID_ARGUMENT for a group that is not acquired, or not in this way.
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

/// Tells which groups the coming steps acquire, in their order, each once, so that prefetching
/// follows it: a step that ends early, skips groups or runs backwards. Holds for every stream until
/// the next call; with a `count` of 0, steps acquire all groups in the order of the plan again. The
/// array is read before the call returns.
///
/// A group that is acquired against it is copied when it is acquired. Call it between steps; a call
/// within one changes what is prefetched from then on. Groups that are more than the depth apart in
/// the plan may share a slot, and are then copied one after the other. Fails with
/// WB_ERR_OUT_OF_RANGE, and with WB_ERR_INVALID_ARGUMENT for a group that is named twice.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_expect(
    offloader: *const wb_offloader,
    groups: *const u64,
    count: u64,
    error: *mut wb_error,
) -> wb_status {
    let groups = (groups, count);
    call!(error, |offloader: &Offloader, groups: Vec<u64>| {
        offloader.expect(groups.into_iter().map(|group| group as usize).collect())
    })
}

/// Makes `stream` wait for every queued copy. The capture of a part of a step ends with it: see
/// wb_offloader_begin_step. In a capture without other calls of a step it does nothing, so that an
/// engine may end each of its captures with it. Capturable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_join(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.join(stream))
}

/// Begins a step of `stream` that relies on no copy that was queued before: what the step acquires
/// is copied again, after the work queued on `stream`, so that it reads what was written to host
/// memory in the meantime. A group that is acquired keeps its copy. Steps of other streams go on.
///
/// From the first call on, every step must begin with it, and the last groups of a step prefetch
/// nothing for the next. A step may use several streams; one that has begun no step takes part in
/// the one that was begun last. A replay is a step too: it may come before this call, and after the
/// step's last release.
///
/// Capturable. A step that is captured in several parts begins with it before or in the first
/// capture, and each capture ends with wb_offloader_join. A part then relies on the copies of those
/// before it, so that each group is copied once, and a group may be acquired in one part and
/// released in a later one; kernels between the parts may use it as well. The next call of this
/// function begins another step, and so does, for the next capture, a copy that is queued outside
/// of captures, wb_offloader_reset, or a change of the parameters.
///
/// The graphs of the parts must be replayed in the order in which they were captured, each once,
/// with no other step between them and streams ordered accordingly; any other step may follow the
/// last one. A part that is left out, repeated or replayed out of turn reads slots that hold other
/// groups, and nothing can notice it: let a part that is to be replayed by itself begin a step of
/// its own. After a capture that has failed, call wb_offloader_reset_all and capture all parts
/// again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_begin_step(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.begin_step(stream))
}

/// Ends an abandoned step of `stream`: every group that was acquired on it counts as released on
/// it. Steps of other streams go on. Fails with WB_ERR_CAPTURING.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reset(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.reset(stream))
}

/// Ends the steps of all streams: every group counts as released on `stream`, which must be
/// ordered after the work that uses them. Also releases groups of streams that are gone. Fails with
/// WB_ERR_CAPTURING.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reset_all(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.reset_all(stream))
}
