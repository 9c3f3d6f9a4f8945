//! Device memory through which compressed bytes pass to slots: a copy engine fills one window while a kernel
//! decodes out of another. Kernels that read host memory themselves are slower than copies.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::kernel::{DecodeSource, Kernel, Window};
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::offload::schedule::arrangement::EncodedPart;
use crate::offload::schedule::fence::{Capture, Fence};
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::compression::{WINDOW_BYTES, WINDOWED_BYTES, WINDOWS};
use crate::tensor::coded::{ENCODED_BYTES_AT, ENTRY, HEADER, TILE, UNIT, tiles};

/// Tiles whose entries are copied together: those of 128 MiB.
const MOST_TILES: u64 = 16384;
/// Bytes at the end of each window for such a directory, which bodies of more than one window need, and for the
/// header.
const DIRECTORY_BYTES: u64 = HEADER + MOST_TILES * ENTRY;
/// Bytes in front of it, for bodies.
const BODY_BYTES: u64 = WINDOW_BYTES - DIRECTORY_BYTES;

/// The windows, which are filled in turn.
pub struct Windows {
    memory: Arc<DeviceMemory>,
    fences: [WindowFences; WINDOWS],
    next: usize,
    /// Of the directory at the end of each window: recorded once what it tells of is decoded. Directories are filled
    /// in turn, too, but not with their windows.
    decoded: [Fence; WINDOWS],
    next_directory: usize,
    /// The capture that the decoding stream was last drawn into.
    pub drawn_into: Capture,
}

struct WindowFences {
    /// Recorded once it is filled.
    full: Fence,
    /// Recorded once what was in it is decoded.
    empty: Fence,
}

/// The streams of a copy: one copies into windows, the other decodes out of them.
#[derive(Clone, Copy)]
pub struct WindowStreams {
    pub copy: Stream,
    pub decode: Stream,
    pub capture: Capture,
}

/// Tiles whose bodies fit into a window together.
struct Piece {
    first_tile: u64,
    tiles: u64,
    /// Where the bytes to copy begin and end in the compressed bytes.
    begin: u64,
    end: u64,
    /// The tiles whose entries are copied with the first piece of them. `None` if one piece is all, in which
    /// the header and the entries are in front of the bodies.
    run: Option<Run>,
}

/// Tiles whose entries are copied together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first_tile: u64,
    end_tile: u64,
}

impl Windows {
    /// Windows in device memory, if there is any.
    pub fn new(device: &Device, memory: Option<Arc<DeviceMemory>>) -> Result<Option<Self>> {
        let Some(memory) = memory else { return Ok(None) };
        let fences = || -> Result<_> {
            Ok(WindowFences { full: Fence::new(device)?, empty: Fence::new(device)? })
        };
        Ok(Some(Self {
            memory,
            fences: [fences()?, fences()?],
            next: 0,
            decoded: [Fence::new(device)?, Fence::new(device)?],
            next_directory: 0,
            drawn_into: None,
        }))
    }

    /// Bytes of device memory, which fixed addresses have only while the offloader is awake.
    pub fn held_bytes(&self) -> u64 {
        self.memory.span().bytes() as u64
    }

    /// Whether compressed bytes pass through windows.
    pub fn take(part: &EncodedPart) -> bool {
        let most = part.host.bytes() as u64;
        !part.kept && (WINDOWED_BYTES..=most).contains(&encoded_bytes(part.host))
    }

    /// Queues filling windows from host memory and decoding to `slot`. Kernels that read anything in host memory
    /// slow down the copies beside them. A graph copies the same bytes of host memory each time: if others are
    /// there then, the kernel finds bodies where they are.
    pub fn queue(
        &mut self,
        device: &Device,
        part: &EncodedPart,
        slot: Span,
        streams: WindowStreams,
    ) -> Result<()> {
        let host = part.host;
        let WindowStreams { copy, decode, capture } = streams;
        let mut directory = None;
        for piece in pieces(host, part.decoded_bytes) {
            let at = self.next;
            self.next = (at + 1) % WINDOWS;
            self.fences[at].empty.wait_once(copy, capture)?;
            if let Some(run) = piece.run.filter(|run| run.first_tile == piece.first_tile) {
                directory = Some(self.copy_directory(device, host, run, streams)?);
            }
            let span = self.window(at).part(0, piece.bytes());
            device.copy(span, host.part(piece.begin as usize, piece.bytes()), copy)?;
            let fences = &mut self.fences[at];
            fences.full.record(device, copy, capture)?;
            fences.full.wait_once(decode, capture)?;
            self.drawn_into = capture;
            let (memory, begin, bytes) = (span.start() as u64, piece.begin, span.bytes() as u64);
            let (header, first_entry) = match (directory, piece.run) {
                (Some(directory), Some(run)) => (directory, piece.first_tile - run.first_tile),
                _ => (memory, 0),
            };
            let entries = header + HEADER + first_entry * ENTRY;
            let start = piece.first_tile * TILE;
            let decoded = (piece.tiles * TILE).min(part.decoded_bytes - start);
            let kernel = Kernel::Decode {
                coded: part.coded,
                encoded: part.on_device,
                decoded_bytes: part.decoded_bytes,
                first_tile: piece.first_tile,
                target: slot.part(start as usize, decoded as usize),
                source: DecodeSource::Window(Window { memory, begin, bytes, header, entries }),
            };
            device.backend().launch(kernel, decode)?;
            fences.empty.record(device, decode, capture)?;
            if piece.run.is_some_and(|run| run.end_tile == piece.first_tile + piece.tiles) {
                self.decoded[self.next_directory].record(device, decode, capture)?;
                self.next_directory = (self.next_directory + 1) % WINDOWS;
            }
        }
        Ok(())
    }

    /// Queues the copy of the header and of the entries of a run to the next directory; returns its address.
    fn copy_directory(
        &self,
        device: &Device,
        host: Span,
        run: Run,
        WindowStreams { copy, capture, .. }: WindowStreams,
    ) -> Result<u64> {
        let at = self.next_directory;
        self.decoded[at].wait_once(copy, capture)?;
        let place = self.window(at).part(BODY_BYTES as usize, DIRECTORY_BYTES as usize);
        let bytes = ((run.end_tile - run.first_tile) * ENTRY) as usize;
        let from = HEADER as usize + (run.first_tile * ENTRY) as usize;
        if run.first_tile > 0 {
            device.copy(place.part(0, HEADER as usize), host.part(0, HEADER as usize), copy)?;
            device.copy(place.part(HEADER as usize, bytes), host.part(from, bytes), copy)?;
        } else {
            let all = HEADER as usize + bytes;
            device.copy(place.part(0, all), host.part(0, all), copy)?;
        }
        Ok(place.start() as u64)
    }

    fn window(&self, at: usize) -> Span {
        self.memory.span().part(at * WINDOW_BYTES as usize, WINDOW_BYTES as usize)
    }
}

impl Piece {
    fn bytes(&self) -> usize {
        (self.end - self.begin) as usize
    }
}

/// The number of all compressed bytes, as their header has it.
pub fn encoded_bytes(host: Span) -> u64 {
    bytes::read_u64(host.part(ENCODED_BYTES_AT, 8))
}

/// All tiles of compressed bytes, in pieces.
fn pieces(host: Span, decoded_bytes: u64) -> impl Iterator<Item = Piece> {
    // A file that is mapped may have changed.
    let (count, all) = (tiles(decoded_bytes), encoded_bytes(host).min(host.bytes() as u64));
    let offset = move |tile: u64| match tile < count {
        true => {
            let entry = host.part((HEADER + tile * ENTRY) as usize, 4);
            (u64::from(bytes::read_u32(entry)) * UNIT).min(all)
        }
        false => all,
    };
    let directory_end = HEADER + count * ENTRY;
    let is_one = all <= BODY_BYTES && directory_end <= all;
    let mut first_tile = 0;
    std::iter::from_fn(move || {
        if first_tile == count {
            return None;
        }
        if is_one {
            first_tile = count;
            return Some(Piece { first_tile: 0, tiles: count, begin: 0, end: all, run: None });
        }
        let run_first = first_tile / MOST_TILES * MOST_TILES;
        let run = Run { first_tile: run_first, end_tile: (run_first + MOST_TILES).min(count) };
        let begin = offset(first_tile);
        // One tile always fits.
        let (mut fit, mut too_far) = (first_tile + 1, run.end_tile + 1);
        while too_far - fit > 1 {
            let middle = fit + (too_far - fit) / 2;
            match offset(middle).saturating_sub(begin) <= BODY_BYTES {
                true => fit = middle,
                false => too_far = middle,
            }
        }
        let end = offset(fit).clamp(begin, begin + BODY_BYTES);
        let piece = Piece { first_tile, tiles: fit - first_tile, begin, end, run: Some(run) };
        first_tile = fit;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::in_memory;
    use crate::device::device::DeviceOptions;
    use crate::device::owned::OwnedStream;
    use crate::os::mapping::Mapping;
    use crate::tensor::coded::CodedType;

    /// Pieces follow one another and have space in a window, and runs, of each of which they are all tiles, in a
    /// directory: of bodies of one size, of none, and of some of each.
    #[test]
    fn pieces_hold_all_tiles() {
        let of_all = |size: u64| move |_| size;
        let of_some = |tile: u64| if tile % 9 < 4 { TILE / UNIT } else { tile % 3 };
        check_pieces(100, &of_all(TILE / UNIT));
        check_pieces(5000, &of_all(345));
        check_pieces(5000, &of_all(0));
        check_pieces(2 * MOST_TILES, &of_some);
        check_pieces(3 * MOST_TILES + 1, &of_all(0));
        check_pieces(MOST_TILES + 1, &of_all(345));
    }

    /// Checks the pieces of tiles whose bodies have so many units.
    fn check_pieces(count: u64, units: &dyn Fn(u64) -> u64) {
        let mut end = HEADER + count * ENTRY;
        let bodies: u64 = (0..count).map(|tile| units(tile) * UNIT).sum();
        let place = Mapping::anonymous((end + bodies) as usize).unwrap();
        let host = place.span().part(0, (end + bodies) as usize);
        let mut offsets = Vec::new();
        for tile in 0..count {
            offsets.push(end);
            let entry = host.part((HEADER + tile * ENTRY) as usize, 4);
            bytes::write_u32(entry, u32::try_from(end / UNIT).unwrap());
            end += units(tile) * UNIT;
        }
        bytes::write_u64(host.part(ENCODED_BYTES_AT, 8), end);
        offsets.push(end);

        let pieces: Vec<_> = pieces(host, count * TILE).collect();
        let mut next = 0;
        for piece in &pieces {
            let after = piece.first_tile + piece.tiles;
            let from = if piece.run.is_some() { offsets[next as usize] } else { 0 };
            assert_eq!((piece.first_tile, piece.begin), (next, from));
            assert_eq!(piece.end, offsets[after as usize]);
            assert!(piece.end - piece.begin <= BODY_BYTES);
            if let Some(run) = piece.run {
                assert!(run.first_tile <= next && after <= run.end_tile);
                assert!(run.end_tile - run.first_tile <= MOST_TILES);
                let first = pieces.iter().find(|other| other.run == piece.run).unwrap();
                assert_eq!(first.first_tile, run.first_tile);
            }
            next = after;
        }
        assert_eq!(next, count);
        assert_eq!(pieces[0].run.is_none(), end <= BODY_BYTES);
        let most = end.div_ceil(BODY_BYTES - TILE) + count.div_ceil(MOST_TILES);
        assert!(pieces.len() as u64 <= most, "{} pieces, not {most}", pieces.len());
    }

    /// Of bytes whose offsets are in no order, and whose count is wrong, nothing outside is copied.
    #[test]
    fn pieces_of_damaged_bytes_are_within_them() {
        let (count, all) = (MOST_TILES + 100, 80usize << 20);
        let place = Mapping::anonymous(all).unwrap();
        let host = place.span().part(0, all);
        for said in [0, all as u64 / 2, u64::MAX] {
            bytes::write_u64(host.part(ENCODED_BYTES_AT, 8), said);
            let mut bits = 1u64;
            for tile in 0..count {
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let entry = host.part((HEADER + tile * ENTRY) as usize, 4);
                bytes::write_u32(entry, (bits >> 40) as u32);
            }
            let mut next = 0;
            for piece in pieces(host, count * TILE) {
                let run = piece.run.expect("one piece is not all");
                assert_eq!(piece.first_tile, next);
                assert!(piece.begin <= piece.end && piece.end <= all as u64);
                assert!(piece.bytes() as u64 <= BODY_BYTES);
                next = piece.first_tile + piece.tiles;
                assert!(run.first_tile <= piece.first_tile && next <= run.end_tile);
            }
            assert_eq!(next, count);
        }
    }

    /// A weight of more tiles than a directory has entries, some before and behind that with bodies, comes back, by
    /// copies and by a kernel that read nothing else.
    #[test]
    fn a_weight_of_two_directories_is_decoded() {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let decoded_bytes = ((MOST_TILES + 300) * TILE + 100) as usize;
        let space = CodedType::Bf16.max_bytes(decoded_bytes as u64).unwrap() as usize;
        let mappings =
            [decoded_bytes, space, decoded_bytes].map(|n| Mapping::anonymous(n).unwrap());
        let [raw, host, slot] = &mappings;
        let raw = raw.span().part(0, decoded_bytes);
        let (host, slot) = (host.span().part(0, space), slot.span().part(0, decoded_bytes));
        let mut bits = 1u64;
        let of_bodies = (0..4200).chain(MOST_TILES - 50..MOST_TILES + 200);
        for at in of_bodies.flat_map(|tile| (tile * TILE..(tile + 1) * TILE).step_by(8)) {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes::write_u64(raw.part(at as usize, 8), bits);
        }
        in_memory::encode(CodedType::Bf16, raw, host, 0).unwrap();
        let memory = DeviceMemory::alloc(&device, WINDOWS * WINDOW_BYTES as usize).unwrap();
        let mut windows = Windows::new(&device, memory.map(Arc::new)).unwrap().unwrap();
        let streams = [(); 2].map(|()| OwnedStream::new(&device).unwrap());
        let [copy, decode] = [streams[0].get(), streams[1].get()];
        let part = EncodedPart {
            offset: 0,
            capacity: space,
            host,
            on_device: host,
            kept: false,
            coded: CodedType::Bf16,
            decoded_bytes: decoded_bytes as u64,
        };
        for _ in 0..2 {
            bytes::fill(slot, 0xee);
            let streams = WindowStreams { copy, decode, capture: None };
            windows.queue(&device, &part, slot, streams).unwrap();
            device.backend().synchronize(decode).unwrap();
            assert!(bytes::read(slot) == bytes::read(raw), "other bytes");
        }
    }
}
