//! Host memory for parameters that are replaced or added, within the budgets, and the slots that
//! follow from it.

use crate::device::backend::Stream;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::backing::{Backing, Block, HostUnit, HostUse};
use crate::offload::edit::Edit;
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::os::sync::Arc;
use crate::os::{bytes, page};
use crate::plan::plan::ALIGNMENT;
use crate::plan::slot_ring::{SlotRing, UnitSize};
use crate::status::{WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET};

/// Free spaces that are tried against a budget of slots before a new buffer is.
const MOST_SPACES: usize = 16;

/// Buffers that are as large as they must be. Of more, each is larger.
const FEW_BUFFERS: usize = 16;

/// Bytes of a buffer that is larger than it must be, at most.
const MOST_AMPLE: u64 = 16 << 20;

/// Host memory for a block.
pub enum HostSpace {
    /// Free memory in a unit.
    InUnit { unit: usize, offset: u64 },
    /// A unit that is still to be made.
    NewUnit,
}

impl Offloader {
    /// Finds space for `bytes` bytes, within the budgets, once the block `freed` is gone.
    pub(super) fn find_space(
        &self,
        state: &OffloadState,
        host_use: &HostUse,
        bytes: u64,
        freed: Option<usize>,
    ) -> Result<HostSpace> {
        let needs = bytes.next_multiple_of(ALIGNMENT);
        for (unit, offset) in state.host.spaces(host_use, needs, freed).take(MOST_SPACES) {
            let grows = |extents: &mut Vec<u64>| {
                extents[unit] = extents[unit].max(offset + needs);
                None
            };
            if self.check_slots(state, freed, grows).is_ok() {
                return Ok(HostSpace::InUnit { unit, offset });
            }
        }
        if state.host.buffers().find_free(needs).is_none() {
            self.check_host_bytes(state, needs, freed)?;
        }
        let HostUse { groups, transfer_mode } = host_use;
        let unit = UnitSize { transfer_mode: *transfer_mode, bytes: needs, groups };
        self.check_slots(state, freed, |_| Some(unit))?;
        Ok(HostSpace::NewUnit)
    }

    /// Fails with `WB_ERR_BUDGET` if a new buffer of `needs` bytes exceeds a budget of host memory.
    fn check_host_bytes(
        &self,
        state: &OffloadState,
        needs: u64,
        freed: Option<usize>,
    ) -> Result<()> {
        let Some(budget) = self.options().budget.offload_bytes() else { return Ok(()) };
        let page = page::page_bytes() as u64;
        let freed_bytes = freed.map_or(0, |block| state.host.counted_bytes_of(block));
        let total =
            state.host.buffers().counted_bytes() - freed_bytes + needs.next_multiple_of(page);
        if total > budget {
            fail!(
                WB_ERR_BUDGET,
                "{needs} more bytes of host memory for parameters would make {total}, over the budget \
                 of {budget} bytes: nothing was changed"
            );
        }
        Ok(())
    }

    /// Fails if slots exceed a budget once the block `freed` is gone and `change` has changed how
    /// far blocks reach in the units, and given another unit.
    fn check_slots<'a>(
        &self,
        state: &'a OffloadState,
        freed: Option<usize>,
        change: impl FnOnce(&mut Vec<u64>) -> Option<UnitSize<'a>>,
    ) -> Result<()> {
        let options = self.options();
        if options.budget.device_bytes().is_none() && options.slot_bytes.is_none() {
            return Ok(());
        }
        let mut extents = state.host.extents(freed);
        let added = change(&mut extents);
        let mut sizes = unit_sizes(state, &extents);
        sizes.extend(added);
        let slots = self.slot_ring(&sizes, self.slot_budget(state));
        if let Some(most) = options.slot_bytes
            && slots.ring_bytes > most
        {
            fail!(
                WB_ERR_SLOTS_BUDGET,
                "prefetched parameters would need {} bytes of slots, over the {most} of slot_bytes: \
                 nothing was changed",
                slots.ring_bytes
            );
        }
        self.check_device_bytes(state.resident_memory_bytes(None), slots.slot_bytes)
    }

    /// Fails with `WB_ERR_BUDGET` if the resident parameters, except `without`, and `bytes` beside
    /// the current slots exceed a budget of device memory.
    pub(super) fn check_resident(
        &self,
        state: &OffloadState,
        without: Option<usize>,
        bytes: u64,
    ) -> Result<()> {
        if self.options().budget.device_bytes().is_none() {
            return Ok(());
        }
        let resident = state.resident_memory_bytes(without) + bytes;
        self.check_device_bytes(resident, state.held_bytes().slot_bytes)
    }

    fn check_device_bytes(&self, resident: u64, slots: u64) -> Result<()> {
        let Some(budget) = self.options().budget.device_bytes() else { return Ok(()) };
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

    /// Makes a block for a parameter in the space that was found. Returns its index.
    pub(super) fn take_space(
        &self,
        state: &mut OffloadState,
        space: HostSpace,
        host_use: HostUse,
        at: usize,
        bytes: u64,
    ) -> Result<usize> {
        let capacity = bytes.next_multiple_of(ALIGNMENT);
        let (unit, offset) = match space {
            HostSpace::InUnit { unit, offset } => (unit, offset),
            HostSpace::NewUnit => (self.new_unit(state, host_use, capacity)?, 0),
        };
        state.update_peak();
        let filled = false;
        let block = Block { unit, offset, bytes, capacity, filled, parameters: vec![at] };
        let block = state.host.add_block(block);
        state.parameters.set_backing(at, Backing::Block { block, offset: 0 });
        Ok(block)
    }

    /// Adds a unit without a slot, which `rearrange` gives it. Returns its index.
    fn new_unit(
        &self,
        state: &mut OffloadState,
        HostUse { groups, transfer_mode }: HostUse,
        bytes: u64,
    ) -> Result<usize> {
        let (buffer, region) = match state.host.buffers().find_free(bytes).filter(|_| bytes > 0) {
            Some(found) => found,
            None => {
                let buffer = self.new_buffer(state, bytes)?;
                let region = buffer.data().part(0, bytes as usize);
                (buffer, region)
            }
        };
        let (in_source, slot_offset) = (false, None);
        let unit = HostUnit { buffer, region, in_source, transfer_mode, groups, slot_offset };
        Ok(state.host.add_own_unit(unit))
    }

    /// A buffer of at least `bytes` bytes. With many, each is larger than it must be by a part of
    /// all: a buffer for each parameter would take more mappings than the kernel allows.
    fn new_buffer(&self, state: &OffloadState, bytes: u64) -> Result<Arc<Buffer>> {
        let options = BufferOptions { pin: state.pinning(), ..BufferOptions::default() };
        let alloc = |bytes: u64| Buffer::alloc(self.device(), bytes as usize, &options, &mut None);
        let budget = self.options().budget.offload_bytes().unwrap_or(u64::MAX);
        let left = budget.saturating_sub(state.host.buffers().counted_bytes());
        let page = page::page_bytes() as u64;
        let ample =
            (state.host.buffers().other_bytes() / 8).min(MOST_AMPLE).min(left) / page * page;
        match ample > bytes && state.host.buffers().count() > FEW_BUFFERS {
            true => alloc(ample).or_else(|_| alloc(bytes)),
            false => alloc(bytes),
        }
    }

    /// Device memory that is left for slots under a budget of device memory.
    fn slot_budget(&self, state: &OffloadState) -> Option<u64> {
        let budget = self.options().budget.device_bytes();
        budget.map(|bytes| bytes.saturating_sub(state.resident_memory_bytes(None)))
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
    /// Moves a block out of the memory of its source, which is not written, into memory of the
    /// offloader. On an error nothing has changed.
    pub(super) fn own_block(&mut self, block: usize) -> Result<()> {
        self.schedule.check_all_released()?;
        let (offloader, state) = (self.offloader, &mut *self.state);
        let Block { unit, offset, bytes, .. } = state.host.blocks()[block];
        let HostUnit { buffer, region, groups, transfer_mode, .. } = &state.host.units()[unit];
        let from = region.part(offset as usize, bytes as usize);
        buffer.check_file()?;
        let host_use = HostUse { groups: groups.clone(), transfer_mode: *transfer_mode };
        let needs = bytes.next_multiple_of(ALIGNMENT);
        offloader.check_host_bytes(state, needs, Some(block))?;
        let added = UnitSize { transfer_mode: *transfer_mode, bytes: needs, groups };
        offloader.check_slots(state, Some(block), |_| Some(added))?;
        let own = offloader.new_unit(state, host_use, needs)?;
        bytes::copy(state.host.units()[own].region.part(0, bytes as usize), from);
        state.host.move_block(block, own, 0, bytes);
        self.note_moved();
        Ok(())
    }

    /// Gives every unit a slot again, and lays out the schedule. Addresses change.
    pub(super) fn rearrange(&mut self) -> Result<()> {
        self.schedule.check_all_released()?;
        self.schedule.invalidate();
        let (offloader, state) = (self.offloader, &mut *self.state);
        state.generation += 1;
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
        state.ring = slots.ring;
        state.depth = slots.depth;
        self.schedule.lay_out(state.arrangement())
    }

    /// Moves blocks together, so that units have no gaps and are copied as no more bytes than they
    /// have. Nothing moves if that is so, and the slots are those that the units would get.
    pub(super) fn compact(&mut self) -> Result<()> {
        let state = &self.state;
        let gap = (0..state.host.units().len()).any(|unit| state.host.has_gaps(unit));
        if !gap && self.is_arranged() {
            return Ok(());
        }
        self.schedule.check_all_released()?;
        self.note_moved();
        let state = &mut *self.state;
        for unit in 0..state.host.units().len() {
            if !state.host.has_gaps(unit) {
                continue;
            }
            let region = state.host.units()[unit].region;
            let mut end = 0;
            for block in state.host.blocks_in(unit).collect::<Vec<_>>() {
                let Block { offset, bytes, capacity, .. } = state.host.blocks()[block];
                if end < offset {
                    let part = |at: u64| region.part(at as usize, bytes as usize);
                    bytes::copy(part(end), part(offset));
                    state.host.shift_block(block, end);
                }
                end += capacity;
            }
        }
        Ok(())
    }

    /// Whether units have the slots that they would get now.
    fn is_arranged(&self) -> bool {
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

impl Offloader {
    /// Moves blocks together, and gives every unit a slot again.
    pub fn compact(&self, stream: Stream) -> Result<()> {
        let mut edit = self.edit(stream)?;
        edit.schedule.make_idle(&[])?;
        edit.schedule.check_all_released()?;
        let done = edit.compact();
        edit.end(done)
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
