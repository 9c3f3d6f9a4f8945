//! How long engines' streams wait for copies, by timed events around each wait.

use std::collections::VecDeque;

use crate::device::backend::{Event, Stream};
use crate::device::device::Device;
use crate::error::Result;

/// Pairs under way before those that have passed are looked for, so that they are used again.
const ENOUGH_PENDING: usize = 32;

/// More are never under way: a driver's queues are shorter.
const MOST_PENDING: usize = 8192;

/// The events around a wait.
pub struct TimedWait {
    begin: Box<dyn Event>,
    end: Box<dyn Event>,
}

/// The waits of all streams.
#[derive(Default)]
pub struct WaitTimer {
    pending: VecDeque<TimedWait>,
    spare: Vec<TimedWait>,
    seconds: f64,
}

impl WaitTimer {
    /// Marks where a wait begins; `None` while too many are under way, whose time is not counted.
    pub fn begin(&mut self, device: &Device, stream: Stream) -> Result<Option<TimedWait>> {
        if self.pending.len() >= ENOUGH_PENDING {
            self.collect()?;
        }
        if self.pending.len() >= MOST_PENDING {
            return Ok(None);
        }
        let timed = match self.spare.pop() {
            Some(timed) => timed,
            None => TimedWait {
                begin: device.backend().new_event(true)?,
                end: device.backend().new_event(true)?,
            },
        };
        timed.begin.record(stream)?;
        Ok(Some(timed))
    }

    /// Marks where it ends.
    pub fn end(&mut self, timed: TimedWait, stream: Stream) -> Result<()> {
        timed.end.record(stream)?;
        self.pending.push_back(timed);
        Ok(())
    }

    /// Seconds of the waits that are over.
    pub fn seconds(&mut self) -> Result<f64> {
        self.collect()?;
        Ok(self.seconds)
    }

    fn collect(&mut self) -> Result<()> {
        while let Some(timed) = self.pending.front() {
            let Some(seconds) = timed.end.seconds_since(&*timed.begin)? else { return Ok(()) };
            self.seconds += seconds;
            self.spare.extend(self.pending.pop_front());
        }
        Ok(())
    }
}
