//! [`PoolRange`]: addresses for the state and for slots of all experts, of which the first slots of each
//! tensor have memory, in whole pieces.

use crate::cache::experts::Experts;
use crate::cache::pool::{PoolSize, pieces_of};
use crate::device::address_range::{AddressRange, PhysicalMemory};
use crate::device::backend::PhysicalKind;
use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::WB_ERR_INTERNAL;

/// Bytes that a step of a change maps or unmaps: others wait for locks meanwhile.
const STEP_BYTES: usize = 256 << 20;

/// The addresses, and how much memory is behind them.
pub struct PoolRange {
    device: Arc<Device>,
    memory: Arc<DeviceMemory>,
    piece: usize,
    /// That of the state, then those of the slots of each tensor.
    parts: Vec<Part>,
}

/// Addresses of the state, or of the slots of a tensor.
struct Part {
    start: usize,
    /// Bytes from the start on that have memory.
    mapped: usize,
    /// Those of them that are known to have no bytes of earlier owners.
    cleared: usize,
}

impl PoolRange {
    /// Reserves the addresses.
    pub fn reserve(
        device: &Arc<Device>,
        experts: &Experts,
        lanes: u32,
        piece: u64,
    ) -> Result<Self> {
        let all = experts.count();
        let mut end = 0;
        let mut part = |bytes: u64| {
            let start = end;
            end += bytes as usize;
            Part { start, mapped: 0, cleared: 0 }
        };
        let mut parts = vec![part(PoolSize::of(experts, lanes, all, Some(piece)).state_bytes)];
        parts.extend(pieces_of(experts, all, piece).map(part));
        let memory = Arc::new(DeviceMemory::reserve(device, end)?);
        Ok(Self { device: device.clone(), memory, piece: piece as usize, parts })
    }

    /// The addresses, which begin with those of the state.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// The address of slot 0 of each tensor.
    pub fn slot_addresses(&self) -> Vec<u64> {
        let start = self.memory.span().start();
        self.parts[1..].iter().map(|part| (start + part.start) as u64).collect()
    }

    /// Bytes of memory behind the state, and behind slots.
    pub fn held_bytes(&self) -> (u64, u64) {
        let mapped = |part: &Part| part.mapped as u64;
        (mapped(&self.parts[0]), self.parts[1..].iter().map(mapped).sum())
    }

    /// The bytes of each part for a number of slots: none for 0.
    fn wanted(&self, experts: &Experts, lanes: u32, slots: u32) -> Vec<usize> {
        if slots == 0 {
            return vec![0; self.parts.len()];
        }
        let piece = self.piece as u64;
        let state = PoolSize::of(experts, lanes, slots, Some(piece)).state_bytes;
        let slots = pieces_of(experts, slots, piece);
        [state].into_iter().chain(slots).map(|bytes| bytes as usize).collect()
    }

    /// Whether the memory is that of a number of slots.
    pub fn is_for(&self, experts: &Experts, lanes: u32, slots: u32) -> bool {
        let wanted = self.wanted(experts, lanes, slots);
        self.parts.iter().zip(wanted).all(|(part, bytes)| part.mapped == bytes)
    }

    /// Whether there is memory beyond a number of slots.
    pub fn is_larger_than(&self, experts: &Experts, lanes: u32, slots: u32) -> bool {
        let wanted = self.wanted(experts, lanes, slots);
        self.parts.iter().zip(wanted).any(|(part, bytes)| part.mapped > bytes)
    }

    /// Takes memory beyond a number of slots away, a step of it. No one uses it.
    pub fn shrink(&mut self, experts: &Experts, lanes: u32, slots: u32) -> Result<()> {
        let mut left = STEP_BYTES;
        let wanted = self.wanted(experts, lanes, slots);
        let range = range_of(&self.memory)?;
        // The state goes last, since slots without one have no meaning.
        for (part, bytes) in self.parts.iter_mut().zip(wanted).rev() {
            while part.mapped > bytes && left > 0 {
                let end = part.start + part.mapped;
                range.unmap_at(end - self.piece..end)?;
                part.mapped -= self.piece;
                part.cleared = part.cleared.min(part.mapped);
                left = left.saturating_sub(self.piece);
            }
        }
        Ok(())
    }

    /// Puts memory behind a number of slots, a step of it.
    pub fn grow(&mut self, experts: &Experts, lanes: u32, slots: u32) -> Result<()> {
        let mut left = STEP_BYTES;
        let wanted = self.wanted(experts, lanes, slots);
        let range = range_of(&self.memory)?;
        for (part, bytes) in self.parts.iter_mut().zip(wanted) {
            while part.mapped < bytes && left > 0 {
                let memory =
                    PhysicalMemory::create(&self.device, self.piece, PhysicalKind::Device)?;
                range.map_at(part.start + part.mapped, &[memory])?;
                part.mapped += self.piece;
                left = left.saturating_sub(self.piece);
            }
        }
        Ok(())
    }

    /// Memory of slots that may have bytes of earlier owners.
    pub fn uncleared(&self) -> Vec<Span> {
        let spans = self.parts[1..].iter().map(|part| {
            self.memory.span().part(part.start + part.cleared, part.mapped - part.cleared)
        });
        spans.filter(|span| span.bytes() > 0).collect()
    }

    /// Notes that there is no such memory any more.
    pub fn note_cleared(&mut self) {
        self.parts.iter_mut().for_each(|part| part.cleared = part.mapped);
    }
}

fn range_of(memory: &DeviceMemory) -> Result<&AddressRange> {
    match memory.range() {
        Some(range) => Ok(range),
        None => fail!(WB_ERR_INTERNAL, "a pool has no address range"),
    }
}
