//! Address ranges that stay the same while the memory behind them changes.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::device::backend::{Granularity, PhysicalHandle, PhysicalKind};
use crate::device::device::Device;
use crate::device::unreleased::Release;
use crate::error::{Error, Result, fail};
use crate::os::span::Span;
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::os::{log, sync};
use crate::status::WB_ERR_INTERNAL;

/// Physical memory, which is freed with its last reference. Ranges refer to what is behind them.
pub struct PhysicalMemory {
    device: Arc<Device>,
    /// `None` once it was taken over by a [`Release`].
    handle: Option<PhysicalHandle>,
    bytes: usize,
    kind: PhysicalKind,
}

impl PhysicalMemory {
    /// Creates `bytes` bytes, a multiple of [`granularity`].
    pub fn create(device: &Arc<Device>, bytes: usize, kind: PhysicalKind) -> Result<Arc<Self>> {
        // Memory that is still to be released may be missing here, which then says so.
        let _ = device.retry_releases();
        let handle = Some(device.backend().create_physical(bytes, kind)?);
        let memory = Self { device: device.clone(), handle, bytes, kind };
        device.counters().device_bytes.fetch_add(memory.device_bytes(), Ordering::AcqRel);
        Ok(Arc::new(memory))
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn device_bytes(&self) -> u64 {
        if self.kind == PhysicalKind::Device { self.bytes as u64 } else { 0 }
    }

    /// What is to be released, which the object then no longer does.
    fn take(&mut self) -> Option<(PhysicalHandle, u64)> {
        let handle = self.handle.take()?;
        Some((handle, self.device_bytes()))
    }
}

impl Drop for PhysicalMemory {
    /// Memory whose release fails is released by a later call: [`Device::retry_releases`].
    fn drop(&mut self) {
        if self.device.backend().check_process().is_err() {
            return;
        }
        if let Some(taken) = self.take() {
            self.device.release(Release { memory: vec![taken], ..Release::default() });
        }
    }
}

/// The bytes of which ranges and physical memory are multiples. Fails with `WB_ERR_NOT_SUPPORTED`,
/// and the reason, on a device without address ranges.
pub fn granularity(device: &Device) -> Result<u64> {
    match device.capabilities().address_granularity {
        Granularity::Bytes(bytes) => Ok(bytes),
        Granularity::Unavailable(_) => Err(device.backend().no_address_ranges()),
    }
}

/// What is behind a range: the offset of each mapping, ascending, and its memory.
type Mapped = Vec<(usize, Arc<PhysicalMemory>)>;

/// The indexes of mappings that have bytes of a part of the range.
fn within(mapped: &Mapped, part: Range<usize>) -> Range<usize> {
    let first = mapped.partition_point(|(offset, memory)| offset + memory.bytes <= part.start);
    let end = mapped.partition_point(|(offset, _)| *offset < part.end);
    first..end.max(first)
}

/// A reserved range of addresses. A call that maps or unmaps is not ordered with streams.
pub struct AddressRange {
    device: Arc<Device>,
    span: Span,
    mapped: Mutex<Mapped>,
}

impl AddressRange {
    /// Reserves `bytes` bytes, a multiple of [`granularity`], without memory behind them.
    pub fn reserve(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let _ = device.retry_releases();
        let span = device.backend().reserve(bytes)?;
        Ok(Self { device: device.clone(), span, mapped: Mutex::default() })
    }

    /// The addresses.
    pub fn span(&self) -> Span {
        self.span
    }

    fn mapped(&self) -> MutexGuard<'_, Mapped> {
        sync::lock(&self.mapped)
    }

    /// Puts pieces of memory behind the range, from its start on, one after another. On an error
    /// nothing is behind it. Fails if there is something already.
    pub fn map(&self, pieces: &[Arc<PhysicalMemory>]) -> Result<()> {
        self.map_at(0, pieces)
    }

    /// As [`AddressRange::map`], from an offset on: what is behind the rest of the range stays.
    pub fn map_at(&self, start: usize, pieces: &[Arc<PhysicalMemory>]) -> Result<()> {
        let mut mapped = self.mapped();
        let bytes: usize = pieces.iter().map(|piece| piece.bytes).sum();
        let end = start + bytes;
        if !within(&mapped, start..end).is_empty() || end > self.span.bytes() {
            fail!(
                WB_ERR_INTERNAL,
                "asked to map {bytes} bytes at {:#x}",
                self.span.start() + start
            );
        }
        let mut offset = start;
        for piece in pieces {
            let at = self.span.part(offset, piece.bytes);
            let released = || Error::new(WB_ERR_INTERNAL, "asked to map memory that was released");
            let handle = piece.handle.ok_or_else(released);
            if let Err(error) = handle.and_then(|handle| self.device.backend().map(at, handle)) {
                // What cannot be unmapped either stays, and is unmapped with the range.
                log::best_effort(|| self.unmap_within(&mut mapped, start..end));
                return Err(error);
            }
            let index = within(&mapped, 0..offset).end;
            mapped.insert(index, (offset, piece.clone()));
            offset += piece.bytes;
        }
        Ok(())
    }

    /// Takes the memory from the range, which then faults. The caller knows that the last use has
    /// passed. After an error a part may still be there: the call can be repeated.
    pub fn unmap(&self) -> Result<()> {
        self.unmap_at(0..self.span.bytes())
    }

    /// As [`AddressRange::unmap`], of a part that begins and ends where memory does.
    pub fn unmap_at(&self, part: Range<usize>) -> Result<()> {
        self.unmap_within(&mut self.mapped(), part)
    }

    fn unmap_within(&self, mapped: &mut Mapped, part: Range<usize>) -> Result<()> {
        for index in within(mapped, part).rev() {
            let (offset, memory) = &mapped[index];
            self.device.backend().unmap(self.span.part(*offset, memory.bytes))?;
            mapped.remove(index);
        }
        Ok(())
    }
}

impl Drop for AddressRange {
    /// Waits for what may use the memory, as freeing device memory does. Memory that a stream's own
    /// thread drops is kept, since that cannot wait.
    fn drop(&mut self) {
        let backend = self.device.backend();
        if backend.check_process().is_err() {
            std::mem::forget(std::mem::take(&mut *self.mapped()));
            return;
        }
        let is_lost = || backend.is_lost();
        let may_free = log::best_effort(|| {
            if backend.is_stream_thread() {
                fail!(
                    WB_ERR_INTERNAL,
                    "an address range was dropped in a host function, whose stream it would wait for: \
                     its memory is kept"
                );
            }
            Ok(())
        }) && (self.mapped().is_empty()
            || log::best_effort_wait(|| backend.wait_unused(self.span, true), is_lost));
        let mut mapped = std::mem::take(&mut *self.mapped());
        if !may_free {
            std::mem::forget(mapped);
            return;
        }
        let mappings = mapped.iter().map(|(offset, memory)| self.span.part(*offset, memory.bytes));
        let mappings = mappings.collect();
        // Memory that no other range refers to goes after its mapping.
        let memory = mapped.iter_mut().filter_map(|(_, memory)| Arc::get_mut(memory)?.take());
        let memory = memory.collect();
        let addresses = Some(self.span);
        self.device.release(Release { mappings, addresses, memory, ..Release::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::device::device::DeviceOptions;
    use crate::os::bytes;
    use crate::status::WB_ERR_DEVICE_MEMORY;

    const PIECE: usize = 2 << 20;

    fn device(capacity_bytes: u64) -> Arc<Device> {
        let options = DeviceOptions { capacity_bytes, ..DeviceOptions::default() };
        Device::open("host", options).unwrap()
    }

    fn memory(device: &Arc<Device>, pieces: usize) -> Arc<PhysicalMemory> {
        PhysicalMemory::create(device, pieces * PIECE, PhysicalKind::Device).unwrap()
    }

    #[test]
    fn the_same_memory_is_behind_two_ranges() {
        let device = device(0);
        let ranges = [1, 2].map(|pieces| AddressRange::reserve(&device, pieces * PIECE).unwrap());
        let shared = memory(&device, 1);
        ranges[0].map(std::slice::from_ref(&shared)).unwrap();
        ranges[1].map(&[memory(&device, 1), shared]).unwrap();
        bytes::fill(ranges[0].span(), 7);
        assert!(bytes::is_filled(ranges[1].span().part(PIECE, PIECE), 7));
        assert!(bytes::is_filled(ranges[1].span().part(0, PIECE), 0));
        ranges[1].map(&[memory(&device, 1)]).unwrap_err();
    }

    #[test]
    fn a_range_keeps_its_bytes_while_other_memory_is_behind_it() {
        let device = device(0);
        let range = AddressRange::reserve(&device, PIECE).unwrap();
        let both = [memory(&device, 1), memory(&device, 1)];
        for round in 0..4u8 {
            range.map(&[both[usize::from(round % 2)].clone()]).unwrap();
            assert!(bytes::is_filled(range.span(), round.saturating_sub(1)), "round {round}");
            bytes::fill(range.span(), round + 1);
            range.unmap().unwrap();
        }
    }

    #[test]
    fn a_piece_is_exchanged_between_others_that_stay() {
        let device = device(0);
        let range = AddressRange::reserve(&device, 3 * PIECE).unwrap();
        let piece = |at| range.span().part(at * PIECE, PIECE);
        let pieces = [0, 1, 2].map(|_| memory(&device, 1));
        range.map(&pieces).unwrap();
        (0..3).for_each(|at| bytes::fill(piece(at), 1 + at as u8));
        range.map_at(PIECE, &[memory(&device, 1)]).unwrap_err();
        range.unmap_at(PIECE..2 * PIECE).unwrap();
        let host = PhysicalMemory::create(&device, PIECE, PhysicalKind::Host).unwrap();
        range.map_at(PIECE, &[host]).unwrap();
        for (at, value) in [1, 0, 3].into_iter().enumerate() {
            assert!(bytes::is_filled(piece(at), value), "piece {at}");
        }
        range.map_at(0, &[memory(&device, 1)]).unwrap_err();
        range.map_at(2 * PIECE, &[memory(&device, 2)]).unwrap_err();
        range.unmap().unwrap();
        range.map_at(PIECE, &[pieces[2].clone()]).unwrap();
        assert!(bytes::is_filled(piece(1), 3));
    }

    #[test]
    fn freed_memory_is_free_and_memory_over_the_capacity_is_refused() {
        let device = device(4 * PIECE as u64);
        let free = || device.backend().memory().unwrap().0;
        let whole = free();
        let range = AddressRange::reserve(&device, 4 * PIECE).unwrap();
        assert_eq!(free(), whole, "addresses take no memory");
        range.map(&[memory(&device, 3)]).unwrap();
        assert_eq!(free(), whole - 3 * PIECE as u64);
        let refused = PhysicalMemory::create(&device, 2 * PIECE, PhysicalKind::Device);
        assert_eq!(refused.err().map(|error| error.status), Some(WB_ERR_DEVICE_MEMORY));
        let host = PhysicalMemory::create(&device, 2 * PIECE, PhysicalKind::Host).unwrap();
        assert_eq!(free(), whole - 3 * PIECE as u64, "host memory is not the device's");
        range.unmap().unwrap();
        assert_eq!(free(), whole);
        range.map(&[host]).unwrap();
        assert!(!device.backend().is_device_memory(range.span().start() as u64).unwrap());
        drop(range);
        assert_eq!(device.counters().snapshot().device_bytes, 0);
    }

    #[test]
    fn a_dropped_range_waits_for_its_last_use() {
        let device = device(0);
        let range = AddressRange::reserve(&device, PIECE).unwrap();
        range.map(&[memory(&device, 1)]).unwrap();
        let (stream, span) = (device.backend().new_stream().unwrap(), range.span());
        let (send, receive) = mpsc::channel();
        let use_late = move || {
            thread::sleep(Duration::from_millis(50));
            bytes::fill(span, 1);
            send.send(()).unwrap();
        };
        device.backend().call(stream, Box::new(use_late)).unwrap();
        drop(range);
        receive.try_recv().unwrap();
    }
}
