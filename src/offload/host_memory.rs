//! The host memory of offloaded parameters: buffers, units in them and blocks in those, with what
//! changes need to find about them without a look at each.

use std::collections::btree_set::Range;

use crate::memory::buffer::Buffer;
use crate::offload::backing::{Apart, ApartKind, Block, Encoding, HostUnit, HostUse, Kept};
use crate::offload::held_buffers::HeldBuffers;
use crate::offload::intervals::Rows;
use crate::offload::slot_sums::{SlotSums, UnitChange};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::capacity;
use crate::tensor::coded::CodedType;

/// All units and blocks, read as slices. Changes keep the rest in step.
pub struct HostMemory {
    /// The host memory of the plan. Replacements that it has no space for get buffers of their own.
    arena: Arc<Buffer>,
    units: Vec<HostUnit>,
    blocks: Vec<Block>,
    /// Blocks without parameters, whose entries are used again.
    unused: Vec<usize>,
    /// For each unit what is in it.
    contents: Vec<Contents>,
    /// How many units have no memory.
    vacant: usize,
    /// Blocks with parameters: unit, offset, capacity, block. So they are in the order in which they
    /// lie, and one without bytes before another at its offset.
    placed: Rows,
    /// Free ranges in units of the offloader: number of the use, bytes, unit, offset.
    gaps: Rows,
    /// The uses by their numbers, and those numbers by the last group of each.
    uses: Vec<HostUse>,
    uses_of_group: Vec<Vec<usize>>,
    /// Number of a use, unit.
    units_of_use: Rows,
    /// The units of each group.
    units_of_group: Vec<Vec<usize>>,
    buffers: HeldBuffers,
    /// Buffers that blocks have left and that are no longer held.
    left: Vec<Arc<Buffer>>,
    slot_sums: SlotSums,
}

struct Contents {
    /// Number of the unit's use.
    host_use: usize,
    /// How many blocks are in it.
    blocks: usize,
    /// Whether its memory is dropped already.
    vacant: bool,
}

impl HostMemory {
    /// The memory of `groups` groups.
    pub fn new(
        arena: Arc<Buffer>,
        units: Vec<HostUnit>,
        blocks: Vec<Block>,
        groups: usize,
    ) -> Self {
        let mut memory = Self {
            units: Vec::with_capacity(units.len()),
            blocks: Vec::with_capacity(blocks.len()),
            unused: Vec::new(),
            contents: Vec::with_capacity(units.len()),
            vacant: 0,
            placed: Rows::new(),
            gaps: Rows::new(),
            uses: Vec::new(),
            uses_of_group: vec![Vec::new(); groups],
            units_of_use: Rows::new(),
            units_of_group: vec![Vec::new(); groups],
            buffers: HeldBuffers::new(&arena),
            left: Vec::new(),
            slot_sums: SlotSums::new(groups),
            arena,
        };
        units.into_iter().for_each(|unit| {
            memory.add_unit(unit);
        });
        blocks.into_iter().for_each(|block| {
            memory.add_block(block);
        });
        memory
    }

    pub fn arena(&self) -> &Arc<Buffer> {
        &self.arena
    }

    /// All buffers.
    pub fn buffers(&self) -> &HeldBuffers {
        &self.buffers
    }

    pub fn units(&self) -> &[HostUnit] {
        &self.units
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The unit of a block.
    pub fn unit_of(&self, block: usize) -> &HostUnit {
        &self.units[self.blocks[block].unit]
    }

    /// The units that a group uses.
    pub fn units_of_group(&self, group: usize) -> impl Iterator<Item = usize> {
        self.units_of_group[group].iter().copied().filter(|unit| !self.contents[*unit].vacant)
    }

    fn prefetched_units_of(&self, group: usize) -> impl Iterator<Item = usize> {
        let is_prefetched =
            |unit: &usize| self.units[*unit].transfer_mode == TransferMode::Prefetch;
        self.units_of_group(group).filter(is_prefetched)
    }

    /// The first unit that is used like this.
    pub fn first_unit_of(&self, host_use: &HostUse) -> Option<usize> {
        self.units_of(self.number_of(host_use)?).next()
    }

    /// Those of [`HeldBuffers::counted_bytes`] that are no longer counted once a block is gone.
    pub fn counted_bytes_of(&self, block: usize) -> u64 {
        let Block { unit, capacity, ref apart, .. } = self.blocks[block];
        if let Some(apart) = apart {
            return self.buffers.counted_bytes_of(&apart.buffer, apart.counted_bytes(), true);
        }
        let alone = self.contents[unit].blocks == 1;
        self.buffers.counted_bytes_of(&self.units[unit].buffer, capacity, alone)
    }

    /// How far blocks, except `without`, reach in a unit.
    pub fn extent(&self, unit: usize, without: Option<usize>) -> u64 {
        let mut blocks = self.entries(unit).rev();
        let last = blocks.find(|[_, _, _, block]| Some(*block as usize) != without);
        last.map_or(0, |[_, offset, capacity, _]| offset + capacity)
    }

    /// The bytes that need slots at a time.
    pub fn slot_sums(&self) -> &SlotSums {
        &self.slot_sums
    }

    /// Takes the groups with prefetched units, ascending, of which `depth` have their slots at a time.
    pub fn set_ring(&mut self, ring: &[usize], depth: usize) {
        self.slot_sums.set_ring(ring, depth);
    }

    /// The change of a unit whose blocks will reach as far as `after`.
    pub fn unit_change(&self, unit: usize, after: u64) -> UnitChange<'_> {
        let HostUnit { transfer_mode, groups, .. } = &self.units[unit];
        let before = self.extent(unit, None);
        UnitChange { transfer_mode: *transfer_mode, groups, before, after }
    }

    /// The blocks of a unit, as they are in `placed`.
    fn entries(&self, unit: usize) -> Range<'_, [u64; 4]> {
        self.placed.range([unit as u64, 0, 0, 0]..[unit as u64 + 1, 0, 0, 0])
    }

    /// The number of a use, if a unit had it.
    fn number_of(&self, host_use: &HostUse) -> Option<usize> {
        let known = &self.uses_of_group[*host_use.groups.last()?];
        known.iter().copied().find(|number| self.uses[*number] == *host_use)
    }

    /// The units of a use, by its number.
    fn units_of(&self, number: usize) -> impl Iterator<Item = usize> {
        let number = number as u64;
        let found = self.units_of_use.range([number, 0, 0, 0]..[number + 1, 0, 0, 0]);
        found.map(|[_, unit, _, _]| *unit as usize)
    }

    /// How far blocks, except `without`, reach in each unit.
    pub fn extents(&self, without: Option<usize>) -> Vec<u64> {
        (0..self.units.len()).map(|unit| self.extent(unit, without)).collect()
    }

    /// The blocks of a unit in the order in which they lie.
    pub fn blocks_in(&self, unit: usize) -> impl Iterator<Item = usize> {
        self.entries(unit).map(|[_, _, _, block]| *block as usize)
    }

    /// Whether any block of a unit is compressed.
    pub fn is_encoded(&self, unit: usize) -> bool {
        self.blocks_in(unit).any(|block| self.blocks[block].encoding.is_some())
    }

    /// Whether a unit of the offloader has gaps between its blocks.
    pub fn has_gaps(&self, unit: usize) -> bool {
        let mut end = 0;
        let mut follows = |[_, offset, capacity, _]: &[u64; 4]| {
            let adjacent = *offset == end;
            end = offset + capacity;
            adjacent
        };
        !self.units[unit].in_source && !self.entries(unit).all(&mut follows)
    }

    /// Units of a use and offsets in them at which `needs` bytes are free once the block `freed` is
    /// gone: its own place first, then the smallest.
    pub fn spaces<'a>(
        &'a self,
        host_use: &HostUse,
        needs: u64,
        freed: Option<usize>,
    ) -> impl Iterator<Item = (usize, u64)> + use<'a> {
        let number = self.number_of(host_use);
        let own = freed.and_then(|block| self.space_around(block, number?));
        let own = own.filter(|(_, start, end)| end - start >= needs);
        // Nothing needs no gap.
        let none = number.filter(|_| needs == 0);
        let none =
            none.and_then(|number| self.units_of(number).find(|unit| !self.units[*unit].in_source));
        let gaps = number.map(|number| {
            let number = number as u64;
            self.gaps.range([number, needs.max(1), 0, 0]..[number + 1, 0, 0, 0])
        });
        own.map(|(unit, start, _)| (unit, start))
            .into_iter()
            .chain(none.map(|unit| (unit, self.extent(unit, None))))
            .chain(gaps.into_iter().flatten().map(|[_, _, unit, offset]| (*unit as usize, *offset)))
    }

    /// The unit, and the range that is free in it once a block is gone, if its use has the number.
    fn space_around(&self, block: usize, number: usize) -> Option<(usize, u64, u64)> {
        let Block { unit, offset, capacity, .. } = self.blocks[block];
        if self.units[unit].in_source || self.contents[unit].host_use != number {
            return None;
        }
        let entry = [unit as u64, offset, capacity, block as u64];
        let (start, end) = self.neighbours(unit, entry);
        Some((unit, start, end.min(self.units[unit].region.bytes() as u64).max(start)))
    }

    /// Where the blocks before and after an entry of a unit end and begin.
    fn neighbours(&self, unit: usize, entry: [u64; 4]) -> (u64, u64) {
        let [at, offset, capacity, _] = entry;
        let before = self.placed.range([at, 0, 0, 0]..entry).next_back();
        let after = self.placed.range(entry..[at + 1, 0, 0, 0]).find(|other| **other != entry);
        let start = before.map_or(0, |[_, offset, capacity, _]| offset + capacity);
        let region = self.units[unit].region.bytes() as u64;
        let last = region.max(offset + capacity);
        (start, after.map_or(last, |[_, offset, _, _]| *offset))
    }

    fn set_gap(&mut self, unit: usize, (start, end): (u64, u64), is_free: bool) {
        // Behind the region are blocks that have no bytes there.
        let end = end.min(self.units[unit].region.bytes() as u64);
        if start >= end || self.units[unit].in_source {
            return;
        }
        let gap = [self.contents[unit].host_use as u64, end - start, unit as u64, start];
        match is_free {
            true => self.gaps.insert(gap),
            false => self.gaps.remove(&gap),
        };
    }

    /// Enters a block into its unit, or takes it out.
    fn place(&mut self, block: usize, is_there: bool) {
        let Block { unit, offset, capacity, .. } = self.blocks[block];
        let entry = [unit as u64, offset, capacity, block as u64];
        let before = self.extent(unit, None);
        let (start, end) = self.neighbours(unit, entry);
        self.set_gap(unit, (start, end), !is_there);
        self.set_gap(unit, (start, offset), is_there);
        self.set_gap(unit, (offset + capacity, end), is_there);
        match is_there {
            true => self.placed.insert(entry),
            false => self.placed.remove(&entry),
        };
        let after = self.extent(unit, None);
        let HostUnit { transfer_mode, groups, .. } = &self.units[unit];
        self.slot_sums.apply(UnitChange { transfer_mode: *transfer_mode, groups, before, after });
        let blocks = &mut self.contents[unit].blocks;
        *blocks = if is_there { *blocks + 1 } else { *blocks - 1 };
        match &self.blocks[block].apart {
            Some(apart) => {
                let apart = apart.clone();
                self.hold_apart(apart, is_there);
            }
            None if self.units[unit].in_source => {
                self.buffers.note_block(&self.units[unit].buffer, capacity, is_there);
            }
            None => {}
        }
    }

    /// Holds the memory of a block's bytes that are apart from its unit, or releases it.
    fn hold_apart(&mut self, apart: Apart, is_there: bool) {
        if apart.kind == ApartKind::Arena {
            return; // always held
        }
        let in_source = apart.kind == ApartKind::Source;
        if is_there {
            self.buffers.hold(&apart.buffer, in_source);
        }
        match in_source {
            true => self.buffers.note_block(&apart.buffer, apart.counted_bytes(), is_there),
            false if is_there => self.buffers.take_free(&apart.buffer, apart.span),
            false => {}
        }
        if !is_there {
            self.left.extend(self.buffers.release(apart.buffer, apart.span));
        }
    }

    /// Gives a block whose bytes are apart from its unit other memory for them.
    pub fn set_apart(&mut self, block: usize, apart: Apart) {
        self.place(block, false);
        self.blocks[block].apart = Some(apart);
        self.place(block, true);
    }

    /// Adds a block with its parameters. Returns its index.
    pub fn add_block(&mut self, block: Block) -> usize {
        let at = match self.unused.pop() {
            Some(at) => {
                self.blocks[at] = block;
                at
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() - 1
            }
        };
        self.place(at, true);
        at
    }

    /// Moves a block to another place; it is as large as `bytes` bytes need, raw or compressed as a type.
    /// The device keeps it no longer.
    pub fn move_block(
        &mut self,
        block: usize,
        (unit, offset): (usize, u64),
        bytes: u64,
        coded: Option<CodedType>,
    ) {
        self.place(block, false);
        let moved = &mut self.blocks[block];
        (moved.unit, moved.offset, moved.bytes) = (unit, offset, bytes);
        moved.encoding = Encoding::of_new(coded, bytes);
        (moved.kept, moved.apart) = (None, None);
        moved.capacity = capacity(bytes, coded);
        self.place(block, true);
    }

    /// Moves a block to another offset in its unit.
    pub fn shift_block(&mut self, block: usize, offset: u64) {
        self.place(block, false);
        self.blocks[block].offset = offset;
        self.place(block, true);
    }

    /// Notes that the bytes of a block are those of a source.
    pub fn note_filled(&mut self, block: usize) {
        self.blocks[block].filled = true;
    }

    /// Notes how many bytes those of a block were compressed to.
    pub fn note_encoded(&mut self, block: usize, bytes: u64) {
        let encoding = self.blocks[block].encoding.as_mut();
        encoding.into_iter().for_each(|encoding| encoding.encoded_bytes = bytes);
    }

    /// Notes that the device keeps the compressed bytes of a block.
    pub fn note_kept(&mut self, block: usize, kept: Kept) {
        self.blocks[block].kept = Some(kept);
    }

    /// Notes that a block no longer has the bytes of a source.
    pub fn note_unfilled(&mut self, block: usize) {
        self.blocks[block].filled = false;
    }

    /// Takes a parameter out of a block, which `bytes` bytes are then in use of.
    pub fn leave_block(&mut self, block: usize, parameter: usize, bytes: u64) {
        let left = &mut self.blocks[block];
        left.parameters.retain(|member| *member != parameter);
        left.bytes = bytes;
        if left.parameters.is_empty() {
            self.place(block, false);
            self.unused.push(block);
        }
    }

    /// Notes that a parameter of a block has another index.
    pub fn rename_parameter(&mut self, block: usize, from: usize, to: usize) {
        let members = self.blocks[block].parameters.iter_mut();
        members.filter(|member| **member == from).for_each(|member| *member = to);
    }

    /// Adds a unit without blocks. Returns its index.
    fn add_unit(&mut self, unit: HostUnit) -> usize {
        let at = self.units.len();
        let host_use = HostUse { groups: unit.groups.clone(), transfer_mode: unit.transfer_mode };
        let number = self.number_of(&host_use).unwrap_or_else(|| {
            let last = host_use.groups.last().copied();
            last.into_iter().for_each(|group| self.uses_of_group[group].push(self.uses.len()));
            self.uses.push(host_use);
            self.uses.len() - 1
        });
        self.units_of_use.insert([number as u64, at as u64, 0, 0]);
        unit.groups.iter().for_each(|group| self.units_of_group[*group].push(at));
        let mut groups = unit.groups.iter();
        if unit.transfer_mode == TransferMode::Prefetch
            && !groups.all(|group| self.slot_sums.is_in_ring(*group))
        {
            self.slot_sums.forget_ring();
        }
        self.buffers.hold(&unit.buffer, unit.in_source);
        let region = (0, unit.region.bytes() as u64);
        self.units.push(unit);
        self.contents.push(Contents { host_use: number, blocks: 0, vacant: false });
        self.set_gap(at, region, true);
        at
    }

    /// Whether the memory of a unit is dropped.
    pub fn is_vacant(&self, unit: usize) -> bool {
        self.contents[unit].vacant
    }

    /// How many units there are whose memory is dropped.
    pub fn vacant_units(&self) -> usize {
        self.vacant
    }

    /// Gives a unit its slot.
    pub fn set_slot(&mut self, unit: usize, offset: Option<u64>) {
        self.units[unit].slot_offset = offset;
    }

    /// Gives every unit its slot.
    pub fn set_slots(&mut self, offsets: impl Iterator<Item = Option<u64>>) {
        for (unit, offset) in self.units.iter_mut().zip(offsets) {
            unit.slot_offset = offset;
        }
    }

    /// Drops the memory of a unit outside of the arena that has no blocks. Its index stays until
    /// [`HostMemory::drop_vacant_units`]. Returns the buffer if no other unit is in it.
    pub fn vacate_if_empty(&mut self, unit: usize) -> Option<Arc<Buffer>> {
        let contents = &self.contents[unit];
        let in_arena = Arc::ptr_eq(&self.units[unit].buffer, &self.arena);
        if contents.vacant || in_arena || contents.blocks > 0 {
            return None;
        }
        let region = (0, self.units[unit].region.bytes() as u64);
        self.set_gap(unit, region, false);
        self.contents[unit].vacant = true;
        self.vacant += 1;
        let groups = &self.units[unit].groups;
        if groups.iter().any(|group| self.prefetched_units_of(*group).next().is_none()) {
            self.slot_sums.forget_ring();
        }
        let number = self.contents[unit].host_use as u64;
        self.units_of_use.remove(&[number, unit as u64, 0, 0]);
        let vacated = &mut self.units[unit];
        let region = std::mem::replace(&mut vacated.region, Span::EMPTY);
        let buffer = std::mem::replace(&mut vacated.buffer, self.arena.clone());
        self.buffers.release(buffer, region)
    }

    /// Adds a unit, in free memory or at the start of a new buffer. Returns its index.
    pub fn add_own_unit(&mut self, unit: HostUnit) -> usize {
        let at = self.add_unit(unit);
        let HostUnit { buffer, region, .. } = &self.units[at];
        self.buffers.take_free(buffer, *region);
        at
    }

    /// Returns the buffers that blocks have left and that are no longer held.
    pub fn take_left(&mut self) -> Vec<Arc<Buffer>> {
        std::mem::take(&mut self.left)
    }

    /// Drops the units outside of the arena that have no blocks. Others get new indexes. Returns
    /// the buffers of sources that are no longer held: their owners hear of it when these are
    /// dropped.
    pub fn drop_vacant_units(&mut self) -> Vec<Arc<Buffer>> {
        let vacated = (0..self.units.len()).filter_map(|unit| {
            let in_source = self.units[unit].in_source;
            self.vacate_if_empty(unit).filter(|_| in_source)
        });
        let dropped = vacated.collect();
        if std::mem::take(&mut self.vacant) == 0 {
            return dropped;
        }
        let mut next = 0;
        let new_index = |contents: &Contents| {
            next += usize::from(!contents.vacant);
            next.wrapping_sub(1)
        };
        let new_index: Vec<usize> = self.contents.iter().map(new_index).collect();
        let mut index = 0..;
        self.units.retain(|_| index.next().is_some_and(|at| !self.contents[at].vacant));
        self.contents.retain(|contents| !contents.vacant);
        for block in self.blocks.iter_mut().filter(|block| !block.parameters.is_empty()) {
            block.unit = new_index[block.unit];
        }
        // One by one, since a collected set sorts its rows by code of its own.
        let new = |unit: u64| new_index[unit as usize] as u64;
        for [number, bytes, unit, offset] in std::mem::take(&mut self.gaps) {
            self.gaps.insert([number, bytes, new(unit), offset]);
        }
        for [unit, offset, capacity, block] in std::mem::take(&mut self.placed) {
            self.placed.insert([new(unit), offset, capacity, block]);
        }
        self.units_of_use.clear();
        self.units_of_group.iter_mut().for_each(Vec::clear);
        for (at, (unit, contents)) in self.units.iter().zip(&self.contents).enumerate() {
            self.units_of_use.insert([contents.host_use as u64, at as u64, 0, 0]);
            unit.groups.iter().for_each(|group| self.units_of_group[*group].push(at));
        }
        dropped
    }
}
