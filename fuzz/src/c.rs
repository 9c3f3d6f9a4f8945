//! Calls of the C interface, and what every one of them must keep: a known status, an error that says
//! something, outputs that are written on success only.

use std::ffi::{CStr, CString};
use std::ptr;

use weighbridge::capi::device::{
    WB_TRISTATE_OFF, WB_TRISTATE_ON, wb_tristate, wb_device, wb_device_get_stats, wb_device_open, wb_device_options,
    wb_device_stats,
};
use weighbridge::capi::error::wb_error;
use weighbridge::capi::version::wb_status_name;
use weighbridge::capi::view::wb_layout;
use weighbridge::status::{WB_ERR_HANDLE, WB_ERR_INTERNAL, WB_OK, wb_status};

/// What a call that failed has said.
#[derive(Debug)]
pub struct Refused {
    /// The call's status.
    pub status: wb_status,
    /// The error's message.
    pub message: String,
}

/// Makes a call and checks its status against its error.
pub fn call(function: impl FnOnce(*mut wb_error) -> wb_status) -> Result<(), Refused> {
    let size = size_of::<wb_error>() as u32;
    let mut error =
        wb_error { struct_size: size, status: WB_OK, driver_code: 0, message: [0; 500] };
    let status = function(&raw mut error);
    assert!(!wb_status_name(status).is_null(), "status {status} has no name");
    // SAFETY: the message ends in NUL, which it did at first and must still.
    let message = unsafe { CStr::from_ptr(error.message.as_ptr()) };
    let message = message.to_str().expect("messages are UTF-8").to_owned();
    assert!(status != WB_ERR_INTERNAL && status != WB_ERR_HANDLE, "status {status}: {message}");
    assert_eq!(error.status, status, "the error holds another status than the call gave");
    assert_eq!(message.is_empty(), status == WB_OK, "status {status}: {message:?}");
    if status == WB_OK { Ok(()) } else { Err(Refused { status, message }) }
}

/// Makes a call with one output, which must stay as it was after a failure.
pub fn make<T>(
    function: impl FnOnce(*mut *mut T, *mut wb_error) -> wb_status,
) -> Result<*mut T, Refused> {
    let untouched = ptr::without_provenance_mut(0x5a5a_5a50);
    let mut made = untouched;
    let outcome = call(|error| function(&raw mut made, error));
    assert_eq!(outcome.is_err(), made == untouched, "outputs are written on success only");
    outcome.map(|()| made)
}

/// A name as C has it; what follows a NUL is not part of it.
pub fn text(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).expect("there is no NUL")
}

/// A layout of the caller's shape and strides, which must outlive it.
pub fn layout(dtype: i32, shape: &[i64], strides: Option<&[i64]>, offset_bytes: u64) -> wb_layout {
    wb_layout {
        struct_size: size_of::<wb_layout>() as u32,
        dtype,
        ndim: shape.len() as i32,
        reserved0: 0,
        shape: shape.as_ptr(),
        strides: strides.map_or(ptr::null(), <[i64]>::as_ptr),
        offset_bytes,
    }
}

/// Opens a device by its name.
pub fn open(name: &CStr, pin: wb_tristate, views: wb_tristate) -> *mut wb_device {
    // SAFETY: a struct of the interface.
    let options = wb_device_options { pin, views, ..unsafe { sized() } };
    // SAFETY: all pointers are valid.
    make(|device, error| unsafe {
        wb_device_open(name.as_ptr(), &raw const options, device, error)
    })
    .expect("the device opens")
}

/// A host device for as long as the process runs, which pins nothing, with views or without. Each
/// thread has its own, so that what lives there is one target's.
pub fn host(views: bool) -> *mut wb_device {
    thread_local! {
        static DEVICES: [*mut wb_device; 2] =
            [WB_TRISTATE_OFF, WB_TRISTATE_ON].map(|views| open(c"host", WB_TRISTATE_OFF, views));
    }
    DEVICES.with(|devices| devices[usize::from(views)])
}

/// Counts what lives on a device.
pub fn usage(device: *const wb_device) -> wb_device_stats {
    // SAFETY: a struct of the interface.
    let mut usage: wb_device_stats = unsafe { sized() };
    // SAFETY: the device is alive.
    call(|error| unsafe { wb_device_get_stats(device, &raw mut usage, error) }).expect("it counts");
    usage
}

/// Sees that nothing lives on a device, and that no error was logged.
pub fn check_nothing_left(device: *const wb_device) {
    let left = usage(device);
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

/// A struct of the interface that is filled by a call: zeros, and its size first.
///
/// # Safety
/// `T` is a struct of the interface: it begins with its size, and zeros are a valid value.
pub unsafe fn sized<T>() -> T {
    // SAFETY: the caller's promise.
    unsafe {
        let mut zeros: T = std::mem::zeroed();
        (&raw mut zeros).cast::<u32>().write(size_of::<T>() as u32);
        zeros
    }
}
