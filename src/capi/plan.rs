//! `wb_plan`: which parameter goes where and why, before anything is allocated.

mod contents;

use std::ffi::{CString, c_char};
use std::ptr;

pub use contents::*;
use once_cell::race::OnceBox;

use crate::capi::arguments::{
    Sized32, check_output, check_reserved, one_of, read_struct, text, write_struct,
};
use crate::capi::device::wb_device;
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::handle::Handle;
use crate::capi::parameter::{
    WB_TRANSFER_MODE_AUTO, parameters_from, transfer_mode, wb_parameter, wb_transfer_mode,
};
use crate::capi::quantizer::wb_quantize_options;
use crate::capi::{handle, quantizer};
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::offload::device_plan::DevicePlan;
use crate::os::sync::Arc;
use crate::plan::json;
use crate::plan::order::Order;
use crate::plan::plan::{Allowed, Budget, Plan, PlanOptions};
use crate::plan::quantization::QuantizationRule;
use crate::status::{WB_ERR_INVALID_ARGUMENT, wb_status};

/// Which parameter goes where and why.
pub struct wb_plan {
    _opaque: [u8; 0],
}

/// A plan, with its words as C reads them, made when they are first asked for. Nobody waits for who is
/// making them: a forked child would for ever.
pub(super) struct Planned {
    pub plan: Arc<DevicePlan>,
    names: OnceBox<Vec<(CString, CString)>>,
    groups: OnceBox<Vec<CString>>,
    warnings: OnceBox<Vec<CString>>,
    json: OnceBox<CString>,
}

impl Handle for Planned {
    type Opaque = wb_plan;
    const NAME: &'static str = "wb_plan";
}

/// What `wb_plan_options.budget_bytes` limits. There is no default: a plan needs a budget.
pub type wb_budget_kind = i32;
/// The host memory that offloaded parameters take.
pub const WB_BUDGET_OFFLOAD_BYTES: wb_budget_kind = 1;
/// The device memory that resident parameters and slots take.
pub const WB_BUDGET_DEVICE_BYTES: wb_budget_kind = 2;

/// In which order parameters leave the device while the budget lasts.
pub type wb_order = i32;
/// Evenly over the groups, so that copies and kernels overlap best; the default.
pub const WB_ORDER_SPREAD: wb_order = 0;
/// As they were declared.
pub const WB_ORDER_DECLARED: wb_order = 1;
/// The largest first.
pub const WB_ORDER_LARGEST: wb_order = 2;

/// Downgrades WB_ERR_NOTHING_OFFLOADED to a warning.
pub const WB_ALLOW_NOTHING_OFFLOADED: u32 = 1;
/// Downgrades WB_ERR_SELECTOR of a selector that matches nothing to a warning.
pub const WB_ALLOW_UNMATCHED_SELECTOR: u32 = 2;
/// Downgrades WB_ERR_EVERYTHING_FITS to a warning.
pub const WB_ALLOW_EVERYTHING_FITS: u32 = 4;

/// What a plan is made by. Begin with WB_PLAN_OPTIONS_INIT.
#[repr(C)]
pub struct wb_plan_options {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// Groups in their slots at a time; 0 for as many as serve.
    pub depth: u32,
    /// A wb_budget_kind.
    pub budget_kind: wb_budget_kind,
    /// A wb_transfer_mode, for parameters that name none.
    pub transfer_mode: wb_transfer_mode,
    /// The budget.
    pub budget_bytes: u64,
    /// What is copied ahead takes at most so many bytes of slots; 0 for what two groups need.
    pub slot_bytes: u64,
    /// `select_count` selectors of what may leave the device; none for everything. A text means the
    /// names that contain it as whole segments between dots, a glob (with any of `*?[`, and at most 64
    /// `*`) whole names.
    pub select: *const *const c_char,
    /// `exclude_count` selectors of what may not.
    pub exclude: *const *const c_char,
    /// How many.
    pub select_count: u32,
    /// How many.
    pub exclude_count: u32,
    /// A wb_order.
    pub order: wb_order,
    /// WB_ALLOW_* of the errors that are to be warnings.
    pub allow: u32,
    /// How matrices are quantized when the plan is committed; NULL for not at all. Each is planned as
    /// two parameters: itself in 8 bits, and its scales by its name and `_scale`, or `_scale_inv` for
    /// blocks of a matrix.
    pub quantize: *const wb_quantize_options,
    /// `quantize_select_count` selectors of those; none for all of wide types.
    pub quantize_select: *const *const c_char,
    /// How many.
    pub quantize_select_count: u32,
    /// 0.
    pub reserved0: u32,
    /// What the link carries, for the predicted time; 0 for what wb_device_measure_link found, if it
    /// was called.
    pub link_bytes_per_second: f64,
    /// 0.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_plan_options {
    const NAME: &'static str = "wb_plan_options";
}

const DEFAULTS: wb_plan_options = wb_plan_options {
    struct_size: size_of::<wb_plan_options>() as u32,
    depth: 0,
    budget_kind: 0,
    transfer_mode: WB_TRANSFER_MODE_AUTO,
    budget_bytes: 0,
    slot_bytes: 0,
    select: ptr::null(),
    exclude: ptr::null(),
    select_count: 0,
    exclude_count: 0,
    order: WB_ORDER_SPREAD,
    allow: 0,
    quantize: ptr::null(),
    quantize_select: ptr::null(),
    quantize_select_count: 0,
    reserved0: 0,
    link_bytes_per_second: 0.0,
    reserved: [0; 4],
};

/// A plan in numbers. Begin with WB_PLAN_INFO_INIT.
#[repr(C)]
pub struct wb_plan_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// Groups in their slots at a time.
    pub depth: u32,
    /// How many parameters there are.
    pub parameters: u64,
    /// How many groups.
    pub groups: u64,
    /// How many warnings.
    pub warnings: u64,
    /// Bytes of all parameters, ties counted once, here and below.
    pub payload_bytes: u64,
    /// Bytes of those that are offloaded.
    pub offloaded_bytes: u64,
    /// Bytes of host memory for them, in whole pages.
    pub arena_bytes: u64,
    /// Bytes of device memory for what stays, each parameter's rounded up to 256.
    pub resident_bytes: u64,
    /// Bytes of device memory for slots.
    pub slot_bytes: u64,
    /// Bytes of those for what is copied ahead.
    pub ring_bytes: u64,
    /// Bytes copied in every step.
    pub step_bytes: u64,
    /// Bytes that the device reads in place in every step, if it reads all of what is dense.
    pub view_bytes: u64,
    /// Seconds that the link needs for a step; 0 where its speed was not given.
    pub step_seconds: f64,
    /// 1 when the first groups of a step wait for the last ones of the step before.
    pub wrap_stalls: i32,
    /// 0.
    pub reserved0: u32,
}

// SAFETY: repr(C), begins with its size; numbers.
unsafe impl Sized32 for wb_plan_info {
    const NAME: &'static str = "wb_plan_info";
}

/// # Safety
/// `given` is NULL or valid for `count` strings.
unsafe fn selectors(given: *const *const c_char, count: u32, name: &str) -> Result<Vec<String>> {
    if given.is_null() && count > 0 {
        fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL and {name}_count is {count}");
    }
    (0..count as usize)
        // SAFETY: the caller's promise.
        .map(|index| Ok(unsafe { text(*given.add(index), name) }?.to_owned()))
        .collect()
}

/// # Safety
/// `given` is NULL or valid for the size that it begins with, with everything that it points to.
unsafe fn options_from(given: *const wb_plan_options) -> Result<PlanOptions> {
    // SAFETY: the caller's promise.
    let given = unsafe { read_struct(given, DEFAULTS) }?;
    check_reserved(&given.reserved, "wb_plan_options")?;
    check_reserved(&[given.reserved0.into()], "wb_plan_options")?;
    let known = WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_UNMATCHED_SELECTOR | WB_ALLOW_EVERYTHING_FITS;
    if given.allow & !known != 0 {
        fail!(WB_ERR_INVALID_ARGUMENT, "allow is {:#x}; known bits are {known:#x}", given.allow);
    }
    let link = given.link_bytes_per_second;
    if !link.is_finite() || link < 0.0 {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "link_bytes_per_second is {link}: give 0 if it is not known"
        );
    }
    let budget = match given.budget_kind {
        WB_BUDGET_OFFLOAD_BYTES => Budget::OffloadBytes(given.budget_bytes),
        WB_BUDGET_DEVICE_BYTES => Budget::DeviceBytes(given.budget_bytes),
        0 => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "wb_plan_options.budget_kind is 0 and a plan needs a budget: give WB_BUDGET_OFFLOAD_BYTES or \
             WB_BUDGET_DEVICE_BYTES, and budget_bytes"
        ),
        other => {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "wb_plan_options.budget_kind is {other}; known are [1, 2]"
            )
        }
    };
    let orders = [
        (WB_ORDER_SPREAD, Order::Spread),
        (WB_ORDER_DECLARED, Order::Declared),
        (WB_ORDER_LARGEST, Order::Largest),
    ];
    Ok(PlanOptions {
        budget,
        slot_bytes: (given.slot_bytes != 0).then_some(given.slot_bytes),
        depth: given.depth,
        transfer_mode: transfer_mode(given.transfer_mode, "transfer_mode")?,
        order: one_of(given.order, "order", &orders)?,
        // SAFETY: the caller's promise.
        select: unsafe { selectors(given.select, given.select_count, "select") }?,
        // SAFETY: the caller's promise.
        exclude: unsafe { selectors(given.exclude, given.exclude_count, "exclude") }?,
        allowed: Allowed {
            nothing_offloaded: given.allow & WB_ALLOW_NOTHING_OFFLOADED != 0,
            unmatched_selector: given.allow & WB_ALLOW_UNMATCHED_SELECTOR != 0,
            everything_fits: given.allow & WB_ALLOW_EVERYTHING_FITS != 0,
        },
        // SAFETY: the caller's promise.
        quantize: unsafe { rule_from(&given) }?,
        link_bytes_per_second: link,
    })
}

/// # Safety
/// The options' pointers are NULL or valid.
unsafe fn rule_from(given: &wb_plan_options) -> Result<Option<QuantizationRule>> {
    if given.quantize.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let (select, options) = unsafe {
        let select =
            selectors(given.quantize_select, given.quantize_select_count, "quantize_select")?;
        (select, quantizer::options_from(given.quantize)?)
    };
    if options.given {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "quantize.use_given_scales is 1; a plan has no scales to give: they are found"
        );
    }
    Ok(Some(QuantizationRule {
        select,
        format: options.format,
        scale_type: options.kind,
        block: options.block,
        reject_nonfinite: options.reject_nonfinite,
    }))
}

/// A text for C. Names came from C, so that no NUL is in them.
fn c_text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap_or_default()
}

impl Planned {
    fn new(plan: Arc<DevicePlan>) -> Arc<Self> {
        let (names, groups) = (OnceBox::new(), OnceBox::new());
        Arc::new(Self { plan, names, groups, warnings: OnceBox::new(), json: OnceBox::new() })
    }

    fn plan(&self) -> &Plan {
        &self.plan.plan
    }

    /// The parameters' names and reasons.
    fn words(&self) -> &[(CString, CString)] {
        self.names.get_or_init(|| {
            let planned = self.plan().parameters.iter();
            let words = planned.map(|planned| {
                let name = c_text(planned.parameter.name.as_str());
                (name, c_text(planned.reason.to_string()))
            });
            Box::new(words.collect())
        })
    }
}

/// Plans: which of `count` parameters leave the device under the budget, and how they are carried.
/// Nothing is allocated and no source is read. `options` name exactly one budget.
///
/// Ownership: one reference; names and options are copied; the plan holds the device. Any thread.
/// Errors: WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR, WB_ERR_EVERYTHING_FITS (each a warning where
/// allowed), WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET, WB_ERR_NOT_MAPPED where a view is wished and views are
/// off, WB_ERR_INVALID_ARGUMENT, WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW.
///
/// # Safety
/// Pointers are NULL or valid for as much as is said of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_new(
    device: *const wb_device,
    parameters: *const wb_parameter,
    count: u64,
    options: *const wb_plan_options,
    plan: *mut *mut wb_plan,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(plan, "plan")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        // SAFETY: the caller's promise.
        let (parameters, options) =
            unsafe { (parameters_from(parameters, count)?, options_from(options)?) };
        let made = Planned::new(DevicePlan::new(&device, parameters, options)?);
        // SAFETY: not NULL.
        unsafe { *plan = handle::give(made) };
        Ok(())
    })
}

/// Adds a reference. Any thread.
///
/// # Safety
/// `plan` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_retain(plan: *const wb_plan) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<Planned>(plan) });
}

/// Drops a reference. Any thread.
///
/// # Safety
/// `plan` is NULL or alive, and this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_release(plan: *mut wb_plan) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<Planned>(plan) }.map(drop));
}

/// Answers a plan in numbers. Any thread.
///
/// # Safety
/// `plan` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_info(
    plan: *const wb_plan,
    info: *mut wb_plan_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let plan = unsafe { handle::borrow::<Planned>(plan) }?.plan();
        let described = wb_plan_info {
            struct_size: size_of::<wb_plan_info>() as u32,
            depth: plan.depth as u32,
            parameters: plan.parameters.len() as u64,
            groups: plan.groups.len() as u64,
            warnings: plan.warnings.len() as u64,
            payload_bytes: plan.payload_bytes,
            offloaded_bytes: plan.offloaded_payload_bytes,
            arena_bytes: plan.arena_bytes,
            resident_bytes: plan.resident_bytes,
            slot_bytes: plan.slot_bytes,
            ring_bytes: plan.ring_bytes,
            step_bytes: plan.step_bytes,
            view_bytes: plan.view_bytes,
            step_seconds: plan.step_seconds.unwrap_or(0.0),
            wrap_stalls: plan.wrap_stalls.into(),
            reserved0: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// The whole plan as JSON. The string is the plan's. Any thread.
///
/// # Safety
/// `plan` is NULL or alive; `json` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_to_json(
    plan: *const wb_plan,
    json: *mut *const c_char,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(json, "json")?;
        // SAFETY: the caller's promise.
        let planned = unsafe { handle::borrow::<Planned>(plan) }?;
        let made = planned.json.get_or_init(|| Box::new(c_text(json::to_json(planned.plan()))));
        // SAFETY: not NULL.
        unsafe { *json = made.as_ptr() };
        Ok(())
    })
}
