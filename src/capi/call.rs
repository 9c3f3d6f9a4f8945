//! The frame of every exported function: arguments are read, the body runs guarded, and outputs are
//! written.

use crate::capi::cancel::Uncancelled;
use crate::capi::error::{store, wb_error};
use crate::capi::handle::{Opaque, borrow, take};
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Result, catch_panic};
use crate::memory::deferred;
use crate::os::log;
use crate::os::sync::{Arc, forced};
use crate::status::{WB_OK, wb_status};

/// Runs the body of an exported function: an error is stored and its status returned. A panic never
/// leaves the library, and pthread_cancel of the thread waits until the body has ended.
pub(super) fn guard(error: *mut wb_error, body: impl FnOnce() -> Result<()>) -> wb_status {
    let _whole = Uncancelled::begin();
    let Err(failure) = run(body) else { return WB_OK };
    // SAFETY: the contract of mod.rs.
    unsafe { store(error, &failure) };
    failure.status
}

/// As [`guard`], for a function that returns nothing: an error is logged. The log callback may be a
/// cancellation point.
pub(super) fn guard_void(body: impl FnOnce() -> Result<()>) {
    let _whole = Uncancelled::begin();
    log::best_effort(|| run(body));
}

/// As [`guard`], for a function that returns a value: `default` after an error.
pub(super) fn guard_value<T>(default: T, body: impl FnOnce() -> Result<T>) -> T {
    let _whole = Uncancelled::begin();
    run(body).unwrap_or(default)
}

fn run<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_panic(|| {
        forced::point();
        body()
    })
}

/// Takes a reference back from C; it is dropped once the work queued on `stream` now has run.
///
/// # Safety
/// The handle is NULL or alive; C does not use the reference again, except after an error.
pub(super) unsafe fn take_after<O: Opaque>(
    handle: *const O,
    stream: Stream,
    device: impl FnOnce(&O::Object) -> &Arc<Device>,
) -> Result<()>
where
    O::Object: Send + Sync + 'static,
{
    // SAFETY: the promise above.
    let device = device(unsafe { borrow(handle) }?).clone();
    let event = device.record_event(stream)?;
    deferred::start()?;
    // SAFETY: the promise above.
    let reference = unsafe { take(handle) }?;
    deferred::drop_after(Some(event), Box::new(reference), &device);
    Ok(())
}

/// The body of an exported function, written as a closure of the parameters that it reads, each
/// with the type that it becomes, and of the outputs that its value is written to:
///
/// ```ignore
/// call!(error, |device: Arc<Device>, path: &Path| -> buffer { ... })
/// ```
macro_rules! call {
    ($error:ident, || -> $output:ident $body:block) => {
        $crate::capi::call::call!(@ $error, [] [$output] $body)
    };
    ($error:ident, |$($input:ident: $type:ty),+ $(,)?| -> $output:ident $body:block) => {
        $crate::capi::call::call!(@ $error, [$($input: $type),+] [$output] $body)
    };
    ($error:ident, |$($input:ident: $type:ty),+ $(,)?| -> ($($output:ident),+) $body:block) => {
        $crate::capi::call::call!(@ $error, [$($input: $type),+] [$($output),+] $body)
    };
    ($error:ident, |$($input:ident: $type:ty),+ $(,)?| $body:expr) => {
        $crate::capi::call::guard($error, || {
            $crate::capi::call::call!(@read $($input: $type),+);
            $body
        })
    };
    (@ $error:ident, [$($input:ident: $type:ty),*] [$($output:ident),+] $body:block) => {
        $crate::capi::call::guard($error, || {
            use $crate::capi::arguments::Output;
            $(
                // SAFETY: the contract of mod.rs.
                unsafe { $output.check(stringify!($output)) }?;
            )+
            $crate::capi::call::call!(@read $($input: $type),*);
            let result: $crate::error::Result<_> = $body;
            let value = result?;
            // SAFETY: the outputs were checked.
            unsafe { ($($output),+).store(value) };
            Ok(())
        })
    };
    (@read $($input:ident: $type:ty),*) => {
        $(let $input: $type =
            // SAFETY: the contract of mod.rs.
            unsafe { $crate::capi::arguments::Input::convert($input, stringify!($input)) }?;)*
    };
}

/// The value of an exported function that cannot fail: `default` for a handle that is NULL.
macro_rules! call_value {
    ($default:expr, |$input:ident: $type:ty| $body:expr) => {
        $crate::capi::call::guard_value($default, || {
            $crate::capi::call::call!(@read $input: $type);
            Ok($body)
        })
    };
}

/// Adds a reference for C.
macro_rules! retain {
    ($handle:ident) => {
        // SAFETY: the contract of mod.rs.
        $crate::capi::call::guard_void(|| unsafe { $crate::capi::handle::retain($handle) })
    };
}

/// Drops a reference of C.
macro_rules! release {
    ($handle:ident) => {
        // SAFETY: the contract of mod.rs.
        $crate::capi::call::guard_void(|| unsafe { $crate::capi::handle::take($handle) }.map(drop))
    };
}

/// Drops a reference of C once the work queued on a stream now has run.
macro_rules! release_after {
    ($handle:ident, $stream:ident, $error:ident, $device:path) => {
        $crate::capi::call::call!($error, |$stream: $crate::device::backend::Stream| {
            // SAFETY: the contract of mod.rs.
            unsafe { $crate::capi::call::take_after($handle, $stream, $device) }
        })
    };
}

pub(super) use {call, call_value, release, release_after, retain};
