//! Measures how long engines' streams wait for copies, by timed events around each wait.

use std::collections::VecDeque;

use crate::device::backend::{Event, Stream};
use crate::device::device::Device;
use crate::error::Result;
use crate::offload::schedule::stats::GroupStats;

/// Pending waits from which on completed ones are collected, so that their events are used again.
const COLLECT_FROM: usize = 32;

/// Pending waits at most; a driver's queues are shorter.
const MOST_PENDING: usize = 8192;

/// The events around one wait for a group.
pub struct TimedWait {
    group: usize,
    begin: Box<dyn Event>,
    end: Box<dyn Event>,
}

/// The waits of all streams.
#[derive(Default)]
pub struct WaitTimer {
    pending: VecDeque<TimedWait>,
    spare: Vec<TimedWait>,
}

impl WaitTimer {
    /// Records the begin of a wait. Returns `None` if too many are pending; the wait is not counted
    /// then.
    pub fn begin(
        &mut self,
        device: &Device,
        stream: Stream,
        groups: &mut [GroupStats],
    ) -> Result<Option<TimedWait>> {
        if self.pending.len() >= COLLECT_FROM {
            self.collect(groups)?;
        }
        if self.pending.len() >= MOST_PENDING {
            return Ok(None);
        }
        let timed = match self.spare.pop() {
            Some(timed) => timed,
            None => TimedWait {
                group: 0,
                begin: device.backend().new_event(true)?,
                end: device.backend().new_event(true)?,
            },
        };
        timed.begin.record(stream)?;
        Ok(Some(timed))
    }

    /// Records the end of a wait.
    pub fn end(&mut self, timed: TimedWait, stream: Stream, group: usize) -> Result<()> {
        timed.end.record(stream)?;
        self.pending.push_back(TimedWait { group, ..timed });
        Ok(())
    }

    /// Adds the seconds of the completed waits to those of their groups.
    pub fn collect(&mut self, groups: &mut [GroupStats]) -> Result<()> {
        while let Some(timed) = self.pending.front() {
            let Some(seconds) = timed.end.seconds_since(&*timed.begin)? else { return Ok(()) };
            groups[timed.group].waited_seconds += seconds;
            self.spare.extend(self.pending.pop_front());
        }
        Ok(())
    }
}
