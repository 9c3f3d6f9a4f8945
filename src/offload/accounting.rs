//! The bytes that an offloader holds, and those that its budgets count.

use std::collections::{HashMap, HashSet};

use crate::device::policy::Tristate;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::offload::state::{Backing, HeldBytes, HostUnit, OffloadState};
use crate::os::page;
use crate::os::sync::Arc;
use crate::plan::plan::ALIGNMENT;
use crate::status::WB_ERR_OVERFLOW;

impl OffloadState {
    /// All host memory, each buffer once: the arena, and the buffers of units outside of it.
    pub fn buffers(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        let mut seen = HashSet::new();
        let outside = self.units.iter().map(|unit| &unit.buffer);
        [&self.arena].into_iter().chain(outside).filter(move |one| seen.insert(Arc::as_ptr(one)))
    }

    /// Bytes of host memory for parameters, in whole pages: of the buffers of the offloader, and of
    /// the parameters in those of their sources.
    pub fn host_bytes(&self) -> u64 {
        let page = page::page_bytes() as u64;
        let in_source = |buffer: &Arc<Buffer>| -> Option<u64> {
            let of = |unit: &HostUnit| unit.in_source && Arc::ptr_eq(&unit.buffer, buffer);
            self.units.iter().any(of).then(|| {
                let blocks = self.blocks.iter().filter(|block| !block.parameters.is_empty());
                blocks.filter(|block| of(&self.units[block.unit])).map(|block| block.capacity).sum()
            })
        };
        let bytes = |buffer| in_source(buffer).unwrap_or(buffer.data().bytes() as u64);
        self.buffers().map(|buffer| bytes(buffer).next_multiple_of(page)).sum()
    }

    pub fn held_bytes(&self) -> HeldBytes {
        HeldBytes {
            mapped_bytes: self.buffers().map(|buffer| buffer.mapped_bytes()).sum(),
            slot_bytes: self.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64),
        }
    }

    /// Must be called after memory was allocated.
    pub fn update_peak(&mut self) {
        let held = self.held_bytes();
        self.peak.mapped_bytes = self.peak.mapped_bytes.max(held.mapped_bytes);
        self.peak.slot_bytes = self.peak.slot_bytes.max(held.slot_bytes);
    }

    /// Bytes of resident parameters; tied ones count once.
    pub fn resident_bytes(&self) -> u64 {
        covered_bytes((0..self.parameters.len()).filter_map(|at| self.resident_range(at)).collect())
    }

    /// Device memory that resident parameters take, or will take once they have a source: whole
    /// allocations of the offloader, and the bytes in memory of the engine. Without the parameter
    /// `without`.
    pub fn resident_memory_bytes(&self, without: Option<usize>) -> u64 {
        let (mut ranges, mut missing) = (Vec::new(), HashMap::new());
        let counted = self.parameters.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        for (at, parameter) in counted {
            match &parameter.backing {
                Backing::Owned { memory, .. } => {
                    ranges.push((memory.span().start() as u64, memory.span().end() as u64));
                }
                Backing::Missing => {
                    // Once for each storage, since tied parameters get their bytes together.
                    let key = parameter.storage.ok_or(at);
                    let most: &mut u64 = missing.entry(key).or_default();
                    *most = parameter.layout.span_bytes().next_multiple_of(ALIGNMENT).max(*most);
                }
                _ => ranges.extend(self.resident_range(at)),
            }
        }
        covered_bytes(ranges) + missing.values().sum::<u64>()
    }

    /// Fails with `WB_ERR_OVERFLOW` if the sizes of all parameters, except `without`, and `bytes`
    /// overflow.
    pub fn check_sum(&self, without: Option<usize>, bytes: u64) -> Result<()> {
        let rounded = |bytes: u64| u128::from(bytes.next_multiple_of(ALIGNMENT));
        let others = self.parameters.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        let sum: u128 = others.map(|(_, other)| rounded(other.layout.span_bytes())).sum();
        // Once for the parameters and once for the slots.
        if 2 * (sum + rounded(bytes)) > i64::MAX as u128 {
            fail!(
                WB_ERR_OVERFLOW,
                "{bytes} bytes beside the {sum} of the other parameters are more than can be counted: check \
                 the shape"
            );
        }
        Ok(())
    }

    /// Whether new host memory is pinned: as the arena is.
    pub fn pinning(&self) -> Tristate {
        match self.arena.data().bytes() {
            0 => Tristate::Auto,
            _ if self.arena.pinned_bytes() > 0 => Tristate::On,
            _ => Tristate::Off,
        }
    }
}

/// Bytes that lie in any of the ranges.
fn covered_bytes(mut ranges: Vec<(u64, u64)>) -> u64 {
    ranges.sort_unstable();
    let (mut bytes, mut covered_to) = (0, 0);
    for (start, end) in ranges {
        bytes += end.saturating_sub(start.max(covered_to));
        covered_to = covered_to.max(end);
    }
    bytes
}
