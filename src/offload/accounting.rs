//! The bytes that an offloader holds, and those that its budgets count.

use crate::device::policy::Tristate;
use crate::offload::intervals::covered_bytes;
use crate::offload::state::{HeldBytes, OffloadState};

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
