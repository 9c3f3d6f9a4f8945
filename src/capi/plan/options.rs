//! Options of a plan.

use std::ffi::c_char;

use crate::capi::arguments::Input;
use crate::capi::enumeration::{Enumeration, c_enum};
use crate::capi::parameter::wb_transfer_mode;
use crate::capi::quantizer::options::{QuantizeRequest, wb_quantize_options};
use crate::capi::structs::{c_struct, read_struct};
use crate::error::{Result, fail};
use crate::plan::order::Order;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::{Allowed, Budget, HostStore, PlanOptions};
use crate::plan::quantization::QuantizationRule;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// What a budget limits. There is no default: a plan needs a budget.
pub type wb_budget_kind = i32;
/// Host memory of offloaded parameters, in whole pages.
pub const WB_BUDGET_OFFLOAD_BYTES: wb_budget_kind = 1;
/// Device memory of resident parameters and slots.
pub const WB_BUDGET_DEVICE_BYTES: wb_budget_kind = 2;

/// The order in which parameters leave the device until the budget is met.
pub type wb_order = i32;
/// Evenly over the groups, so that copies and kernels overlap best; the default.
pub const WB_ORDER_SPREAD: wb_order = 0;
/// In the order of the array.
pub const WB_ORDER_DECLARED: wb_order = 1;
/// The largest first.
pub const WB_ORDER_LARGEST: wb_order = 2;

/// Downgrades WB_ERR_NOTHING_OFFLOADED to a warning.
pub const WB_ALLOW_NOTHING_OFFLOADED: u32 = 1;
/// Downgrades WB_ERR_SELECTOR for an entry of `select` or `exclude` that matches no parameter to a
/// warning.
pub const WB_ALLOW_UNMATCHED_SELECTOR: u32 = 2;
/// Downgrades WB_ERR_EVERYTHING_FITS to a warning.
pub const WB_ALLOW_EVERYTHING_FITS: u32 = 4;

c_enum!(Order {
    WB_ORDER_SPREAD => Spread,
    WB_ORDER_DECLARED => Declared,
    WB_ORDER_LARGEST => Largest,
});

/// Where offloaded parameters are kept in host memory.
pub type wb_host_store = i32;
/// In memory of the offloader, to which their sources are copied; the default.
pub const WB_HOST_STORE_COPY: wb_host_store = 0;
/// Where their sources are, in the buffers that wb_parameter.buffer names and that are pinned, such
/// as a mapped file: nothing is copied, and the offloader keeps the buffer. Possible for the
/// parameters that move as one, those of a group with one transfer mode, if they follow one another
/// in the buffer as in a copy: in the plan's order, with sizes that are multiples of 256 bytes, and
/// at a multiple of 64 if the device reads them in place. Others are copied, and
/// wb_offloader_parameter_info.host_store_reason says why. The buffer is never written: a
/// replacement, of any size, first moves the parameter into memory of the offloader, which changes
/// addresses, and fails while any group is acquired or if it would exceed the budget. A file must
/// not become shorter, or change, while the offloader lives.
pub const WB_HOST_STORE_SOURCE: wb_host_store = 1;

c_enum!(HostStore {
    WB_HOST_STORE_COPY => Copy,
    WB_HOST_STORE_SOURCE => Source,
});

/// Options of a plan.
#[repr(C)]
pub struct wb_plan_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// Groups that have their slots at the same time, at most; 0 for as many as fit, up to 8.
    pub depth: u32,
    /// What `budget_bytes` limits; required.
    pub budget_kind: wb_budget_kind,
    /// The mode of parameters with WB_TRANSFER_MODE_AUTO.
    pub transfer_mode: wb_transfer_mode,
    /// The budget, which is never exceeded.
    pub budget_bytes: u64,
    /// Bytes of slots for prefetched parameters, at most. 0 for no limit but a device budget; with
    /// an offload budget, what `depth` groups need, or two if `depth` is 0.
    pub slot_bytes: u64,
    /// `select_count` selectors of parameters that may be offloaded; 0 for all. A selector matches
    /// names that contain it as whole segments between dots; with any of `*?[` it is a glob for
    /// whole names, with at most 64 `*`.
    pub select: *const *const c_char,
    /// `exclude_count` selectors of parameters that stay on the device.
    pub exclude: *const *const c_char,
    /// Number of selectors in `select`.
    pub select_count: u32,
    /// Number of selectors in `exclude`.
    pub exclude_count: u32,
    /// The order in which parameters leave the device.
    pub order: wb_order,
    /// WB_ALLOW_* bits: errors that are warnings.
    pub allow: u32,
    /// How matrices are quantized when the plan is committed; NULL if they are not. A quantized
    /// matrix is planned as two parameters: its FP8 values, and behind it its scales, named with
    /// the suffix `_scale`, or `_scale_inv` for two-dimensional blocks. `use_given_scales` must be
    /// 0; `scale_bytes` and `progress` are not used.
    pub quantize: *const wb_quantize_options,
    /// `quantize_select_count` selectors of the parameters to quantize; 0 for all. Only those of
    /// float32, float16 and bfloat16 with two dimensions or more are quantized.
    pub quantize_select: *const *const c_char,
    /// Number of selectors in `quantize_select`.
    pub quantize_select_count: u32,
    /// Where offloaded parameters are kept in host memory.
    pub host_store: wb_host_store,
    /// Bandwidth of the link, to predict the time of a step; 0 for the one that
    /// wb_device_measure_link measured.
    pub link_bytes_per_second: f64,
    /// Must be zero.
    pub reserved: [u64; 4],
}

c_struct!(wb_plan_options, reserved);

impl Input<PlanOptions> for *const wb_plan_options {
    unsafe fn convert(self, _: &str) -> Result<PlanOptions> {
        // SAFETY: the contract of mod.rs.
        let (given, select, exclude, quantize) = unsafe {
            let given = read_struct(self)?;
            let select = (given.select, given.select_count).convert("select")?;
            let exclude = (given.exclude, given.exclude_count).convert("exclude")?;
            let quantize = rule_of(&given)?;
            (given, select, exclude, quantize)
        };
        let known =
            WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_UNMATCHED_SELECTOR | WB_ALLOW_EVERYTHING_FITS;
        if given.allow & !known != 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "allow is {:#x}; known bits are {known:#x}",
                given.allow
            );
        }
        let link = given.link_bytes_per_second;
        if !link.is_finite() || link < 0.0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "link_bytes_per_second is {link}: give 0 if it is not known"
            );
        }
        Ok(PlanOptions {
            budget: budget_of(&given)?,
            slot_bytes: (given.slot_bytes != 0).then_some(given.slot_bytes),
            depth: given.depth,
            transfer_mode: TransferMode::read(given.transfer_mode, "transfer_mode")?,
            order: Order::read(given.order, "order")?,
            host_store: HostStore::read(given.host_store, "host_store")?,
            select,
            exclude,
            allowed: Allowed {
                nothing_offloaded: given.allow & WB_ALLOW_NOTHING_OFFLOADED != 0,
                unmatched_selector: given.allow & WB_ALLOW_UNMATCHED_SELECTOR != 0,
                everything_fits: given.allow & WB_ALLOW_EVERYTHING_FITS != 0,
            },
            quantize,
            link_bytes_per_second: link,
        })
    }
}

fn budget_of(given: &wb_plan_options) -> Result<Budget> {
    match given.budget_kind {
        WB_BUDGET_OFFLOAD_BYTES => Ok(Budget::OffloadBytes(given.budget_bytes)),
        WB_BUDGET_DEVICE_BYTES => Ok(Budget::DeviceBytes(given.budget_bytes)),
        0 => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "wb_plan_options.budget_kind is 0, and a plan needs a budget: give \
             WB_BUDGET_OFFLOAD_BYTES (at most budget_bytes leave the device) or \
             WB_BUDGET_DEVICE_BYTES (weights and slots fit in budget_bytes)"
        ),
        other => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "wb_plan_options.budget_kind is {other}; known are [1, 2]"
        ),
    }
}

/// # Safety
/// The options keep the contract of mod.rs.
unsafe fn rule_of(given: &wb_plan_options) -> Result<Option<QuantizationRule>> {
    if given.quantize.is_null() {
        return Ok(None);
    }
    // SAFETY: the contract of mod.rs.
    let (select, request): (_, QuantizeRequest) = unsafe {
        let select =
            (given.quantize_select, given.quantize_select_count).convert("quantize_select")?;
        (select, given.quantize.convert("quantize")?)
    };
    if request.use_given_scales {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "quantize.use_given_scales is 1; a plan has no scales to use: they are computed"
        );
    }
    Ok(Some(QuantizationRule {
        select,
        format: request.format,
        scale_type: request.scale_type,
        block: request.block,
        reject_nonfinite: request.reject_nonfinite,
    }))
}
