//! Calls of the C interface, each with the checks that hold for all: the status is known, the error has
//! the status and a message, outputs are written on success only.

use std::ffi::{CStr, CString};
use std::ptr;

use weighbridge::capi::device::{
    WB_TRISTATE_OFF, WB_TRISTATE_ON, wb_device, wb_device_get_stats, wb_device_open,
    wb_device_options, wb_device_stats, wb_tristate,
};
use weighbridge::capi::error::wb_error;
use weighbridge::capi::parameter::*;
use weighbridge::capi::status::wb_status_name;
use weighbridge::capi::view::wb_layout;
use weighbridge::status::{WB_ERR_HANDLE, WB_ERR_INTERNAL, WB_OK, wb_status};

/// The error of a call that failed.
#[derive(Debug)]
pub struct Refused {
    /// `wb_error.status`
    pub status: wb_status,
    /// `wb_error.message`
    pub message: String,
}

/// Makes a call and checks its status against its error.
pub fn call(function: impl FnOnce(*mut wb_error) -> wb_status) -> Result<(), Refused> {
    // SAFETY: a struct of the interface.
    let mut error: wb_error = unsafe { sized() };
    let status = function(&raw mut error);
    assert!(!wb_status_name(status).is_null(), "status {status} has no name");
    // SAFETY: the message was empty, and ends in NUL after the call.
    let message = unsafe { CStr::from_ptr(error.message.as_ptr()) };
    let message = message.to_str().expect("messages are UTF-8").to_owned();
    assert!(status != WB_ERR_INTERNAL && status != WB_ERR_HANDLE, "status {status}: {message}");
    assert_eq!(error.status, status, "the error has another status than the call returned");
    assert_eq!(message.is_empty(), status == WB_OK, "status {status}: {message:?}");
    if status == WB_OK { Ok(()) } else { Err(Refused { status, message }) }
}

/// Makes a call with one output, which must be unchanged after a failure.
pub fn make<T>(
    function: impl FnOnce(*mut *mut T, *mut wb_error) -> wb_status,
) -> Result<*mut T, Refused> {
    let untouched = ptr::without_provenance_mut(0x5a5a_5a50);
    let mut made = untouched;
    let outcome = call(|error| function(&raw mut made, error));
    assert_eq!(outcome.is_err(), made == untouched, "outputs are written on success only");
    outcome.map(|()| made)
}

/// The bytes before the first NUL, as a C string.
pub fn text(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).expect("it has no NUL")
}

/// A layout that points to `shape` and `strides`.
pub fn layout(dtype: i32, shape: &[i64], strides: Option<&[i64]>, offset_bytes: u64) -> wb_layout {
    wb_layout {
        dtype,
        ndim: shape.len() as i32,
        shape: shape.as_ptr(),
        strides: strides.map_or(ptr::null(), <[i64]>::as_ptr),
        offset_bytes,
        // SAFETY: a struct of the interface.
        ..unsafe { sized() }
    }
}

/// Opens a device.
pub fn open(name: &CStr, pin: wb_tristate, views: wb_tristate) -> *mut wb_device {
    // SAFETY: a struct of the interface.
    let options = wb_device_options { pin, views, ..unsafe { sized() } };
    // SAFETY: all pointers are valid.
    make(|device, error| unsafe {
        wb_device_open(name.as_ptr(), &raw const options, device, error)
    })
    .expect("the device opens")
}

/// A host device that pins nothing, with views or without, for as long as the process runs. Each thread has
/// its own, so that one target owns all objects on it.
pub fn host(views: bool) -> *mut wb_device {
    thread_local! {
        static DEVICES: [*mut wb_device; 2] =
            [WB_TRISTATE_OFF, WB_TRISTATE_ON].map(|views| open(c"host", WB_TRISTATE_OFF, views));
    }
    DEVICES.with(|devices| devices[usize::from(views)])
}

/// Checks that no objects are left on a device, and that no error was logged.
pub fn check_nothing_left(device: *const wb_device) {
    // SAFETY: a struct of the interface.
    let mut left: wb_device_stats = unsafe { sized() };
    // SAFETY: the device is alive.
    call(|error| unsafe { wb_device_get_stats(device, &raw mut left, error) })
        .expect("it has stats");
    let counted = [
        left.buffers,
        left.views,
        left.deferred,
        left.asked_bytes,
        left.mapped_bytes,
        left.pinned_bytes,
        left.device_bytes,
        left.errors_logged,
    ];
    assert_eq!(counted, [0; 8], "buffers, views, deferred, asked, mapped, pinned, device, logged");
}

/// The `*_INIT` of a struct of the interface: its size, and zeros.
///
/// # Safety
/// `T` is a struct of the interface: it begins with its size, and zeros are valid values of its fields.
pub unsafe fn sized<T>() -> T {
    // SAFETY: the caller's promise.
    unsafe {
        let mut zeros: T = std::mem::zeroed();
        (&raw mut zeros).cast::<u32>().write(size_of::<T>() as u32);
        zeros
    }
}

/// Placement and transfer mode by one number of a case: -1 keeps a parameter on the device.
pub fn placement(number: i32) -> (wb_placement, wb_transfer_mode) {
    match number {
        -1 => (WB_PLACEMENT_RESIDENT, WB_TRANSFER_MODE_AUTO),
        mode => (WB_PLACEMENT_AUTO, mode),
    }
}
