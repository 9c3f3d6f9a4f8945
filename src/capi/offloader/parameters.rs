//! Parameters of an offloader: where they are, and how they change.

use std::ffi::{c_char, c_void};

use crate::capi::address::Address;
use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::offloader::handle::wb_offloader;
use crate::capi::offloader::source::source_of;
use crate::capi::parameter::{
    GivenParameters, placement_codes, wb_parameter, wb_placement, wb_transfer_mode,
};
use crate::capi::plan::options::{WB_HOST_STORE_COPY, WB_HOST_STORE_SOURCE, wb_host_store};
use crate::capi::structs::{CStruct, c_struct, check_elements};
use crate::capi::view::handle::wb_view;
use crate::capi::view::layout::{GivenLayout, block_of, wb_layout};
use crate::device::backend::Stream;
use crate::error::Result;
use crate::memory::view::Accessor;
use crate::offload::address_state::AddressState;
use crate::offload::offloader::Offloader;
use crate::offload::parameters::ParameterInfo;
use crate::plan::parameter::Parameter;
use crate::status::wb_status;
use crate::tensor::dtype::wb_dtype;

/// The parameter's bytes are behind its address at all times, not only while its group is acquired.
/// Steps copy nothing there, so what an engine changes there between steps counts.
pub const WB_ADDRESS_OWN: u32 = 1;

/// A graph that was captured may copy the parameter's bytes from host memory to its address. With
/// WB_ADDRESS_OWN they are in both places, and change only by wb_offloader_replace.
pub const WB_ADDRESS_COPIED_BY_GRAPHS: u32 = 2;

/// A resize or a rebalance that is not done moves the parameter, or some of it, by a copy of its
/// bytes that is being made or exists already. What is changed in place meanwhile is not where it
/// is afterwards.
pub const WB_ADDRESS_MOVING: u32 = 4;

/// Current state of a parameter.
#[repr(C)]
pub struct wb_offloader_parameter_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED.
    pub placement: wb_placement,
    /// How it is transferred; WB_TRANSFER_MODE_AUTO if it is resident.
    pub transfer_mode: wb_transfer_mode,
    /// 1 if the memory at `device_address` belongs to the offloader, 0 if it is the engine's.
    pub owned: i32,
    /// The name; valid until the parameter is removed.
    pub name: *const c_char,
    /// Index of the group.
    pub group: u64,
    /// Device address of the first element. A prefetched or on-demand parameter is there while its
    /// group is acquired. NULL if there are no bytes yet.
    pub device_address: *mut c_void,
    /// Host address of the first element; NULL if it is resident, in pieces, or compressed in host
    /// memory.
    pub host_address: *mut c_void,
    /// Bytes from the lowest element to the end of the highest.
    pub span_bytes: u64,
    /// The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one that its layout gave.
    pub dtype_name: *const c_char,
    /// `ndim` sizes in elements; the numbers stay valid while the offloader is, and are those of
    /// the time of the call.
    pub shape: *const i64,
    /// `ndim` strides in elements, valid as `shape` is.
    pub strides: *const i64,
    /// The element type.
    pub dtype: wb_dtype,
    /// Number of dimensions.
    pub ndim: i32,
    /// Elements of a block of a WB_DTYPE_OPAQUE, otherwise 0.
    pub block_elements: u32,
    /// Bytes of a block of a WB_DTYPE_OPAQUE, otherwise 0.
    pub block_bytes: u32,
    /// Why it could not be kept as the plan's `host_store` asks, in the buffer of its source or as
    /// a file has it compressed; otherwise empty. Valid while the offloader is.
    pub host_store_reason: *const c_char,
    /// WB_HOST_STORE_SOURCE if its host memory is the buffer of its source.
    pub host_store: wb_host_store,
    /// WB_ADDRESS_* bits: what is behind `device_address`.
    pub address_state: u32,
    /// Bytes that it is compressed to in host memory, with those that it is tied to; 0 if it is
    /// not.
    pub encoded_bytes: u64,
    /// Bytes of it that are on the device now, in memory of its own or of the engine, and not in a
    /// slot. Of a parameter in pieces (wb_offloader_prefer) any number, at a placement that is
    /// offloaded if there are fewer than `span_bytes`.
    pub resident_bytes: u64,
    /// Bytes of device memory in which the device keeps it compressed, a multiple of 256, with
    /// those that it is tied to; 0 if it is decoded from host memory, or not compressed.
    pub device_encoded_bytes: u64,
    /// Why that is 0 though the plan has it otherwise: its compressed bytes, or those of a
    /// replacement, are more than there is device memory for; otherwise empty. Valid as long as the
    /// library is loaded.
    pub device_encoded_reason: *const c_char,
}

c_struct!(wb_offloader_parameter_info);

impl From<ParameterInfo> for wb_offloader_parameter_info {
    fn from(found: ParameterInfo) -> Self {
        let (placement, transfer_mode) = placement_codes(found.transfer_mode);
        let layout = &found.layout;
        let (block_elements, block_bytes) = block_of(layout.dtype());
        Self {
            placement,
            transfer_mode,
            owned: found.owned.into(),
            name: found.name.as_ptr(),
            group: found.group as u64,
            device_address: found.device_address.unwrap_or(0) as *mut c_void,
            host_address: found.host_address.unwrap_or(0) as *mut c_void,
            span_bytes: layout.span_bytes(),
            dtype_name: layout.dtype().c_name().as_ptr(),
            // The offloader keeps the numbers: ParameterInfo.
            shape: layout.shape().as_ptr(),
            strides: layout.strides().as_ptr(),
            dtype: layout.dtype().code(),
            ndim: layout.ndim() as i32,
            block_elements,
            block_bytes,
            host_store_reason: found.store_reason.as_ptr(),
            host_store: match found.in_source {
                true => WB_HOST_STORE_SOURCE,
                false => WB_HOST_STORE_COPY,
            },
            address_state: bits_of(found.address_state),
            encoded_bytes: found.encoded_bytes,
            resident_bytes: found.resident_bytes,
            device_encoded_bytes: found.device_encoded_bytes,
            device_encoded_reason: found.kept_reason.as_ptr(),
            ..Self::init()
        }
    }
}

fn bits_of(found: AddressState) -> u32 {
    let AddressState { own, copied_by_graphs, moving } = found;
    let bit = |is: bool, bit: u32| if is { bit } else { 0 };
    bit(own, WB_ADDRESS_OWN)
        | bit(copied_by_graphs, WB_ADDRESS_COPIED_BY_GRAPHS)
        | bit(moving, WB_ADDRESS_MOVING)
}

/// What wb_offloader_reconcile changed.
#[repr(C)]
pub struct wb_offloader_reconcile_result {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Parameters whose bytes were replaced.
    pub replaced: u64,
    /// Parameters that were added.
    pub added: u64,
    /// Parameters that were removed.
    pub removed: u64,
    /// Parameters that did not change.
    pub kept: u64,
}

c_struct!(wb_offloader_reconcile_result);

/// Gets the index of the parameter with a name, which is valid until a parameter is removed. Fails
/// with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_find_parameter(
    offloader: *const wb_offloader,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, name: &str| -> index {
        offloader.find_parameter(name).map(|index| index as u64)
    })
}

/// Fills `info` with the current state of parameter `index`. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_parameter_info(
    offloader: *const wb_offloader,
    index: u64,
    info: *mut wb_offloader_parameter_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> info {
        offloader.parameter_info(index as usize).map(Into::into)
    })
}

/// Fills an array of `count` structs, each initialized, with the state of the parameters from index
/// `first` on, all of the same moment. Fails with WB_ERR_OUT_OF_RANGE, with nothing filled and no
/// struct but the first read, if there are fewer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_parameter_infos(
    offloader: *const wb_offloader,
    first: u64,
    count: u64,
    infos: *mut wb_offloader_parameter_info,
    error: *mut wb_error,
) -> wb_status {
    let infos = (infos, count);
    call!(error, |offloader: &Offloader| -> infos {
        let found = offloader.parameter_infos(first as usize, count as usize)?;
        // SAFETY: the contract of mod.rs: the array has `count` structs.
        unsafe { check_elements(infos.0, count, "infos") }?;
        Ok(found.into_iter().map(Into::into).collect())
    })
}

/// Creates a view of a parameter for the device: of host memory that it reads in place, of the
/// slot, or of the offloader's device memory. A slot holds the parameter while its group is
/// acquired. The view holds the memory, not the offloader.
///
/// Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_NOT_SUPPORTED for a parameter in the engine's own
/// memory, and with WB_ERR_NOT_FOUND for one without bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_view(
    offloader: *const wb_offloader,
    index: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> view { offloader.view(index as usize) })
}

/// Creates a view of the host memory of an offloaded parameter, to read it or to save it. The view
/// holds the memory, not the offloader. Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_NOT_FOUND for a
/// resident parameter or one in pieces, and with WB_ERR_NOT_SUPPORTED for one that is compressed
/// there, which wb_offloader_read_parameter reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_host_view(
    offloader: *const wb_offloader,
    index: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> view {
        offloader.host_view(index as usize, Accessor::Host)
    })
}

/// Creates a view of the host memory of an offloaded parameter for the device, whatever its
/// transfer mode: kernels read the parameter over the link, whether or not its group is acquired.
/// The view holds the memory, not the offloader.
///
/// Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_NOT_FOUND for a resident parameter or one in pieces,
/// with WB_ERR_NOT_SUPPORTED for one that is compressed, and with WB_ERR_NOT_MAPPED if the device
/// cannot access the memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_zero_copy_view(
    offloader: *const wb_offloader,
    index: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> view {
        offloader.host_view(index as usize, Accessor::Device)
    })
}

/// Copies the bytes of an offloaded parameter, from its lowest element to the end of its highest,
/// to `bytes` bytes of host memory at `target`: as they are in its slot, also if they are
/// compressed in host memory. `bytes` is its `span_bytes`.
///
/// Fails with WB_ERR_OUT_OF_RANGE for another index or other `bytes`, with WB_ERR_NOT_FOUND for a
/// resident parameter or one without bytes, and with WB_ERR_DAMAGED if compressed bytes were
/// overwritten.
///
/// It waits while another call changes parameters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_read_parameter(
    offloader: *const wb_offloader,
    index: u64,
    target: *mut c_void,
    bytes: u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| {
        offloader.read(index as usize, Address(target as u64).span(bytes, "target")?)
    })
}

/// Gives a parameter new bytes, and the type, shape and strides of `layout`, whose offset counts
/// from `source` in host or device memory. The planned placement stays: offloaded bytes are copied
/// to host memory, in place if they fit, otherwise into new memory, for which the old is freed
/// first. Parameters tied to it follow if the number of bytes is the same and otherwise keep their
/// bytes. A resident one in memory of the engine keeps its own address and bytes.
///
/// `source` may be an address that this offloader gave: a new layout of the parameter's own bytes
/// does not move them, and bytes of other parameters are first copied on the host. A slot is a
/// source for parameters of its group only.
///
/// Stream order: waits on the host for the work queued on `stream` and for every use of the group
/// that was released. The source is not needed after the call, unless the parameter is resident and
/// the source is device memory, which then must outlive the offloader.
///
/// Fails, with nothing changed, with WB_ERR_NOT_FOUND, WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET,
/// WB_ERR_OVERFLOW, WB_ERR_CAPTURING, with WB_ERR_BUSY while its group is acquired (any group, if
/// the number of bytes changes), and with WB_ERR_NOT_FINITE if the plan rejects NaN and infinity.
/// Fails also as wb_buffer_alloc and copies do: then the parameter, and those tied to it, have no
/// bytes, and quantized values must not be used, until it is replaced again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_replace(
    offloader: *const wb_offloader,
    name: *const c_char,
    source: *const c_void,
    layout: *const wb_layout,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader,
                  name: &str,
                  source: Address,
                  layout: GivenLayout,
                  stream: Stream| {
        let GivenLayout { layout, offset_bytes } = layout;
        let span = source.tensor(&layout, offset_bytes, "the source")?;
        offloader.replace(name, layout, offloader.device().locate(span)?, stream)
    })
}

/// Adds a parameter to an existing group: offloaded if the group has an offloaded parameter that no
/// other group uses, and the plan's selectors and budget allow it; otherwise resident. It is not
/// quantized. The source, which may be NULL, and the stream are as for wb_offloader_replace; a
/// compressed one (wb_parameter.encoded_bytes) is decoded first.
///
/// Fails, with nothing added, with WB_ERR_DAMAGED for a compressed source that is, with
/// WB_ERR_INVALID_ARGUMENT for an existing name or an unknown group, with WB_ERR_BUDGET if it must
/// stay on the device and does not fit, with WB_ERR_NOT_MAPPED for zero-copy without views, with
/// WB_ERR_OVERFLOW, WB_ERR_BUSY or WB_ERR_CAPTURING, and as wb_buffer_alloc and wb_device_alloc do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_add(
    offloader: *const wb_offloader,
    parameter: *const wb_parameter,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, parameter: Parameter, stream: Stream| {
        let source = source_of(offloader.device(), &parameter)?;
        offloader.add(parameter, source, stream)
    })
}

/// Removes a parameter; others can use its space.
///
/// Stream order: as wb_offloader_replace. Fails with WB_ERR_NOT_FOUND, WB_ERR_BUSY or
/// WB_ERR_CAPTURING. The parameter is removed also if the call fails with WB_ERR_DEVICE_MEMORY:
/// slots that an earlier call lost are still missing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_remove(
    offloader: *const wb_offloader,
    name: *const c_char,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, name: &str, stream: Stream| {
        offloader.remove(name, stream)
    })
}

/// Makes the offloader follow an engine's parameters: `parameters` are all of them, each with the
/// address that the engine uses. One whose address is not the one that this offloader gave, or
/// whose layout differs, is replaced; a new name is added, a missing one removed. Parameters may be
/// renamed, or exchange their names: sources in memory of the offloader are checked, and copied,
/// before anything changes. One without a source keeps its bytes, and takes a layout of as many
/// bytes; a layout of none empties it. If something was replaced or removed, gaps are closed as by
/// wb_offloader_compact. All parameters get their slots at once, at the end.
///
/// Threads: no other call changes parameters between the comparison and the last change.
///
/// Sources, stream order and errors are those of wb_offloader_replace, _add and _remove. A
/// compressed source is that of its parameter still if the parameter stays in it; otherwise it is
/// decoded. Fails also, with nothing changed, with WB_ERR_DAMAGED for the header of such a source,
/// with WB_ERR_INVALID_ARGUMENT for a name that is given twice, for a group that the plan does not
/// have, and for another number of bytes without a source. After another error the changes made so
/// far stay, and other parameters may have moved: get the addresses again, and repeat the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_reconcile(
    offloader: *const wb_offloader,
    parameters: *const wb_parameter,
    count: u64,
    stream: *mut c_void,
    result: *mut wb_offloader_reconcile_result,
    error: *mut wb_error,
) -> wb_status {
    let parameters = (parameters, count);
    call!(error, |offloader: &Offloader, parameters: GivenParameters, stream: Stream| -> result {
        let with_source = |parameter| {
            let source = source_of(offloader.device(), &parameter)?;
            Ok((parameter, source))
        };
        let current =
            parameters.parameters.into_iter().map(with_source).collect::<Result<Vec<_>>>()?;
        offloader.reconcile(current, stream).map(|done| wb_offloader_reconcile_result {
            replaced: done.replaced,
            added: done.added,
            removed: done.removed,
            kept: done.kept,
            ..CStruct::init()
        })
    })
}

/// Closes the gaps that replaced and removed parameters left, so that a group moves as one copy of
/// its own bytes again, and packs all slots again, in a deeper ring if one fits now. Addresses
/// change, unless there are no gaps and slots are packed like that already. Also gives an offloader
/// its slots again that lost them when a change failed with WB_ERR_DEVICE_MEMORY.
///
/// Stream order: waits on the host for the work queued on `stream` and for every use that was
/// released. Fails with WB_ERR_BUSY, WB_ERR_CAPTURING or WB_ERR_DEVICE_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_compact(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| offloader.compact(stream))
}
