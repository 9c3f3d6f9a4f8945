//! Host memory for parameters that are replaced or added, within the budgets.

use crate::device::backend::Stream;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::backing::{Apart, ApartKind, Backing, Block, Encoding, HostUnit, HostUse};
use crate::offload::edit::Edit;
use crate::offload::offloader::Offloader;
use crate::offload::slot_budget::SlotChange;
use crate::offload::state::OffloadState;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, page};
use crate::plan::plan::{ALIGNMENT, capacity};
use crate::plan::slot_ring::UnitSize;
use crate::status::{WB_ERR_BUDGET, WB_ERR_NOT_MAPPED};
use crate::tensor::coded::CodedType;

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
    /// Finds space for a block of `needs` bytes, within the budgets, once the block `freed` is gone.
    pub(super) fn find_space(
        &self,
        state: &OffloadState,
        host_use: &HostUse,
        needs: u64,
        freed: Option<usize>,
    ) -> Result<HostSpace> {
        for (unit, offset) in state.host.spaces(host_use, needs, freed).take(MOST_SPACES) {
            let grows = SlotChange::Grows { unit, extent: offset + needs };
            if self.check_slots(state, freed, grows).is_ok() {
                return Ok(HostSpace::InUnit { unit, offset });
            }
        }
        if state.host.buffers().find_free(needs).is_none() {
            self.check_host_bytes(state, needs, freed)?;
        }
        let HostUse { groups, transfer_mode } = host_use;
        let unit = UnitSize { transfer_mode: *transfer_mode, bytes: needs, groups };
        self.check_slots(state, freed, SlotChange::Added(unit))?;
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

    /// Makes a block for a parameter in the space that was found. Returns its index.
    pub(super) fn take_space(
        &self,
        state: &mut OffloadState,
        space: HostSpace,
        host_use: HostUse,
        at: usize,
        (bytes, coded): (u64, Option<CodedType>),
    ) -> Result<usize> {
        let capacity = capacity(bytes, coded);
        let (unit, offset) = match space {
            HostSpace::InUnit { unit, offset } => (unit, offset),
            HostSpace::NewUnit => (self.new_unit(state, host_use, capacity)?, 0),
        };
        state.update_peak();
        // New memory may be such that the device cannot read it.
        let coded = coded.filter(|_| state.host.units()[unit].buffer.device_address().is_some());
        let block = Block {
            unit,
            offset,
            bytes,
            capacity,
            encoding: Encoding::of_new(coded, bytes),
            apart: None,
            kept: None,
            filled: false,
            parameters: vec![at],
        };
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
        let (buffer, region) = self.new_region(state, bytes)?;
        let (in_source, slot_offset, range) = (false, None, None);
        let unit =
            HostUnit { buffer, region, in_source, transfer_mode, groups, slot_offset, range };
        Ok(state.host.add_own_unit(unit))
    }

    /// Free memory of a buffer, or a new one.
    fn new_region(&self, state: &OffloadState, bytes: u64) -> Result<(Arc<Buffer>, Span)> {
        if let Some(found) = state.host.buffers().find_free(bytes).filter(|_| bytes > 0) {
            return Ok(found);
        }
        let buffer = self.new_buffer(state, bytes)?;
        let region = buffer.data().part(0, bytes as usize);
        Ok((buffer, region))
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
}

impl Edit<'_> {
    /// Moves a block out of memory that has it as its source has, and is not written, into memory of the
    /// offloader. On an error nothing has changed.
    pub(super) fn own_block(&mut self, block: usize) -> Result<()> {
        self.check_may_move()?;
        if self.state.host.blocks()[block].apart.is_some() {
            return self.own_apart(block);
        }
        let (offloader, state) = (self.offloader, &mut *self.state);
        let Block { unit, offset, bytes, .. } = state.host.blocks()[block];
        let HostUnit { buffer, region, groups, transfer_mode, .. } = &state.host.units()[unit];
        let from = region.part(offset as usize, bytes as usize);
        buffer.check_file()?;
        let host_use = HostUse { groups: groups.clone(), transfer_mode: *transfer_mode };
        let needs = bytes.next_multiple_of(ALIGNMENT);
        offloader.check_host_bytes(state, needs, Some(block))?;
        let added = UnitSize { transfer_mode: *transfer_mode, bytes: needs, groups };
        offloader.check_slots(state, Some(block), SlotChange::Added(added))?;
        let own = offloader.new_unit(state, host_use, needs)?;
        bytes::copy(state.host.units()[own].region.part(0, bytes as usize), from);
        state.host.move_block(block, (own, 0), bytes, None);
        self.note_moved(unit);
        self.note_moved(own);
        Ok(())
    }

    /// As [`Edit::own_block`] for compressed bytes that are apart from their unit: they get space for any bytes of
    /// the block, which stays at its place in the slot.
    fn own_apart(&mut self, block: usize) -> Result<()> {
        let (offloader, state) = (self.offloader, &mut *self.state);
        let from = state.stored(block);
        let Block { unit, capacity, ref apart, .. } = state.host.blocks()[block];
        if let Some(apart) = apart {
            apart.buffer.check_file()?;
        }
        if state.host.buffers().find_free(capacity).is_none() {
            offloader.check_host_bytes(state, capacity, Some(block))?;
        }
        let (buffer, span) = offloader.new_region(state, capacity)?;
        if buffer.device_address().is_none() {
            fail!(
                WB_ERR_NOT_MAPPED,
                "new host memory for a compressed parameter is not mapped for the device, which decodes from it \
                 ({}): nothing was changed",
                buffer.fallback_reason()
            );
        }
        bytes::copy(span.part(0, from.bytes()), from);
        state.host.set_apart(block, Apart { buffer, span, kind: ApartKind::Own });
        state.update_peak();
        self.note_moved(unit);
        Ok(())
    }

    /// Moves blocks together, so that units have no gaps and are copied as no more bytes than they
    /// have. Nothing moves if that is so, and the slots are those that the units would get, or if addresses
    /// are fixed: then there are no gaps, and slots are those of the plan.
    pub(super) fn compact(&mut self) -> Result<()> {
        let state = &self.state;
        if state.addresses.is_some() {
            return Ok(());
        }
        let gap = (0..state.host.units().len()).any(|unit| state.host.has_gaps(unit));
        if !gap && self.is_arranged() {
            return Ok(());
        }
        self.schedule.check_all_released()?;
        self.note_all_moved();
        let state = &mut *self.state;
        for unit in 0..state.host.units().len() {
            if !state.host.has_gaps(unit) {
                continue;
            }
            let region = state.host.units()[unit].region;
            let mut end = 0;
            for block in state.host.blocks_in(unit).collect::<Vec<_>>() {
                let Block { offset, capacity, ref apart, .. } = state.host.blocks()[block];
                let stored = state.host.blocks()[block].stored_bytes();
                let is_apart = apart.is_some();
                if end < offset {
                    let part = |at: u64| region.part(at as usize, stored as usize);
                    if !is_apart {
                        bytes::copy(part(end), part(offset));
                    }
                    state.host.shift_block(block, end);
                }
                end += capacity;
            }
        }
        Ok(())
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
