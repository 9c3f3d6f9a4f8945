//! The context that work on a device runs in, and the guard that makes it current for one call.

use std::cell::Cell;
use std::ptr;

use cudarc::driver::sys::{CUcontext, CUdevice};

use crate::device::cuda::driver::{Driver, code};
use crate::error::Result;
use crate::os::log;
use crate::os::process::Process;

/// The relaxed capture mode: what this library allocates or frees does not break the capture of
/// another thread. Source: the CUDA driver API, `CUstreamCaptureMode`.
const RELAXED: i32 = 2;

thread_local! {
    /// The context of the innermost guard that lives on this thread. No code of a caller runs while
    /// one does, so it is the current context.
    static CURRENT: Cell<CUcontext> = const { Cell::new(ptr::null_mut()) };
}

/// A context that this library holds: the device's primary one, or the caller's own.
pub struct Context {
    pub(super) driver: &'static Driver,
    raw: CUcontext,
    device: CUdevice,
    retained: bool,
    pub(super) process: Process,
}

// SAFETY: a CUcontext may be used by any thread; the driver synchronises itself.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the device's primary context.
    pub fn primary(driver: &'static Driver, device: CUdevice) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` receives the context; released once, in drop.
        unsafe { driver.primary_context_retain(&mut raw, device) }?;
        Ok(Self { driver, raw, device, retained: true, process: Process::current() })
    }

    /// Uses a context of the caller, who keeps it alive.
    pub fn of_caller(driver: &'static Driver, device: CUdevice, raw: CUcontext) -> Self {
        Self { driver, raw, device, retained: false, process: Process::current() }
    }

    /// Whether nothing can be done in it any more, in this process or any.
    pub fn is_lost(&self) -> bool {
        let answer = self.enter().and_then(|entered| match entered.outside {
            Some(_) => Ok(()),
            // Inside of another guard nothing was asked of the driver yet.
            None => {
                let mut device = 0;
                // SAFETY: the pointer is to a live CUdevice.
                unsafe { entered.driver.context_device(&mut device) }
            }
        });
        answer.is_err_and(|error| code::is_lost(error.code))
    }

    /// Makes the context current for as long as the guard lives, then restores what was. Inside of
    /// another guard for the same context on this thread there is nothing to do.
    pub fn enter(&self) -> Result<Entered<'_>> {
        let before = CURRENT.get();
        if before == self.raw {
            return Ok(Entered { driver: self.driver, found_mode: None, outside: None });
        }
        self.process.check()?;
        // SAFETY: the context is alive as long as self.
        unsafe { self.driver.context_push(self.raw) }?;
        CURRENT.set(self.raw);
        let mut entered = Entered { driver: self.driver, found_mode: None, outside: Some(before) };
        let mut mode = RELAXED;
        // SAFETY: the pointer is to a live int that receives the mode until now.
        unsafe { self.driver.exchange_capture_mode(&mut mode) }?;
        entered.found_mode = Some(mode);
        Ok(entered)
    }
}

impl Drop for Context {
    /// A primary context that the engine has reset is no more, and the one that may have followed it is
    /// not ours to release.
    fn drop(&mut self) {
        if !self.retained || !self.process.is_current() || self.is_lost() {
            return;
        }
        // SAFETY: retained once, released once.
        record_unless_lost(unsafe { self.driver.primary_context_release(self.device) });
    }
}

/// While it lives, the context is current on this thread.
pub struct Entered<'a> {
    pub(super) driver: &'a Driver,
    /// The thread's capture mode before; None where it was not changed.
    found_mode: Option<i32>,
    /// What [`CURRENT`] was; None in a guard inside of another, which changed nothing.
    outside: Option<CUcontext>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Some(outside) = self.outside else { return };
        CURRENT.set(outside);
        let restored = self.found_mode.map_or(Ok(()), |mut mode| {
            // SAFETY: restores the mode that enter() found.
            unsafe { self.driver.exchange_capture_mode(&mut mode) }
        });
        let mut popped = ptr::null_mut();
        // SAFETY: pops what enter() pushed: nothing between them pushes.
        let popped = unsafe { self.driver.context_pop(&mut popped) };
        record_unless_lost(restored);
        record_unless_lost(popped);
    }
}

/// Records that something could not be given back.
pub(super) fn record_unless_lost(answer: Result<()>) {
    if let Err(error) = answer
        && !code::is_lost(error.code)
    {
        log::record(&error);
    }
}
