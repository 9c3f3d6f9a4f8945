//! HostSpace for what was replaced or added: where there is some, within the budget, and the slots after it.

use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::state::{Backing, Block, HostUnit, OffloadState};
use crate::os::page;
use crate::os::sync::Arc;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::ALIGNMENT;
use crate::plan::slot_ring::{SlotRing, UnitSize};
use crate::status::{WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET};

/// HostSpace for a block.
pub enum HostSpace {
    /// In a unit that is there, at an offset.
    In(usize, u64),
    /// In a buffer of its own.
    Own,
}

impl Offloader {
    /// Where `bytes` bytes of the groups can go, within the budgets, once `given_up` is gone.
    pub(super) fn find_room(
        &self,
        state: &OffloadState,
        groups: &[usize],
        transfer_mode: TransferMode,
        bytes: u64,
        given_up: Option<usize>,
    ) -> Result<HostSpace> {
        let needs = bytes.next_multiple_of(ALIGNMENT);
        let extents = state.extents(given_up);
        for (at, unit) in state.units.iter().enumerate() {
            if unit.groups != groups || unit.transfer_mode != transfer_mode {
                continue;
            }
            for offset in state.gaps(at, needs, given_up) {
                let mut reaches = extents.clone();
                reaches[at] = reaches[at].max(offset + needs);
                if self.check_slots(state, sizes(state, &reaches)).is_ok() {
                    return Ok(HostSpace::In(at, offset));
                }
            }
        }
        self.check_host_bytes(state, needs, given_up)?;
        let mut sizes = sizes(state, &extents);
        sizes.push(UnitSize { transfer_mode, bytes: needs, groups });
        self.check_slots(state, sizes)?;
        Ok(HostSpace::Own)
    }

    /// `WB_ERR_BUDGET` where a buffer of so many bytes goes over a budget of host memory.
    fn check_host_bytes(
        &self,
        state: &OffloadState,
        needs: u64,
        given_up: Option<usize>,
    ) -> Result<()> {
        let Some(budget) = self.plan().plan.options.budget.offload_bytes() else { return Ok(()) };
        let page = page::page_bytes() as u64;
        let freed = given_up.and_then(|block| {
            let unit = state.blocks[block].unit;
            let own = !Arc::ptr_eq(&state.units[unit].buffer, &state.arena);
            (own && state.blocks_in(unit) == [block])
                .then(|| (state.units[unit].buffer.data().bytes() as u64).next_multiple_of(page))
        });
        let held: u64 = state
            .buffers()
            .map(|buffer| (buffer.data().bytes() as u64).next_multiple_of(page))
            .sum();
        let would = held - freed.unwrap_or(0) + needs.next_multiple_of(page);
        if would > budget {
            fail!(
                WB_ERR_BUDGET,
                "{needs} more bytes of host memory for parameters would make {would}, over the budget \
                 of {budget} bytes: nothing was changed"
            );
        }
        Ok(())
    }

    /// Whether slots for units of these sizes keep to the budgets.
    fn check_slots(&self, state: &OffloadState, sizes: Vec<UnitSize<'_>>) -> Result<()> {
        let options = &self.plan().plan.options;
        if options.budget.device_bytes().is_none() && options.slot_bytes.is_none() {
            return Ok(());
        }
        let seats = self.seats(&sizes, self.room_for_slots(state));
        if let Some(most) = options.slot_bytes
            && seats.ring_bytes > most
        {
            fail!(
                WB_ERR_SLOTS_BUDGET,
                "what is copied ahead would need {} bytes of slots, over the {most} of slot_bytes: \
                 nothing was changed",
                seats.ring_bytes
            );
        }
        self.check_device_bytes(state.device_bytes(&[]), seats.slot_bytes)
    }

    /// `WB_ERR_BUDGET` where so many resident bytes, with the slots that there are, go over a budget of
    /// device bytes.
    pub(super) fn check_resident(&self, state: &OffloadState, resident: u64) -> Result<()> {
        self.check_device_bytes(resident, state.held().slot_bytes)
    }

    fn check_device_bytes(&self, resident: u64, slots: u64) -> Result<()> {
        let Some(budget) = self.plan().plan.options.budget.device_bytes() else { return Ok(()) };
        let would = resident + slots;
        if would > budget {
            fail!(
                WB_ERR_BUDGET,
                "what stays on the device and the slots would need {would} bytes, over the budget of \
                 {budget}: nothing was changed"
            );
        }
        Ok(())
    }

    /// Puts a parameter into the room that was found.
    pub(super) fn take_room(
        &self,
        state: &mut OffloadState,
        room: HostSpace,
        groups: Vec<usize>,
        transfer_mode: TransferMode,
        at: usize,
        bytes: u64,
    ) -> Result<usize> {
        let rounded = bytes.next_multiple_of(ALIGNMENT);
        let (unit, offset) = match room {
            HostSpace::In(unit, offset) => (unit, offset),
            HostSpace::Own => {
                let options = BufferOptions { pin: state.pinning(), ..BufferOptions::default() };
                let buffer = Buffer::alloc(self.device(), rounded as usize, &options, &mut None)?;
                let region = buffer.data();
                // Its slot is found when everything is arranged again.
                state.units.push(HostUnit { buffer, region, transfer_mode, groups, slot: None });
                state.note_peak();
                (state.units.len() - 1, 0)
            }
        };
        let block =
            state.put_block(Block { unit, offset, bytes, room: rounded, parameters: vec![at] });
        state.kept[at].place = Backing::Block(block, 0);
        Ok(block)
    }

    /// Bytes for slots beside what is resident, where the device has a budget.
    fn room_for_slots(&self, state: &OffloadState) -> Option<u64> {
        let budget = self.plan().plan.options.budget.device_bytes();
        budget.map(|bytes| bytes.saturating_sub(state.device_bytes(&[])))
    }

    /// The units' slots, in `most` bytes if that is possible at all.
    fn seats(&self, sizes: &[UnitSize<'_>], most: Option<u64>) -> SlotRing {
        let options = &self.plan().plan.options;
        let seats = |limit: Option<u64>| SlotRing::new(sizes, options.depth as usize, limit);
        let wide = seats(options.slot_bytes.into_iter().chain(most).min());
        let on_demand = wide.slot_bytes - wide.ring_bytes;
        match most {
            // The limit is the ring's; what is copied on demand lies behind it.
            Some(most) if wide.slot_bytes > most => {
                seats(options.slot_bytes.into_iter().chain([most.saturating_sub(on_demand)]).min())
            }
            _ => wide,
        }
    }

    /// SlotRing in the slots that are there if as many groups fit in them as before.
    fn seats_again(&self, state: &OffloadState, have: u64) -> SlotRing {
        let extents = state.extents(None);
        let sizes = sizes(state, &extents);
        let seats = self.seats(&sizes, Some(have));
        if seats.slot_bytes <= have && seats.depth >= state.depth.min(seats.ring.len()) {
            return seats;
        }
        self.seats(&sizes, self.room_for_slots(state))
    }

    /// Gives every unit its slot again and goes on: addresses have changed.
    pub(super) fn rearrange(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
    ) -> Result<()> {
        change.check_all_released()?;
        change.invalidate();
        state.drop_empty_units();
        let have = state.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64);
        let seats = self.seats_again(state, have);
        if seats.slot_bytes > have {
            state.slots = None;
            state.units.iter_mut().for_each(|unit| unit.slot = None);
            state.slots =
                DeviceMemory::alloc(self.device(), seats.slot_bytes as usize)?.map(Arc::new);
        }
        state.note_peak();
        for (unit, offset) in state.units.iter_mut().zip(&seats.offsets) {
            unit.slot = *offset;
        }
        state.ring = seats.ring;
        state.depth = seats.depth;
        state.generation += 1;
        change.lay_out(state.arrangement())
    }
}

/// The units, as far as they reach.
fn sizes<'a>(state: &'a OffloadState, extents: &[u64]) -> Vec<UnitSize<'a>> {
    let size = |(unit, bytes): (&'a HostUnit, &u64)| UnitSize {
        transfer_mode: unit.transfer_mode,
        bytes: *bytes,
        groups: &unit.groups,
    };
    state.units.iter().zip(extents).map(size).collect()
}
