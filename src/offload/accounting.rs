//! The bytes that an offloader holds, and those that its budgets count.

use crate::device::policy::Tristate;
use crate::offload::backing::Backing;
use crate::offload::intervals::covered_bytes;
use crate::offload::state::{HeldBytes, OffloadState};

impl OffloadState {
    pub fn held_bytes(&self) -> HeldBytes {
        HeldBytes {
            mapped_bytes: self.host.buffers().mapped_bytes(),
            slot_bytes: match &self.addresses {
                Some(addresses) => addresses.held_slot_bytes(),
                None => self.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64),
            },
        }
    }

    /// Must be called after memory was allocated.
    pub fn update_peak(&mut self) {
        let held = self.held_bytes();
        self.peak.mapped_bytes = self.peak.mapped_bytes.max(held.mapped_bytes);
        self.peak.slot_bytes = self.peak.slot_bytes.max(held.slot_bytes);
    }

    /// Bytes of parameters that the plan keeps resident, and of those in pieces; tied ones count once.
    pub fn resident_bytes(&self) -> u64 {
        let all = 0..self.parameters.len();
        covered_bytes(all.filter_map(|at| self.parameters.resident_range(at)).collect())
    }

    /// Those of parameters in pieces: bytes that are in host memory, and bytes of parameters that were
    /// given no source yet.
    pub fn bytes_in_pieces(&self) -> (u64, u64) {
        let (mut all, mut resident, mut unfilled) = (Vec::new(), Vec::new(), Vec::new());
        for at in (0..self.parameters.len()).filter(|at| self.in_pieces(*at)) {
            let range = self.parameters.resident_range(at);
            all.extend(range);
            resident.extend(self.ranges_on_device(at));
            unfilled.extend(range.filter(|_| self.parameters[at].incomplete));
        }
        (covered_bytes(all) - covered_bytes(resident), covered_bytes(unfilled))
    }

    /// Bytes of parameters that are on the device in memory of their own, or of the engine, now; tied
    /// ones count once.
    pub fn bytes_on_device(&self) -> u64 {
        let all = 0..self.parameters.len();
        covered_bytes(all.flat_map(|at| self.ranges_on_device(at)).collect())
    }

    /// The addresses of those bytes of a parameter.
    pub fn ranges_on_device(&self, at: usize) -> Vec<(u64, u64)> {
        let parameter = &self.parameters[at];
        let bytes = parameter.layout.span_bytes();
        match (&parameter.backing, &self.addresses) {
            (Backing::Owned { memory, offset }, Some(addresses)) => {
                addresses.resident_ranges(memory, *offset..offset + bytes)
            }
            (Backing::Block { block, offset }, Some(addresses)) => {
                let start = self.host.blocks()[*block].offset + offset;
                let range = self.host.unit_of(*block).range.as_ref();
                range.map_or_else(Vec::new, |memory| {
                    addresses.resident_ranges(memory, start..start + bytes)
                })
            }
            _ => self.parameters.resident_range(at).into_iter().collect(),
        }
    }

    /// Whether a parameter is in pieces, each on the device or in host memory.
    pub fn in_pieces(&self, at: usize) -> bool {
        match (&self.parameters[at].backing, &self.addresses) {
            (Backing::Owned { memory, .. }, Some(addresses)) => addresses.in_pieces(memory),
            _ => false,
        }
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
