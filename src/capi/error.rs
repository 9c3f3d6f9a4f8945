//! The error that a caller hands in, and the guard around every function.

use std::ffi::c_char;

use crate::capi::cancel::Uncancelled;
use crate::error::{CodeDomain, Error, Result, catch};
use crate::os::log;
use crate::os::sync::forced;
use crate::status::{WB_OK, wb_status};

/// The numbering that `wb_error.code` belongs to.
pub type wb_code_domain = i32;
/// There is no code.
pub const WB_CODE_NONE: wb_code_domain = 0;
/// `errno` of a system call.
pub const WB_CODE_ERRNO: wb_code_domain = 1;
/// `CUresult` of the CUDA driver.
pub const WB_CODE_CUDA: wb_code_domain = 2;

/// Describes a failure. Begin with WB_ERROR_INIT. Written on failure only.
#[repr(C)]
pub struct wb_error {
    /// Bytes of the struct, by WB_ERROR_INIT.
    pub struct_size: u32,
    /// The status that the call gave.
    pub status: wb_status,
    /// The code that the driver or the kernel returned; 0 if there is none.
    pub code: i32,
    /// The numbering that `code` belongs to.
    pub code_domain: wb_code_domain,
    /// What was asked, what was found, what to do. Ends in NUL.
    pub message: [c_char; 500],
}

fn domain(failure: &Error) -> wb_code_domain {
    match failure.domain {
        CodeDomain::None => WB_CODE_NONE,
        CodeDomain::Errno => WB_CODE_ERRNO,
        CodeDomain::Cuda => WB_CODE_CUDA,
    }
}

/// A failure as C reads it, for callbacks.
pub(super) fn described(failure: &Error) -> wb_error {
    let mut error = wb_error {
        struct_size: size_of::<wb_error>() as u32,
        status: WB_OK,
        code: 0,
        code_domain: WB_CODE_NONE,
        message: [0; 500],
    };
    // SAFETY: the struct is alive and has its size.
    unsafe { store(&mut error, failure) };
    error
}

/// Runs the body of an exported function: an error is stored and its status given; a panic never
/// leaves the library, and a cancellation of the thread waits until it has.
pub(super) fn guard(error: *mut wb_error, body: impl FnOnce() -> Result<()>) -> wb_status {
    let _whole = Uncancelled::begin();
    let Err(failure) = run(body) else { return WB_OK };
    let status = failure.status;
    // SAFETY: the callers of exported functions pass NULL or a live wb_error with its size set.
    unsafe { store(error, &failure) };
    status
}

/// The same for functions that return nothing: NULL is let through by them, errors are logged, by a
/// sink that may be a point of cancellation.
pub(super) fn guard_void(body: impl FnOnce() -> Result<()>) {
    let _whole = Uncancelled::begin();
    log::best_effort(|| run(body));
}

fn run(body: impl FnOnce() -> Result<()>) -> Result<()> {
    catch(|| {
        forced::point();
        body()
    })
}

/// Fills as much of the caller's error as the caller's header knew of.
///
/// # Safety
/// `error` is NULL or points to a struct whose first field is its size in bytes.
unsafe fn store(error: *mut wb_error, failure: &Error) {
    const HEAD: usize = std::mem::offset_of!(wb_error, message);
    if error.is_null() {
        return;
    }
    // SAFETY: the first field is there in every version.
    let size = (unsafe { (*error).struct_size } as usize).min(size_of::<wb_error>());
    if size <= HEAD {
        return;
    }
    // SAFETY: the struct has all fields up to the message, and `room` bytes of that.
    unsafe {
        (*error).status = failure.status;
        (*error).code = failure.code;
        (*error).code_domain = domain(failure);
        write_text(&raw mut (*error).message as *mut c_char, size - HEAD, &failure.message);
    }
}

/// Copies text into a buffer of `room` bytes, cut off at a character, with its NUL.
///
/// # Safety
/// `to` is valid for `room` bytes, at least one.
pub(super) unsafe fn write_text(to: *mut c_char, room: usize, text: &str) {
    let end = text.floor_char_boundary(room - 1);
    // SAFETY: end < room.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, end);
        *to.add(end) = 0;
    }
}
