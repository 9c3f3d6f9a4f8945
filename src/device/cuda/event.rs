//! [`CudaEvent`]: an event of the driver.

use std::any::Any;
use std::ptr;

use cudarc::driver::sys::{CUevent, CUstream};

use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::cuda::code;
use crate::device::cuda::context::Context;
use crate::error::{Result, fail};
use crate::os::sync::Arc;
use crate::status::WB_ERR_INTERNAL;

/// An event without timing. Source: the CUDA driver API, `CUevent_flags`.
const DISABLE_TIMING: u32 = 2;
/// A captured wait for a recording outside of the capture. Source: `CUevent_wait_flags`.
const WAIT_EXTERNAL: u32 = 1;

/// An event of the driver.
pub struct CudaEvent {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: a CUevent may be used by any thread.
unsafe impl Send for CudaEvent {}
// SAFETY: the driver orders calls on one event that come from several threads.
unsafe impl Sync for CudaEvent {}

impl CudaEvent {
    /// An event that was not recorded yet.
    pub fn new(context: &Arc<Context>, timed: bool) -> Result<Self> {
        let entered = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer receives the event.
        unsafe { entered.driver.event_create(&mut raw, if timed { 0 } else { DISABLE_TIMING }) }?;
        Ok(Self { context: context.clone(), raw })
    }
}

impl Event for CudaEvent {
    fn record(&self, stream: Stream) -> Result<()> {
        let entered = self.context.enter()?;
        // SAFETY: the event is alive, and the caller's stream is.
        unsafe { entered.driver.event_record(self.raw, stream.0 as CUstream) }
    }

    fn wait(&self, stream: Stream, scope: WaitScope) -> Result<()> {
        let entered = self.context.enter()?;
        let flags = match scope {
            WaitScope::Capture => 0,
            WaitScope::External => WAIT_EXTERNAL,
        };
        // SAFETY: the event is alive, and the caller's stream is.
        unsafe { entered.driver.stream_wait_event(stream.0 as CUstream, self.raw, flags) }
    }

    fn is_complete(&self) -> Result<bool> {
        let entered = self.context.enter()?;
        // SAFETY: the event is alive.
        match unsafe { entered.driver.event_query(self.raw) } {
            Ok(()) => Ok(true),
            Err(error) if error.code == code::NOT_READY => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn synchronize(&self) -> Result<()> {
        let entered = self.context.enter()?;
        // SAFETY: the event is alive.
        unsafe { entered.driver.event_synchronize(self.raw) }
    }

    fn seconds_since(&self, earlier: &dyn Event) -> Result<Option<f64>> {
        let Some(earlier) = earlier.as_any().downcast_ref::<Self>() else {
            fail!(WB_ERR_INTERNAL, "the time between events of different kinds of device was asked")
        };
        let entered = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: the pointer is to a live float; both events are alive.
        match unsafe { entered.driver.event_elapsed(&mut milliseconds, earlier.raw, self.raw) } {
            Ok(()) => Ok(Some(f64::from(milliseconds) / 1e3)),
            Err(error) if error.code == code::NOT_READY => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if !self.context.process.is_current() {
            return;
        }
        code::log_unless_lost(self.context.enter().and_then(|entered| {
            // SAFETY: created in new(), destroyed once.
            unsafe { entered.driver.event_destroy(self.raw) }
        }));
    }
}
