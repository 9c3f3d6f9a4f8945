//! Devices: CUDA devices, and the host.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use crate::capi::arguments::Input;
use crate::capi::call::{call, release, retain};
use crate::capi::enumeration::Enumeration;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::capi::structs::{c_struct, read_struct};
use crate::capi::tristate::wb_tristate;
use crate::device::cuda;
use crate::device::device::{Device, DeviceOptions};
use crate::device::policy::Tristate;
use crate::error::Result;
use crate::memory::deferred;
use crate::os::sync::Arc;
use crate::status::wb_status;

/// A device: a CUDA device, or the host, which is always available.
pub struct wb_device {
    _opaque: [u8; 0],
}

opaque!(wb_device, Device);

/// Options of wb_device_open.
#[repr(C)]
pub struct wb_device_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// Whether host memory is pinned; WEIGHBRIDGE_DISABLE_PIN_MEMORY=1 turns WB_TRISTATE_AUTO off.
    pub pin: wb_tristate,
    /// Whether the device reads host memory in place; WEIGHBRIDGE_DISABLE_UVA=1 turns
    /// WB_TRISTATE_AUTO off.
    pub views: wb_tristate,
    /// Must be zero.
    pub reserved0: u32,
    /// The caller's CUcontext, which must outlive the device; NULL for the primary context.
    pub context: *mut c_void,
    /// Bytes of device memory of the host device; 0 for all memory of the machine.
    pub capacity_bytes: u64,
    /// Must be zero.
    pub reserved: [u64; 4],
}

c_struct!(wb_device_options, reserved0, reserved);

impl Input<DeviceOptions> for *const wb_device_options {
    unsafe fn convert(self, _: &str) -> Result<DeviceOptions> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self) }?;
        Ok(DeviceOptions {
            pin: Tristate::read(given.pin, "wb_device_options.pin")?,
            views: Tristate::read(given.views, "wb_device_options.views")?,
            capacity_bytes: given.capacity_bytes,
            context: given.context as usize,
        })
    }
}

/// Counts the CUDA devices. Fails with WB_ERR_NO_DRIVER or WB_ERR_DRIVER_TOO_OLD without a usable
/// driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_get_cuda_count(
    count: *mut i32,
    error: *mut wb_error,
) -> wb_status {
    call!(error, || -> count { cuda::device::device_count() })
}

/// Opens a device by its name: "host", or "cuda:N" by CUDA's ordinal.
///
/// A CUDA device retains the primary context, or uses the caller's, and never resets it; every call
/// restores the calling thread's current context. Fails with WB_ERR_NO_DEVICE, WB_ERR_NO_DRIVER or
/// WB_ERR_DRIVER_TOO_OLD, and with WB_ERR_INVALID_ARGUMENT for an environment variable that is
/// neither yes nor no.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_open(
    name: *const c_char,
    options: *const wb_device_options,
    device: *mut *mut wb_device,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |name: &str, options: DeviceOptions| -> device { Device::open(name, options) })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_retain(device: *const wb_device) {
    retain!(device)
}

/// Drops a reference. Buffers, views and other objects hold their device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_release(device: *mut wb_device) {
    release!(device)
}

/// Waits until every reference that was released after a stream, or by a DLPack consumer, is gone,
/// and releases memory behind fixed addresses whose release has failed before. Must not be called
/// from a callback. Fails with WB_ERR_TIMEOUT after `timeout_ms` milliseconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_drain(
    device: *const wb_device,
    timeout_ms: u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>, timeout_ms: Duration| {
        deferred::drain(&device, timeout_ms)
    })
}
