//! Blocks of host memory in their units.

use crate::offload::state::{Backing, Block, OffloadState};
use crate::os::sync::Arc;

impl OffloadState {
    /// How far blocks, except `without`, reach in each unit.
    pub fn extents(&self, without: Option<usize>) -> Vec<u64> {
        let mut extents = vec![0; self.units.len()];
        for (at, block) in self.blocks.iter().enumerate() {
            if block.parameters.is_empty() || Some(at) == without {
                continue;
            }
            extents[block.unit] = (block.offset + block.capacity).max(extents[block.unit]);
        }
        extents
    }

    /// The blocks of a unit in the order in which they lie; one without bytes before another at its
    /// offset.
    pub fn blocks_in(&self, unit: usize) -> Vec<usize> {
        let mut blocks: Vec<usize> = (0..self.blocks.len())
            .filter(|at| self.blocks[*at].unit == unit && !self.blocks[*at].parameters.is_empty())
            .collect();
        blocks.sort_by_key(|at| (self.blocks[*at].offset, self.blocks[*at].capacity));
        blocks
    }

    /// Offsets in a unit at which `needs` bytes are free once the block `freed` is gone.
    pub fn gaps(&self, unit: usize, needs: u64, freed: Option<usize>) -> Vec<u64> {
        let (mut gaps, mut end) = (Vec::new(), 0);
        for block in self.blocks_in(unit).into_iter().filter(|block| Some(*block) != freed) {
            if self.blocks[block].offset - end >= needs {
                gaps.push(end);
            }
            end = self.blocks[block].offset + self.blocks[block].capacity;
        }
        let region = self.units[unit].region.bytes() as u64;
        if region.saturating_sub(end) >= needs {
            gaps.push(end);
        }
        gaps
    }

    /// Whether blocks of a unit of the offloader have gaps between them.
    pub fn has_gaps(&self, unit: usize) -> bool {
        let mut end = 0;
        let mut follows = |block: usize| {
            let Block { offset, capacity, .. } = self.blocks[block];
            let adjacent = offset == end;
            end = offset + capacity;
            adjacent
        };
        !self.units[unit].in_source && !self.blocks_in(unit).into_iter().all(&mut follows)
    }

    /// Adds a block. Returns its index.
    pub fn add_block(&mut self, block: Block) -> usize {
        match self.blocks.iter().position(|block| block.parameters.is_empty()) {
            Some(free) => {
                self.blocks[free] = block;
                free
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() - 1
            }
        }
    }

    /// Takes a parameter out of its block, if it is in one.
    pub fn remove_from_block(&mut self, at: usize) {
        let Backing::Block { block, .. } = self.parameters[at].backing else { return };
        self.blocks[block].parameters.retain(|member| *member != at);
        let end = |member: &usize| match self.parameters[*member].backing {
            Backing::Block { offset, .. } => offset + self.parameters[*member].layout.span_bytes(),
            _ => 0,
        };
        let bytes = self.blocks[block].parameters.iter().map(end).max().unwrap_or(0);
        self.blocks[block].bytes = bytes;
    }

    /// Drops the units outside of the arena that have no blocks, with their buffers.
    pub fn drop_empty_units(&mut self) {
        for unit in (0..self.units.len()).rev() {
            let in_arena = Arc::ptr_eq(&self.units[unit].buffer, &self.arena);
            if !in_arena && self.blocks_in(unit).is_empty() {
                self.units.remove(unit);
                self.blocks.iter_mut().filter(|block| block.unit > unit).for_each(|block| {
                    block.unit -= 1;
                });
            }
        }
        self.blocks.iter_mut().filter(|block| block.parameters.is_empty()).for_each(|block| {
            block.unit = 0;
        });
    }
}
