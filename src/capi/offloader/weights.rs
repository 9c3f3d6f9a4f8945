//! An offloader's parameters: where they are, and how they change.

use std::ffi::{c_char, c_void};

use crate::capi::arguments::{Sized32, check_output, check_struct, text, write_struct};
use crate::capi::error::{guard, wb_error};
use crate::capi::offloader::{source_of, wb_offloader};
use crate::capi::parameter::{
    parameters_from, placement_codes, wb_parameter, wb_placement, wb_transfer_mode,
};
use crate::capi::view::{wb_layout, wb_view};
use crate::capi::{handle, view};
use crate::device::backend::Stream;
use crate::error::Result;
use crate::memory::view::View;
use crate::offload::offloader::Offloader;
use crate::os::sync::Arc;
use crate::status::wb_status;

/// What a parameter of an offloader is. Begin with WB_OFFLOADER_PARAMETER_INFO_INIT.
#[repr(C)]
pub struct wb_offloader_parameter_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED.
    pub placement: wb_placement,
    /// How it is transferred; WB_TRANSFER_MODE_AUTO for a resident parameter.
    pub transfer_mode: wb_transfer_mode,
    /// 1 if the memory at `device_address` belongs to the offloader, 0 if it is the engine's own.
    pub owned: i32,
    /// Its name, ending in NUL; valid until the parameter is removed.
    pub name: *const c_char,
    /// Index of its group.
    pub group: u64,
    /// Device address of the first element: of a zero-copy or a resident parameter always, of another
    /// while its group is acquired. NULL for a parameter that has no bytes yet.
    pub device_address: *mut c_void,
    /// Where the host finds the first element of what is offloaded; NULL for a resident parameter.
    pub host_address: *mut c_void,
    /// Bytes from its lowest to the end of its highest element.
    pub span_bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers and a pointer.
unsafe impl Sized32 for wb_offloader_parameter_info {
    const NAME: &'static str = "wb_offloader_parameter_info";
}

/// Gets the index of the parameter with a name. An index is valid until a parameter is removed.
///
/// Fails with WB_ERR_NOT_FOUND if no parameter has this name.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `index` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_find_parameter(
    offloader: *const wb_offloader,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(index, "index")?;
        // SAFETY: the caller's promise.
        let (offloader, name) =
            unsafe { (handle::borrow::<Offloader>(offloader)?, text(name, "name")?) };
        let found = offloader.find_parameter(name)?;
        // SAFETY: not NULL.
        unsafe { *index = found as u64 };
        Ok(())
    })
}

/// Fills `info` with the properties of parameter `index`.
///
/// Fails with WB_ERR_OUT_OF_RANGE if there is no such parameter.
///
/// # Safety
/// `offloader` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_parameter_info(
    offloader: *const wb_offloader,
    index: u64,
    info: *mut wb_offloader_parameter_info,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    unsafe { wb_offloader_get_parameter_infos(offloader, index, 1, info, error) }
}

/// Fills `infos`, an array of `count` structs, with the properties of the parameters from index `first` on.
/// Every struct begins with the same struct_size.
///
/// Fails with WB_ERR_OUT_OF_RANGE, with nothing filled, if there are fewer parameters.
///
/// # Safety
/// `offloader` is NULL or alive; `infos` is NULL or valid for `count` structs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_parameter_infos(
    offloader: *const wb_offloader,
    first: u64,
    count: u64,
    infos: *mut wb_offloader_parameter_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
        if count > 0 {
            // SAFETY: the caller's promise.
            unsafe { check_struct(infos) }?;
        }
        let found = offloader.parameter_infos(first as usize, count as usize)?;
        for (at, found) in found.into_iter().enumerate() {
            // SAFETY: the caller's promise; every struct begins with its size.
            let info = unsafe { infos.byte_add(at * (*infos).struct_size as usize) };
            let (placement, transfer_mode) = placement_codes(found.transfer_mode);
            let described = wb_offloader_parameter_info {
                struct_size: size_of::<wb_offloader_parameter_info>() as u32,
                placement,
                transfer_mode,
                owned: found.owned.into(),
                name: found.name.as_ptr(),
                group: found.group as u64,
                device_address: found.device_address.unwrap_or(0) as *mut c_void,
                host_address: found.host_address.unwrap_or(0) as *mut c_void,
                span_bytes: found.layout.span_bytes(),
            };
            // SAFETY: the caller's promise.
            unsafe { write_struct(info, &described) }?;
        }
        Ok(())
    })
}

/// # Safety
/// `offloader` is NULL or alive; `view` is NULL or valid.
unsafe fn give_view(
    offloader: *const wb_offloader,
    index: u64,
    view: *mut *mut wb_view,
    make: impl FnOnce(&Offloader, usize) -> Result<Arc<View>>,
) -> Result<()> {
    check_output(view, "view")?;
    // SAFETY: the caller's promise.
    let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
    let made = make(offloader, index as usize)?;
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
pub unsafe extern "C" fn wb_offloader_get_view(
    offloader: *const wb_offloader,
    index: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { give_view(offloader, index, view, Offloader::view) })
}

/// A view of the host's bytes of an offloaded parameter, to read them or to save them.
///
/// Ownership: one reference; the view holds the memory, not the offloader. Any thread.
/// Errors: WB_ERR_NOT_FOUND, also for a resident parameter, of which the host holds no bytes.
///
/// # Safety
/// `offloader` is NULL or alive; `name` ends in NUL; `view` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_host_view(
    offloader: *const wb_offloader,
    index: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { give_view(offloader, index, view, Offloader::host_view) })
}

/// Gives a parameter new bytes, and a new type, shape or strides where `layout` says so. Where it is
/// kept stays as planned: offloaded bytes go to the host's memory, wherever `source` lies; they take the
/// old room where they fit, and otherwise other room, for which the old is given up first. Parameters
/// that are tied to it follow when the bytes are as many, and keep the old ones when they are not; in
/// memory of the engine's own each has the address that was given for it.
///
/// `source` is an address in host or device memory from which the layout's offset counts. It may be one that
/// this offloader gave: the parameter's own bytes in another layout stay where they are, those of others
/// are copied on the host first. Slots are a source for parameters of the group that they are for.
///
/// Stream order: waits on the host for what is queued on `stream` and for every use of the group that
/// was released. The source is not needed any more when the call returns, unless the parameter is
/// resident and the source lies on the device: then it stays there. Any thread.
/// Errors: WB_ERR_NOT_FOUND, WB_ERR_BUSY with nothing changed while its group is acquired, or where
/// its bytes become more or fewer, any group; WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET, WB_ERR_OVERFLOW and
/// WB_ERR_INVALID_ARGUMENT with nothing changed, WB_ERR_CAPTURING, and those of wb_buffer_alloc and of
/// bringing the bytes: the parameter, and what is tied to it, then has none until it is replaced again,
/// which places it as planned; what is kept in 8 bits is not to be used until then. Where the plan refuses NaN and infinity, WB_ERR_NOT_FINITE with
/// nothing changed.
///
/// # Safety
/// The source's bytes may be read until the call returns, or as long as the offloader lives (see above).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_replace(
    offloader: *const wb_offloader,
    name: *const c_char,
    source: *const c_void,
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
        let source =
            offloader.device().locate(unsafe { view::source(source, &layout, offset) }?)?;
        offloader.replace(name, layout, source, Stream(stream as usize))
    })
}

/// Adds parameters, offloaded where the plan's selectors and budgets allow it, resident otherwise.
///
/// Stream order: as for wb_offloader_new; sources: as for wb_offloader_replace. Any thread.
/// Errors, with nothing added: WB_ERR_INVALID_ARGUMENT for a name that is there already or a group that
/// is not, WB_ERR_BUDGET where it has to stay on the device and there is no room, WB_ERR_OVERFLOW,
/// WB_ERR_NOT_MAPPED where it is to be a view and views are off, WB_ERR_BUSY, WB_ERR_CAPTURING, and those
/// of wb_buffer_alloc and wb_device_alloc.
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
/// was released. Any thread. Errors: WB_ERR_NOT_FOUND, WB_ERR_BUSY, WB_ERR_CAPTURING; WB_ERR_DEVICE_MEMORY
/// where slots that were lost before are still not to be had: it is removed all the same.
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

/// What wb_offloader_reconcile did. Begin with WB_OFFLOADER_RECONCILE_RESULT_INIT.
#[repr(C)]
pub struct wb_offloader_reconcile_result {
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
unsafe impl Sized32 for wb_offloader_reconcile_result {
    const NAME: &'static str = "wb_offloader_reconcile_result";
}

/// Makes the offloader hold what an engine's parameters are now: `parameters` are all of them, each with
/// the address that the engine uses. An address that is not the one that this offloader gave, or a
/// layout that differs, is a replacement; a new name is added, a name that is missing removed. Parameters
/// may have been renamed or exchanged: sources in memory of the offloader, as for wb_offloader_replace,
/// are judged and copied aside before anything is changed. An empty tensor needs no address. At the end the room that was freed is closed up, as by wb_offloader_compact.
///
/// Stream order, sources and errors: as for wb_offloader_replace, _add and _remove. Any thread. After an
/// error what was done before it stays done, and may have moved other parameters: ask for the addresses
/// again, then make the call again.
///
/// # Safety
/// As for wb_offloader_replace, of every parameter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reconcile(
    offloader: *const wb_offloader,
    parameters: *const wb_parameter,
    count: u64,
    stream: *mut c_void,
    result: *mut wb_offloader_reconcile_result,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let offloader = unsafe { handle::borrow::<Offloader>(offloader) }?;
        // SAFETY: the caller's promise.
        let parameters = unsafe {
            check_struct(result)?;
            parameters_from(parameters, count)
        }?;
        let mut now = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            // SAFETY: the caller's promise.
            let source = unsafe { source_of(offloader.device(), &parameter) }?;
            now.push((parameter, source));
        }
        let done = offloader.reconcile(now, Stream(stream as usize))?;
        let described = wb_offloader_reconcile_result {
            struct_size: size_of::<wb_offloader_reconcile_result>() as u32,
            reserved0: 0,
            replaced: done.replaced,
            added: done.added,
            removed: done.removed,
            kept: done.kept,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(result, &described) }
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
