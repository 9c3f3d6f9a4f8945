//! What is in a plan: figures, parameters, groups, warnings.

use std::ffi::c_char;

use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::parameter::{placement_codes, wb_placement, wb_transfer_mode};
use crate::capi::plan::handle::{CPlan, wb_plan};
use crate::capi::structs::{CStruct, c_struct};
use crate::capi::view::layout::block_of;
use crate::error::{Error, Result, fail};
use crate::status::{WB_ERR_OUT_OF_RANGE, wb_status};
use crate::tensor::dtype::wb_dtype;

/// Figures of a plan. Tied parameters count once.
#[repr(C)]
pub struct wb_plan_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// Groups that have their slots at the same time.
    pub depth: u32,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of groups.
    pub groups: u64,
    /// Number of warnings.
    pub warnings: u64,
    /// Bytes of all parameters.
    pub payload_bytes: u64,
    /// Bytes of offloaded parameters.
    pub offloaded_bytes: u64,
    /// Bytes of host memory for offloaded parameters, in whole pages, beside that of pieces
    /// (wb_offloader_prefer).
    pub arena_bytes: u64,
    /// Bytes of device memory for resident parameters, each rounded up to 256, which
    /// `wb_offloader_stats.resident_bytes` does not count.
    pub resident_bytes: u64,
    /// Bytes of device memory for slots, and for the windows through which compressed bytes pass to
    /// them: 64 MiB where a parameter is expected to become 2 MiB or more, if options give no
    /// `slot_bytes` and that is at most a sixteenth of a budget of device memory.
    pub slot_bytes: u64,
    /// Bytes of slots for prefetched parameters.
    pub ring_bytes: u64,
    /// Bytes that cross the link to slots in every step; of compressed parameters, those that they
    /// are expected to become.
    pub step_bytes: u64,
    /// Bytes that the device reads in place in every step if it reads all of every dense parameter.
    pub view_bytes: u64,
    /// Predicted seconds of a step, with dense parameters in place read once for every 128 rows, at
    /// nine tenths of the rate of copies. Those that the link needs if the options do not give the
    /// time of kernels; 0 if the bandwidth of the link is not known. `link_seconds` and
    /// `kernel_seconds` say which of the two is longer.
    pub step_seconds: f64,
    /// Predicted seconds of a step in which the link is busy; 0 if its bandwidth is not known.
    pub link_seconds: f64,
    /// Seconds of a step's kernels with all parameters on the device, which the options give; 0 if
    /// they do not.
    pub kernel_seconds: f64,
    /// 1 if the first groups of a step wait for the last groups of the step before.
    pub wrap_stalls: i32,
    /// Zero.
    pub reserved0: u32,
    /// Bytes of offloaded parameters that are compressed.
    pub decoded_bytes: u64,
    /// What these are expected to become: the sum of the parameters' `encoded_bytes`.
    pub encoded_bytes: u64,
    /// Predicted seconds of `link_seconds` in which kernels read compressed bytes over the link,
    /// which pass through no windows, and decode them; 0 if the bandwidth of the link is not known.
    pub decode_seconds: f64,
    /// Bytes of device memory for expert caches. With `resident_bytes`, `slot_bytes` and
    /// `device_encoded_bytes` it is at most a budget of device memory.
    pub expert_bytes: u64,
    /// Bytes of device memory for parameters that the device keeps compressed: the sum of the
    /// parameters' `device_encoded_bytes`. What they need is known when they are compressed, at the
    /// commit; those that do not fit in the budget then are decoded from host memory.
    pub device_encoded_bytes: u64,
    /// Those of `decoded_bytes` that are decoded from there, and cross no link.
    pub device_decoded_bytes: u64,
    /// Predicted part of the experts of calls that caches of `expert_bytes` find in slots: the part
    /// of the offloaded experts that have slots, as with a router that picks all equally often,
    /// whatever it picked before. Routers repeat themselves, so counters show more. 0 without
    /// experts, or if `expert_bytes` is 0.
    pub expert_hit_rate: f64,
}

c_struct!(wb_plan_info);

/// Planned placement of a parameter.
#[repr(C)]
pub struct wb_plan_parameter_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED.
    pub placement: wb_placement,
    /// How it is transferred; WB_TRANSFER_MODE_AUTO if it is resident.
    pub transfer_mode: wb_transfer_mode,
    /// The element type: of the values that are kept, not of their source.
    pub dtype: wb_dtype,
    /// The name.
    pub name: *const c_char,
    /// Reason for the placement.
    pub reason: *const c_char,
    /// Index of the group.
    pub group: u64,
    /// Bytes from the lowest element to the end of the highest.
    pub span_bytes: u64,
    /// Index of the first parameter that it is tied to; its own index if it is not tied.
    pub tied_to: u64,
    /// The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one that its layout gave.
    pub dtype_name: *const c_char,
    /// `ndim` sizes in elements, valid while the plan is.
    pub shape: *const i64,
    /// `ndim` strides in elements, valid while the plan is.
    pub strides: *const i64,
    /// Number of dimensions.
    pub ndim: i32,
    /// Elements of a block of a WB_DTYPE_OPAQUE, otherwise 0.
    pub block_elements: u32,
    /// Bytes of a block of a WB_DTYPE_OPAQUE, otherwise 0.
    pub block_bytes: u32,
    /// Zero.
    pub reserved0: u32,
    /// Bytes that it is expected to be compressed to, with those that it is tied to; 0 if it is not
    /// compressed, for which `reason` has the reason.
    pub encoded_bytes: u64,
    /// Bytes of it that are on the device in memory of their own: all or none, or of a parameter in
    /// pieces (wb_offloader_prefer) any number.
    pub resident_bytes: u64,
    /// Bytes of device memory in which the device is to keep it compressed, with those that it is
    /// tied to: `encoded_bytes` and one part in 256, rounded up to 256. 0 if it does not.
    pub device_encoded_bytes: u64,
}

c_struct!(wb_plan_parameter_info);

/// A group of a plan. A tied parameter counts in its first group.
#[repr(C)]
pub struct wb_plan_group_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// Position among the groups with prefetched parameters; -1 if it has none.
    pub turn: i32,
    /// The name.
    pub name: *const c_char,
    /// Bytes of its offloaded parameters.
    pub offloaded_bytes: u64,
    /// Bytes of its resident parameters.
    pub resident_bytes: u64,
}

c_struct!(wb_plan_group_info);

/// Fills `info` with the figures of the plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_info(
    plan: *const wb_plan,
    info: *mut wb_plan_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan| -> info {
        let plan = plan.plan();
        Ok(wb_plan_info {
            depth: plan.depth as u32,
            parameters: plan.parameters.len() as u64,
            groups: plan.groups.len() as u64,
            warnings: plan.warnings.len() as u64,
            payload_bytes: plan.payload_bytes,
            offloaded_bytes: plan.offloaded_payload_bytes,
            arena_bytes: plan.arena_bytes,
            resident_bytes: plan.resident_bytes,
            slot_bytes: plan.slot_bytes + plan.window_bytes,
            expert_bytes: plan.expert_bytes,
            ring_bytes: plan.ring_bytes,
            step_bytes: plan.step_bytes,
            view_bytes: plan.view_bytes,
            step_seconds: plan.step_seconds.unwrap_or(0.0),
            link_seconds: plan.link_seconds.unwrap_or(0.0),
            kernel_seconds: plan.kernel_seconds.unwrap_or(0.0),
            wrap_stalls: plan.wrap_stalls.into(),
            decoded_bytes: plan.decoded_bytes,
            encoded_bytes: plan.encoded_bytes,
            decode_seconds: plan.decode_seconds.unwrap_or(0.0),
            device_encoded_bytes: plan.kept_bytes,
            device_decoded_bytes: plan.kept_decoded_bytes,
            expert_hit_rate: plan.expert_hit_rate().unwrap_or(0.0),
            ..CStruct::init()
        })
    })
}

/// Gets the whole plan as JSON.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_to_json(
    plan: *const wb_plan,
    json: *mut *const c_char,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan| -> json { Ok(plan.json().as_ptr()) })
}

/// Gets the index of the parameter with a name. Fails with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_find_parameter(
    plan: *const wb_plan,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan, name: &str| -> index {
        match plan.find(name) {
            Some(index) => Ok(index as u64),
            None => {
                let count = plan.plan().parameters.len();
                Err(Error::not_found("parameter", name, count, "wb_plan_to_json"))
            }
        }
    })
}

/// Fills `info` with the planned placement of parameter `index`; parameters have the order of
/// wb_plan_new, where scales follow their quantized matrix. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_parameter_info(
    plan: *const wb_plan,
    index: u64,
    info: *mut wb_plan_parameter_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan| -> info {
        let (name, reason) = at(plan.parameters(), index, "parameter")?;
        let planned = at(&plan.plan().parameters, index, "parameter")?;
        let (placement, transfer_mode) = placement_codes(planned.transfer_mode);
        let storage = &plan.plan().storages[planned.storage];
        let layout = &planned.parameter.layout;
        let (block_elements, block_bytes) = block_of(layout.dtype());
        Ok(wb_plan_parameter_info {
            placement,
            transfer_mode,
            dtype: layout.dtype().code(),
            dtype_name: layout.dtype().c_name().as_ptr(),
            shape: layout.shape().as_ptr(),
            strides: layout.strides().as_ptr(),
            ndim: layout.ndim() as i32,
            block_elements,
            block_bytes,
            name: name.as_ptr(),
            reason: reason.as_ptr(),
            group: planned.group as u64,
            span_bytes: layout.span_bytes(),
            tied_to: storage.parameters[0] as u64,
            encoded_bytes: storage.coding.as_ref().map_or(0, |coding| coding.encoded_bytes),
            resident_bytes: plan.plan().resident_bytes_of(index as usize),
            device_encoded_bytes: storage.kept_bytes,
            ..CStruct::init()
        })
    })
}

/// Fills `info` with the properties of group `index`; groups have the order in which parameters
/// first name them. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_group_info(
    plan: *const wb_plan,
    index: u64,
    info: *mut wb_plan_group_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan| -> info {
        let name = at(plan.groups(), index, "group")?;
        let group = at(&plan.plan().groups, index, "group")?;
        Ok(wb_plan_group_info {
            turn: group.ring_position.map_or(-1, |turn| turn as i32),
            name: name.as_ptr(),
            offloaded_bytes: group.offloaded_bytes,
            resident_bytes: group.resident_bytes,
            ..CStruct::init()
        })
    })
}

/// Gets the text of warning `index`: an error that `allow` downgraded, or what the plan could not
/// do as well as was asked. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_get_warning(
    plan: *const wb_plan,
    index: u64,
    warning: *mut *const c_char,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan| -> warning {
        at(plan.warnings(), index, "warning").map(|warning| warning.as_ptr())
    })
}

fn at<'a, T>(all: &'a [T], index: u64, what: &str) -> Result<&'a T> {
    match usize::try_from(index).ok().and_then(|index| all.get(index)) {
        Some(found) => Ok(found),
        None => fail!(WB_ERR_OUT_OF_RANGE, "asked for {what} {index}; there are {}", all.len()),
    }
}
