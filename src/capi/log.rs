//! The callback for errors that no call can return.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use crate::capi::call::guard;
use crate::capi::error::wb_error;
use crate::error::Error;
use crate::os::log;
use crate::status::wb_status;

/// Receives an error that no call could return, such as one of freeing memory. It is called on any
/// thread, with locks of the library held: it must not call the library.
pub type wb_log_callback = Option<unsafe extern "C" fn(user: *mut c_void, error: *const wb_error)>;

#[derive(Clone, Copy)]
struct User(*mut c_void);
// SAFETY: the library only passes the pointer on, by the contract of mod.rs on any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

/// Installs the log callback of the process; NULL removes it. Without one, such errors are only
/// counted (`wb_device_stats.errors_logged`). `user` must stay valid until the callback is
/// replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_log_set_callback(
    callback: wb_log_callback,
    user: *mut c_void,
) -> wb_status {
    guard(ptr::null_mut(), || {
        let user = User(user);
        log::set_sink(callback.map(|callback| -> Arc<dyn Fn(&Error) + Send + Sync> {
            Arc::new(move |error| {
                let User(user) = { user };
                // SAFETY: the contract of mod.rs.
                unsafe { callback(user, &wb_error::from(error)) };
            })
        }));
        Ok(())
    })
}
