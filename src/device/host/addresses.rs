//! Address ranges of the host device: reserved addresses behind which pages of a file in memory are
//! mapped. An access to an address without memory faults.

use std::collections::{BTreeMap, HashMap};

use once_cell::sync::OnceCell;

use crate::device::backend::{PhysicalHandle, PhysicalKind};
use crate::error::{Result, fail};
use crate::os::mapping::Mapping;
use crate::os::reservation;
use crate::os::reservation::PageFile;
use crate::os::span::Span;
use crate::status::WB_ERR_INTERNAL;

/// Bytes of which ranges and physical memory are multiples, as on CUDA devices.
pub const GRANULARITY: u64 = 2 << 20;

struct Pages {
    offset: u64,
    bytes: usize,
    kind: PhysicalKind,
}

/// All ranges, and the memory behind them.
#[derive(Default)]
pub struct Addresses {
    pages: OnceCell<PageFile>,
    ranges: BTreeMap<u64, Mapping>,
    physical: HashMap<u64, Pages>,
    /// The end and the kind of each mapping, by its start.
    mapped: BTreeMap<usize, (usize, PhysicalKind)>,
    last: u64,
}

impl Addresses {
    /// Reserves addresses.
    pub fn reserve(&mut self, bytes: usize) -> Result<Span> {
        let reserved = Mapping::reserved(bytes, GRANULARITY as usize)?;
        let span = reserved.span();
        self.ranges.insert(span.start() as u64, reserved);
        Ok(span)
    }

    /// Releases a range of [`Addresses::reserve`].
    pub fn free(&mut self, range: Span) -> Result<()> {
        if self.mapped.range(range.start()..range.end()).next().is_some() {
            fail!(WB_ERR_INTERNAL, "asked to free addresses with memory behind them");
        }
        match self.ranges.remove(&(range.start() as u64)) {
            Some(_) => Ok(()),
            None => fail!(WB_ERR_INTERNAL, "{:#x} was not reserved on this device", range.start()),
        }
    }

    /// Creates physical memory.
    pub fn create(&mut self, bytes: usize, kind: PhysicalKind) -> Result<PhysicalHandle> {
        let taken = self.pages.get_or_try_init(PageFile::new)?.take(bytes);
        if taken.is_err() && self.physical.is_empty() {
            self.pages.take();
        }
        let offset = taken?;
        self.last += 1;
        self.physical.insert(self.last, Pages { offset, bytes, kind });
        Ok(PhysicalHandle(self.last))
    }

    /// Frees physical memory. Returns its bytes and kind.
    pub fn release(&mut self, memory: PhysicalHandle) -> Result<(usize, PhysicalKind)> {
        let (Some(pages), Some(file)) = (self.physical.get(&memory.0), self.pages.get()) else {
            fail!(WB_ERR_INTERNAL, "the physical memory {} is not of this device", memory.0)
        };
        file.free(pages.offset, pages.bytes)?;
        let freed = (pages.bytes, pages.kind);
        self.physical.remove(&memory.0);
        if self.physical.is_empty() {
            self.pages.take(); // closed, since all of it is free
        }
        Ok(freed)
    }

    /// Maps physical memory.
    pub fn map(&mut self, at: Span, memory: PhysicalHandle) -> Result<()> {
        let range = self.ranges.range(..=at.start() as u64).next_back();
        let memory = self.physical.get(&memory.0).filter(|pages| pages.bytes == at.bytes());
        let before = self.mapped.range(..at.end()).next_back();
        let is_free = before.is_none_or(|(_, (end, _))| *end <= at.start());
        let (Some((_, range)), Some(pages), Some(file), true) =
            (range, memory, self.pages.get(), is_free)
        else {
            fail!(WB_ERR_INTERNAL, "memory cannot be mapped at {:#x}", at.start())
        };
        reservation::map(at, range, file, pages.offset)?;
        self.mapped.insert(at.start(), (at.end(), pages.kind));
        Ok(())
    }

    /// Takes memory from its addresses.
    pub fn unmap(&mut self, at: Span) -> Result<()> {
        let range = self.ranges.range(..=at.start() as u64).next_back();
        let mapped = self.mapped.get(&at.start()).is_some_and(|(end, _)| *end == at.end());
        let (Some((_, range)), true) = (range, mapped) else {
            fail!(WB_ERR_INTERNAL, "nothing was mapped at {:#x}", at.start())
        };
        reservation::unmap(at, range)?;
        self.mapped.remove(&at.start());
        Ok(())
    }

    /// Where the memory behind an address is; `None` if there is none.
    pub fn kind(&self, address: usize) -> Option<PhysicalKind> {
        let (_, (end, kind)) = self.mapped.range(..=address).next_back()?;
        (address < *end).then_some(*kind)
    }
}
