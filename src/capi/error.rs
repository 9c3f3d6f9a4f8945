//! Errors as C receives them.

use std::ffi::c_char;

use crate::capi::enumeration::{Enumeration, c_enum};
use crate::capi::structs::{CStruct, c_struct, chars, without_nul};
use crate::error::{CodeDomain, Error};
use crate::status::wb_status;

/// The numbering that an error's code belongs to.
pub type wb_code_domain = i32;
/// There is no code.
pub const WB_CODE_NONE: wb_code_domain = 0;
/// `errno` of a system call.
pub const WB_CODE_ERRNO: wb_code_domain = 1;
/// `CUresult` of the CUDA driver.
pub const WB_CODE_CUDA: wb_code_domain = 2;

/// Describes a failure; a call that succeeds does not write it.
#[repr(C)]
pub struct wb_error {
    /// Size of the struct.
    pub struct_size: u32,
    /// The status that the call returned.
    pub status: wb_status,
    /// The code of the driver or the kernel; 0 if there is none.
    pub code: i32,
    /// The numbering that `code` belongs to.
    pub code_domain: wb_code_domain,
    /// What was asked, what was found, and what to do.
    pub message: [c_char; 500],
}

c_struct!(wb_error);
c_enum!(CodeDomain {
    WB_CODE_NONE => None,
    WB_CODE_ERRNO => Errno,
    WB_CODE_CUDA => Cuda,
});

impl From<&Error> for wb_error {
    fn from(error: &Error) -> Self {
        Self {
            status: error.status,
            code: error.code,
            code_domain: error.domain.code(),
            message: chars(&error.message),
            ..Self::init()
        }
    }
}

/// Fills as much of the caller's error as the caller's header knows; a truncated message ends in
/// NUL.
///
/// # Safety
/// `to` is NULL or points to a wb_error of the size that it begins with.
pub(super) unsafe fn store(to: *mut wb_error, error: &Error) {
    const HEAD: usize = std::mem::offset_of!(wb_error, message);
    if to.is_null() {
        return;
    }
    // SAFETY: every version begins with the size.
    let size = (unsafe { (*to).struct_size } as usize).min(size_of::<wb_error>());
    if size <= HEAD {
        return;
    }
    let capacity = size - HEAD;
    let text = without_nul(&error.message);
    let end = text.floor_char_boundary(capacity - 1);
    // SAFETY: the struct has all fields before the message, and `capacity` bytes of the message.
    unsafe {
        (*to).status = error.status;
        (*to).code = error.code;
        (*to).code_domain = error.domain.code();
        let message = (&raw mut (*to).message).cast::<u8>();
        std::ptr::copy_nonoverlapping(text.as_ptr(), message, end);
        *message.add(end) = 0;
    }
}
