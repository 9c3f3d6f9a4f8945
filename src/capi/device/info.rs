//! What a device can do, and what it holds.

use std::ffi::c_char;

use crate::capi::call::call;
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::structs::{CStruct, c_struct, chars};
use crate::device::backend::Granularity;
use crate::device::device::Device;
use crate::device::stats::DeviceStats;
use crate::memory::link;
use crate::os::log;
use crate::os::sync::Arc;
use crate::status::wb_status;

/// The kind of a device.
pub type wb_device_kind = i32;
/// The host's processors and memory.
pub const WB_DEVICE_HOST: wb_device_kind = 1;
/// A CUDA device.
pub const WB_DEVICE_CUDA: wb_device_kind = 2;

/// Device capabilities and effective policy.
#[repr(C)]
pub struct wb_device_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// The kind.
    pub kind: wb_device_kind,
    /// Ordinal among the devices of its kind.
    pub ordinal: i32,
    /// CUDA version of the driver, 13000 for 13.0; 0 for the host.
    pub driver_version: i32,
    /// Compute capability times ten, 90 for 9.0; 0 for the host.
    pub compute_capability: i32,
    /// 1 if host and device share one address space.
    pub unified_addressing: i32,
    /// 1 if existing memory can be registered.
    pub host_register: i32,
    /// 1 if a read-only page could be registered when the device was opened.
    pub read_only_register: i32,
    /// The driver's attribute for that; `read_only_register` is what the library uses.
    pub read_only_register_attribute: i32,
    /// 1 if the device can access any address of the process.
    pub pageable_access: i32,
    /// 1 if the device shares the host's memory.
    pub integrated: i32,
    /// The NUMA node nearest to the device; -1 if unknown.
    pub numa_node: i32,
    /// 1 if host memory is pinned.
    pub pin: i32,
    /// 1 if the device reads host memory in place.
    pub views: i32,
    /// Bytes that this process may lock; UINT64_MAX without a limit.
    pub memlock_limit: u64,
    /// Bytes of device memory.
    pub total_bytes: u64,
    /// Bytes of device memory that are free.
    pub free_bytes: u64,
    /// Name of the device.
    pub name: [c_char; 256],
    /// Reason for `pin`.
    pub pin_reason: [c_char; 256],
    /// Reason for `views`.
    pub views_reason: [c_char; 256],
    /// Bytes of which address ranges are multiples, behind which an offloader with fixed addresses
    /// changes the memory; 0 if the device has none.
    pub address_granularity: u64,
    /// Why there are none; empty otherwise.
    pub address_reason: [c_char; 256],
}

c_struct!(wb_device_info);

/// What was created through a device and is still alive. All counters but `errors_logged` return to
/// 0.
#[repr(C)]
pub struct wb_device_stats {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Buffers.
    pub buffers: u64,
    /// Views.
    pub views: u64,
    /// References that wait for a stream, or for the thread that frees memory.
    pub deferred: u64,
    /// Bytes asked for by the buffers.
    pub asked_bytes: u64,
    /// Bytes of address space mapped for the buffers.
    pub mapped_bytes: u64,
    /// Bytes pinned for the buffers, as the driver or the kernel counts them.
    pub pinned_bytes: u64,
    /// Bytes of device memory from wb_device_alloc.
    pub device_bytes: u64,
    /// Errors of this process that no call could return.
    pub errors_logged: u64,
}

c_struct!(wb_device_stats);

/// Fills `info` with the device's capabilities and the policy that follows from them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_get_info(
    device: *const wb_device,
    info: *mut wb_device_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device| -> info {
        let (capabilities, policy) = (device.capabilities(), device.policy());
        let (address_granularity, address_reason) = match &capabilities.address_granularity {
            Granularity::Bytes(bytes) => (*bytes, ""),
            Granularity::Unavailable(reason) => (0, reason.as_str()),
        };
        device.backend().memory().map(|(free_bytes, total_bytes)| wb_device_info {
            kind: if capabilities.cuda { WB_DEVICE_CUDA } else { WB_DEVICE_HOST },
            ordinal: capabilities.ordinal,
            driver_version: capabilities.driver_version,
            compute_capability: capabilities.compute_capability,
            unified_addressing: capabilities.unified_addressing.into(),
            host_register: capabilities.host_register.into(),
            read_only_register: capabilities.read_only_register.into(),
            read_only_register_attribute: capabilities.read_only_register_attribute.into(),
            pageable_access: capabilities.pageable_access.into(),
            integrated: capabilities.integrated.into(),
            numa_node: capabilities.numa_node.and_then(|node| node.try_into().ok()).unwrap_or(-1),
            pin: policy.pin.into(),
            views: policy.views.into(),
            memlock_limit: capabilities.memlock_limit.unwrap_or(u64::MAX),
            total_bytes,
            free_bytes,
            name: chars(&capabilities.name),
            pin_reason: chars(&policy.pin_reason),
            views_reason: chars(&policy.views_reason),
            address_granularity,
            address_reason: chars(address_reason),
            ..CStruct::init()
        })
    })
}

/// Fills `stats` with what was created through this handle and is still alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_get_stats(
    device: *const wb_device,
    stats: *mut wb_device_stats,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device| -> stats {
        let DeviceStats { buffers, views, deferred, asked, mapped, pinned, device_bytes } =
            device.counters().snapshot();
        Ok(wb_device_stats {
            buffers,
            views,
            deferred,
            asked_bytes: asked,
            mapped_bytes: mapped,
            pinned_bytes: pinned,
            device_bytes,
            errors_logged: log::recorded(),
            ..CStruct::init()
        })
    })
}

/// Measures the bandwidth from pinned host memory to the device, in bytes per second: the fastest
/// of three copies of 64 MiB. Plans made for this device afterwards predict the time of a step from
/// it.
///
/// Uses its own stream, 8 MiB of pinned memory and 8 MiB of device memory, and waits on the host.
/// Fails as wb_buffer_alloc and wb_device_alloc do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_measure_link(
    device: *const wb_device,
    bytes_per_second: *mut f64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>| -> bytes_per_second { link::measure(&device) })
}
