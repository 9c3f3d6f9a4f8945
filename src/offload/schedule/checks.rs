//! Calls that are refused before anything is queued.

use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::offload::schedule::fence::Capture;
use crate::offload::schedule::holders::Holder;
use crate::offload::schedule::machine::{Call, EngineStream, GroupState, Machine};
use crate::status::{WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT};

impl Machine {
    /// Fails with `WB_ERR_CAPTURING`, before anything is queued, if another capture has drawn in a
    /// copy stream: work outside of it would spoil it.
    pub fn check_not_drawn_in(&mut self, device: &Device, capture: Capture) -> Result<()> {
        for copy_stream in &mut self.copy_streams {
            if copy_stream.capture.is_none() || copy_stream.capture == capture {
                continue;
            }
            if device.backend().capture(copy_stream.stream.get())?.is_some() {
                fail!(
                    WB_ERR_CAPTURING,
                    "the offloader is being captured on another stream, which this call would \
                     spoil: end that capture first"
                );
            }
            copy_stream.capture = None;
        }
        Ok(())
    }

    /// Fails with `WB_ERR_BUSY` while a unit that shares the slot is acquired.
    pub(super) fn check_slot_free(&self, unit: usize, group: usize) -> Result<()> {
        let mut sharing = self.slot_map.sharing(unit, None).into_iter();
        let Some(holder) = sharing.find(|other| self.slots[*other].is_acquired()) else {
            return Ok(());
        };
        let holders = self.units[holder].groups.iter();
        let names: Vec<_> = holders.map(|holder| self.groups[*holder].name.as_str()).collect();
        fail!(
            WB_ERR_BUSY,
            "asked to acquire group {:?}; its slot is in use by {names:?}, still acquired: release it \
             first (wb_offloader_reset ends an abandoned step of its stream), or plan with more \
             slots (depth is {})",
            self.groups[group].name,
            self.depth
        )
    }

    /// Fails with `WB_ERR_CAPTURING` if an eager step, which its thread or its stream has left for a
    /// captured one, would copy a unit: it cannot know what replays have left in the slots.
    pub(super) fn check_not_left(
        &self,
        group: usize,
        units: &[usize],
        call: Call<'_>,
    ) -> Result<()> {
        let EngineStream { stream, capture, .. } = call.engine;
        let held = |unit: &usize| self.slots[*unit].acquired(None) > 0;
        if capture.is_none()
            && self.steps.is_left_for_capture(stream, call.since)
            && !units.iter().all(held)
        {
            fail!(
                WB_ERR_CAPTURING,
                "asked to acquire group {:?} outside of a capture, after captures that may be of the \
                 same step: begin a step of its own with wb_offloader_begin_step, or acquire the \
                 group in a capture, from where it may be held until a later capture of the step",
                self.groups[group].name
            );
        }
        Ok(())
    }

    /// Fails with `WB_ERR_INVALID_ARGUMENT` if nothing has acquired the group that the release can
    /// end: replays repeat captured acquires and releases, and no others.
    pub(super) fn check_acquired(&self, group: usize, release: &Holder) -> Result<()> {
        let GroupState { name, holders, .. } = &self.groups[group];
        if holders.has_one_for(release) {
            return Ok(());
        }
        if holders.count() == 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to release group {name:?}, which is not acquired"
            );
        }
        if release.capture.is_none() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to release group {name:?} outside of a capture; it was acquired in one, which \
                 replays repeat: release it in a capture of the same step, or call \
                 wb_offloader_reset if that step is abandoned"
            );
        }
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "asked to release group {name:?} in a capture; it was acquired outside of captures or in \
             another step, so replays would not acquire it: acquire it in a capture of the same step. \
             A capture goes on with the step of the last one if that ended with wb_offloader_join, and \
             nothing was copied, begun or reset outside of captures since then"
        );
    }

    /// Fails with `WB_ERR_BUSY` while the group is acquired.
    pub fn check_released(&self, group: usize) -> Result<()> {
        let group = &self.groups[group];
        let acquired = group.holders.count();
        if acquired > 0 {
            fail!(
                WB_ERR_BUSY,
                "asked to change group {:?}, which is acquired {acquired} times: release it first \
                 (wb_offloader_reset ends an abandoned step of its stream)",
                group.name
            );
        }
        Ok(())
    }

    /// Fails with `WB_ERR_BUSY` while any group is acquired.
    pub fn check_all_released(&self) -> Result<()> {
        if self.acquired_groups == 0 {
            return Ok(());
        }
        (0..self.groups.len()).try_for_each(|group| self.check_released(group))
    }
}
