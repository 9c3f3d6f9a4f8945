//! The context that calls of a device need, and the guard that makes it current.

use std::cell::Cell;
use std::ptr;

use cudarc::driver::sys::{CUcontext, CUdevice};

use crate::device::cuda::code;
use crate::device::cuda::code::log_unless_lost;
use crate::device::cuda::driver::Driver;
use crate::error::Result;
use crate::os::process::Process;

/// The relaxed capture mode, in which allocations and frees by this library do not invalidate a
/// capture of another thread. Source: the CUDA driver API, `CUstreamCaptureMode`.
const RELAXED: i32 = 2;

thread_local! {
    /// The context of this thread's innermost guard. While a guard lives, no caller's code runs, so
    /// this is the current context.
    static CURRENT: Cell<CUcontext> = const { Cell::new(ptr::null_mut()) };
}

/// A device's context: its primary context, or a caller's.
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

    /// Borrows a caller's context, which the caller keeps alive.
    pub fn of_caller(driver: &'static Driver, device: CUdevice, raw: CUcontext) -> Self {
        Self { driver, raw, device, retained: false, process: Process::current() }
    }

    /// Whether the context was destroyed or the driver has shut down.
    pub fn is_lost(&self) -> bool {
        let result = self.enter().and_then(|entered| match entered.outside {
            Some(_) => Ok(()),
            // A nested guard calls no driver function, so one is called here.
            None => {
                let mut device = 0;
                // SAFETY: the pointer is to a live CUdevice.
                unsafe { entered.driver.context_device(&mut device) }
            }
        });
        result.is_err_and(|error| code::is_lost(error.code))
    }

    /// Makes the context current until the guard is dropped, which restores the previous one. A
    /// nested guard for the same context on the same thread does nothing.
    pub fn enter(&self) -> Result<Entered<'_>> {
        let before = CURRENT.get();
        if before == self.raw {
            return Ok(Entered { driver: self.driver, previous_mode: None, outside: None });
        }
        self.process.check()?;
        // SAFETY: the context is alive as long as self.
        unsafe { self.driver.context_push(self.raw) }?;
        CURRENT.set(self.raw);
        let mut entered =
            Entered { driver: self.driver, previous_mode: None, outside: Some(before) };
        let mut mode = RELAXED;
        // SAFETY: the pointer is to a live int that receives the previous mode.
        unsafe { self.driver.exchange_capture_mode(&mut mode) }?;
        entered.previous_mode = Some(mode);
        Ok(entered)
    }
}

impl Drop for Context {
    /// Does not release a primary context that the engine has reset: its successor has no reference
    /// of this library.
    fn drop(&mut self) {
        if !self.retained || !self.process.is_current() || self.is_lost() {
            return;
        }
        // SAFETY: retained once, released once.
        log_unless_lost(unsafe { self.driver.primary_context_release(self.device) });
    }
}

/// A guard: the context is current on this thread while it lives.
pub struct Entered<'a> {
    pub(super) driver: &'a Driver,
    /// The thread's previous capture mode; `None` if it was not changed.
    previous_mode: Option<i32>,
    /// The previous [`CURRENT`]; `None` in a nested guard, which changed nothing.
    outside: Option<CUcontext>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Some(outside) = self.outside else { return };
        CURRENT.set(outside);
        let restored = self.previous_mode.map_or(Ok(()), |mut mode| {
            // SAFETY: restores the mode that enter() found.
            unsafe { self.driver.exchange_capture_mode(&mut mode) }
        });
        let mut popped = ptr::null_mut();
        // SAFETY: pops what enter() pushed: nothing between them pushes.
        let popped = unsafe { self.driver.context_pop(&mut popped) };
        log_unless_lost(restored);
        log_unless_lost(popped);
    }
}
