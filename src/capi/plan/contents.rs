//! What is in a plan: its parameters, its groups and its warnings.

use std::ffi::c_char;

use crate::capi::arguments::{Sized32, check_output, text, write_struct};
use crate::capi::error::{guard, wb_error};
use crate::capi::handle;
use crate::capi::parameter::{placement_codes, wb_placement, wb_transfer_mode};
use crate::capi::plan::{Planned, c_text, wb_plan};
use crate::error::{Result, fail};
use crate::status::{WB_ERR_NOT_FOUND, WB_ERR_OUT_OF_RANGE, wb_status};

/// What becomes of a parameter. Begin with WB_PLAN_PARAMETER_INFO_INIT. The strings are the plan's.
#[repr(C)]
pub struct wb_plan_parameter_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED.
    pub placement: wb_placement,
    /// How it is transferred; WB_TRANSFER_MODE_AUTO for a resident parameter.
    pub transfer_mode: wb_transfer_mode,
    /// 0.
    pub reserved0: u32,
    /// Its name.
    pub name: *const c_char,
    /// Why it goes or stays, in words.
    pub reason: *const c_char,
    /// Its group.
    pub group: u64,
    /// Bytes from its lowest to the end of its highest element.
    pub span_bytes: u64,
    /// The first parameter that it shares its bytes with, itself if with none.
    pub tied_to: u64,
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_plan_parameter_info {
    const NAME: &'static str = "wb_plan_parameter_info";
}

/// A group of a plan. Begin with WB_PLAN_GROUP_INFO_INIT. The string is the plan's.
#[repr(C)]
pub struct wb_plan_group_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// Its turn among the groups that are copied ahead; -1 when it is none of them.
    pub turn: i32,
    /// Its name.
    pub name: *const c_char,
    /// Bytes of its parameters that are offloaded; what is tied counts in the first group.
    pub offloaded_bytes: u64,
    /// Bytes of its parameters that stay.
    pub resident_bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers and a pointer.
unsafe impl Sized32 for wb_plan_group_info {
    const NAME: &'static str = "wb_plan_group_info";
}

/// Finds a parameter by its name. Any thread. Errors: WB_ERR_NOT_FOUND.
///
/// # Safety
/// `plan` is NULL or alive; `name` ends in NUL; `index` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_find_parameter(
    plan: *const wb_plan,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(index, "index")?;
        // SAFETY: the caller's promise.
        let (plan, name) = unsafe { (handle::borrow::<Planned>(plan)?, text(name, "name")?) };
        let mut named = plan.plan().parameters.iter();
        let Some(found) = named.position(|planned| planned.parameter.name == name) else {
            fail!(WB_ERR_NOT_FOUND, "there is no parameter {name:?}")
        };
        // SAFETY: not NULL.
        unsafe { *index = found as u64 };
        Ok(())
    })
}

/// Answers what becomes of a parameter; they count in the order in which they were given. Any thread.
/// Errors: WB_ERR_OUT_OF_RANGE.
///
/// # Safety
/// `plan` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_parameter_info(
    plan: *const wb_plan,
    index: u64,
    info: *mut wb_plan_parameter_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let planned = unsafe { handle::borrow::<Planned>(plan) }?;
        let plan = planned.plan();
        let at = checked(index, plan.parameters.len(), "parameter")?;
        let found = &plan.parameters[at];
        let (placement, transfer_mode) = placement_codes(found.transfer_mode);
        let described = wb_plan_parameter_info {
            struct_size: size_of::<wb_plan_parameter_info>() as u32,
            placement,
            transfer_mode,
            reserved0: 0,
            name: planned.words()[at].0.as_ptr(),
            reason: planned.words()[at].1.as_ptr(),
            group: found.group as u64,
            span_bytes: found.parameter.layout.span_bytes(),
            tied_to: plan.storages[found.storage].parameters[0] as u64,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// Answers what a group is; they count in the order in which they were first named. Any thread.
/// Errors: WB_ERR_OUT_OF_RANGE.
///
/// # Safety
/// `plan` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_group_info(
    plan: *const wb_plan,
    index: u64,
    info: *mut wb_plan_group_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let planned = unsafe { handle::borrow::<Planned>(plan) }?;
        let groups = &planned.plan().groups;
        let at = checked(index, groups.len(), "group")?;
        let names = planned.groups.get_or_init(|| {
            Box::new(groups.iter().map(|group| c_text(group.name.as_str())).collect())
        });
        let described = wb_plan_group_info {
            struct_size: size_of::<wb_plan_group_info>() as u32,
            turn: groups[at].ring_position.map_or(-1, |turn| turn as i32),
            name: names[at].as_ptr(),
            offloaded_bytes: groups[at].offloaded_bytes,
            resident_bytes: groups[at].resident_bytes,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// Answers a warning: what was allowed. The string is the plan's. Any thread. Errors: WB_ERR_OUT_OF_RANGE.
///
/// # Safety
/// `plan` is NULL or alive; `warning` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_warning(
    plan: *const wb_plan,
    index: u64,
    warning: *mut *const c_char,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(warning, "warning")?;
        // SAFETY: the caller's promise.
        let planned = unsafe { handle::borrow::<Planned>(plan) }?;
        let all = &planned.plan().warnings;
        let at = checked(index, all.len(), "warning")?;
        let texts = planned
            .warnings
            .get_or_init(|| Box::new(all.iter().map(|warning| c_text(warning.as_str())).collect()));
        // SAFETY: not NULL.
        unsafe { *warning = texts[at].as_ptr() };
        Ok(())
    })
}

fn checked(index: u64, count: usize, what: &str) -> Result<usize> {
    match usize::try_from(index) {
        Ok(index) if index < count => Ok(index),
        _ => fail!(WB_ERR_OUT_OF_RANGE, "asked for {what} {index}; there are {count}"),
    }
}
