//! `wb_arbiter`: offloaders that share the memory of a device.

use std::ffi::c_void;
use std::time::Duration;

use crate::capi::arguments::Input;
use crate::capi::call::{call, release, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::capi::offloader::handle::wb_offloader;
use crate::capi::structs::{CStruct, c_struct, read_struct};
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::Result;
use crate::offload::arbiter::{Arbiter, ArbiterProgress, MemberOptions};
use crate::offload::offloader::Offloader;
use crate::os::sync::Arc;
use crate::status::wb_status;

/// Shares a budget of device memory among offloaders with fixed addresses, such as the text
/// encoder, the transformer and the decoder of a diffusion pipeline. What is used next gets memory,
/// and what is idle gives it: first what has the least priority, and of those what was used longest
/// ago. It acts in its calls only. An engine uses it so:
///
/// 1. Commit each offloader with the least memory that it may need, and add it.
/// 2. Before the steps of one, use it, and wait until it holds its memory, or only until it is
///    ready:
///
/// ```c
/// wb_arbiter_use(arbiter, transformer, &progress, &error);
/// wb_arbiter_wait(arbiter, 10000, &progress, &error);
/// ```
///
/// Others give memory first, so that the budget is never exceeded, and an offloader moves when its
/// groups are released and their work is done: steps of one run while another is evicted. What is
/// left less than its slots sleeps, and its next steps need wb_arbiter_use again. An offloader that
/// must run at any time, as on another thread, has a `min_bytes` that is not 0.
pub struct wb_arbiter {
    _opaque: [u8; 0],
}

opaque!(wb_arbiter, Arbiter);

/// How an offloader shares.
#[repr(C)]
pub struct wb_arbiter_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// Offloaders of a higher priority give memory later.
    pub priority: i32,
    /// Bytes of device memory that the others leave it, once it has them: at least its slots,
    /// unless this is 0, with which it may sleep.
    pub min_bytes: u64,
    /// The stream of its steps and of graphs that have captured them.
    pub stream: *mut c_void,
    /// Must be zero.
    pub reserved: [u64; 4],
}

c_struct!(wb_arbiter_options, reserved);

impl Input<MemberOptions> for *const wb_arbiter_options {
    unsafe fn convert(self, _: &str) -> Result<MemberOptions> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self)? };
        let (priority, min_bytes) = (given.priority, given.min_bytes);
        Ok(MemberOptions { priority, min_bytes, stream: Stream(given.stream as usize) })
    }
}

/// How far the change is that was asked for last.
#[repr(C)]
pub struct wb_arbiter_progress {
    /// Size of the struct.
    pub struct_size: u32,
    /// 1 if the offloader that was used last may run steps; it may still be getting memory.
    pub ready: u32,
    /// Offloaders that do not hold yet what they are to hold; 0 once the change is done.
    pub pending_offloaders: u64,
    /// Bytes of device memory of all offloaders: never more than the budget, or than before it was
    /// lowered.
    pub device_bytes: u64,
    /// Bytes of host memory of all offloaders beside their own: see wb_offloader_resize_progress.
    pub host_bytes: u64,
}

c_struct!(wb_arbiter_progress);

fn shown(progress: ArbiterProgress) -> wb_arbiter_progress {
    wb_arbiter_progress {
        ready: u32::from(progress.is_ready),
        pending_offloaders: progress.pending,
        device_bytes: progress.device_bytes,
        host_bytes: progress.host_bytes,
        ..CStruct::init()
    }
}

/// What an offloader of an arbiter holds, and is to hold.
#[repr(C)]
pub struct wb_arbiter_member_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// As it was added.
    pub priority: i32,
    /// As it was added.
    pub min_bytes: u64,
    /// Bytes of its slots, without which it sleeps.
    pub slot_bytes: u64,
    /// Bytes with all of its parameters on the device.
    pub whole_bytes: u64,
    /// Bytes that it is to hold, at most.
    pub target_bytes: u64,
    /// Bytes that it holds.
    pub device_bytes: u64,
    /// 1 if it sleeps: steps are refused.
    pub asleep: u32,
    /// Zero.
    pub reserved0: u32,
}

c_struct!(wb_arbiter_member_info);

/// Creates an arbiter over `device_bytes` bytes of the memory of a device, without offloaders.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_new(
    device: *const wb_device,
    device_bytes: u64,
    arbiter: *mut *mut wb_arbiter,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>| -> arbiter { Arbiter::new(&device, device_bytes) })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_retain(arbiter: *const wb_arbiter) {
    retain!(arbiter)
}

/// Drops a reference. The last one removes all offloaders, which keep what they hold.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_release(arbiter: *mut wb_arbiter) {
    release!(arbiter)
}

/// Adds an offloader with the memory that it holds, as if it was used now. The arbiter keeps a
/// reference to it until it is removed; meanwhile wb_offloader_resize fails for it with
/// WB_ERR_BUSY. `options` may be NULL.
///
/// Fails with WB_ERR_BUDGET if its memory does not fit beside that of the others: lower it with
/// wb_offloader_resize before, or that of the others with wb_arbiter_resize. Fails with
/// WB_ERR_NOT_SUPPORTED without fixed addresses, WB_ERR_BUSY while it is resized or in an arbiter,
/// and WB_ERR_INVALID_ARGUMENT if it is of another device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_add(
    arbiter: *const wb_arbiter,
    offloader: *const wb_offloader,
    options: *const wb_arbiter_options,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter, offloader: Arc<Offloader>, options: MemberOptions| {
        arbiter.add(offloader, options)
    })
}

/// Removes an offloader, which keeps what it holds; its budget is then outside of the arbiter's.
/// Fails with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_remove(
    arbiter: *const wb_arbiter,
    offloader: *const wb_offloader,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter, offloader: &Offloader| arbiter.remove(offloader))
}

/// Begins to give the offloader that is used next as much memory as it can use, and lets the others
/// keep what is left. Does what is possible at once, and fills `progress`: the others are evicted
/// first, and this one gets its slots as soon as they fit, and the rest once all of it does.
/// wb_arbiter_advance goes on, between steps, or wb_arbiter_wait.
///
/// Stream order: where steps of an offloader have been captured, the host waits for the work queued
/// on its stream when it is resized, as wb_offloader_resize does. Streams of others are not waited
/// for. After an error every offloader holds what wb_arbiter_get_member_info says, and any later
/// call goes on. Fails with WB_ERR_BUDGET, and changes nothing, if its slots do not fit beside what
/// the others keep, WB_ERR_NOT_FOUND, and as wb_offloader_resize does. The last call counts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_use(
    arbiter: *const wb_arbiter,
    offloader: *const wb_offloader,
    progress: *mut wb_arbiter_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter, offloader: &Offloader| -> progress {
        arbiter.use_next(offloader).map(shown)
    })
}

/// Changes the budget. Offloaders keep what fits, and get more only when they are used. Otherwise
/// as wb_arbiter_use; memory is free once the change is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_resize(
    arbiter: *const wb_arbiter,
    device_bytes: u64,
    progress: *mut wb_arbiter_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter| -> progress { arbiter.resize(device_bytes).map(shown) })
}

/// Goes on as far as is possible at once. Otherwise as wb_arbiter_use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_advance(
    arbiter: *const wb_arbiter,
    progress: *mut wb_arbiter_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter| -> progress { arbiter.progress().map(shown) })
}

/// Goes on until every offloader holds what it is to hold, for at most `timeout_ms` milliseconds.
/// Other threads may run steps meanwhile. Fails with WB_ERR_TIMEOUT, such as while a group of an
/// idle one stays acquired: the change can be continued. Otherwise as wb_arbiter_use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_wait(
    arbiter: *const wb_arbiter,
    timeout_ms: u64,
    progress: *mut wb_arbiter_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter, timeout_ms: Duration| -> progress {
        arbiter.wait(timeout_ms).map(shown)
    })
}

/// Fills `info` with what an offloader of the arbiter holds. Fails with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arbiter_get_member_info(
    arbiter: *const wb_arbiter,
    offloader: *const wb_offloader,
    info: *mut wb_arbiter_member_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |arbiter: &Arbiter, offloader: &Offloader| -> info {
        arbiter.member_info(offloader).map(|found| wb_arbiter_member_info {
            priority: found.priority,
            min_bytes: found.min_bytes,
            slot_bytes: found.slot_bytes,
            whole_bytes: found.whole_bytes,
            target_bytes: found.target_bytes,
            device_bytes: found.device_bytes,
            asleep: u32::from(found.is_asleep),
            ..CStruct::init()
        })
    })
}
