//! Version, names of statuses, and the log sink.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use crate::capi::error::{described, guard, wb_error};
use crate::os::log;
use crate::status;
use crate::status::wb_status;

/// The library's version as `WB_VERSION` counts it. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn wb_version() -> u32 {
    const fn number(text: &str) -> u32 {
        let (bytes, mut value, mut index) = (text.as_bytes(), 0, 0);
        while index < bytes.len() {
            value = value * 10 + (bytes[index] - b'0') as u32;
            index += 1;
        }
        value
    }
    number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | number(env!("CARGO_PKG_VERSION_PATCH"))
}

/// The name of a status, such as "WB_ERR_INVALID_ARGUMENT"; NULL for a number that is none. Static.
#[unsafe(no_mangle)]
pub extern "C" fn wb_status_name(status: wb_status) -> *const c_char {
    status::name(status).map_or(ptr::null(), |name| name.as_ptr().cast())
}

/// Receives an error that no call could return: something failed while memory was given back.
/// Called on any thread, with locks of the library held: it must not call the library.
pub type wb_log_callback = Option<unsafe extern "C" fn(user: *mut c_void, error: *const wb_error)>;

#[derive(Clone, Copy)]
struct User(*mut c_void);
// SAFETY: the library only hands the pointer back; wb_log_set_callback's caller promises any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

/// Installs the process's log sink, or takes it away with a NULL callback. Without one such errors
/// are only counted (wb_device_stats.errors_logged).
///
/// Ownership: `user` stays the caller's and must live until the sink is replaced. Any thread.
///
/// # Safety
/// `callback` may be called on any thread with `user` until it is replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_log_set_callback(
    callback: wb_log_callback,
    user: *mut c_void,
) -> wb_status {
    guard(ptr::null_mut(), || {
        let user = User(user);
        log::set_sink(callback.map(
            |callback| -> Arc<dyn Fn(&crate::error::Error) + Send + Sync> {
                Arc::new(move |error| {
                    let User(user) = { user };
                    let error = described(error);
                    // SAFETY: the caller of wb_log_set_callback promised that callback and user are good.
                    unsafe { callback(user, &error) };
                })
            },
        ));
        Ok(())
    })
}
