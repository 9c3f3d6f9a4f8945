//! A change of parameters: both locks are held from the first look at the state to the slots that
//! follow from the change, so that a comparison still holds when its result is applied.

use crate::device::backend::Stream;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::state::OffloadState;
use crate::os::sync::{Arc, MutexGuard};
use crate::status::{WB_ERR_BUSY, WB_ERR_NOT_SUPPORTED};

/// One change, or many that get their slots at once.
pub(super) struct Edit<'a> {
    pub offloader: &'a Offloader,
    pub state: MutexGuard<'a, OffloadState>,
    pub schedule: ScheduleChange<'a>,
    stream: Stream,
    /// Units whose host memory was written.
    written: Vec<usize>,
    /// Units whose bytes or places have changed, so that they need slots again.
    pub(super) moved: Vec<usize>,
    /// Whether every unit needs a slot again.
    pub(super) all_moved: bool,
    /// Whether units that have not moved have their slots.
    pub(super) others_have_slots: bool,
    /// Buffers of sources, released after the locks: their owners may be called then.
    pub dropped: Vec<Arc<Buffer>>,
}

impl Offloader {
    /// Locks the state, then the schedule.
    pub(super) fn edit(&self, stream: Stream) -> Result<Edit<'_>> {
        let state = self.state()?;
        if let (Some(addresses), Some(resize)) = (&state.addresses, &state.resize)
            && !resize.is_idle(addresses)
        {
            fail!(
                WB_ERR_BUSY,
                "asked to change parameters while the offloader is resized: wait for that with \
                 wb_offloader_resize_wait"
            );
        }
        let mut schedule = self.schedule().change(stream)?;
        if state.expert_caches.synchronize() {
            // Replays of graphs that have calls of the caches are on the stream.
            schedule.make_idle(&[])?;
            self.device().backend().synchronize(stream)?;
        }
        Ok(Edit {
            offloader: self,
            state,
            others_have_slots: schedule.is_laid_out(),
            schedule,
            stream,
            written: Vec::new(),
            moved: Vec::new(),
            all_moved: false,
            dropped: Vec::new(),
        })
    }
}

impl Edit<'_> {
    /// Notes that the host memory of a unit was written, so that it is copied again before it is used.
    pub fn note_written(&mut self, unit: usize) {
        self.written.push(unit);
    }

    /// Fails if units cannot change: a group is acquired, or addresses are fixed.
    pub fn check_may_move(&self) -> Result<()> {
        self.check_fixed()?;
        self.schedule.check_all_released()
    }

    /// Fails if addresses are fixed.
    pub fn check_fixed(&self) -> Result<()> {
        if self.state.addresses.is_some() {
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "asked for a change after which parameters would have other addresses, or be other ones; \
                 with fixed_addresses only their bytes can be replaced, by as many: commit another plan"
            );
        }
        Ok(())
    }

    /// Notes that a unit changes: nothing is copied before it has a slot again. No group may be
    /// acquired.
    pub fn note_moved(&mut self, unit: usize) {
        self.schedule.invalidate();
        self.moved.push(unit);
    }

    /// Notes that every unit may change.
    pub fn note_all_moved(&mut self) {
        self.schedule.invalidate();
        self.all_moved = true;
    }

    /// Whether units are still to get slots.
    pub fn has_moved(&self) -> bool {
        self.all_moved || !self.moved.is_empty()
    }

    /// Has slots filled again and gives units new ones, as far as the changes since the last call require.
    pub fn arrange(&mut self) -> Result<()> {
        let mut written = std::mem::take(&mut self.written);
        self.dropped.extend(self.state.host.take_left());
        if self.has_moved() {
            self.moved.append(&mut written);
            // Before units have other numbers. Host memory does not move any more.
            let touched = (!self.all_moved).then_some(&self.moved[..]);
            let followed = self.state.follow_experts(touched, self.stream);
            return self.rearrange().and(followed);
        }
        self.state.follow_experts(Some(&written), self.stream)?;
        written.sort_unstable();
        written.dedup();
        for unit in &written {
            self.schedule.mark_dirty(*unit);
        }
        self.refresh(&written)
    }

    /// Copies the new bytes of units, with fixed addresses, to memory of their own. Until that has
    /// succeeded, now or in a later change or resize, steps are refused.
    fn refresh(&mut self, written: &[usize]) -> Result<()> {
        let state = &mut *self.state;
        let Some(addresses) = &mut state.addresses else { return Ok(()) };
        written.iter().for_each(|unit| addresses.note_replaced(*unit));
        if !addresses.is_stale() {
            return Ok(());
        }
        let sleeps = state.resize.as_ref().is_some_and(|resize| resize.sleeps());
        self.schedule.set_asleep(true);
        addresses.repair(&self.schedule)?;
        self.schedule.set_asleep(sleeps || !addresses.is_complete());
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
