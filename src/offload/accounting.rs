//! The bytes that an offloader holds, and those that its budgets count.

use std::collections::HashMap;

use crate::device::policy::Tristate;
use crate::offload::backing::Backing;
use crate::offload::state::{HeldBytes, OffloadState};
use crate::plan::plan::ALIGNMENT;

impl OffloadState {
    pub fn held_bytes(&self) -> HeldBytes {
        HeldBytes {
            mapped_bytes: self.host.buffers().mapped_bytes(),
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
        let all = 0..self.parameters.len();
        covered_bytes(all.filter_map(|at| self.parameters.resident_range(at)).collect())
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
                _ => ranges.extend(self.parameters.resident_range(at)),
            }
        }
        covered_bytes(ranges) + missing.values().sum::<u64>()
    }

    /// Whether new host memory is pinned: as the arena is.
    pub fn pinning(&self) -> Tristate {
        let arena = self.host.arena();
        match arena.data().bytes() {
            0 => Tristate::Auto,
            _ if arena.pinned_bytes() > 0 => Tristate::On,
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
