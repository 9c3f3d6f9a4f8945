//! Slots for the units that changes leave, within the budgets.

use smallvec::SmallVec;

use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::offload::backing::HostUnit;
use crate::offload::edit::Edit;
use crate::offload::offloader::Offloader;
use crate::offload::slot_sums::{SlotNeeds, UnitChange};
use crate::offload::state::OffloadState;
use crate::os::sync::Arc;
use crate::plan::slot_ring::{SlotRing, UnitSize};
use crate::status::{WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET};

/// How slots change.
#[derive(Clone, Copy)]
pub enum SlotChange<'a> {
    /// They do not.
    None,
    /// The blocks of a unit reach as far as `extent`, or farther already.
    Grows { unit: usize, extent: u64 },
    /// There is a unit more.
    Added(UnitSize<'a>),
}

impl Offloader {
    /// Fails if slots exceed a budget once the block `freed` is gone and `change` is made.
    pub(super) fn check_slots(
        &self,
        state: &OffloadState,
        freed: Option<usize>,
        change: SlotChange<'_>,
    ) -> Result<()> {
        let options = self.options();
        if self.device_budget().is_none() && options.slot_bytes.is_none() {
            return Ok(());
        }
        self.check_slots_beside(state.parameters.resident_memory_bytes(None), state, freed, change)
    }

    fn check_slots_beside(
        &self,
        resident: u64,
        state: &OffloadState,
        freed: Option<usize>,
        change: SlotChange<'_>,
    ) -> Result<()> {
        let needs = self.slot_needs(state, freed, change);
        let checked = self.check_slot_bytes(resident, needs.ring, needs.on_demand);
        if checked.is_ok() || needs.exact {
            return checked;
        }
        let mut extents = state.host.extents(freed);
        if let SlotChange::Grows { unit, extent } = change {
            extents[unit] = extents[unit].max(extent);
        }
        let mut sizes = unit_sizes(state, &extents);
        if let SlotChange::Added(unit) = change {
            sizes.push(unit);
        }
        let budget = self.device_budget();
        let slots = self.slot_ring(&sizes, budget.map(|bytes| bytes.saturating_sub(resident)));
        self.check_slot_bytes(resident, slots.ring_bytes, slots.slot_bytes - slots.ring_bytes)
    }

    /// What slots need after a change. It is known without a look at each unit: many changes take no
    /// longer each than one.
    fn slot_needs(
        &self,
        state: &OffloadState,
        freed: Option<usize>,
        change: SlotChange<'_>,
    ) -> SlotNeeds {
        let host = &state.host;
        let freed = freed.map(|block| (host.blocks()[block].unit, block));
        let left = |unit: usize| {
            let block = freed.filter(|(other, _)| *other == unit).map(|(_, block)| block);
            host.extent(unit, block)
        };
        let mut changes: SmallVec<[UnitChange<'_>; 2]> = SmallVec::new();
        let grown = match change {
            SlotChange::None => None,
            SlotChange::Grows { unit, extent } => {
                changes.push(host.unit_change(unit, left(unit).max(extent)));
                Some(unit)
            }
            SlotChange::Added(UnitSize { transfer_mode, bytes, groups }) => {
                changes.push(UnitChange { transfer_mode, groups, before: 0, after: bytes });
                None
            }
        };
        if let Some((unit, _)) = freed.filter(|(unit, _)| Some(*unit) != grown) {
            changes.push(host.unit_change(unit, left(unit)));
        }
        host.slot_sums().after(self.options().depth.max(1) as usize, &changes)
    }

    fn check_slot_bytes(&self, resident: u64, ring: u64, on_demand: u64) -> Result<()> {
        if let Some(most) = self.options().slot_bytes
            && ring > most
        {
            fail!(
                WB_ERR_SLOTS_BUDGET,
                "prefetched parameters would need {ring} bytes of slots, over the {most} of slot_bytes: \
                 nothing was changed"
            );
        }
        self.check_device_bytes(resident, ring + on_demand)
    }

    /// Fails with `WB_ERR_BUDGET` if the resident parameters, except `without`, and `bytes` beside
    /// the current slots exceed a budget of device memory; with `moved`, also beside those that units
    /// are still to get.
    pub(super) fn check_resident(
        &self,
        state: &OffloadState,
        without: Option<usize>,
        bytes: u64,
        moved: bool,
    ) -> Result<()> {
        if self.device_budget().is_none() {
            return Ok(());
        }
        let resident = state.parameters.resident_memory_bytes(without) + bytes;
        self.check_device_bytes(resident, state.held_bytes().slot_bytes)?;
        match moved {
            true => self.check_slots_beside(resident, state, None, SlotChange::None),
            false => Ok(()),
        }
    }

    fn check_device_bytes(&self, resident: u64, slots: u64) -> Result<()> {
        let Some(budget) = self.device_budget() else { return Ok(()) };
        let total = resident + slots;
        if total > budget {
            fail!(
                WB_ERR_BUDGET,
                "resident parameters and slots would need {total} bytes of device memory, over the budget \
                 of {budget}: nothing was changed"
            );
        }
        Ok(())
    }

    /// Device memory that is left for slots under a budget of device memory.
    fn slot_budget(&self, state: &OffloadState) -> Option<u64> {
        let budget = self.device_budget();
        budget.map(|bytes| bytes.saturating_sub(state.parameters.resident_memory_bytes(None)))
    }

    /// The slots of units, in `most` bytes if that is possible at all.
    fn slot_ring(&self, sizes: &[UnitSize<'_>], most: Option<u64>) -> SlotRing {
        let options = self.options();
        let ring = |limit: Option<u64>| {
            let limit = options.slot_bytes.into_iter().chain(limit).min();
            SlotRing::new(sizes, options.depth as usize, limit)
        };
        let slots = ring(most);
        let on_demand = slots.slot_bytes - slots.ring_bytes;
        match most {
            // The limit applies to the ring, which the slots of on-demand units follow.
            Some(most) if slots.slot_bytes > most => ring(Some(most.saturating_sub(on_demand))),
            _ => slots,
        }
    }

    /// The slots of the current units: in the existing `have` bytes, if the ring does not lose
    /// depth by that.
    fn next_slot_ring(&self, state: &OffloadState, have: u64) -> SlotRing {
        let extents = state.host.extents(None);
        let sizes = unit_sizes(state, &extents);
        let slots = self.slot_ring(&sizes, Some(have));
        if slots.slot_bytes <= have && slots.depth >= state.depth.min(slots.ring.len()) {
            return slots;
        }
        self.slot_ring(&sizes, self.slot_budget(state))
    }
}

impl Edit<'_> {
    /// Gives the units that have moved slots again, between those of all others if that is possible,
    /// and lays out the schedule. Addresses change.
    pub(super) fn rearrange(&mut self) -> Result<()> {
        self.schedule.check_all_released()?;
        self.schedule.invalidate();
        self.state.generation += 1;
        let moved = std::mem::take(&mut self.moved);
        let all_moved = std::mem::take(&mut self.all_moved);
        let others_have_slots = std::mem::take(&mut self.others_have_slots);
        let arranged = match others_have_slots && !all_moved {
            true => self.fit_slots(moved)?,
            false => false,
        };
        if !arranged {
            self.pack_slots()?;
        }
        self.others_have_slots = true;
        Ok(())
    }

    /// Gives every unit a slot again, and lays out the schedule.
    fn pack_slots(&mut self) -> Result<()> {
        let (offloader, state) = (self.offloader, &mut *self.state);
        self.dropped.extend(state.host.drop_vacant_units());
        let have = state.held_bytes().slot_bytes;
        let slots = offloader.next_slot_ring(state, have);
        if slots.slot_bytes > have {
            state.slots = None;
            state.host.set_slots(std::iter::repeat(None));
            let bytes = slots.slot_bytes as usize;
            state.slots = DeviceMemory::alloc(offloader.device(), bytes)?.map(Arc::new);
        }
        state.update_peak();
        state.host.set_slots(slots.offsets.into_iter());
        (state.depth, state.wraps) = (slots.depth, !slots.wrap_stalls);
        state.ring_bytes = match slots.slot_bytes == slots.ring_bytes {
            // No unit is copied on demand.
            true => {
                have.max(slots.ring_bytes).min(offloader.options().slot_bytes.unwrap_or(u64::MAX))
            }
            false => slots.ring_bytes,
        };
        state.ring = slots.ring;
        state.host.set_ring(&state.ring, offloader.options().depth as usize);
        self.schedule.lay_out(state.arrangement())
    }

    /// Whether units have the slots that they would get now.
    pub(super) fn is_arranged(&self) -> bool {
        let state = &self.state;
        let have = state.held_bytes().slot_bytes;
        let next = self.offloader.next_slot_ring(state, have);
        let offsets = state.host.units().iter().map(|unit| unit.slot_offset);
        self.schedule.is_laid_out()
            && next.slot_bytes <= have
            && (next.depth, &next.ring) == (state.depth, &state.ring)
            && offsets.eq(next.offsets)
    }
}

/// The units, of the given bytes each.
fn unit_sizes<'a>(state: &'a OffloadState, bytes: &[u64]) -> Vec<UnitSize<'a>> {
    let size = |(unit, bytes): (&'a HostUnit, &u64)| UnitSize {
        transfer_mode: unit.transfer_mode,
        bytes: *bytes,
        groups: &unit.groups,
    };
    state.host.units().iter().zip(bytes).map(size).collect()
}
