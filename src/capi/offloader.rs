//! `wb_offloader`: a committed plan, and the machinery that carries its parameters.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use crate::capi::arguments::{Sized32, check_output, text, write_struct};
use crate::capi::buffer::{wb_buffer_options, with_options};
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::handle::{self, Handle};
use crate::capi::parameter::{
    WB_CARRIER_NONE, carrier_code, parameters_from, wb_carrier, wb_parameter,
};
use crate::capi::plan::{Planned, wb_plan};
use crate::capi::view::{self, wb_layout, wb_view};
use crate::device::{Device, Stream};
use crate::error::{Result, fail};
use crate::memory::pages::Span;
use crate::memory::view::View;
use crate::offload::offloader::{Offloader, Source};
use crate::offload::parameter::{Origin, Parameter, Source as Given};
use crate::status::{WB_ERR_OVERFLOW, wb_status};

/// Parameters under a budget: where they are kept, and what carries them. How an engine uses it:
///
/// 1. Describe. One wb_parameter for each weight: its name, its layout, where its bytes are now (host or
///    device memory, or nowhere yet), and its group, which is what the engine uses together: a layer.
///    Weights that share bytes are found by their addresses, or by `storage` where there are none.
/// 2. Plan. wb_plan_new takes one budget and decides what leaves the device and how it is carried; nothing
///    is allocated. With `quantize` in its options matrices are planned, and kept, in 8 bits, with their
///    scales as weights of their own. wb_plan_json prints it, with a reason for every weight. What cannot
///    be meant (nothing leaves, a selector that matches nothing, slots that do not fit) is an error with
///    a name.
/// 3. Commit. wb_offloader_new takes the host memory and the slots and copies the weights there. Then the
///    engine drops its own copies of what is offloaded, and asks wb_offloader_parameter for each address,
///    or wb_offloader_view for a tensor that keeps its memory.
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
/// and what was carried is in wb_offloader_measure, and adds up.
pub struct wb_offloader {
    _opaque: [u8; 0],
}

impl Handle for Offloader {
    type Opaque = wb_offloader;
    const NAME: &'static str = "wb_offloader";
}

/// What a parameter of an offloader is. Begin with WB_OFFLOADED_INFO_INIT.
#[repr(C)]
pub struct wb_offloaded_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// How it is carried; WB_CARRIER_NONE while it is resident.
    pub carrier: wb_carrier,
    /// Its group.
    pub group: u64,
    /// Where the device finds the first element: of a view or a resident parameter always, of another
    /// while its group is acquired. 0 for a parameter that has no bytes yet.
    pub device_address: u64,
    /// Where the host finds the first element of what is offloaded; NULL for a resident parameter.
    pub host_address: *mut c_void,
    /// Bytes from its lowest to the end of its highest element.
    pub span_bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers and a pointer.
unsafe impl Sized32 for wb_offloaded_info {
    const NAME: &'static str = "wb_offloaded_info";
}

/// What an offloader holds and has done. Begin with WB_OFFLOADER_STATS_INIT.
#[repr(C)]
pub struct wb_offloader_stats {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// 0.
    pub reserved0: u32,
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
    pub late: u64,
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
unsafe fn source_of(device: &Device, parameter: &Parameter) -> Result<Option<Source>> {
    let (Given { address, on_device }, layout) = match &parameter.origin {
        Origin::Quantized(from) => (from.source, &from.layout),
        Origin::Given | Origin::Scales => (parameter.source, &parameter.layout),
    };
    let bytes = layout.span_bytes();
    if address == 0 || bytes == 0 {
        return Ok(None);
    }
    let on_device = on_device || device.backend().is_device_memory(address)?;
    // SAFETY: the caller's promise.
    let Some(span) = (unsafe { Span::checked(address, bytes) }) else {
        fail!(
            WB_ERR_OVERFLOW,
            "the {bytes} bytes of parameter {:?} at {address:#x} go past the last address",
            parameter.name
        )
    };
    Ok(Some(Source { span, on_device }))
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

/// The number of a group, by which it is acquired. Groups count from 0 in the order in which the
/// plan's parameters first named them. Any thread. Errors: WB_ERR_NOT_FOUND.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `group` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_group(
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
        let found = offloader.group(name)?;
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
        offloader.acquire(group as usize, Stream(stream as usize))
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
        offloader.release(group as usize, Stream(stream as usize))
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

/// Answers what a parameter is and where. Any thread. Errors: WB_ERR_NOT_FOUND.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `info` is NULL or valid for the size that it
/// begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_parameter(
    offloader: *const wb_offloader,
    name: *const c_char,
    info: *mut wb_offloaded_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let (offloader, name) =
            unsafe { (handle::borrow::<Offloader>(offloader)?, text(name, "name")?) };
        let found = offloader.describe(name)?;
        let described = wb_offloaded_info {
            struct_size: size_of::<wb_offloaded_info>() as u32,
            carrier: found.carrier.map_or(WB_CARRIER_NONE, carrier_code),
            group: found.group as u64,
            device_address: found.device_address.unwrap_or(0),
            host_address: found.host_address.unwrap_or(0) as *mut c_void,
            span_bytes: found.layout.span_bytes(),
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `view` is NULL or valid.
unsafe fn give_view(
    offloader: *const wb_offloader,
    name: *const c_char,
    view: *mut *mut wb_view,
    make: impl FnOnce(&Offloader, &str) -> Result<Arc<View>>,
) -> Result<()> {
    check_output(view, "view")?;
    // SAFETY: the caller's promise.
    let (offloader, name) =
        unsafe { (handle::borrow::<Offloader>(offloader)?, text(name, "name")?) };
    let made = make(offloader, name)?;
    // SAFETY: not NULL.
    unsafe { *view = handle::give(made) };
    Ok(())
}

/// A view of a parameter from the device: of host memory that it reads in place, of the slot, or of
/// what the offloader keeps on the device. What a slot's view shows is the parameter while its group
/// is acquired.
///
/// Ownership: one reference; the view holds the memory, not the offloader. Any thread.
/// Errors: WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED for a resident parameter in memory of the engine's.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `view` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_view(
    offloader: *const wb_offloader,
    name: *const c_char,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { give_view(offloader, name, view, Offloader::view) })
}

/// A view of the host's bytes of an offloaded parameter, to read them or to save them.
///
/// Ownership: one reference; the view holds the memory, not the offloader. Any thread.
/// Errors: WB_ERR_NOT_FOUND, also for a resident parameter, of which the host holds no bytes.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `view` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_host_view(
    offloader: *const wb_offloader,
    name: *const c_char,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { give_view(offloader, name, view, Offloader::host_view) })
}

/// Gives a parameter new bytes, and a new type, shape or strides where `layout` says so. Where it is
/// kept stays as planned: offloaded bytes go to the host's memory, wherever `source` lies; they take the
/// old room where they fit, and otherwise other room, for which the old is given up first. Parameters
/// that are tied to it follow when the bytes are as many, and keep the old ones when they are not.
///
/// `source` is an address in host or device memory from which the layout's offset counts.
///
/// Stream order: waits on the host for what is queued on `stream` and for every use of the group that
/// was released. The source is not needed any more when the call returns, unless the parameter is
/// resident and the source lies on the device: then it stays there. Any thread.
/// Errors: WB_ERR_NOT_FOUND, WB_ERR_BUSY with nothing changed while its group is acquired, or where
/// its bytes become more or fewer, any group; WB_ERR_BUDGET with nothing changed,
/// WB_ERR_CAPTURING, and those of wb_buffer_alloc.
///
/// # Safety
/// The source's bytes may be read until the call returns, or as long as the offloader lives (see above).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_replace(
    offloader: *const wb_offloader,
    name: *const c_char,
    source: u64,
    layout: *const wb_layout,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let (offloader, name) =
            unsafe { (handle::borrow::<Offloader>(offloader)?, text(name, "name")?) };
        // SAFETY: the caller's promise.
        let (layout, offset) = unsafe { view::layout(layout) }?;
        // SAFETY: the caller's promise.
        let span = unsafe {
            view::source(ptr::with_exposed_provenance(source as usize), &layout, offset)
        }?;
        let on_device = offloader.device().backend().is_device_memory(span.start() as u64)?;
        offloader.replace(name, layout, Source { span, on_device }, Stream(stream as usize))
    })
}

/// Adds parameters, offloaded where the plan's selectors and budget allow it, resident otherwise.
///
/// Stream order and sources: as for wb_offloader_new. Any thread.
/// Errors: WB_ERR_INVALID_ARGUMENT for a name that is there already or a group that is not,
/// WB_ERR_BUSY, WB_ERR_CAPTURING, and those of wb_buffer_alloc.
///
/// # Safety
/// `parameter` is NULL or valid as for wb_plan_new; its source may be read until the call returns, and
/// as long as the offloader lives where it stays on the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_add(
    offloader: *const wb_offloader,
    parameter: *const wb_parameter,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
        // SAFETY: the caller's promise.
        for parameter in unsafe { parameters_from(parameter, 1) }? {
            // SAFETY: the caller's promise.
            let source = unsafe { source_of(offloader.device(), &parameter) }?;
            offloader.add(parameter, source, Stream(stream as usize))?;
        }
        Ok(())
    })
}

/// Removes a parameter; its room is free for others.
///
/// Stream order: waits on the host for what is queued on `stream` and for every use of the group that
/// was released. Any thread. Errors: WB_ERR_NOT_FOUND, WB_ERR_BUSY, WB_ERR_CAPTURING.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_remove(
    offloader: *const wb_offloader,
    name: *const c_char,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let (offloader, name) =
            unsafe { (handle::borrow::<Offloader>(offloader)?, text(name, "name")?) };
        offloader.remove(name, Stream(stream as usize))
    })
}

/// What wb_offloader_reconcile did. Begin with WB_RECONCILED_INIT.
#[repr(C)]
pub struct wb_reconciled {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// 0.
    pub reserved0: u32,
    /// Parameters whose bytes lay elsewhere and were taken over.
    pub replaced: u64,
    /// Parameters of new names.
    pub added: u64,
    /// Names that are gone.
    pub removed: u64,
    /// Parameters that are where they were.
    pub kept: u64,
}

// SAFETY: repr(C), begins with its size; numbers.
unsafe impl Sized32 for wb_reconciled {
    const NAME: &'static str = "wb_reconciled";
}

/// Makes the offloader hold what an engine's parameters are now: `parameters` are all of them, each with
/// the address that the engine uses. An address that is not the one that this offloader gave, or a
/// layout that differs, is a replacement; a new name is added, a name that is missing removed. At the
/// end the room that was freed is closed up, as by wb_offloader_compact.
///
/// Stream order, sources and errors: as for wb_offloader_replace, _add and _remove. Any thread. After an
/// error the calls that went before it stay done, and the same call may be made again.
///
/// # Safety
/// As for wb_offloader_replace, of every parameter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reconcile(
    offloader: *const wb_offloader,
    parameters: *const wb_parameter,
    count: u64,
    stream: *mut c_void,
    reconciled: *mut wb_reconciled,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
        // SAFETY: the caller's promise.
        let parameters = unsafe { parameters_from(parameters, count) }?;
        let mut now = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            // SAFETY: the caller's promise.
            let source = unsafe { source_of(offloader.device(), &parameter) }?;
            now.push((parameter, source));
        }
        let done = offloader.reconcile(now, Stream(stream as usize))?;
        let described = wb_reconciled {
            struct_size: size_of::<wb_reconciled>() as u32,
            reserved0: 0,
            replaced: done.replaced,
            added: done.added,
            removed: done.removed,
            kept: done.kept,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(reconciled, &described) }
    })
}

/// Closes up the room that replaced and removed parameters have left, so that a group again moves as
/// one copy of no more bytes than it has. Addresses change.
///
/// Stream order: waits on the host for what is queued on `stream` and for every use that was released.
/// Any thread. Errors: WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_DRIVER.
///
/// # Safety
/// `offloader` is NULL or alive; `stream` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_compact(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        unsafe { handle::borrow::<Offloader>(offloader) }?.compact(Stream(stream as usize))
    })
}

/// Answers what an offloader holds and has done. Any thread.
///
/// # Safety
/// `offloader` is NULL or alive; `stats` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_measure(
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
            moved_bytes: found.carried.moved_bytes,
            copies: found.carried.copies,
            acquires: found.carried.acquires,
            late: found.carried.late,
            waited_seconds: found.carried.waited_seconds,
            generation: found.generation,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(stats, &described) }
    })
}
