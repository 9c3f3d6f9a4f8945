//! Selectors and names, by plans of one parameter.

use std::ffi::CStr;

use weighbridge::capi::parameter::wb_parameter;
use weighbridge::capi::plan::{
    WB_ALLOW_EVERYTHING_FITS, WB_BUDGET_OFFLOAD_BYTES, wb_plan_new, wb_plan_options,
    wb_plan_release,
};
use weighbridge::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_SELECTOR};
use weighbridge::tensor::dtype::WB_DTYPE_U8;

use crate::c;
use crate::oracle::{glob_matches, is_glob, segments_match};

/// A selector with more `*` is refused.
const MOST_STARS: usize = 64;

/// The bytes are a selector and a name, with a newline between them.
pub fn run(data: &[u8]) {
    let middle = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (text, name) = (c::text(&data[..middle]), c::text(data.get(middle + 1..).unwrap_or(&[])));
    let selected = selects(&text, &name);
    let (Ok(selector), Ok(name)) = (text.to_str(), name.to_str()) else {
        assert!(matches!(selected, Err(WB_ERR_INVALID_ARGUMENT)), "not UTF-8: {selected:?}");
        return;
    };
    let expected = match is_glob(selector) {
        _ if selector.is_empty() || selector.matches('*').count() > MOST_STARS => false,
        false => segments_match(selector, name),
        // Two stars are an error, or match any folders or none: never more than one star does.
        true if selector.contains("**") && !selector.contains('[') => {
            let wider = selector.replace("**/", "*");
            selected == Ok(true) && glob_matches(&wider, name)
        }
        true if selector.contains("**") => selected == Ok(true),
        true => glob_matches(selector, name),
    };
    assert_eq!(selected, Ok(expected), "{selector:?} {name:?}");
}

/// Whether the library selects the name; the status of an error other than WB_ERR_SELECTOR.
fn selects(text: &CStr, name: &CStr) -> Result<bool, i32> {
    let shape = [64];
    let layout = c::layout(WB_DTYPE_U8, &shape, None, 0);
    let select = [text.as_ptr()];
    // SAFETY: structs of the interface, with pointers that are valid during the call.
    let made = unsafe {
        let parameter = wb_parameter {
            name: name.as_ptr(),
            group: c"all".as_ptr(),
            layout: &raw const layout,
            ..c::sized()
        };
        let options = wb_plan_options {
            budget_kind: WB_BUDGET_OFFLOAD_BYTES,
            budget_bytes: 1 << 20,
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
        // SAFETY: this function owns the plan.
        Ok(plan) => unsafe { wb_plan_release(plan) },
        Err(refused) if refused.status == WB_ERR_SELECTOR => return Ok(false),
        Err(refused) => return Err(refused.status),
    }
    Ok(true)
}
