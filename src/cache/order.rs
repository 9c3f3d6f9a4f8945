//! [`Order`]: calls of one cache run one after another on the device, also on several streams.

use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::error::Result;
use crate::os::sync::Mutex;
use crate::os::{log, sync};

/// Captures at a time whose calls are ordered.
const MOST_CAPTURES: usize = 16;

/// Queues calls one after another.
pub struct Order {
    last: Mutex<Last>,
}

/// The event after the last call, for calls that run and for calls that are captured.
struct Last {
    eager: Box<dyn Event>,
    /// The number of the stream that recorded `eager` last, if any did.
    recorded_by: Option<u64>,
    /// The last call of each of the last captures, which several threads may make at a time: the capture, its
    /// stream, and the event after it.
    captured: Vec<(u64, Stream, Box<dyn Event>)>,
}

/// A call that runs, on the stream of this number, or one of the capture with this id.
#[derive(Clone, Copy)]
enum Call {
    Eager(u64),
    Captured(u64),
}

impl Order {
    /// No call so far.
    pub fn new(device: &Device) -> Result<Self> {
        let backend = device.backend();
        let last =
            Last { eager: backend.new_event(false)?, recorded_by: None, captured: Vec::new() };
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
        backend.with_context(&mut || {
            let mut last = sync::lock(&self.last);
            let capture = backend.capture(stream)?;
            let kernel = kernel(capture.is_some())?;
            let call = match capture {
                Some(id) => Call::Captured(id),
                None => Call::Eager(backend.stream_id(stream)?),
            };
            last.wait(stream, call)?;
            backend.launch(kernel, stream)?;
            then();
            last.record(device, stream, call).inspect_err(|_| {
                if capture.is_none() {
                    log::best_effort_wait(|| backend.synchronize(stream), || backend.is_lost());
                }
            })
        })
    }

    /// Whether the last call that runs has ended.
    pub fn is_idle(&self) -> Result<bool> {
        let last = sync::lock(&self.last);
        Ok(last.recorded_by.is_none() || last.eager.is_complete()?)
    }

    /// Waits on the host for the last call that runs, before its memory is freed.
    pub fn synchronize(&self, device: &Device) {
        let backend = device.backend();
        let last = sync::lock(&self.last);
        if last.recorded_by.is_some() {
            log::best_effort_wait(|| last.eager.synchronize(), || backend.is_lost());
        }
    }
}

impl Last {
    /// Makes a call's stream wait for the last call: of those that run, or of the same capture. The
    /// engine orders its graphs. The stream of the last call waits for nothing; of calls that run its
    /// number tells that, since another stream may have had its handle.
    fn wait(&self, stream: Stream, call: Call) -> Result<()> {
        match (call, self.recorded_by) {
            (Call::Eager(id), Some(last)) if id != last => {
                self.eager.wait(stream, WaitScope::Capture)
            }
            (Call::Captured(id), _) => {
                let last =
                    self.captured.iter().find(|(of, other, _)| *of == id && *other != stream);
                last.map_or(Ok(()), |(_, _, event)| event.wait(stream, WaitScope::Capture))
            }
            _ => Ok(()),
        }
    }

    /// Records that a call ends here.
    fn record(&mut self, device: &Device, stream: Stream, call: Call) -> Result<()> {
        match call {
            Call::Eager(id) => {
                self.eager.record(stream)?;
                self.recorded_by = Some(id);
            }
            Call::Captured(id) => {
                let event = match self.captured.iter().position(|(of, _, _)| *of == id) {
                    Some(known) => self.captured.remove(known).2,
                    // Of the capture that was not called for the longest time.
                    None if self.captured.len() >= MOST_CAPTURES => self.captured.remove(0).2,
                    None => device.backend().new_event(false)?,
                };
                event.record(stream)?;
                self.captured.push((id, stream, event));
            }
        }
        Ok(())
    }
}
