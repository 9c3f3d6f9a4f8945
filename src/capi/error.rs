//! The error that a caller hands in, and the guard around every function.

use std::ffi::c_char;

use crate::capi::cancel::Uncancelled;
use crate::error::{Error, Result, catch_panic};
use crate::os::log;
use crate::os::sync::forced;
use crate::status::{WB_OK, wb_status};

/// What went wrong. The caller's own; begin with WB_ERROR_INIT. Written on failure only.
#[repr(C)]
pub struct wb_error {
    /// Bytes of the struct, by WB_ERROR_INIT.
    pub struct_size: u32,
    /// The status that the call gave.
    pub status: wb_status,
    /// The CUDA driver's code, or the errno of a system call; 0 where there is none.
    pub driver_code: i32,
    /// What was asked, what was found, what to do. Ends in NUL.
    pub message: [c_char; 500],
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
    catch_panic(|| {
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
        (*error).driver_code = failure.code;
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
