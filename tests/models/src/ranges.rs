//! Addresses behind which memory is exchanged. What a piece of work uses is decided when it is queued,
//! though it may run later: so nothing may be unmapped that queued work uses, as far as the host
//! knows. Device memory is counted, and never more than the limit.

use std::collections::{BTreeMap, HashMap};

use weighbridge::device::backend::{PhysicalHandle, PhysicalKind, Stream};
use weighbridge::error::Result;
use weighbridge::os::span::Span;

use crate::backend::{Clock, rule};

pub const PAGE: usize = 4096;
/// Where reserved addresses begin, and the names of physical pages, which no address has.
const RESERVED: usize = 1 << 32;
const PHYSICAL: usize = 1 << 40;
/// Of each reserved range, and of each piece of memory.
const MOST_BYTES: usize = 64 * PAGE;

struct Mapping {
    bytes: usize,
    memory: u64,
    uses: Vec<(Stream, u64)>,
}

#[derive(Default)]
pub struct Ranges {
    reserved: usize,
    created: u64,
    memory: HashMap<u64, (usize, PhysicalKind)>,
    mapped: BTreeMap<usize, Mapping>,
    /// Bytes of device memory that exist, and that may.
    pub held: usize,
    pub limit: usize,
}

impl Ranges {
    pub fn is_reserved(&self, span: Span) -> bool {
        (RESERVED..PHYSICAL).contains(&span.start())
    }

    /// The name of each page of a span: its address, or the physical page behind it.
    pub fn pages(&self, span: Span) -> Result<Vec<usize>> {
        let addresses = (0..span.bytes()).step_by(PAGE).map(|offset| span.start() + offset);
        if !self.is_reserved(span) {
            return Ok(addresses.collect());
        }
        let page = |address| {
            let below = self.mapped.range(..=address).next_back();
            let here = below.filter(|(start, mapping)| address < *start + mapping.bytes);
            rule(here.is_some(), "work was queued that uses addresses without memory")?;
            let (start, mapping) = here.unwrap();
            Ok(PHYSICAL + mapping.memory as usize * MOST_BYTES + (address - start))
        };
        addresses.map(page).collect()
    }

    /// Notes that queued work uses a span.
    pub fn note_use(&mut self, span: Span, stream: Stream, number: u64) {
        let from = self.mapped.range(..=span.start()).next_back().map_or(0, |(start, _)| *start);
        for (start, mapping) in self.mapped.range_mut(from..span.end()) {
            if start + mapping.bytes > span.start() {
                mapping.uses.push((stream, number));
            }
        }
    }

    pub fn reserve(&mut self, bytes: usize) -> Span {
        self.reserved += 1;
        // SAFETY: nothing reads or writes there.
        unsafe { Span::new(RESERVED + self.reserved * MOST_BYTES, bytes) }
    }

    pub fn create(&mut self, bytes: usize, kind: PhysicalKind) -> Result<PhysicalHandle> {
        if kind == PhysicalKind::Device {
            self.held += bytes;
            rule(self.held <= self.limit, "the budget is exceeded")?;
        }
        self.created += 1;
        self.memory.insert(self.created, (bytes, kind));
        Ok(PhysicalHandle(self.created))
    }

    pub fn release(&mut self, memory: PhysicalHandle) -> Result<()> {
        let is_mapped = self.mapped.values().any(|mapping| mapping.memory == memory.0);
        rule(!is_mapped, "memory is freed that is mapped")?;
        if let Some((bytes, PhysicalKind::Device)) = self.memory.remove(&memory.0) {
            self.held -= bytes;
        }
        Ok(())
    }

    pub fn map(&mut self, at: Span, memory: PhysicalHandle) -> Result<()> {
        let free = self.mapped.range(..at.end()).next_back();
        let free = free.is_none_or(|(start, mapping)| start + mapping.bytes <= at.start());
        rule(free, "memory is mapped where there is some")?;
        let (bytes, _) = self.memory[&memory.0];
        rule(bytes == at.bytes(), "a part of a piece of memory is mapped")?;
        self.mapped.insert(at.start(), Mapping { bytes, memory: memory.0, uses: Vec::new() });
        Ok(())
    }

    /// Takes the memory of a mapping away, whose uses the host knows to be done.
    pub fn unmap(&mut self, at: Span, done: &Clock) -> Result<()> {
        let Some(mapping) = self.mapped.get(&at.start()) else {
            return rule(false, "addresses without memory are unmapped");
        };
        let ended = mapping.uses.iter().all(|(stream, number)| done.of(*stream) >= *number);
        rule(ended, "memory is exchanged while queued work may use it")?;
        self.mapped.remove(&at.start());
        Ok(())
    }
}
