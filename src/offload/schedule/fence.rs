//! A point in a stream that steps of two kinds set: those that run, and those that are captured.

use std::cell::Cell;

use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::device::Device;
use crate::error::Result;

/// The capture that a stream is in; `None` when it runs what it is given.
pub type Capture = Option<u64>;

/// An event for each kind, because one that a capture has set cannot be waited for outside of it.
pub struct Fence {
    running: Box<dyn Event>,
    /// `running` was set.
    ran: bool,
    /// A stream that is behind `running`: the one that set it, or the last of ours that waited.
    behind: Cell<Option<Stream>>,
    /// A stream of ours that is behind `running` in a capture.
    behind_within: Cell<Option<(Stream, u64)>>,
    /// A graph waits for `running` whenever it runs.
    in_graph: Cell<bool>,
    captured: Option<Box<dyn Event>>,
    /// The capture that set it last, if a capture did.
    captured_in: Capture,
}

impl Fence {
    /// A mark that was not set yet.
    pub fn new(device: &Device) -> Result<Self> {
        let running = device.backend().new_event(false)?;
        let (behind, behind_within) = (Cell::default(), Cell::default());
        Ok(Self {
            running,
            ran: false,
            behind,
            behind_within,
            in_graph: Cell::default(),
            captured: None,
            captured_in: None,
        })
    }

    /// As if it had never been set.
    pub fn clear(&mut self) {
        self.ran = false;
        self.behind.set(None);
        self.behind_within.set(None);
        self.captured_in = None;
    }

    /// As if no capture had set it.
    pub fn forget_capture(&mut self) {
        self.captured_in = None;
    }

    /// Whether there may be a graph that waits for it, so that it has to stay.
    pub fn is_in_graph(&self) -> bool {
        self.in_graph.get()
    }

    /// Sets it behind what is queued on the stream.
    pub fn record(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        if capture.is_none() {
            self.running.record(stream)?;
            self.ran = true;
            self.behind.set(Some(stream));
            self.behind_within.set(None);
        } else {
            let event = match &mut self.captured {
                Some(event) => event,
                none => none.insert(device.backend().new_event(false)?),
            };
            event.record(stream)?;
        }
        self.captured_in = capture;
        Ok(())
    }

    /// Lets the stream, which is in `capture`, wait for it. What another capture has set cannot be
    /// waited for, and lies before us in the order of the engine's stream if its graph ran; it may
    /// not have run, so that what was set before it still counts.
    pub fn hold(&self, stream: Stream, capture: Capture) -> Result<()> {
        match &self.captured {
            Some(event) if capture.is_some() && capture == self.captured_in => {
                event.hold(stream, WaitScope::Capture)
            }
            _ if !self.ran => Ok(()),
            _ if capture.is_some() => {
                self.in_graph.set(true);
                self.running.hold(stream, WaitScope::External)
            }
            _ => self.running.hold(stream, WaitScope::Capture),
        }
    }

    /// The same for a stream of ours, which lives as long as the mark: waits unless it did so already.
    pub fn order(&self, stream: Stream, capture: Capture) -> Result<()> {
        let within = capture.map(|capture| (stream, capture));
        let behind = match within {
            None => self.behind.get() == Some(stream),
            // What this capture has set itself may be later.
            Some(_) => self.captured_in != capture && self.behind_within.get() == within,
        };
        if behind {
            return Ok(());
        }
        self.hold(stream, capture)?;
        match capture {
            None => self.behind.set(self.ran.then_some(stream)),
            Some(_) => self.behind_within.set(within.filter(|_| self.captured_in != capture)),
        }
        Ok(())
    }

    /// Whether the host knows that it has passed.
    pub fn has_passed(&self) -> Result<bool> {
        if self.ran { self.running.is_complete() } else { Ok(true) }
    }

    /// Whether nobody needs to wait for it any more, no capture and no graph either.
    pub fn is_over(&self) -> Result<bool> {
        Ok(self.captured_in.is_none() && !self.is_in_graph() && self.has_passed()?)
    }

    /// Waits for it on the host; for what a capture has set there is nothing to wait for.
    pub fn synchronize(&self) -> Result<()> {
        if self.ran { self.running.synchronize() } else { Ok(()) }
    }
}
