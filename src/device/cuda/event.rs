//! Points in a CUDA stream.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUstream};

use super::context::Context;
use super::driver::code;
use crate::device::Event;
use crate::error::{Result, fail};
use crate::log;
use crate::status::WB_ERR_CAPTURING;

/// Event without timing. Source: the CUDA driver API, `CUevent_flags`.
const DISABLE_TIMING: u32 = 2;

/// An event, recorded once.
pub struct CudaEvent {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: a CUevent may be used by any thread.
unsafe impl Send for CudaEvent {}

impl CudaEvent {
    /// Marks the point that the stream has reached.
    pub fn record(context: &Arc<Context>, stream: CUstream) -> Result<Self> {
        let entered = context.enter()?;
        let mut capturing = 0;
        // SAFETY: the pointer is to a live int; the caller's stream is alive.
        unsafe { entered.driver.stream_capturing(stream, &mut capturing) }?;
        if capturing != 0 {
            fail!(
                WB_ERR_CAPTURING,
                "asked to give memory back after a stream that is being captured; a graph may be \
                 replayed at any time: keep the reference until the graph is destroyed"
            );
        }
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer receives the event.
        unsafe { entered.driver.event_create(&mut raw, DISABLE_TIMING) }?;
        let event = Self { context: context.clone(), raw };
        // SAFETY: event and stream are alive.
        unsafe { entered.driver.event_record(raw, stream) }?;
        Ok(event)
    }
}

impl Event for CudaEvent {
    fn is_complete(&self) -> Result<bool> {
        let entered = self.context.enter()?;
        // SAFETY: the event is alive.
        match unsafe { entered.driver.event_query(self.raw) } {
            Ok(()) => Ok(true),
            Err(error) if error.code == code::NOT_READY => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if !self.context.process.is_this() {
            return;
        }
        let Ok(entered) = self.context.enter() else { return };
        // SAFETY: created in record(), destroyed once.
        if let Err(error) = unsafe { entered.driver.event_destroy(self.raw) }
            && error.code != code::DEINITIALIZED
        {
            log::record(&error);
        }
    }
}
