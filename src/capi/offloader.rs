//! `wb_offloader`: a committed plan, and the machinery that carries its parameters.

mod step;
mod weights;

use std::ffi::c_void;

pub use step::*;
pub use weights::*;

use crate::capi::arguments::{Sized32, check_output, write_struct};
use crate::capi::buffer::{wb_buffer_options, with_options};
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::handle;
use crate::capi::handle::Handle;
use crate::capi::plan::{Planned, wb_plan};
use crate::device::backend::{Location, Stream};
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::offload::offloader::Offloader;
use crate::os::span::Span;
use crate::plan::parameter::{Origin, Parameter};
use crate::status::{WB_ERR_OVERFLOW, wb_status};

/// Parameters under a budget: where they are kept, and what carries them. How an engine uses it:
///
/// 1. Describe. One wb_parameter for each weight: its name, its layout, where its bytes are now (host or
///    device memory, or nowhere yet), and its group, which is what the engine uses together: a layer.
///    Weights that share bytes are found by their addresses, or by `storage_id` where there are none.
/// 2. Plan. wb_plan_new takes one budget and decides what leaves the device and how it is carried; nothing
///    is allocated. With `quantize` in its options matrices are planned, and kept, in 8 bits, with their
///    scales as weights of their own. wb_plan_to_json prints it, with a reason for every weight. What cannot
///    be meant (nothing leaves, a selector that matches nothing, slots that do not fit) is an error with
///    a name.
/// 3. Commit. wb_offloader_new takes the host memory and the slots and copies the weights there. Then the
///    engine drops its own copies of what is offloaded, and asks wb_offloader_get_parameter_info for each address,
///    or wb_offloader_get_view for a tensor that keeps its memory.
/// 4. Step. Around the kernels of each layer, on the engine's own stream:
///
/// ```c
/// for (uint64_t layer = 0; layer < layers; layer++) {
///     wb_offloader_acquire_group(offloader, layer, stream, &error);
///     launch_layer(layer, stream);
///     wb_offloader_release_group(offloader, layer, stream, &error);
/// }
/// ```
///
/// The host never waits in it. The next layers' copies run meanwhile, those of the next step's first
/// layers too. Any order of groups is legal and any stream: another than the plan's costs time only. A
/// step that fails half way ends with wb_offloader_reset.
///
/// CUDA graphs. Capture the loop as it is, on one stream from the first group to the last; replay it as
/// often as is wanted, in turn with steps that are not captured. To capture a part of a step, end it with
/// wb_offloader_join. Addresses stay the same until a parameter is replaced, added or removed or
/// wb_offloader_compact is called: `generation` of wb_offloader_stats counts that, and graphs of an older
/// generation are captured again.
///
/// Weights that change. wb_offloader_replace gives a weight new bytes, another type or shape; it stays
/// where the plan keeps it. Where quantization or a plugin has moved weights on its own,
/// wb_offloader_reconcile takes the whole list again and finds by address what lies elsewhere.
///
/// Threads and memory. Every call may come from any thread. Views and the offloader itself may be
/// released in any order; wb_offloader_release waits for the copies that are queued. What holds memory
/// and what was carried is in wb_offloader_get_stats, and adds up.
pub struct wb_offloader {
    _opaque: [u8; 0],
}

impl Handle for Offloader {
    type Opaque = wb_offloader;
    const NAME: &'static str = "wb_offloader";
}

/// What an offloader holds and has done. Begin with WB_OFFLOADER_STATS_INIT.
#[repr(C)]
pub struct wb_offloader_stats {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// 0.
    pub reserved0: u32,
    /// Number of parameters: the indexes that wb_offloader_get_parameter_info takes are smaller.
    pub parameters: u64,
    /// Bytes of parameters that are offloaded, ties counted once.
    pub offloaded_bytes: u64,
    /// Bytes of host memory asked for them, padding and free room included.
    pub asked_bytes: u64,
    /// Bytes of address space taken for it.
    pub mapped_bytes: u64,
    /// Bytes of it that are pinned, as the driver or the kernel counts them.
    pub pinned_bytes: u64,
    /// Bytes of parameters that stay on the device, ties counted once.
    pub resident_bytes: u64,
    /// Bytes of device memory for slots.
    pub slot_bytes: u64,
    /// Bytes of offloaded parameters that the device reads in place.
    pub view_bytes: u64,
    /// Bytes of the pinned buffer that pageable memory is staged through; 0 where memory is pinned.
    pub staging_bytes: u64,
    /// The most of `mapped_bytes` at a time.
    pub peak_mapped_bytes: u64,
    /// The most of `slot_bytes` at a time.
    pub peak_slot_bytes: u64,
    /// Bytes copied into slots. What a replayed graph copies is not seen and not counted, here and below.
    pub moved_bytes: u64,
    /// Copies into slots.
    pub copies: u64,
    /// Groups acquired.
    pub acquires: u64,
    /// Copies that had not begun when their group was acquired, those on demand excepted.
    pub late_copies: u64,
    /// Seconds that streams of the engine have waited for copies.
    pub waited_seconds: f64,
    /// Grows whenever an address changed.
    pub generation: u64,
}

// SAFETY: repr(C), begins with its size; numbers.
unsafe impl Sized32 for wb_offloader_stats {
    const NAME: &'static str = "wb_offloader_stats";
}

/// Where a parameter's bytes come from, if it says so.
///
/// # Safety
/// The bytes may be read until the work that is given the source is done.
unsafe fn source_of(device: &Device, parameter: &Parameter) -> Result<Option<Location>> {
    let (address, layout) = match &parameter.origin {
        Origin::Quantized(from) => (from.source, &from.layout),
        Origin::Given | Origin::Scales => (parameter.source, &parameter.layout),
    };
    let bytes = layout.span_bytes();
    if address == 0 || bytes == 0 {
        return Ok(None);
    }
    let on_device = device.backend().is_device_memory(address)?;
    // SAFETY: the caller's promise.
    let Some(span) = (unsafe { Span::checked(address, bytes) }) else {
        fail!(
            WB_ERR_OVERFLOW,
            "the {bytes} bytes of parameter {:?} at {address:#x} go past the last address",
            parameter.name
        )
    };
    Ok(Some(Location { span, on_device }))
}

/// Commits a plan: takes host memory for what it offloads and device memory for its slots, and copies
/// every parameter that has a source to where it is kept. `options` say how the host memory is made
/// (pinning and progress, for instance), and may be NULL.
///
/// Ownership: one reference; the offloader holds the plan and the device. The sources of offloaded
/// parameters, and of any that lie in host memory, are not needed any more when the call returns; a
/// resident parameter that lies in device memory stays there, the engine's own.
/// Stream order: waits for what is queued on `stream` first, on the host. Any thread.
/// Errors: those of wb_buffer_alloc and wb_device_alloc, WB_ERR_CANCELLED, WB_ERR_DRIVER.
///
/// # Safety
/// `plan` is NULL or alive; the sources given to it may be read until the call returns, those that
/// stay on the device as long as the offloader lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_new(
    plan: *const wb_plan,
    stream: *mut c_void,
    options: *const wb_buffer_options,
    offloader: *mut *mut wb_offloader,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(offloader, "offloader")?;
        // SAFETY: the caller's promise.
        let plan = unsafe { handle::borrow::<Planned>(plan) }?.plan.clone();
        let mut sources = Vec::with_capacity(plan.plan.parameters.len());
        for planned in &plan.plan.parameters {
            // SAFETY: the caller's promise.
            sources.push(unsafe { source_of(&plan.device, &planned.parameter) }?);
        }
        // SAFETY: the caller's promise.
        let made = unsafe {
            with_options(options, |options, progress| {
                Offloader::commit(
                    plan.clone(),
                    &sources,
                    Stream(stream as usize),
                    options,
                    progress,
                )
            })
        }?;
        // SAFETY: not NULL.
        unsafe { *offloader = handle::give(made) };
        Ok(())
    })
}

/// Adds a reference. Any thread.
///
/// # Safety
/// `offloader` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_retain(offloader: *const wb_offloader) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<Offloader>(offloader) });
}

/// Drops a reference. The last one waits for the copies that are queued and for the uses that were
/// released, then gives the memory back, except what views still hold. Any thread.
///
/// # Safety
/// `offloader` is NULL or alive, and this reference is not used again. No graph that captured its
/// calls is launched any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_release(offloader: *mut wb_offloader) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<Offloader>(offloader) }.map(drop));
}

/// Answers what an offloader holds and has done. Any thread.
///
/// # Safety
/// `offloader` is NULL or alive; `stats` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_stats(
    offloader: *const wb_offloader,
    stats: *mut wb_offloader_stats,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let found = unsafe { handle::borrow::<Offloader>(offloader) }?.stats()?;
        let described = wb_offloader_stats {
            struct_size: size_of::<wb_offloader_stats>() as u32,
            reserved0: 0,
            parameters: found.parameters,
            offloaded_bytes: found.offloaded_bytes,
            asked_bytes: found.asked_bytes,
            mapped_bytes: found.mapped_bytes,
            pinned_bytes: found.pinned_bytes,
            resident_bytes: found.resident_bytes,
            slot_bytes: found.slot_bytes,
            view_bytes: found.view_bytes,
            staging_bytes: found.staging_bytes,
            peak_mapped_bytes: found.peak.mapped_bytes,
            peak_slot_bytes: found.peak.slot_bytes,
            moved_bytes: found.transfers.moved_bytes,
            copies: found.transfers.copies,
            acquires: found.transfers.acquires,
            late_copies: found.transfers.late_copies,
            waited_seconds: found.transfers.waited_seconds,
            generation: found.generation,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(stats, &described) }
    })
}
