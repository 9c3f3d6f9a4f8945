//! Memory of a device, and copies.

use std::ffi::c_void;

use crate::capi::address::Address;
use crate::capi::call::call;
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::device::backend::Stream;
use crate::device::device::{Device, Owner};
use crate::error::fail;
use crate::memory::transfer;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW, wb_status};

/// Allocates exactly `bytes` bytes of device memory, at least 1; on the host device, whole pages.
///
/// The memory is freed by wb_device_free, or with the device's last reference. The driver may block
/// the device: keep it off the hot path. Fails with WB_ERR_DEVICE_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_alloc(
    device: *const wb_device,
    bytes: u64,
    address: *mut *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device| -> address {
        let Ok(bytes) = isize::try_from(bytes) else {
            fail!(WB_ERR_OVERFLOW, "asked for {bytes} bytes of device memory: more than 2^63")
        };
        let allocated = device.alloc(bytes.unsigned_abs(), Owner::Caller);
        allocated.map(|span| span.start() as *mut c_void)
    })
}

/// Frees device memory; waits for the device if the driver does. Fails with WB_ERR_INVALID_ARGUMENT
/// for an address that was not returned by wb_device_alloc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_free(
    device: *const wb_device,
    address: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device| device.free(address as u64, Owner::Caller))
}

/// Queues a copy of `bytes` bytes between host memory, device memory or both. A copy across two
/// registrations, which CUDA rejects, is split.
///
/// Stream order: runs after the work queued on `stream`; both ranges must stay valid until it has
/// run. The driver may block the caller if a range is pageable or both are host memory. Capturable.
/// On a device that reads pageable memory, 1 MiB or more of a mapped file that is not registered
/// pass through at most 32 MiB of pinned staging memory, because drivers copy them slowly: the call
/// returns when the copy is made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_copy(
    device: *const wb_device,
    to: *mut c_void,
    from: *const c_void,
    bytes: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>, to: Address, from: Address, stream: Stream| {
        if bytes == 0 {
            return Ok(());
        }
        if to.is_null() || from.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "asked to copy {bytes} bytes from {from} to {to}");
        }
        let (to, from) = (to.span(bytes, "the target")?, from.span(bytes, "the source")?);
        transfer::copy(&device, to, from, stream)
    })
}
