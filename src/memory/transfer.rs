//! Transfers of many bytes between host memory and a device, in pieces: those of pinned host memory
//! are copied directly, all others pass through staging memory, which several threads fill or empty
//! while the device copies other pieces. Pieces of different lanes are copied on different streams.

use crate::device::backend::{Event, Stream};
use crate::device::device::Device;
use crate::error::{Result, catch_panic};
use crate::memory::staging::Staging;
use crate::os::in_order::{self, in_order};
use crate::os::page::huge_page_bytes;
use crate::os::parallel::threads_for;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, proc_maps};

/// Bytes of a piece that passes through staging memory, at most. The link is idle for 5 us between two
/// copies of one stream, 3 % of the time that this many bytes take.
pub const PIECE_BYTES: usize = 8 << 20;

/// Bytes of a piece that needs no staging memory, at most.
pub const DIRECT_PIECE_BYTES: usize = 32 << 20;

/// Bytes that one thread stages at a time: a piece is the work of several threads, so that few
/// pieces are in progress, and the device reads them from the processor's caches. Memory beyond
/// these is written and read at half the speed.
const PART_BYTES: usize = 512 << 10;

/// Pieces of staging memory, at most; and of memory with absent pages, where a part is as large as a huge
/// page and takes a thread as long as four pieces take the link.
const BUFFERS: usize = 4;
const BUFFERS_OF_ABSENT: usize = 8;

/// Every buffer begins at a multiple of this in the staging memory.
const BUFFER_ALIGNMENT: usize = 256;

/// Pieces that the device copies, or has yet to copy, while the calling thread waits for others.
const QUEUED: usize = 2;

/// Threads that fill or empty staging memory, at most; more need no more than this many parts of it.
const MOST_THREADS: usize = 16;

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From host memory.
    ToDevice,
    /// Into host memory.
    FromDevice,
}

/// Whether the pages of host memory are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// They are, or it does not matter.
    Present,
    /// The threads make them present by writing to them, each of them whole huge pages: of threads in the same
    /// one each would clear it.
    Absent,
}

impl Pages {
    fn part_bytes(self) -> usize {
        match self {
            Self::Present => PART_BYTES,
            Self::Absent => huge_page_bytes().min(PIECE_BYTES),
        }
    }

    fn buffers(self) -> usize {
        match self {
            Self::Present => BUFFERS,
            Self::Absent => BUFFERS_OF_ABSENT,
        }
    }
}

/// A part of a transfer: at most [`PIECE_BYTES`] if it passes through staging memory.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// One end of the copy, in device memory.
    pub device: Span,
    /// Its other end, in memory that can be copied directly. `None`: a piece of staging memory.
    pub direct: Option<Span>,
    /// Its lane. Pieces of one lane are copied in order; those of different lanes may be at the same
    /// time.
    pub lane: usize,
}

/// A transfer that is to be made.
pub struct Transfer<'a> {
    /// The device.
    pub device: &'a Arc<Device>,
    /// The direction.
    pub direction: Direction,
    /// The streams to queue the copies on: lanes have them in turn.
    pub streams: &'a [Stream],
    /// The pieces.
    pub pieces: &'a [Piece],
    /// Threads that fill or empty staging memory.
    pub threads: usize,
    /// Whether they find pages in host memory.
    pub pages: Pages,
    /// Fills a part of the staging memory of a piece, or empties it: given the piece's index, the
    /// offset in the piece and the memory. Any thread calls it.
    pub stage: &'a (dyn Fn(usize, usize, Span) -> Result<()> + Sync),
    /// Queues what follows the copy of a piece on its stream, given the piece's index. The calling
    /// thread calls it.
    pub then: Option<&'a dyn Fn(usize, Stream) -> Result<()>>,
}

/// What a transfer uses: as many buffers as pieces can be in progress, and an event for each.
pub struct Workspace {
    staging: Option<Staging>,
    /// Bytes of each buffer in the staging memory.
    buffer_bytes: usize,
    events: Vec<Box<dyn Event>>,
    buffers: usize,
}

impl Workspace {
    fn new(transfer: &Transfer<'_>, buffers: usize) -> Result<Self> {
        let Transfer { device, pieces, .. } = *transfer;
        // Where every piece has a buffer of its own, nothing waits for a buffer.
        let waits = transfer.direction == Direction::FromDevice || pieces.len() > buffers;
        let events = if waits { buffers } else { 0 };
        let events = (0..events).map(|_| device.backend().new_event(false));
        let events = events.collect::<Result<_>>()?;
        let staged = pieces.iter().filter(|piece| piece.direct.is_none());
        let largest = staged.map(|piece| piece.device.bytes()).max();
        let buffer_bytes = largest.map_or(0, |bytes| bytes.next_multiple_of(BUFFER_ALIGNMENT));
        let staging = match buffer_bytes {
            0 => None,
            _ => Some(Staging::new(device, buffers * buffer_bytes)?),
        };
        Ok(Self { staging, buffer_bytes, events, buffers })
    }

    /// The host's end of a piece.
    fn host(&self, at: usize, piece: &Piece) -> Span {
        let staging = self.staging.as_ref().map_or(Span::EMPTY, Staging::span);
        let offset = at % self.buffers * self.buffer_bytes;
        piece.direct.unwrap_or(staging.part(offset, piece.device.bytes()))
    }

    /// Queues the copy of a piece, and records its event.
    fn queue(&self, transfer: &Transfer<'_>, at: usize) -> Result<()> {
        let piece = &transfer.pieces[at];
        let stream = transfer.streams[piece.lane % transfer.streams.len()];
        let host = self.host(at, piece);
        match transfer.direction {
            Direction::ToDevice => transfer.device.copy(piece.device, host, stream)?,
            Direction::FromDevice => transfer.device.copy(host, piece.device, stream)?,
        }
        self.events.get(at % self.buffers).map_or(Ok(()), |event| event.record(stream))?;
        transfer.then.map_or(Ok(()), |then| then(at, stream))
    }

    /// Waits until the queued copy of a piece is done.
    fn wait_for(&self, at: usize) -> Result<()> {
        self.events.get(at % self.buffers).map_or(Ok(()), |event| event.synchronize())
    }
}

impl Transfer<'_> {
    /// Makes the transfer. Calls `ended` for each piece in order, on the calling thread, when its copy to the
    /// device is queued, or when its bytes are in host memory; an error of it stops the transfer. Returns when
    /// all bytes are there; after an error, when nothing is queued any more.
    pub fn run(&self, ended: &mut dyn FnMut(usize) -> Result<()>) -> Result<()> {
        self.run_in(&self.workspace()?, ended)
    }

    /// What the transfer uses.
    pub fn workspace(&self) -> Result<Workspace> {
        Workspace::new(self, self.pieces.len().min(self.pages.buffers()))
    }

    /// As [`Transfer::run`], in a workspace that the caller frees.
    pub fn run_in(
        &self,
        workspace: &Workspace,
        ended: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        // Also after a panic, before the staging memory is freed.
        let run = catch_panic(|| self.run_pieces(workspace, ended));
        let waits = self.streams.iter().map(|stream| self.device.backend().synchronize(*stream));
        // Of all streams, whatever the result of one.
        run.and(waits.fold(Ok(()), Result::and))
    }

    fn run_pieces(
        &self,
        workspace: &Workspace,
        ended: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let (pieces, part_bytes) = (self.pieces.len(), self.pages.part_bytes());
        let ahead = match workspace.buffers == pieces {
            true => pieces,
            false => workspace.buffers - QUEUED,
        };
        let mut queued = 0;
        let stage = |at: usize, part: usize| {
            let (piece, offset) = (&self.pieces[at], part * part_bytes);
            match piece.direct.is_none() && offset < piece.device.bytes() {
                true => {
                    (self.stage)(at, offset, workspace.host(at, piece).part(offset, part_bytes))
                }
                false => Ok(()),
            }
        };
        let mut begin = |at: usize| match self.direction {
            Direction::ToDevice => match at.checked_sub(workspace.buffers) {
                Some(before) => workspace.wait_for(before),
                None => Ok(()),
            },
            Direction::FromDevice => {
                // The buffers of these pieces are free: `ahead` and QUEUED are not more than all.
                while queued < pieces.min(at + QUEUED) {
                    workspace.queue(self, queued)?;
                    queued += 1;
                }
                workspace.wait_for(at)
            }
        };
        let mut end = |at: usize| {
            if self.direction == Direction::ToDevice {
                workspace.queue(self, at)?;
            }
            ended(at)
        };
        let threads = self.threads.clamp(1, MOST_THREADS);
        // Parts beyond the end of a piece are empty.
        let pieces = in_order::Pieces { count: pieces, parts: PIECE_BYTES / part_bytes, ahead };
        in_order(pieces, threads, &mut begin, &stage, &mut end)
    }
}

/// Bytes of a copy from which on [`copy`] looks what its source is.
const LEAST_STAGED: usize = 1 << 20;

/// Queues a copy. On a device that reads pageable memory, where a mapped file is not registered, many
/// bytes of one are staged, because drivers copy them from the kernel's page cache as slowly as
/// 0.25 GB/s: then the copy has been made when this returns.
pub fn copy(device: &Arc<Device>, to: Span, from: Span, stream: Stream) -> Result<()> {
    let stage = to.bytes() == from.bytes() && is_slow(device, from, stream)?;
    if !stage || !device.backend().is_device_memory(to.start() as u64)? {
        return device.copy(to, from, stream);
    }
    let offsets = (0..to.bytes()).step_by(PIECE_BYTES);
    let pieces: Vec<Piece> = offsets
        .map(|offset| Piece { device: to.part(offset, PIECE_BYTES), direct: None, lane: 0 })
        .collect();
    let transfer = Transfer {
        device,
        direction: Direction::ToDevice,
        streams: &[stream],
        pieces: &pieces,
        threads: threads_for(0, to.bytes()),
        pages: Pages::Present,
        stage: &|at, offset, staging| {
            bytes::copy(staging, from.part(at * PIECE_BYTES + offset, staging.bytes()));
            Ok(())
        },
        then: None,
    };
    transfer.run(&mut |_| Ok(()))
}

/// Whether a source is in a mapped file that is not registered, on a device that reads it anyway.
/// Not in a capture: a graph cannot call threads.
fn is_slow(device: &Device, from: Span, stream: Stream) -> Result<bool> {
    let (backend, capabilities) = (device.backend(), device.capabilities());
    if !capabilities.cuda || !capabilities.pageable_access || from.bytes() < LEAST_STAGED {
        return Ok(false);
    }
    if backend.is_pinned(from)?
        || backend.is_device_memory(from.start() as u64)?
        || backend.capture(stream)?.is_some()
    {
        return Ok(false);
    }
    Ok(proc_maps::regions(from)?.iter().any(|region| region.file_backed))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::device::device::DeviceOptions;
    use crate::device::owned::{DeviceMemory, OwnedStream};
    use crate::memory::buffer::{Buffer, BufferOptions};
    use crate::os::mapping;
    use crate::os::sync::thread;

    /// Bytes of which no piece has the same.
    fn byte_of(at: usize, offset: usize) -> u8 {
        (at * 7 + offset % 251) as u8
    }

    #[test]
    fn work_queued_for_a_piece_runs_after_its_copy_on_the_stream_of_its_lane() {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        // More pieces than buffers, and memory of two lanes that pieces use again.
        let lanes = [0, 0, 1, 1, 2, 3, 3, 3, 4];
        let bytes = PART_BYTES + 77;
        let alloc = |count: usize| DeviceMemory::alloc(&device, count * bytes).unwrap().unwrap();
        let (memory, kept) = (alloc(2), alloc(lanes.len()));
        let piece = |lane: &usize| Piece {
            device: memory.span().part(lane % 2 * bytes, bytes),
            direct: None,
            lane: *lane,
        };
        let pieces: Vec<Piece> = lanes.iter().map(piece).collect();
        let owned: Vec<_> = (0..2).map(|_| OwnedStream::new(&device).unwrap()).collect();
        let streams: Vec<Stream> = owned.iter().map(OwnedStream::get).collect();
        let followed = RefCell::new(Vec::new());
        let transfer = Transfer {
            device: &device,
            direction: Direction::ToDevice,
            streams: &streams,
            pieces: &pieces,
            threads: 3,
            pages: Pages::Present,
            stage: &|at, offset, staging| {
                let staged: Vec<u8> =
                    (0..staging.bytes()).map(|of| byte_of(at, offset + of)).collect();
                bytes::write(staging, &staged);
                Ok(())
            },
            then: Some(&|at, stream| {
                followed.borrow_mut().push((at, stream));
                device.copy(kept.span().part(at * bytes, bytes), pieces[at].device, stream)
            }),
        };
        transfer.run(&mut |_| Ok(())).unwrap();
        let expected: Vec<_> =
            lanes.iter().enumerate().map(|(at, lane)| (at, streams[lane % 2])).collect();
        assert_eq!(followed.into_inner(), expected);
        for at in 0..lanes.len() {
            let found = bytes::read(kept.span().part(at * bytes, bytes));
            assert!(found.iter().enumerate().all(|(of, byte)| *byte == byte_of(at, of)), "{at}");
        }
    }

    fn filled(device: &Arc<Device>, size: usize, value: u8) -> Arc<Buffer> {
        let buffer = Buffer::alloc(device, size, &BufferOptions::default(), &mut None).unwrap();
        bytes::fill(buffer.data(), value);
        buffer
    }

    /// Where staged pieces overwrite the bytes between their targets, direct ones follow them.
    #[test]
    fn no_piece_overtakes_another() {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let stream = OwnedStream::new(&device).unwrap();
        let (to, from) = (filled(&device, 3000, 1), filled(&device, 1000, 2));
        let staged = Piece { device: to.data(), direct: None, lane: 0 };
        let direct =
            Piece { device: to.data().part(1000, 1000), direct: Some(from.data()), lane: 0 };
        for threads in [1, 4] {
            for pieces in [[staged, direct, direct], [direct, staged, direct]] {
                bytes::fill(to.data(), 1);
                let transfer = Transfer {
                    device: &device,
                    direction: Direction::ToDevice,
                    streams: &[stream.get()],
                    pieces: &pieces,
                    threads,
                    pages: Pages::Present,
                    stage: &|_, _, staging| {
                        thread::sleep(Duration::from_millis(20));
                        bytes::fill(staging, 3);
                        Ok(())
                    },
                    then: None,
                };
                let mut ended = Vec::new();
                let mut end = |piece| {
                    ended.push(piece);
                    Ok(())
                };
                transfer.run(&mut end).unwrap();
                assert_eq!(ended, [0, 1, 2]);
                for (offset, value) in [(0, 3), (1000, 2), (2000, 3)] {
                    assert!(bytes::is_filled(to.data().part(offset, 1000), value));
                }
            }
        }
    }

    /// Two threads in one huge page would each clear it.
    #[test]
    fn absent_pages_are_written_a_huge_page_at_a_time() {
        const SIZE: usize = 20 * PIECE_BYTES + 12345;
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let stream = OwnedStream::new(&device).unwrap();
        let from = filled(&device, SIZE, 7);
        let (to, reservation) = Buffer::alloc_absent(&device, SIZE).unwrap();
        assert_eq!(mapping::resident_bytes(to.data()).unwrap(), 0);
        let offsets = (0..SIZE).step_by(PIECE_BYTES);
        let pieces: Vec<_> = offsets
            .map(|at| Piece { device: from.data().part(at, PIECE_BYTES), direct: None, lane: 0 })
            .collect();
        let written = AtomicUsize::new(0);
        let transfer = Transfer {
            device: &device,
            direction: Direction::FromDevice,
            streams: &[stream.get()],
            pieces: &pieces,
            threads: 3,
            pages: Pages::Absent,
            stage: &|at, offset, staging| {
                let start = at * PIECE_BYTES + offset;
                let part = to.data().part(start, staging.bytes());
                assert!(part.start().is_multiple_of(huge_page_bytes().min(PIECE_BYTES)));
                written.fetch_add(part.bytes(), Ordering::Relaxed);
                reservation.fault(part, || {
                    bytes::copy(part, staging);
                    Ok(())
                })
            },
            then: None,
        };
        transfer.run(&mut |_| Ok(())).unwrap();
        assert_eq!(written.into_inner(), SIZE);
        assert!(bytes::is_filled(to.data(), 7));
    }
}
