//! A change of parameters: both locks are held from the first look at the state to the slots that
//! follow from the change, so that a comparison still holds when its result is applied.

use crate::device::backend::Stream;
use crate::error::Result;
use crate::memory::buffer::Buffer;
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::state::OffloadState;
use crate::os::sync::{Arc, MutexGuard};

/// One change, or many that get their slots at once.
pub(super) struct Edit<'a> {
    pub offloader: &'a Offloader,
    pub state: MutexGuard<'a, OffloadState>,
    pub schedule: ScheduleChange<'a>,
    /// Units whose host memory was written.
    written: Vec<usize>,
    /// Whether units or their sizes have changed, so that every unit needs a slot again.
    pub moved: bool,
    /// Buffers of sources, released after the locks: their owners may be called then.
    pub dropped: Vec<Arc<Buffer>>,
}

impl Offloader {
    /// Locks the state, then the schedule.
    pub(super) fn edit(&self, stream: Stream) -> Result<Edit<'_>> {
        let state = self.state()?;
        let schedule = self.schedule().change(stream)?;
        Ok(Edit {
            offloader: self,
            state,
            schedule,
            written: Vec::new(),
            moved: false,
            dropped: Vec::new(),
        })
    }
}

impl Edit<'_> {
    /// Notes that the host memory of a unit was written, so that it is copied again before it is used.
    pub fn note_written(&mut self, unit: usize) {
        self.written.push(unit);
    }

    /// Notes that units change: nothing is copied before they have slots again. No group may be
    /// acquired.
    pub fn note_moved(&mut self) {
        self.schedule.invalidate();
        self.moved = true;
    }

    /// Has slots filled again and gives units new ones, as far as the changes since the last call require.
    pub fn arrange(&mut self) -> Result<()> {
        let mut written = std::mem::take(&mut self.written);
        if std::mem::take(&mut self.moved) {
            return self.rearrange();
        }
        written.sort_unstable();
        written.dedup();
        written.into_iter().for_each(|unit| self.schedule.mark_dirty(unit));
        Ok(())
    }

    /// Ends with what the changes gave, also if they failed half way: their error comes first.
    pub fn end<T>(mut self, done: Result<T>) -> Result<T> {
        // If units get no slots, the next step fails with that error.
        let arranged = self.arrange();
        let value = done?;
        arranged.map(|()| value)
    }
}
