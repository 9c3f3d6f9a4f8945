//! [`Order`]: calls of one cache run one after another on the device, also on several streams.

use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::error::Result;
use crate::os::sync::Mutex;
use crate::os::{log, sync};

/// Queues calls one after another.
pub struct Order {
    last: Mutex<Last>,
}

/// The event after the last call, for calls that run and for calls that are captured.
struct Last {
    eager: Box<dyn Event>,
    /// Whether `eager` was recorded.
    recorded: bool,
    captured: Box<dyn Event>,
    /// The capture that recorded `captured` last, and its stream.
    captured_by: Option<(u64, Stream)>,
}

impl Order {
    /// No call so far.
    pub fn new(device: &Device) -> Result<Self> {
        let backend = device.backend();
        let last = Last {
            eager: backend.new_event(false)?,
            recorded: false,
            captured: backend.new_event(false)?,
            captured_by: None,
        };
        Ok(Self { last: Mutex::new(last) })
    }

    /// Queues the kernel of a call after those of earlier calls. `kernel` receives whether the
    /// stream is being captured, and `then` is called once the kernel is queued; no other call comes between
    /// them. If there is no event after the kernel, the host waits for the stream, since other
    /// streams could not.
    pub fn queue(
        &self,
        device: &Device,
        stream: Stream,
        kernel: &mut dyn FnMut(bool) -> Result<Kernel>,
        then: &mut dyn FnMut(),
    ) -> Result<()> {
        let backend = device.backend();
        backend.check_process()?;
        let mut last = sync::lock(&self.last);
        backend.with_context(&mut || {
            let capture = backend.capture(stream)?;
            let kernel = kernel(capture.is_some())?;
            last.wait(stream, capture)?;
            backend.launch(kernel, stream)?;
            then();
            last.record(stream, capture).inspect_err(|_| {
                if capture.is_none() {
                    log::best_effort_wait(|| backend.synchronize(stream), || backend.is_lost());
                }
            })
        })
    }

    /// Whether the last call that runs has ended.
    pub fn is_idle(&self) -> Result<bool> {
        let last = sync::lock(&self.last);
        Ok(!last.recorded || last.eager.is_complete()?)
    }

    /// Waits on the host for the last call that runs, before its memory is freed.
    pub fn synchronize(&self, device: &Device) {
        let backend = device.backend();
        let last = sync::lock(&self.last);
        if last.recorded {
            log::best_effort_wait(|| last.eager.synchronize(), || backend.is_lost());
        }
    }
}

impl Last {
    /// Makes a stream, which is in `capture`, wait for the last call: of those that run, or of the
    /// same capture. The engine orders its graphs.
    fn wait(&self, stream: Stream, capture: Option<u64>) -> Result<()> {
        match (capture, self.captured_by) {
            // Also on the stream of the last call: another one may have been destroyed, and this one
            // have its handle.
            (None, _) if self.recorded => self.eager.wait(stream, WaitScope::Capture),
            (Some(capture), Some((last, other))) if capture == last && stream != other => {
                self.captured.wait(stream, WaitScope::Capture)
            }
            _ => Ok(()),
        }
    }

    /// Records that a call ends here.
    fn record(&mut self, stream: Stream, capture: Option<u64>) -> Result<()> {
        match capture {
            None => {
                self.eager.record(stream)?;
                self.recorded = true;
            }
            Some(capture) => {
                self.captured.record(stream)?;
                self.captured_by = Some((capture, stream));
            }
        }
        Ok(())
    }
}
