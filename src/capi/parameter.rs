//! `wb_parameter`: what an engine says of a weight.

use std::ffi::{c_char, c_void};
use std::ptr;

use crate::capi::arguments::{Sized32, check_reserved, one_of, read_struct, text};
use crate::capi::view;
use crate::capi::view::wb_layout;
use crate::error::{Result, fail};
use crate::plan::parameter::{AccessPattern, Origin, Parameter, TransferMode};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW};

/// How a step reads a parameter.
pub type wb_access_pattern = i32;
/// All of it; the default.
pub const WB_ACCESS_PATTERN_DENSE: wb_access_pattern = 0;
/// Few rows of it: an embedding, experts.
pub const WB_ACCESS_PATTERN_SPARSE: wb_access_pattern = 1;

/// How an offloaded parameter is transferred to the kernels that read it.
pub type wb_transfer_mode = i32;
/// As the plan sees fit; the default.
pub const WB_TRANSFER_MODE_AUTO: wb_transfer_mode = 0;
/// The device reads it in host memory.
pub const WB_TRANSFER_MODE_ZERO_COPY: wb_transfer_mode = 1;
/// It is copied when its group is acquired.
pub const WB_TRANSFER_MODE_ON_DEMAND: wb_transfer_mode = 2;
/// It is copied ahead of that.
pub const WB_TRANSFER_MODE_PREFETCH: wb_transfer_mode = 3;

/// Where a parameter is kept.
pub type wb_placement = i32;
/// The plan decides; the default.
pub const WB_PLACEMENT_AUTO: wb_placement = 0;
/// In device memory.
pub const WB_PLACEMENT_RESIDENT: wb_placement = 1;
/// In host memory. An output only: whether a parameter can be offloaded depends on the budget.
pub const WB_PLACEMENT_OFFLOADED: wb_placement = 2;

/// A parameter of a model. Begin with WB_PARAMETER_INIT.
#[repr(C)]
pub struct wb_parameter {
    /// Bytes of the struct; in an array, the same in each.
    pub struct_size: u32,
    /// A wb_access_pattern.
    pub access_pattern: wb_access_pattern,
    /// Its name, unique in the model; UTF-8 that ends in NUL.
    pub name: *const c_char,
    /// What is acquired together with it: a layer's name.
    pub group: *const c_char,
    /// Type, shape, strides, and where the first element is from `source`.
    pub layout: *const wb_layout,
    /// Address in host or device memory; NULL while there are no bytes. Parameters whose bytes overlap are
    /// tied: they are stored once.
    pub source: *const c_void,
    /// Ties parameters that have no source: those of the same number, other than 0.
    pub storage_id: u64,
    /// A wb_transfer_mode; WB_TRANSFER_MODE_AUTO is the options'.
    pub transfer_mode: wb_transfer_mode,
    /// WB_PLACEMENT_RESIDENT keeps it on the device; otherwise WB_PLACEMENT_AUTO.
    pub placement: wb_placement,
    /// 0.
    pub reserved: [u64; 2],
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_parameter {
    const NAME: &'static str = "wb_parameter";
}

/// The number of a transfer_mode.
pub(super) fn transfer_mode_code(transfer_mode: TransferMode) -> wb_transfer_mode {
    match transfer_mode {
        TransferMode::Auto => WB_TRANSFER_MODE_AUTO,
        TransferMode::ZeroCopy => WB_TRANSFER_MODE_ZERO_COPY,
        TransferMode::OnDemand => WB_TRANSFER_MODE_ON_DEMAND,
        TransferMode::Prefetch => WB_TRANSFER_MODE_PREFETCH,
    }
}

pub(super) fn transfer_mode(value: wb_transfer_mode, field: &str) -> Result<TransferMode> {
    let all = [
        TransferMode::Auto,
        TransferMode::ZeroCopy,
        TransferMode::OnDemand,
        TransferMode::Prefetch,
    ];
    one_of(
        value,
        field,
        &all.map(|transfer_mode| (transfer_mode_code(transfer_mode), transfer_mode)),
    )
}

/// Reads an array of parameters, in the steps of the first one's size.
///
/// # Safety
/// `given` is NULL or valid for `count` of them, with everything that they point to.
pub(super) unsafe fn parameters_from(
    given: *const wb_parameter,
    count: u64,
) -> Result<Vec<Parameter>> {
    if given.is_null() && count > 0 {
        fail!(WB_ERR_INVALID_ARGUMENT, "parameters is NULL and there are {count}");
    }
    let Ok(count) = usize::try_from(count) else {
        fail!(WB_ERR_OVERFLOW, "{count} parameters are more than memory holds")
    };
    let mut parameters: Vec<Parameter> = Vec::with_capacity(count.min(1 << 20));
    // SAFETY: the caller's promise; every struct begins with its size.
    let step = if count == 0 { 0 } else { unsafe { (*given).struct_size as usize } };
    for index in 0..count {
        // SAFETY: the caller's promise.
        let one = unsafe { given.byte_add(index * step) };
        // SAFETY: the caller's promise.
        if unsafe { (*one).struct_size } as usize != step {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {index} has another struct_size than the first: begin each with \
                 WB_PARAMETER_INIT"
            );
        }
        // SAFETY: the caller's promise.
        parameters.push(unsafe { parameter_from(one, parameters.last()) }?);
    }
    Ok(parameters)
}

/// Whether a parameter must stay on the device, and its transfer mode.
fn placement_of(given: &wb_parameter, name: &str) -> Result<(bool, TransferMode)> {
    let asked = transfer_mode(given.transfer_mode, "parameter.transfer_mode")?;
    match given.placement {
        WB_PLACEMENT_AUTO => Ok((false, asked)),
        WB_PLACEMENT_RESIDENT if asked == TransferMode::Auto => Ok((true, asked)),
        WB_PLACEMENT_RESIDENT => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter {name:?} has WB_PLACEMENT_RESIDENT and transfer mode {}: a resident parameter is \
             not transferred, give WB_TRANSFER_MODE_AUTO",
            asked.name()
        ),
        WB_PLACEMENT_OFFLOADED => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter {name:?} has WB_PLACEMENT_OFFLOADED, which the plan decides by its budget: give \
             WB_PLACEMENT_AUTO, and select it in wb_plan_options.select"
        ),
        other => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter.placement is {other} for parameter {name:?}; known are [0, 1]"
        ),
    }
}

/// A parameter's placement and transfer mode as C reads them; `None` is resident.
pub(super) fn placement_codes(mode: Option<TransferMode>) -> (wb_placement, wb_transfer_mode) {
    match mode {
        Some(mode) => (WB_PLACEMENT_OFFLOADED, transfer_mode_code(mode)),
        None => (WB_PLACEMENT_RESIDENT, WB_TRANSFER_MODE_AUTO),
    }
}

/// Neighbours are of one group mostly: its name is kept once.
///
/// # Safety
/// `given` is valid, with everything that it points to.
unsafe fn parameter_from(
    given: *const wb_parameter,
    before: Option<&Parameter>,
) -> Result<Parameter> {
    let empty = wb_parameter {
        struct_size: size_of::<wb_parameter>() as u32,
        access_pattern: WB_ACCESS_PATTERN_DENSE,
        name: ptr::null(),
        group: ptr::null(),
        layout: ptr::null(),
        source: ptr::null(),
        storage_id: 0,
        transfer_mode: WB_TRANSFER_MODE_AUTO,
        placement: WB_PLACEMENT_AUTO,
        reserved: [0; 2],
    };
    // SAFETY: the caller's promise.
    let given = unsafe { read_struct(given, empty) }?;
    check_reserved(&given.reserved, "wb_parameter")?;
    // SAFETY: the caller's promise.
    let (name, group) =
        unsafe { (text(given.name, "parameter.name")?, text(given.group, "parameter.group")?) };
    // SAFETY: the caller's promise.
    let (layout, offset) = unsafe { view::layout(given.layout) }?;
    let lowest = match given.source as u64 {
        0 => Some(0),
        start => start.checked_add(offset).and_then(|at| at.checked_sub(layout.bytes_before())),
    };
    let Some(address) = lowest else {
        fail!(
            WB_ERR_OVERFLOW,
            "parameter {name:?} at {:p} and offset {offset} goes past the last address",
            given.source
        )
    };
    let (resident, transfer_mode) = placement_of(&given, name)?;
    Ok(Parameter {
        name: name.into(),
        group: match before.map(|before| &before.group) {
            Some(before) if **before == *group => before.clone(),
            _ => group.into(),
        },
        layout,
        source: address,
        storage_id: given.storage_id,
        access_pattern: one_of(
            given.access_pattern,
            "parameter.access_pattern",
            &[
                (WB_ACCESS_PATTERN_DENSE, AccessPattern::Dense),
                (WB_ACCESS_PATTERN_SPARSE, AccessPattern::Sparse),
            ],
        )?,
        resident,
        transfer_mode,
        origin: Origin::Given,
    })
}
