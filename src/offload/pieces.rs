//! Units in pieces: each piece is a home of its own, on the device or in host memory.

use std::ops::Range;

use crate::device::address_range::PhysicalMemory;
use crate::device::backend::PhysicalKind;
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::offload::addresses::{Addresses, Behind, Pieces};
use crate::os::sync::Arc;
use crate::plan::heat::Heat;

impl Addresses {
    /// Adds a unit in pieces, each on the device or in host memory. Returns it.
    pub fn add_pieces(
        &mut self,
        unit: usize,
        piece_bytes: usize,
        resident: &[bool],
        heat: Heat,
    ) -> Result<Arc<DeviceMemory>> {
        let bytes = piece_bytes * resident.len();
        let memory = Arc::new(DeviceMemory::reserve(&self.device, bytes)?);
        let first = self.homes.len();
        for (piece, resident) in resident.iter().enumerate() {
            let start = piece * piece_bytes;
            self.add(unit, memory.clone(), start..start + piece_bytes, None);
            self.homes[first + piece].heat = Some(heat.pieces()[piece]);
            let create = |kind| PhysicalMemory::create(&self.device, piece_bytes, kind);
            let behind = match resident {
                true => Behind::Own(create(PhysicalKind::Device)?),
                false => Behind::Host(create(PhysicalKind::Host)?),
            };
            self.put(first + piece, behind)?;
        }
        let homes = first..self.homes.len();
        self.pieces.insert(memory.span().start(), Pieces { homes, heat });
        Ok(memory)
    }

    /// Whether a unit is in pieces.
    pub fn in_pieces(&self, memory: &DeviceMemory) -> bool {
        self.pieces.contains_key(&memory.span().start())
    }

    /// The addresses of a part of a unit that have device memory of its own behind them.
    pub fn resident_ranges(&self, memory: &DeviceMemory, part: Range<u64>) -> Vec<(u64, u64)> {
        let homes = self.homes_of(memory);
        let start = memory.span().start() as u64;
        let each = self.homes.get(homes.start).map_or(1, |home| home.bytes() as u64);
        let within = part.start / each..part.end.div_ceil(each).min(homes.len() as u64);
        let here = within.filter(|at| self.homes[homes.start + *at as usize].is_on_device());
        here.map(|at| {
            let (from, to) = ((at * each).max(part.start), ((at + 1) * each).min(part.end));
            (start + from, start + to)
        })
        .collect()
    }

    /// Notes how often a step reads the bytes of a part of a unit in pieces. Returns whether it is one.
    pub fn prefer(&mut self, memory: &DeviceMemory, part: Range<u64>, reads: f64) -> bool {
        let Some(Pieces { homes, heat }) = self.pieces.get_mut(&memory.span().start()) else {
            return false;
        };
        for piece in heat.set(part.start, part.end, reads) {
            self.homes[homes.start + piece].heat = Some(heat.pieces()[piece]);
        }
        true
    }
}
