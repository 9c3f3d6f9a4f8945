//! Selectors against names, through plans of one parameter.

use std::ffi::CStr;

use weighbridge::capi::parameter::wb_parameter;
use weighbridge::capi::plan::{
    WB_ALLOW_EVERYTHING_FITS, WB_UNSET, wb_plan_new, wb_plan_options, wb_plan_release,
};
use weighbridge::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_SELECTOR};
use weighbridge::tensor::dtype::WB_DTYPE_U8;

use crate::c;
use crate::oracle::{glob_matches, is_glob, segments_match};

/// A selector with more is refused.
const MOST_STARS: usize = 64;

/// A selector and a name, with a line's end between them.
pub fn run(data: &[u8]) {
    let middle = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (text, name) = (c::text(&data[..middle]), c::text(data.get(middle + 1..).unwrap_or(&[])));
    let meant = selects(&text, &name);
    let (Ok(selector), Ok(name)) = (text.to_str(), name.to_str()) else {
        assert!(matches!(meant, Err(WB_ERR_INVALID_ARGUMENT)), "no UTF-8: {meant:?}");
        return;
    };
    let expected = match is_glob(selector) {
        _ if selector.is_empty() || selector.matches('*').count() > MOST_STARS => false,
        false => segments_match(selector, name),
        // Two stars are an error, or mean folders, none too: never more than one star does.
        true if selector.contains("**") && !selector.contains('[') => {
            let wider = selector.replace("**/", "*");
            meant == Ok(true) && glob_matches(&wider, name)
        }
        true if selector.contains("**") => meant == Ok(true),
        true => glob_matches(selector, name),
    };
    assert_eq!(meant, Ok(expected), "{selector:?} {name:?}");
}

/// Whether the library takes the name as meant; the status of an error that is not of the selector.
fn selects(text: &CStr, name: &CStr) -> Result<bool, i32> {
    let shape = [64];
    let layout = c::layout(WB_DTYPE_U8, &shape, None, 0);
    let select = [text.as_ptr()];
    // SAFETY: structs of the interface, whose pointers are valid during the call.
    let made = unsafe {
        let parameter = wb_parameter {
            name: name.as_ptr(),
            group: c"all".as_ptr(),
            layout: &raw const layout,
            ..c::sized()
        };
        let options = wb_plan_options {
            offload_bytes: 1 << 20,
            device_bytes: WB_UNSET,
            slot_bytes: WB_UNSET,
            select: select.as_ptr(),
            select_count: 1,
            allow: WB_ALLOW_EVERYTHING_FITS,
            ..c::sized()
        };
        c::make(|plan, error| {
            wb_plan_new(c::host(true), &raw const parameter, 1, &raw const options, plan, error)
        })
    };
    match made {
        // SAFETY: the plan is this function's own.
        Ok(plan) => unsafe { wb_plan_release(plan) },
        Err(refused) if refused.status == WB_ERR_SELECTOR => return Ok(false),
        Err(refused) => return Err(refused.status),
    }
    Ok(true)
}
