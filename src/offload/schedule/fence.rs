//! A fence: a point in a stream that other streams wait for, in steps that run and in steps that
//! are captured.

use std::cell::Cell;

use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::device::Device;
use crate::error::Result;

/// The capture that a stream is in; `None` if the stream runs its work.
pub type Capture = Option<u64>;

/// A fence has an event for each kind of step, because an event recorded in a capture cannot be
/// waited for outside of it.
pub struct Fence {
    /// Recorded outside of captures.
    eager: Box<dyn Event>,
    /// Whether `eager` was recorded.
    recorded: bool,
    /// A stream that is ordered after `eager`: the one that recorded it, or the last that waited in
    /// [`Fence::wait_once`].
    ordered: Cell<Option<Stream>>,
    /// The last stream that waited for `eager` in a capture, in [`Fence::wait_once`].
    ordered_in_capture: Cell<Option<(Stream, u64)>>,
    /// Whether a graph may wait for `eager` in its replays.
    in_graph: Cell<bool>,
    /// Recorded in captures; made when it is first needed.
    captured: Option<Box<dyn Event>>,
    /// The capture that recorded the fence last; `None` if it was last recorded outside of
    /// captures.
    recorded_in: Capture,
}

impl Fence {
    /// A fence that is not recorded yet: waiting for it does nothing.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            eager: device.backend().new_event(false)?,
            recorded: false,
            ordered: Cell::default(),
            ordered_in_capture: Cell::default(),
            in_graph: Cell::default(),
            captured: None,
            recorded_in: None,
        })
    }

    /// Makes it a fence that is not recorded.
    pub fn clear(&mut self) {
        self.recorded = false;
        self.ordered.set(None);
        self.ordered_in_capture.set(None);
        self.recorded_in = None;
    }

    /// Discards the recording of a capture; an earlier one still counts.
    pub fn clear_capture(&mut self) {
        self.recorded_in = None;
    }

    /// Whether a graph may wait for it, so that it must not be dropped.
    pub fn is_in_graph(&self) -> bool {
        self.in_graph.get()
    }

    /// Records it after the work queued on the stream, which is in `capture`.
    pub fn record(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        if capture.is_none() {
            self.eager.record(stream)?;
            self.recorded = true;
            self.ordered.set(Some(stream));
            self.ordered_in_capture.set(None);
        } else {
            let event = match &mut self.captured {
                Some(event) => event,
                none => none.insert(device.backend().new_event(false)?),
            };
            event.record(stream)?;
        }
        self.recorded_in = capture;
        Ok(())
    }

    /// Makes the stream, which is in `capture`, wait for it. A recording of another capture cannot
    /// be waited for: if its graph ran, it ran on the engine's stream, before this step. It may not
    /// have run, so the recording before it still counts.
    pub fn wait(&self, stream: Stream, capture: Capture) -> Result<()> {
        match &self.captured {
            Some(event) if capture.is_some() && capture == self.recorded_in => {
                event.wait(stream, WaitScope::Capture)
            }
            _ if capture.is_some() => {
                // Also if it is not recorded yet: it may be when the graph is replayed.
                self.in_graph.set(true);
                self.eager.wait(stream, WaitScope::External)
            }
            _ if !self.recorded => Ok(()),
            _ => self.eager.wait(stream, WaitScope::Capture),
        }
    }

    /// As [`Fence::wait`], unless the stream is ordered after the fence already. The stream must
    /// live as long as the fence, since streams are told apart by their handles.
    pub fn wait_once(&self, stream: Stream, capture: Capture) -> Result<()> {
        let in_capture = capture.map(|capture| (stream, capture));
        let ordered = match in_capture {
            None => self.ordered.get() == Some(stream),
            // A recording of this capture may be later than the wait.
            Some(_) => self.recorded_in != capture && self.ordered_in_capture.get() == in_capture,
        };
        if ordered {
            return Ok(());
        }
        self.wait(stream, capture)?;
        match capture {
            None => self.ordered.set(self.recorded.then_some(stream)),
            Some(_) => {
                self.ordered_in_capture.set(in_capture.filter(|_| self.recorded_in != capture));
            }
        }
        Ok(())
    }

    /// Whether the point has been reached, outside of captures.
    pub fn is_complete(&self) -> Result<bool> {
        if self.recorded { self.eager.is_complete() } else { Ok(true) }
    }

    /// Whether it can be dropped: it is complete, and neither a capture nor a graph uses it.
    pub fn is_unused(&self) -> Result<bool> {
        Ok(self.recorded_in.is_none() && !self.is_in_graph() && self.is_complete()?)
    }

    /// Waits for it on the host, except for the recording of a capture.
    pub fn synchronize(&self) -> Result<()> {
        if self.recorded { self.eager.synchronize() } else { Ok(()) }
    }
}
