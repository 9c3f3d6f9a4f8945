//! The buffers of an offloader: how many units are in each, the memory that none is in, and sums.

use std::collections::HashMap;

use crate::memory::buffer::Buffer;
use crate::offload::intervals::{Intervals, Rows};
use crate::os::page;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// The arena, and the buffers that units outside of it are in. An entry of the arena is always
/// there; the others go with their last unit.
pub struct HeldBuffers {
    arena: usize,
    /// By the addresses of the objects.
    all: HashMap<usize, HeldBuffer>,
    /// Their memory.
    spans: Intervals,
    /// The addresses at which the device reads it.
    device_spans: Intervals,
    /// Free ranges that no unit is in, of buffers beside the arena and those of sources: bytes, key
    /// of the buffer, offset.
    free: Rows,
    /// The same: key of the buffer, offset, end.
    free_in: Rows,
    mapped_bytes: u64,
    counted_bytes: u64,
    other_bytes: u64,
}

struct HeldBuffer {
    buffer: Arc<Buffer>,
    /// How many units are in it.
    units: usize,
    /// Whether it is that of a source.
    in_source: bool,
    /// Bytes of the blocks in it, if it is.
    capacity: u64,
}

impl HeldBuffer {
    /// Its bytes that a budget counts, in whole pages.
    fn counted_bytes(&self) -> u64 {
        let bytes = if self.in_source { self.capacity } else { self.buffer.data().bytes() as u64 };
        bytes.next_multiple_of(page::page_bytes() as u64)
    }
}

fn key_of(buffer: &Arc<Buffer>) -> usize {
    Arc::as_ptr(buffer) as usize
}

fn addresses(span: Span) -> (u64, u64) {
    (span.start() as u64, span.end() as u64)
}

fn device_addresses(buffer: &Buffer) -> Option<(u64, u64)> {
    buffer.device_address().map(|start| (start, start + buffer.data().bytes() as u64))
}

/// Offsets of a region in its buffer.
fn offsets(buffer: &Buffer, region: Span) -> (u64, u64) {
    let start = region.start().saturating_sub(buffer.data().start()) as u64;
    (start, start + region.bytes() as u64)
}

impl HeldBuffers {
    pub fn new(arena: &Arc<Buffer>) -> Self {
        let mut held = Self {
            arena: key_of(arena),
            all: HashMap::new(),
            spans: Intervals::default(),
            device_spans: Intervals::default(),
            free: Rows::new(),
            free_in: Rows::new(),
            mapped_bytes: 0,
            counted_bytes: 0,
            other_bytes: 0,
        };
        held.hold(arena, false);
        held
    }

    /// All buffers, each once.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        self.all.values().map(|held| &held.buffer)
    }

    /// The number of buffers.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether the span is, in part, memory of a buffer.
    pub fn overlap(&self, span: Span) -> bool {
        !self.spans.overlapping(addresses(span)).is_empty()
    }

    /// As [`HeldBuffers::overlap`], by the addresses at which the device reads buffers.
    pub fn overlap_on_device(&self, span: Span) -> bool {
        !self.device_spans.overlapping(addresses(span)).is_empty()
    }

    /// Address space of all buffers.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Bytes for parameters, in whole pages: of the buffers of the offloader, and of the parameters
    /// in those of their sources.
    pub fn counted_bytes(&self) -> u64 {
        self.counted_bytes
    }

    /// Bytes of the buffers beside the arena and those of sources.
    pub fn other_bytes(&self) -> u64 {
        self.other_bytes
    }

    /// Those of [`HeldBuffers::counted_bytes`] that are no longer counted once a block is gone, which
    /// is `alone` in its unit of the buffer or not.
    pub fn counted_bytes_of(&self, buffer: &Arc<Buffer>, capacity: u64, alone: bool) -> u64 {
        let (key, page) = (key_of(buffer), page::page_bytes() as u64);
        let Some(held) = self.all.get(&key) else { return 0 };
        match held.in_source {
            true => capacity / page * page,
            false if alone && held.units == 1 && key != self.arena => held.counted_bytes(),
            false => 0,
        }
    }

    /// Notes that a unit is in a buffer.
    pub fn hold(&mut self, buffer: &Arc<Buffer>, in_source: bool) {
        let key = key_of(buffer);
        if let Some(held) = self.all.get_mut(&key) {
            held.units += 1;
            return;
        }
        let held = HeldBuffer { buffer: buffer.clone(), units: 1, in_source, capacity: 0 };
        if !in_source && key != self.arena {
            self.other_bytes += held.buffer.data().bytes() as u64;
        }
        self.mapped_bytes += held.buffer.mapped_bytes();
        self.counted_bytes += held.counted_bytes();
        self.spans.insert(addresses(held.buffer.data()), key);
        let on_device = device_addresses(&held.buffer);
        on_device.iter().for_each(|range| self.device_spans.insert(*range, key));
        self.all.insert(key, held);
    }

    /// Notes that a unit with this region of a buffer is gone. Returns the buffer if it was the last
    /// one.
    pub fn release(&mut self, buffer: Arc<Buffer>, region: Span) -> Option<Arc<Buffer>> {
        let key = key_of(&buffer);
        let held = self.all.get_mut(&key)?;
        held.units -= 1;
        if held.units > 0 {
            if !held.in_source {
                self.add_free(key, offsets(&buffer, region));
            }
            return None;
        }
        let held = self.all.remove(&key)?;
        self.mapped_bytes -= held.buffer.mapped_bytes();
        self.counted_bytes -= held.counted_bytes();
        if !held.in_source && key != self.arena {
            self.other_bytes -= held.buffer.data().bytes() as u64;
        }
        while let Some((start, end)) = self.free_from(key, 0) {
            self.remove_free(key, (start, end));
        }
        self.spans.remove(addresses(held.buffer.data()), key);
        let on_device = device_addresses(&held.buffer);
        on_device.iter().for_each(|range| self.device_spans.remove(*range, key));
        Some(buffer)
    }

    /// Notes that the buffer of a source has another block, or one fewer.
    pub fn note_block(&mut self, buffer: &Arc<Buffer>, capacity: u64, is_there: bool) {
        let Some(held) = self.all.get_mut(&key_of(buffer)) else { return };
        self.counted_bytes -= held.counted_bytes();
        match is_there {
            true => held.capacity += capacity,
            false => held.capacity -= capacity,
        }
        self.counted_bytes += held.counted_bytes();
    }

    /// The first free range of a buffer that begins at an offset or after it.
    fn free_from(&self, key: usize, offset: u64) -> Option<(u64, u64)> {
        let key = key as u64;
        let found = self.free_in.range([key, offset, 0, 0]..[key + 1, 0, 0, 0]).next();
        found.map(|[_, start, end, _]| (*start, *end))
    }

    /// The last free range of a buffer that begins at an offset or before it.
    fn free_to(&self, key: usize, offset: u64) -> Option<(u64, u64)> {
        let key = key as u64;
        let found = self.free_in.range([key, 0, 0, 0]..[key, offset, u64::MAX, 0]).next_back();
        found.map(|[_, start, end, _]| (*start, *end))
    }

    fn remove_free(&mut self, key: usize, (start, end): (u64, u64)) {
        self.free_in.remove(&[key as u64, start, end, 0]);
        self.free.remove(&[end - start, key as u64, start, 0]);
    }

    /// Notes that no unit is in a range of a buffer.
    fn add_free(&mut self, key: usize, (mut start, mut end): (u64, u64)) {
        if start >= end {
            return;
        }
        if let Some((from, to)) = self.free_to(key, start).filter(|(_, to)| *to == start) {
            self.remove_free(key, (from, to));
            start = from;
        }
        if let Some((from, to)) = self.free_from(key, end).filter(|(from, _)| *from == end) {
            self.remove_free(key, (from, to));
            end = to;
        }
        self.free_in.insert([key as u64, start, end, 0]);
        self.free.insert([end - start, key as u64, start, 0]);
    }

    /// Memory of a buffer that no unit is in: `bytes` bytes of the smallest range.
    pub fn find_free(&self, bytes: u64) -> Option<(Arc<Buffer>, Span)> {
        let [_, key, start, _] = self.free.range([bytes.max(1), 0, 0, 0]..).next()?;
        let buffer = &self.all.get(&(*key as usize))?.buffer;
        Some((buffer.clone(), buffer.data().part(*start as usize, bytes as usize)))
    }

    /// Takes the region of a new unit from the free ranges of its buffer, or from a new buffer, of
    /// which the rest is free.
    pub fn take_free(&mut self, buffer: &Arc<Buffer>, region: Span) {
        let (key, (start, end)) = (key_of(buffer), offsets(buffer, region));
        let (from, to) = match self.free_to(key, start).filter(|(_, to)| *to >= end) {
            Some(found) => {
                self.remove_free(key, found);
                found
            }
            None => (start, buffer.data().bytes() as u64),
        };
        self.add_free(key, (from, start));
        self.add_free(key, (end, to));
    }
}
