//! The calls around a step: groups acquired and released.

use std::ffi::{c_char, c_void};

use crate::capi::arguments::{check_output, text};
use crate::capi::error::{guard, wb_error};
use crate::capi::handle;
use crate::capi::offloader::wb_offloader;
use crate::device::backend::Stream;
use crate::offload::offloader::Offloader;
use crate::status::wb_status;

/// The number of a group, by which it is acquired. Groups count from 0 in the order in which the
/// plan's parameters first named them. Any thread. Errors: WB_ERR_NOT_FOUND.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `group` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_find_group(
    offloader: *const wb_offloader,
    name: *const c_char,
    group: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(group, "group")?;
        // SAFETY: the caller's promise.
        let (offloader, name) =
            unsafe { (handle::borrow::<Offloader>(offloader)?, text(name, "name")?) };
        let found = offloader.find_group(name)?;
        // SAFETY: not NULL.
        unsafe { *group = found as u64 };
        Ok(())
    })
}

/// Makes `stream` wait until the group's parameters are where their addresses say, and keeps them there
/// until the group is released as often as it was acquired. What is not there yet is copied now: groups
/// out of order cost time and nothing else.
///
/// Stream order: what is queued on `stream` afterwards finds the parameters. The host does not wait.
/// Any thread; in a capture, one at a time. Capturable.
/// Errors: WB_ERR_OUT_OF_RANGE, WB_ERR_BUSY where a group that is acquired holds the slot, WB_ERR_DRIVER,
/// WB_ERR_FORKED.
///
/// # Safety
/// `offloader` is NULL or alive; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_acquire_group(
    offloader: *const wb_offloader,
    group: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
        offloader.acquire_group(group as usize, Stream(stream as usize))
    })
}

/// Says that what is queued on `stream` now is the group's last use, and begins the copies that waited
/// for its slot. In a capture, the release of the step's last group makes `stream` wait for every copy.
///
/// Stream order: the copies run behind what is queued. The host does not wait. Any thread; in a
/// capture, one at a time. Capturable.
/// Errors: WB_ERR_INVALID_ARGUMENT for a group that is not acquired, WB_ERR_OUT_OF_RANGE, WB_ERR_DRIVER,
/// WB_ERR_FORKED.
///
/// # Safety
/// `offloader` is NULL or alive; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_release_group(
    offloader: *const wb_offloader,
    group: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
        offloader.release_group(group as usize, Stream(stream as usize))
    })
}

/// Makes `stream` wait for every copy that was queued. A capture of a part of a step ends with it; its
/// graphs are then replayed in the order in which they were captured.
///
/// Any thread. Capturable. Errors: WB_ERR_DRIVER, WB_ERR_FORKED.
///
/// # Safety
/// `offloader` is NULL or alive; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_join(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        unsafe { handle::borrow::<Offloader>(offloader) }?.join(Stream(stream as usize))
    })
}

/// Ends a step that was abandoned: no group is acquired any more, as if each had been released on
/// `stream`, and the first groups are on their way to their slots. Before a captured step is replayed
/// after an abandoned one, this is called.
///
/// Any thread. Errors: WB_ERR_CAPTURING, WB_ERR_DRIVER, WB_ERR_FORKED.
///
/// # Safety
/// `offloader` is NULL or alive; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reset(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        unsafe { handle::borrow::<Offloader>(offloader) }?.reset(Stream(stream as usize))
    })
}
