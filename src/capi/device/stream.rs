//! Streams of a device. An engine passes its own CUstream instead; these run on the host device
//! too.

use std::ffi::c_void;

use crate::capi::arguments::Input;
use crate::capi::call::call;
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, wb_status};

/// A host function on a stream. It must not call this library or CUDA.
pub type wb_host_function = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// A host function with its argument, as work for a stream.
type HostCall = Box<dyn FnOnce() + Send>;

impl Input<HostCall> for (wb_host_function, *mut c_void) {
    unsafe fn convert(self, _: &str) -> Result<HostCall> {
        let (Some(function), user) = (self.0, self.1 as usize) else {
            fail!(WB_ERR_INVALID_ARGUMENT, "function is NULL")
        };
        // SAFETY: the contract of mod.rs.
        Ok(Box::new(move || unsafe { function(user as *mut c_void) }))
    }
}

/// Creates a stream, which wb_device_stream_release releases. It does not synchronize with the
/// default stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_new(
    device: *const wb_device,
    stream: *mut *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device| -> stream {
        device.backend().new_stream().map(|Stream(handle)| handle as *mut c_void)
    })
}

/// Releases a stream of wb_device_stream_new; work queued on it still runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_release(
    device: *const wb_device,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device, stream: Stream| device.backend().release_stream(stream))
}

/// Waits for the work queued on a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_synchronize(
    device: *const wb_device,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device, stream: Stream| device.backend().synchronize(stream))
}

/// Queues a host function on a stream. It runs once, after the work queued before it, on a thread
/// of the library or the driver. Fails with WB_ERR_CAPTURING on a stream that is being captured.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_stream_call(
    device: *const wb_device,
    stream: *mut c_void,
    function: wb_host_function,
    user: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    let function = (function, user);
    call!(error, |device: &Device, stream: Stream, function: HostCall| {
        device.call(stream, function)
    })
}
