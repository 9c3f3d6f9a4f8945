//! What an offloader keeps, and where.

use std::collections::HashMap;
use std::ffi::{CStr, CString};

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{QuantizedParameter, TransferMode};
use crate::plan::plan::ALIGNMENT;
use crate::status::{WB_ERR_NOT_FOUND, WB_ERR_OUT_OF_RANGE, WB_ERR_OVERFLOW};
use crate::tensor::layout::Layout;

/// A parameter as it is kept.
pub struct ParameterState {
    /// The name, at an address that stays the same until the parameter is removed.
    pub name: std::sync::Arc<CStr>,
    pub group: usize,
    pub layout: Layout,
    pub place: Backing,
    /// Of the plan; what was added later has none.
    pub storage: Option<usize>,
    /// What it is made of, if it is kept in 8 bits.
    pub quantized: Option<std::sync::Arc<QuantizedParameter>>,
}

impl ParameterState {
    /// The name as text.
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }
}

/// A name for C. Names come from C or from text without NUL.
pub fn c_name(name: &str) -> std::sync::Arc<CStr> {
    CString::new(name).unwrap_or_default().into()
}

/// Where a parameter is kept.
#[derive(Clone)]
pub enum Backing {
    /// In a block that is offloaded, at so many bytes behind its start.
    Block(usize, u64),
    /// On the device, in the engine's own memory.
    Borrowed(Span),
    /// On the device, in memory of ours at an offset of bytes.
    Owned(Arc<DeviceMemory>, u64),
    /// Nowhere yet: it is resident and had no source.
    Missing,
    /// Nowhere, since a replacement gave its room up and found no other: it is offloaded with these
    /// groups, and the next replacement seeks room again.
    Unbacked(Vec<usize>, TransferMode),
}

/// Bytes that parameters share: one tensor, or tied ones.
pub struct Block {
    pub unit: usize,
    /// From the start of the unit.
    pub offset: u64,
    /// Bytes in use; the block's room is this rounded up, or more after a smaller one replaced it.
    pub bytes: u64,
    pub room: u64,
    pub parameters: Vec<usize>,
}

/// A stretch of host memory that moves as one, as far as blocks reach in it.
pub struct HostUnit {
    pub buffer: Arc<Buffer>,
    pub region: Span,
    pub transfer_mode: TransferMode,
    pub groups: Vec<usize>,
    /// From the start of the slots.
    pub slot: Option<u64>,
}

/// What is where, behind one lock.
pub struct OffloadState {
    pub kept: Vec<ParameterState>,
    pub names: HashMap<String, usize>,
    pub blocks: Vec<Block>,
    /// The host memory of the plan; what outgrew it has buffers of its own.
    pub arena: Arc<Buffer>,
    pub units: Vec<HostUnit>,
    pub groups: Vec<String>,
    pub ring: Vec<usize>,
    pub depth: usize,
    pub slots: Option<Arc<DeviceMemory>>,
    /// The most that was held at a time.
    pub peak: HeldBytes,
    /// Grows whenever an address changed.
    pub generation: u64,
}

/// Bytes that are held, padding and free room included.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeldBytes {
    /// Address space of the host.
    pub mapped_bytes: u64,
    /// Device memory for slots.
    pub slot_bytes: u64,
}

impl OffloadState {
    pub fn find(&self, name: &str) -> Result<usize> {
        match self.names.get(name) {
            Some(index) => Ok(*index),
            None => fail!(WB_ERR_NOT_FOUND, "there is no parameter {name:?}"),
        }
    }

    /// A parameter by its index.
    pub fn parameter(&self, index: usize) -> Result<&ParameterState> {
        check_index("parameter", index, self.kept.len())?;
        Ok(&self.kept[index])
    }

    /// What the schedule is to work on.
    pub fn arrangement(&self) -> Arrangement {
        let slots = self.slots.as_ref().map(|slots| slots.span());
        let moving = |(unit, extent): (&HostUnit, u64)| CarriedUnit {
            host: unit.region.part(0, extent as usize),
            slot: unit.slot.zip(slots).map(|(at, slots)| slots.part(at as usize, extent as usize)),
            prefetched: unit.transfer_mode == TransferMode::Prefetch,
            groups: unit.groups.clone(),
        };
        Arrangement {
            units: self.units.iter().zip(self.extents(None)).map(moving).collect(),
            groups: self.groups.clone(),
            ring: self.ring.clone(),
            depth: self.depth,
        }
    }

    /// All host memory: the arena, and what has a buffer of its own.
    pub fn buffers(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        let own = self.units.iter().map(|unit| &unit.buffer);
        [&self.arena].into_iter().chain(own.filter(|buffer| !Arc::ptr_eq(buffer, &self.arena)))
    }

    pub fn held(&self) -> HeldBytes {
        HeldBytes {
            mapped_bytes: self.buffers().map(|buffer| buffer.mapped_bytes()).sum(),
            slot_bytes: self.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64),
        }
    }

    /// To be called when memory was taken.
    pub fn note_peak(&mut self) {
        let held = self.held();
        self.peak.mapped_bytes = self.peak.mapped_bytes.max(held.mapped_bytes);
        self.peak.slot_bytes = self.peak.slot_bytes.max(held.slot_bytes);
    }

    /// How far blocks reach in each unit, without one of them.
    pub fn extents(&self, without: Option<usize>) -> Vec<u64> {
        let mut extents = vec![0; self.units.len()];
        for (at, block) in self.blocks.iter().enumerate() {
            if block.parameters.is_empty() || Some(at) == without {
                continue;
            }
            extents[block.unit] = (block.offset + block.room).max(extents[block.unit]);
        }
        extents
    }

    pub fn transfer_mode(&self, kept: &ParameterState) -> Option<TransferMode> {
        match kept.place {
            Backing::Block(block, _) => Some(self.units[self.blocks[block].unit].transfer_mode),
            Backing::Unbacked(_, transfer_mode) => Some(transfer_mode),
            _ => None,
        }
    }

    /// Where the host and the device find a parameter's first element.
    pub fn addresses(&self, kept: &ParameterState) -> (Option<u64>, Option<u64>) {
        let element = |first_byte: u64| first_byte + kept.layout.bytes_before();
        let (host, device) = self.first_bytes(kept);
        (host.map(element), device.map(element))
    }

    /// Where the host and the device find a parameter's lowest byte.
    pub fn first_bytes(&self, kept: &ParameterState) -> (Option<u64>, Option<u64>) {
        match &kept.place {
            Backing::Missing | Backing::Unbacked(..) => (None, None),
            Backing::Borrowed(span) => (None, Some(span.start() as u64)),
            Backing::Owned(memory, offset) => (None, Some(memory.span().start() as u64 + offset)),
            Backing::Block(block, offset) => {
                let block = &self.blocks[*block];
                let unit = &self.units[block.unit];
                let at = block.offset + offset;
                let device = self.device_start(unit).map(|start| start + at);
                (Some(unit.region.start() as u64 + at), device)
            }
        }
    }

    /// Where the device finds a unit: in the host's memory, or in its slot.
    pub fn device_start(&self, unit: &HostUnit) -> Option<u64> {
        if unit.transfer_mode == TransferMode::ZeroCopy {
            let before = (unit.region.start() - unit.buffer.data().start()) as u64;
            return unit.buffer.device_address().map(|address| address + before);
        }
        let slots = self.slots.as_ref()?.span().start() as u64;
        Some(slots + unit.slot?)
    }

    /// The memory of ours that holds a parameter.
    pub fn place_of(&self, at: usize) -> Option<Location> {
        let kept = &self.kept[at];
        let bytes = kept.layout.span_bytes() as usize;
        match &kept.place {
            Backing::Block(block, offset) => {
                let block = &self.blocks[*block];
                let region = self.units[block.unit].region;
                let span = region.part((block.offset + offset) as usize, bytes);
                Some(Location { span, on_device: false })
            }
            Backing::Owned(memory, offset) => {
                let span = memory.span().part(*offset as usize, bytes);
                Some(Location { span, on_device: true })
            }
            Backing::Borrowed(_) | Backing::Missing | Backing::Unbacked(..) => None,
        }
    }

    /// Where a resident parameter's bytes begin and end.
    pub fn resident_span(&self, at: usize) -> Option<(u64, u64)> {
        let kept = &self.kept[at];
        let start = match &kept.place {
            Backing::Borrowed(span) => span.start() as u64,
            Backing::Owned(memory, offset) => memory.span().start() as u64 + offset,
            Backing::Block(..) | Backing::Missing | Backing::Unbacked(..) => return None,
        };
        Some((start, start + kept.layout.span_bytes()))
    }

    /// Bytes of what is resident; what is tied lies in the same place and counts once.
    pub fn resident_bytes(&self) -> u64 {
        covered((0..self.kept.len()).filter_map(|at| self.resident_span(at)).collect())
    }

    /// Bytes of device memory that what is resident holds or has yet to get, without some of it: ours
    /// by whole allocations.
    pub fn device_bytes(&self, without: &[usize]) -> u64 {
        let (mut spans, mut missing) = (Vec::new(), HashMap::new());
        for (at, kept) in self.kept.iter().enumerate().filter(|(at, _)| !without.contains(at)) {
            match &kept.place {
                Backing::Owned(memory, _) => {
                    spans.push((memory.span().start() as u64, memory.span().end() as u64));
                }
                Backing::Missing => {
                    // By storages, since what is tied comes once.
                    let key = kept.storage.ok_or(at);
                    let most: &mut u64 = missing.entry(key).or_default();
                    *most = kept.layout.span_bytes().next_multiple_of(ALIGNMENT).max(*most);
                }
                _ => spans.extend(self.resident_span(at)),
            }
        }
        covered(spans) + missing.values().sum::<u64>()
    }

    /// The groups that use a parameter's bytes, or bytes that move with them.
    pub fn groups_beside(&self, at: usize) -> Vec<usize> {
        match &self.kept[at].place {
            Backing::Block(block, _) => self.units[self.blocks[*block].unit].groups.clone(),
            Backing::Unbacked(groups, _) => groups.clone(),
            Backing::Owned(..) => {
                let tied = self.resident_ties(at).into_iter();
                [at].into_iter().chain(tied).map(|at| self.kept[at].group).collect()
            }
            Backing::Borrowed(_) | Backing::Missing => vec![self.kept[at].group],
        }
    }

    /// The other parameters that lie, in part at least, where a resident one does.
    pub fn resident_ties(&self, at: usize) -> Vec<usize> {
        let Some((start, end)) = self.resident_span(at) else { return Vec::new() };
        let meets = |other: &usize| {
            self.resident_span(*other).is_some_and(|(from, to)| from < end && start < to)
        };
        (0..self.kept.len()).filter(|other| *other != at).filter(meets).collect()
    }

    /// The unit's blocks in the order in which they lie; one of no bytes before what begins there.
    pub fn blocks_in(&self, unit: usize) -> Vec<usize> {
        let mut blocks: Vec<usize> = (0..self.blocks.len())
            .filter(|at| self.blocks[*at].unit == unit && !self.blocks[*at].parameters.is_empty())
            .collect();
        blocks.sort_by_key(|at| (self.blocks[*at].offset, self.blocks[*at].room));
        blocks
    }

    /// Where `needs` bytes fit into a unit, once `given_up` is gone.
    pub fn gaps(&self, unit: usize, needs: u64, given_up: Option<usize>) -> Vec<u64> {
        let (mut gaps, mut end) = (Vec::new(), 0);
        for block in self.blocks_in(unit).into_iter().filter(|block| Some(*block) != given_up) {
            if self.blocks[block].offset - end >= needs {
                gaps.push(end);
            }
            end = self.blocks[block].offset + self.blocks[block].room;
        }
        let region = self.units[unit].region.bytes() as u64;
        if region.saturating_sub(end) >= needs {
            gaps.push(end);
        }
        gaps
    }

    /// `WB_ERR_OVERFLOW` where the parameters, but one, and so many bytes more cannot be counted.
    pub fn check_sum(&self, without: Option<usize>, bytes: u64) -> Result<()> {
        let rounded = |bytes: u64| u128::from(bytes.next_multiple_of(ALIGNMENT));
        let others = self.kept.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        let all: u128 = others.map(|(_, kept)| rounded(kept.layout.span_bytes())).sum();
        // Once for the device and once for the slots.
        if 2 * (all + rounded(bytes)) > i64::MAX as u128 {
            fail!(
                WB_ERR_OVERFLOW,
                "{bytes} bytes beside the {all} that there are make more than can be counted: is the \
                 shape right?"
            );
        }
        Ok(())
    }

    /// Takes a block in, under the number of one that is gone if there is such a number.
    pub fn put_block(&mut self, block: Block) -> usize {
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

    /// The parameter has no part in its block any more.
    pub fn leave_block(&mut self, at: usize) {
        if let Backing::Block(block, _) = self.kept[at].place {
            self.blocks[block].parameters.retain(|member| *member != at);
            let reach = |member: &usize| match self.kept[*member].place {
                Backing::Block(_, offset) => offset + self.kept[*member].layout.span_bytes(),
                _ => 0,
            };
            self.blocks[block].bytes =
                self.blocks[block].parameters.iter().map(reach).max().unwrap_or(0);
        }
    }

    /// Takes a parameter out of all lists; the last one gets its number.
    pub fn forget(&mut self, at: usize) {
        let last = self.kept.len() - 1;
        let gone = self.kept.swap_remove(at);
        self.names.remove(gone.name());
        if at == last {
            return;
        }
        let moved = &self.kept[at];
        self.names.insert(moved.name().to_owned(), at);
        if let Backing::Block(block, _) = moved.place {
            let members = self.blocks[block].parameters.iter_mut();
            members.filter(|member| **member == last).for_each(|member| *member = at);
        }
    }

    /// Gives buffers back that nothing is in any more.
    pub fn drop_empty_units(&mut self) {
        for unit in (0..self.units.len()).rev() {
            let own = !Arc::ptr_eq(&self.units[unit].buffer, &self.arena);
            if own && self.blocks_in(unit).is_empty() {
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

    /// Pinned if the arena is.
    pub fn pinning(&self) -> crate::device::policy::Tristate {
        use crate::device::policy::Tristate;
        match self.arena.data().bytes() {
            0 => Tristate::Auto,
            _ if self.arena.pinned_bytes() > 0 => Tristate::On,
            _ => Tristate::Off,
        }
    }
}

/// `WB_ERR_OUT_OF_RANGE` for an index that is not below `count`.
pub fn check_index(what: &str, index: usize, count: usize) -> Result<()> {
    if index >= count {
        fail!(WB_ERR_OUT_OF_RANGE, "asked for {what} {index}; there are {count}");
    }
    Ok(())
}

/// Bytes that lie in any of the ranges.
fn covered(mut ranges: Vec<(u64, u64)>) -> u64 {
    ranges.sort_unstable();
    let mut counted = (0, 0);
    for (start, end) in ranges {
        counted = (counted.0 + end.saturating_sub(start.max(counted.1)), end.max(counted.1));
    }
    counted.0
}
