//! `wb_device`: a place to compute.

mod work;

use std::ffi::{c_char, c_void};
use std::time::Duration;

pub use work::*;

use crate::capi::arguments::{
    Sized32, check_output, check_reserved, choice, read_struct, text, write_struct,
};
use crate::capi::error::{guard, guard_void, wb_error, write_text};
use crate::capi::handle;
use crate::capi::handle::Handle;
use crate::device::cuda;
use crate::device::device::{Device, DeviceOptions};
use crate::device::stats::DeviceStats;
use crate::memory::{deferred, link};
use crate::os::log;
use crate::status::wb_status;

/// A place to compute: a CUDA device, or the host, which is always there.
pub struct wb_device {
    _opaque: [u8; 0],
}

impl Handle for Device {
    type Opaque = wb_device;
    const NAME: &'static str = "wb_device";
}

/// Yes, no, or as environment and platform have it.
pub type wb_tristate = i32;
/// As the environment and the platform have it; the default.
pub const WB_TRISTATE_AUTO: wb_tristate = 0;
/// Yes; wins over the environment.
pub const WB_TRISTATE_ON: wb_tristate = 1;
/// No; wins over the environment.
pub const WB_TRISTATE_OFF: wb_tristate = 2;

/// What a device is.
pub type wb_device_kind = i32;
/// The host's processors and memory.
pub const WB_DEVICE_HOST: wb_device_kind = 1;
/// A CUDA device.
pub const WB_DEVICE_CUDA: wb_device_kind = 2;

/// How to open a device. Begin with WB_DEVICE_OPTIONS_INIT.
#[repr(C)]
pub struct wb_device_options {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// Pin host memory? A wb_tristate; WEIGHBRIDGE_DISABLE_PIN_MEMORY=1 switches WB_TRISTATE_AUTO off.
    pub pin: wb_tristate,
    /// Let the device read host memory in place? A wb_tristate; WEIGHBRIDGE_DISABLE_UVA=1 switches
    /// WB_TRISTATE_AUTO off.
    pub views: wb_tristate,
    /// 0.
    pub reserved0: u32,
    /// The caller's own CUcontext, which must outlive the device; NULL for the primary context.
    pub context: *mut c_void,
    /// Bytes of device memory that the host device has; 0 for as much as the machine.
    pub capacity_bytes: u64,
    /// 0.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), begins with its size, numbers and pointers only.
unsafe impl Sized32 for wb_device_options {
    const NAME: &'static str = "wb_device_options";
}

/// The platform's truth, and the policy decided from it. Begin with WB_DEVICE_INFO_INIT.
#[repr(C)]
pub struct wb_device_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// A wb_device_kind.
    pub kind: wb_device_kind,
    /// Ordinal among the devices of its kind.
    pub ordinal: i32,
    /// CUDA's version of the driver, 13000 for 13.0; 0 for the host.
    pub driver_version: i32,
    /// Compute capability times ten, 90 for 9.0; 0 for the host.
    pub compute_capability: i32,
    /// 1 when host and device share one address space.
    pub unified_addressing: i32,
    /// 1 when existing memory can be registered.
    pub host_register: i32,
    /// 1 when registering a read-only page worked: what the library goes by.
    pub read_only_register: i32,
    /// What the driver's attribute says of it.
    pub read_only_register_attribute: i32,
    /// 1 when any pointer of the process is a device pointer.
    pub pageable_access: i32,
    /// 1 when the device shares the host's memory.
    pub integrated: i32,
    /// The NUMA node that the device hangs on; -1 when unknown.
    pub numa_node: i32,
    /// 1 when the policy is to pin host memory.
    pub pin: i32,
    /// 1 when the policy is to let the device read host memory in place.
    pub views: i32,
    /// Bytes that this process may lock; UINT64_MAX without a limit.
    pub memlock_limit: u64,
    /// Bytes of device memory.
    pub total_bytes: u64,
    /// Bytes of device memory that are free now.
    pub free_bytes: u64,
    /// The device's own name.
    pub name: [c_char; 256],
    /// Why the policy is to pin, or not to.
    pub pin_reason: [c_char; 256],
    /// Why the policy is to use views, or not to.
    pub views_reason: [c_char; 256],
}

// SAFETY: repr(C), begins with its size, numbers only.
unsafe impl Sized32 for wb_device_info {
    const NAME: &'static str = "wb_device_info";
}

/// What lives on a device now. All but errors_logged return to 0. Begin with WB_DEVICE_STATS_INIT.
#[repr(C)]
pub struct wb_device_stats {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// 0.
    pub reserved0: u32,
    /// Buffers alive.
    pub buffers: u64,
    /// Views alive.
    pub views: u64,
    /// References that wait for a stream or for the thread that gives memory back.
    pub deferred: u64,
    /// Bytes asked for by the buffers alive.
    pub asked_bytes: u64,
    /// Bytes of address space mapped for them.
    pub mapped_bytes: u64,
    /// Bytes pinned for them, as the driver or the kernel counts them.
    pub pinned_bytes: u64,
    /// Bytes of device memory from wb_device_alloc.
    pub device_bytes: u64,
    /// Errors that went to the log sink since the process began.
    pub errors_logged: u64,
}

// SAFETY: repr(C), begins with its size, numbers only.
unsafe impl Sized32 for wb_device_stats {
    const NAME: &'static str = "wb_device_stats";
}

/// How many CUDA devices there are.
///
/// Any thread. Errors: WB_ERR_NO_DRIVER, WB_ERR_DRIVER_TOO_OLD, WB_ERR_DRIVER.
///
/// # Safety
/// Pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_get_cuda_count(
    count: *mut i32,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(count, "count")?;
        let found = cuda::device::device_count()?;
        // SAFETY: not NULL.
        unsafe { *count = found };
        Ok(())
    })
}

/// Opens a device by its name: "host", or "cuda:N" by CUDA's ordinal. `options` may be NULL.
///
/// Ownership: one reference, given back with wb_device_release. A CUDA device's primary context is
/// retained (or the caller's context used); it is never reset, and the calling thread's current
/// context is restored after every call. Any thread.
/// Errors: WB_ERR_NO_DEVICE, WB_ERR_NO_DRIVER, WB_ERR_DRIVER_TOO_OLD, WB_ERR_INVALID_ARGUMENT (also
/// for an environment variable that says neither yes nor no), WB_ERR_DRIVER.
///
/// # Safety
/// Pointers are NULL or valid; `name` ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_open(
    name: *const c_char,
    options: *const wb_device_options,
    device: *mut *mut wb_device,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(device, "device")?;
        // SAFETY: the caller's promise.
        let (name, options) = unsafe { (text(name, "name")?, read_struct(options, DEFAULTS)?) };
        check_reserved(&options.reserved, "wb_device_options")?;
        check_reserved(&[options.reserved0.into()], "wb_device_options")?;
        let opened = Device::open(
            name,
            DeviceOptions {
                pin: choice(options.pin, "wb_device_options.pin")?,
                views: choice(options.views, "wb_device_options.views")?,
                capacity_bytes: options.capacity_bytes,
                context: options.context as usize,
            },
        )?;
        // SAFETY: not NULL.
        unsafe { *device = handle::give(opened) };
        Ok(())
    })
}

const DEFAULTS: wb_device_options = wb_device_options {
    struct_size: size_of::<wb_device_options>() as u32,
    pin: WB_TRISTATE_AUTO,
    views: WB_TRISTATE_AUTO,
    reserved0: 0,
    context: std::ptr::null_mut(),
    capacity_bytes: 0,
    reserved: [0; 4],
};

/// Adds a reference. Any thread.
///
/// # Safety
/// `device` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_retain(device: *const wb_device) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<Device>(device) });
}

/// Drops a reference. Buffers and views hold their device, so it may go first. Any thread.
///
/// # Safety
/// `device` is NULL or alive, and this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_release(device: *mut wb_device) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<Device>(device) }.map(drop));
}

/// Answers what the platform is and what the policy is. Any thread. Errors: WB_ERR_DRIVER.
///
/// # Safety
/// `device` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_get_info(
    device: *const wb_device,
    info: *mut wb_device_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(info, "info")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        let (capabilities, policy) = (device.capabilities(), device.policy());
        let (free_bytes, total_bytes) = device.backend().memory()?;
        let chars = |content: &str| {
            let mut chars = [0; 256];
            // SAFETY: the array is as long as is said.
            unsafe { write_text(chars.as_mut_ptr(), chars.len(), content) };
            chars
        };
        let described = wb_device_info {
            struct_size: size_of::<wb_device_info>() as u32,
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
            numa_node: capabilities
                .numa_node
                .and_then(|node| i32::try_from(node).ok())
                .unwrap_or(-1),
            pin: policy.pin.into(),
            views: policy.views.into(),
            memlock_limit: capabilities.memlock_limit.unwrap_or(u64::MAX),
            total_bytes,
            free_bytes,
            name: chars(&capabilities.name),
            pin_reason: chars(&policy.pin_reason),
            views_reason: chars(&policy.views_reason),
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// Measures what the link carries: bytes a second from pinned host memory to the device, the fastest
/// of three runs of 64 MiB. Plans that are made for this device afterwards predict a step's time by it,
/// unless they are told another. Takes 8 MiB of pinned and of device memory while it runs.
///
/// Stream order: on a stream of its own; the host waits. Any thread.
/// Errors: those of wb_buffer_alloc and wb_device_alloc, WB_ERR_DRIVER.
///
/// # Safety
/// `device` is NULL or alive; `bytes_per_second` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_measure_link(
    device: *const wb_device,
    bytes_per_second: *mut f64,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(bytes_per_second, "bytes_per_second")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        let measured = link::measure(&device)?;
        // SAFETY: not NULL.
        unsafe { *bytes_per_second = measured };
        Ok(())
    })
}

/// Counts what lives on the device now, made through this handle. Any thread.
///
/// # Safety
/// `device` is NULL or alive; `usage` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_get_stats(
    device: *const wb_device,
    usage: *mut wb_device_stats,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Device>(device) }?;
        let DeviceStats { buffers, views, deferred, asked, mapped, pinned, device_bytes } =
            device.counters().snapshot();
        let measured = wb_device_stats {
            struct_size: size_of::<wb_device_stats>() as u32,
            reserved0: 0,
            buffers,
            views,
            deferred,
            asked_bytes: asked,
            mapped_bytes: mapped,
            pinned_bytes: pinned,
            device_bytes,
            errors_logged: log::recorded(),
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(usage, &measured) }
    })
}

/// Waits until every reference that was to go after a stream, or was let go by a DLPack consumer,
/// is gone; at most `timeout_ms` milliseconds.
///
/// Any thread, but not from a callback of this library. Errors: WB_ERR_TIMEOUT, WB_ERR_FORKED.
///
/// # Safety
/// `device` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_drain(
    device: *const wb_device,
    timeout_ms: u64,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        // A day is as good as for ever, and cannot overflow the clock.
        deferred::drain(&device, Duration::from_millis(timeout_ms.min(86_400_000)))
    })
}
