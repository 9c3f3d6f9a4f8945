//! Memory of a device, copies and streams: what a program needs that is to run alike on the host
//! device.

use std::ffi::c_void;

use crate::capi::arguments::check_output;
use crate::capi::device::wb_device;
use crate::capi::error::{guard, wb_error};
use crate::capi::handle;
use crate::device::backend::Stream;
use crate::device::device::{Device, Holder};
use crate::error::fail;
use crate::os::span::Span;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW, wb_status};

/// Work of the host on a stream. It must not call this library or CUDA.
pub type wb_host_function = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// Allocates device memory of exactly `bytes` bytes (the host device: rounded to pages).
///
/// Ownership: given back with wb_device_free, or with the device's last reference. May block the
/// device: keep it off the hot path. Any thread.
/// Errors: WB_ERR_DEVICE_MEMORY, WB_ERR_INVALID_ARGUMENT, WB_ERR_FORKED, WB_ERR_DRIVER.
///
/// # Safety
/// `device` is NULL or alive; `address` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_alloc(
    device: *const wb_device,
    bytes: u64,
    address: *mut *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(address, "address")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        let Ok(bytes) = isize::try_from(bytes) else {
            fail!(WB_ERR_OVERFLOW, "asked for {bytes} bytes of device memory: more than 2^63")
        };
        let allocated = device.alloc(bytes.unsigned_abs(), Holder::Caller)?;
        // SAFETY: not NULL.
        unsafe { *address = allocated.start() as *mut c_void };
        Ok(())
    })
}

/// Gives device memory of wb_device_alloc back; waits for the device as the driver does.
///
/// Any thread. Errors: WB_ERR_INVALID_ARGUMENT for an address that is none.
///
/// # Safety
/// `device` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_free(
    device: *const wb_device,
    address: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || {
        unsafe { handle::borrow::<Device>(device) }?.free(address as u64, Holder::Caller)
    })
}

/// Queues a copy of `bytes` bytes between any two places: host memory or device memory, each by its
/// address. A copy across two registrations, which CUDA refuses, is split.
///
/// Stream order: runs behind what is queued on `stream`; both places must stay until then. Where
/// one is pageable memory, or both are host memory, a driver may block the caller until the stream
/// gets there. Any thread. Capturable.
/// Errors: WB_ERR_DRIVER, WB_ERR_FORKED; WB_ERR_INVALID_ARGUMENT for a NULL address.
///
/// # Safety
/// Both places are valid for `bytes` bytes until the stream has run the copy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_copy(
    device: *const wb_device,
    to: *mut c_void,
    from: *const c_void,
    bytes: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        if bytes == 0 {
            return Ok(());
        }
        if to.is_null() || from.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "asked to copy {bytes} bytes from {from:p} to {to:p}");
        }
        // SAFETY: the caller's promise.
        let (Some(to), Some(from)) =
            (unsafe { (Span::checked(to as u64, bytes), Span::checked(from as u64, bytes)) })
        else {
            fail!(WB_ERR_OVERFLOW, "a copy of {bytes} bytes goes past the last address")
        };
        device.copy(to, from, Stream(stream as usize))
    })
}

/// Makes a stream of the device: in order in itself, independent of others.
///
/// Ownership: given back with wb_device_stream_release. Engines pass their own CUstream instead.
/// Any thread. Errors: WB_ERR_OUT_OF_MEMORY, WB_ERR_DRIVER, WB_ERR_FORKED.
///
/// # Safety
/// `device` is NULL or alive; `stream` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_new(
    device: *const wb_device,
    stream: *mut *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(stream, "stream")?;
        // SAFETY: the caller's promise.
        let made = unsafe { handle::borrow::<Device>(device) }?.backend().new_stream()?;
        // SAFETY: not NULL.
        unsafe { *stream = made.0 as *mut c_void };
        Ok(())
    })
}

/// Gives a stream of wb_device_stream_new back; what is queued on it still runs. Any thread.
/// Errors: WB_ERR_INVALID_ARGUMENT, WB_ERR_DRIVER, WB_ERR_FORKED.
///
/// # Safety
/// `device` is NULL or alive; `stream` is of wb_device_stream_new and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_release(
    device: *const wb_device,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        device.backend().release_stream(Stream(stream as usize))
    })
}

/// Waits for what is queued on a stream. Any thread. Errors: WB_ERR_DRIVER, WB_ERR_FORKED.
///
/// # Safety
/// `device` is NULL or alive; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_synchronize(
    device: *const wb_device,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        device.backend().synchronize(Stream(stream as usize))
    })
}

/// Queues a function of the host on a stream.
///
/// Ownership: `user` stays the caller's. Stream order: runs behind what is queued, on a thread of
/// the library's or the driver's. Any thread. Errors: WB_ERR_DRIVER, WB_ERR_FORKED.
///
/// # Safety
/// `function` may be called with `user` on another thread, once, and does not unwind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_call(
    device: *const wb_device,
    stream: *mut c_void,
    function: wb_host_function,
    user: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        let Some(function) = function else { fail!(WB_ERR_INVALID_ARGUMENT, "function is NULL") };
        let user = user as usize;
        // SAFETY: the caller promised that this is a good call on any thread.
        let work = Box::new(move || unsafe { function(user as *mut c_void) });
        device.backend().call(Stream(stream as usize), work)
    })
}
