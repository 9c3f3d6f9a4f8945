//! Parameters of a model.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_char, c_void};
use std::sync::Arc as StdArc;

use crate::capi::address::Address;
use crate::capi::arguments::Input;
use crate::capi::buffer::handle::wb_buffer;
use crate::capi::enumeration::{Enumeration, c_enum};
use crate::capi::handle::share;
use crate::capi::structs::{c_struct, elements, read_struct};
use crate::capi::view::layout::{GivenLayout, wb_layout};
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::os::sync::Arc;
use crate::plan::parameter::{AccessPattern, Origin, Parameter, TransferMode};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OUT_OF_RANGE, WB_ERR_UNALIGNED};
use crate::tensor::coded::{CodedType, ENTRY, HEADER, UNIT, tiles};
use crate::tensor::layout::Layout;

/// How a step reads a parameter.
pub type wb_access_pattern = i32;
/// All of it; the default.
pub const WB_ACCESS_PATTERN_DENSE: wb_access_pattern = 0;
/// A few rows of it, as of an embedding.
pub const WB_ACCESS_PATTERN_SPARSE: wb_access_pattern = 1;
/// Experts, of which a step reads a few: rows of a tensor whose first dimension counts them. They
/// leave the device for an expert cache, which wb_expert_cache_new_for_offloader makes and whose
/// device memory is `expert_bytes` of the plan. Without a cache the device reads them in place.
pub const WB_ACCESS_PATTERN_EXPERTS: wb_access_pattern = 2;

/// How an offloaded parameter is transferred to the kernels that read it.
pub type wb_transfer_mode = i32;
/// Chosen by the plan; the default.
pub const WB_TRANSFER_MODE_AUTO: wb_transfer_mode = 0;
/// The device reads it in host memory.
pub const WB_TRANSFER_MODE_ZERO_COPY: wb_transfer_mode = 1;
/// It is copied when its group is acquired.
pub const WB_TRANSFER_MODE_ON_DEMAND: wb_transfer_mode = 2;
/// It is copied before its group is acquired.
pub const WB_TRANSFER_MODE_PREFETCH: wb_transfer_mode = 3;

/// Where a parameter is kept.
pub type wb_placement = i32;
/// Chosen by the plan; the default.
pub const WB_PLACEMENT_AUTO: wb_placement = 0;
/// In device memory.
pub const WB_PLACEMENT_RESIDENT: wb_placement = 1;
/// In host memory. Only an output: as an input it fails with WB_ERR_INVALID_ARGUMENT.
pub const WB_PLACEMENT_OFFLOADED: wb_placement = 2;

c_enum!(AccessPattern {
    WB_ACCESS_PATTERN_DENSE => Dense,
    WB_ACCESS_PATTERN_SPARSE => Sparse,
    WB_ACCESS_PATTERN_EXPERTS => Experts,
});
c_enum!(TransferMode {
    WB_TRANSFER_MODE_AUTO => Auto,
    WB_TRANSFER_MODE_ZERO_COPY => ZeroCopy,
    WB_TRANSFER_MODE_ON_DEMAND => OnDemand,
    WB_TRANSFER_MODE_PREFETCH => Prefetch,
});

/// Describes one parameter of a model.
#[repr(C)]
pub struct wb_parameter {
    /// Size of the struct; in an array, the same in each.
    pub struct_size: u32,
    /// How a step reads it.
    pub access_pattern: wb_access_pattern,
    /// The name, unique in the model.
    pub name: *const c_char,
    /// The name of the group that it is acquired with: a layer.
    pub group: *const c_char,
    /// Type, shape and strides; its offset counts from `source`.
    pub layout: *const wb_layout,
    /// Address in host or device memory; NULL if there are no bytes yet: offloaded, it is zeros
    /// until it is replaced, or written through a host view; resident, it has no memory until then.
    /// Parameters whose bytes overlap are tied: they are stored once.
    pub source: *const c_void,
    /// Ties parameters without a source that have the same number, except 0.
    pub storage_id: u64,
    /// How it is transferred; WB_TRANSFER_MODE_AUTO takes the mode of the plan's options.
    pub transfer_mode: wb_transfer_mode,
    /// WB_PLACEMENT_RESIDENT, with WB_TRANSFER_MODE_AUTO, keeps it on the device; otherwise
    /// WB_PLACEMENT_AUTO.
    pub placement: wb_placement,
    /// The buffer that `source` is in, or NULL: the plan keeps a reference to it until the plan is
    /// released, so that the caller need not. Other calls use it during the call only.
    pub buffer: *const wb_buffer,
    /// If not 0, `source` has the values compressed, as wb_codec_encode does, to this many bytes at
    /// a multiple of 16 in host memory, and `layout` is that of the values, with the lowest element
    /// first. A plan that carries the parameter compressed takes these bytes unchanged; for any
    /// other they are decoded. wb_offloader_add and wb_offloader_reconcile decode them, verify
    /// checksums, and compress the values again if the plan's `compress` takes them; a reconcile
    /// leaves a parameter as it is whose bytes are still those in its source.
    pub encoded_bytes: u64,
    /// Must be zero.
    pub reserved: [u64; 1],
}

c_struct!(wb_parameter, reserved);

/// A parameter's placement and transfer mode as C reads them; `None` for a resident one.
pub(super) fn placement_codes(mode: Option<TransferMode>) -> (wb_placement, wb_transfer_mode) {
    match mode {
        Some(mode) => (WB_PLACEMENT_OFFLOADED, mode.code()),
        None => (WB_PLACEMENT_RESIDENT, WB_TRANSFER_MODE_AUTO),
    }
}

/// A caller's parameters.
pub(super) struct GivenParameters {
    pub parameters: Vec<Parameter>,
    /// The buffers that their sources are in, as far as the caller named them.
    pub buffers: Vec<Arc<Buffer>>,
}

/// An array of parameters, and how many there are.
impl Input<GivenParameters> for (*const wb_parameter, u64) {
    unsafe fn convert(self, name: &str) -> Result<GivenParameters> {
        let (first, count) = self;
        let capacity = if first.is_null() { 0 } else { count.min(1 << 20) };
        let mut parameters: Vec<Parameter> = Vec::with_capacity(capacity as usize);
        let mut buffers: HashMap<usize, Arc<Buffer>> = HashMap::new();
        // SAFETY: the contract of mod.rs.
        unsafe {
            for (at, element) in elements(first, count, name).enumerate() {
                let read = parameter_from(element?, parameters.last());
                let (parameter, buffer) = read.map_err(|error| error.of_element(name, at))?;
                if !buffer.is_null() {
                    let shared = match buffers.entry(buffer as usize) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(new) => new.insert(share(buffer)?),
                    };
                    check_in(shared, &parameter)?;
                }
                parameters.push(parameter);
            }
        }
        Ok(GivenParameters { parameters, buffers: buffers.into_values().collect() })
    }
}

/// Fails with `WB_ERR_OUT_OF_RANGE` if the source is not in the buffer.
fn check_in(buffer: &Buffer, parameter: &Parameter) -> Result<()> {
    let (data, bytes) = (buffer.data(), parameter.source_bytes());
    let offset = parameter.source.checked_sub(data.start() as u64);
    let end = offset.and_then(|offset| offset.checked_add(bytes));
    if end.is_none_or(|end| end > data.bytes() as u64) {
        fail!(
            WB_ERR_OUT_OF_RANGE,
            "the source of parameter {:?}, {bytes} bytes at {:#x}, is not in its buffer of {} bytes at \
             {:#x}: give NULL for the buffer of a source elsewhere",
            parameter.name,
            parameter.source,
            data.bytes(),
            data.start()
        );
    }
    Ok(())
}

impl Input<Parameter> for *const wb_parameter {
    unsafe fn convert(self, name: &str) -> Result<Parameter> {
        if self.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL");
        }
        // SAFETY: the contract of mod.rs.
        unsafe { parameter_from(self, None) }.map(|(parameter, _)| parameter)
    }
}

/// A parameter and the handle of its buffer, which may be NULL; the name of its group is shared
/// with the parameter before it if that is the same.
///
/// # Safety
/// `given` keeps the contract of mod.rs.
unsafe fn parameter_from(
    given: *const wb_parameter,
    before: Option<&Parameter>,
) -> Result<(Parameter, *const wb_buffer)> {
    // SAFETY: the contract of mod.rs.
    let (given, name, group, layout) = unsafe {
        let given = read_struct(given)?;
        let name: &str = given.name.convert("parameter.name")?;
        let group: &str = given.group.convert("parameter.group")?;
        let layout: GivenLayout = given.layout.convert("parameter.layout")?;
        (given, name, group, layout)
    };
    let GivenLayout { layout, offset_bytes } = layout;
    let source = match given.source as u64 {
        _ if given.encoded_bytes > 0 => encoded_source(&given, name, &layout, offset_bytes)?,
        0 => 0,
        start => {
            Address(start).lowest(&layout, offset_bytes, format_args!("parameter {name:?}"))?
        }
    };
    let (resident, transfer_mode) = placement_of(&given, name)?;
    let parameter = Parameter {
        name: name.into(),
        group: match before.map(|before| &before.group) {
            Some(before) if **before == *group => StdArc::clone(before),
            _ => group.into(),
        },
        layout,
        source,
        storage_id: given.storage_id,
        access_pattern: AccessPattern::read(given.access_pattern, "parameter.access_pattern")?,
        resident,
        transfer_mode,
        origin: match given.encoded_bytes {
            0 => Origin::Given,
            bytes => Origin::Encoded(bytes),
        },
        encoded_bytes: None,
    };
    Ok((parameter, given.buffer))
}

/// The address of a compressed source, whose size can be that of the layout's values.
fn encoded_source(
    given: &wb_parameter,
    name: &str,
    layout: &Layout,
    offset_bytes: u64,
) -> Result<u64> {
    let (source, bytes) = (given.source as u64, given.encoded_bytes);
    let decoded_bytes = layout.span_bytes();
    let what = || format!("parameter {name:?}, whose source is compressed to {bytes} bytes,");
    let coded = match CodedType::of(layout.dtype()) {
        Ok(coded) => coded,
        Err(error) => fail!(error.status, "{}: {}", what(), error.message),
    };
    let most = match coded.max_bytes(decoded_bytes) {
        Ok(most) => most,
        Err(error) => fail!(error.status, "{}: {}", what(), error.message),
    };
    if decoded_bytes == 0 || layout.bytes_before() > 0 || offset_bytes > 0 {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{} has no values, or its first one is not the lowest: compressed values begin with the lowest",
            what()
        );
    }
    let least = HEADER + ENTRY * tiles(decoded_bytes);
    if !(least..=most).contains(&bytes) {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{} has {decoded_bytes} bytes of {}, which are compressed to {least} to {most} bytes: give \
             those that wb_codec_encode wrote",
            what(),
            coded.name()
        );
    }
    if source == 0 || !source.is_multiple_of(UNIT) {
        fail!(
            WB_ERR_UNALIGNED,
            "{} has it at {source:#x}: compressed bytes begin at a multiple of {UNIT}",
            what()
        );
    }
    Ok(source)
}

/// Whether a parameter must stay on the device, and its transfer mode.
fn placement_of(given: &wb_parameter, name: &str) -> Result<(bool, TransferMode)> {
    let mode = TransferMode::read(given.transfer_mode, "parameter.transfer_mode")?;
    match given.placement {
        WB_PLACEMENT_AUTO => Ok((false, mode)),
        WB_PLACEMENT_RESIDENT if mode == TransferMode::Auto => Ok((true, mode)),
        WB_PLACEMENT_RESIDENT => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter {name:?} has WB_PLACEMENT_RESIDENT and transfer mode {}: a resident \
             parameter is not transferred, give WB_TRANSFER_MODE_AUTO",
            mode.name()
        ),
        WB_PLACEMENT_OFFLOADED => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter {name:?} has WB_PLACEMENT_OFFLOADED, which the plan decides by its budget: \
             give WB_PLACEMENT_AUTO, and name the parameter in wb_plan_options.select"
        ),
        other => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter.placement of {name:?} is {other}; known are [0, 1]"
        ),
    }
}
