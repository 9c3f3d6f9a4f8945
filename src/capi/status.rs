//! Status codes.

use std::ffi::c_char;
use std::ptr;

use crate::status::{name, wb_status};

/// Returns the name of a status, such as "WB_ERR_INVALID_ARGUMENT", or NULL if there is no such
/// status.
#[unsafe(no_mangle)]
pub extern "C" fn wb_status_name(status: wb_status) -> *const c_char {
    name(status).map_or(ptr::null(), |name| name.as_ptr().cast())
}
