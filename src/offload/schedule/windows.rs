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

/// Tiles whose entries are copied by themselves, at most: those of so many end a window, after the header.
const MOST_TILES: u64 = 8192;
/// Bytes in front of them.
const BODY_BYTES: u64 = WINDOW_BYTES - HEADER - MOST_TILES * ENTRY;
/// A directory that leaves as much space for bodies is in front of them in the window, too.
const MOST_DIRECTORY: u64 = BODY_BYTES / 2;

/// The windows, which are filled in turn.
pub struct Windows {
    memory: Arc<DeviceMemory>,
    fences: [WindowFences; WINDOWS],
    next: usize,
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
    /// Where the bytes to copy begin and end in the compressed bytes: those of the bodies, and in front of them,
    /// if the piece has the first tiles, the header and the directory, so that one copy is enough.
    begin: u64,
    end: u64,
    has_directory: bool,
}

impl Windows {
    /// Windows in device memory, if there is any.
    pub fn new(device: &Device, memory: Option<Arc<DeviceMemory>>) -> Result<Option<Self>> {
        let Some(memory) = memory else { return Ok(None) };
        let fences = || -> Result<_> {
            Ok(WindowFences { full: Fence::new(device)?, empty: Fence::new(device)? })
        };
        let fences = [fences()?, fences()?];
        Ok(Some(Self { memory, fences, next: 0, drawn_into: None }))
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
        for piece in pieces(host, part.decoded_bytes) {
            let window =
                self.memory.span().part(self.next * WINDOW_BYTES as usize, WINDOW_BYTES as usize);
            let span = window.part(0, piece.bytes());
            let fences = &mut self.fences[self.next];
            self.next = (self.next + 1) % WINDOWS;
            fences.empty.wait_once(copy, capture)?;
            device.copy(span, host.part(piece.begin as usize, piece.bytes()), copy)?;
            let memory = span.start() as u64;
            let (mut header, mut entries) = (memory, memory + HEADER);
            if !piece.has_directory {
                let apart = window.part(BODY_BYTES as usize, HEADER as usize);
                device.copy(apart, host.part(0, HEADER as usize), copy)?;
                header = apart.start() as u64;
                let bytes = (piece.tiles * ENTRY) as usize;
                let apart = window.part((BODY_BYTES + HEADER) as usize, bytes);
                let directory = HEADER + piece.first_tile * ENTRY;
                device.copy(apart, host.part(directory as usize, bytes), copy)?;
                entries = apart.start() as u64;
            }
            fences.full.record(device, copy, capture)?;
            fences.full.wait_once(decode, capture)?;
            self.drawn_into = capture;
            let (begin, bytes) = (piece.begin, span.bytes() as u64);
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
        }
        Ok(())
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
    let mut first_tile = 0;
    std::iter::from_fn(move || {
        if first_tile == count {
            return None;
        }
        let directory_end = HEADER + count * ENTRY;
        let has_directory = first_tile == 0 && directory_end <= MOST_DIRECTORY.min(all);
        let (begin, bodies, most_tiles) = match has_directory {
            true => (0, directory_end, count),
            false => (offset(first_tile), offset(first_tile), MOST_TILES),
        };
        // One tile always fits.
        let (mut fit, mut too_far) = (first_tile + 1, count.min(first_tile + most_tiles) + 1);
        while too_far - fit > 1 {
            let middle = fit + (too_far - fit) / 2;
            match offset(middle).saturating_sub(begin) <= BODY_BYTES {
                true => fit = middle,
                false => too_far = middle,
            }
        }
        let end = offset(fit).max(bodies).min(begin + BODY_BYTES);
        let piece = Piece { first_tile, tiles: fit - first_tile, begin, end, has_directory };
        first_tile = fit;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::in_memory;
    use crate::os::mapping::Mapping;
    use crate::tensor::coded::CodedType;

    /// Pieces follow one another, and have space in a window: of values in no order, of zeros, which take no
    /// bytes but their entries, and of some of each.
    #[test]
    fn pieces_hold_all_tiles() {
        let bytes = (5000 * TILE + 100) as usize;
        let raw = Mapping::anonymous(bytes).unwrap();
        let space = CodedType::Bf16.max_bytes(bytes as u64).unwrap() as usize;
        let place = Mapping::anonymous(space).unwrap();
        let (raw, place) = (raw.span().part(0, bytes), place.span().part(0, space));
        for random_part in [1, 0, 2] {
            bytes::fill(raw, 0);
            let mut bits = 1u64;
            for at in
                (0..bytes / 8).filter(|at| random_part == 1 || at / 4096 % 2 < random_part / 2)
            {
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bytes::write_u64(raw.part(8 * at, 8), bits);
            }
            in_memory::encode(CodedType::Bf16, raw, place, 0).unwrap();
            let (mut tile, mut end, mut count) = (0, 0, 0);
            for piece in pieces(place, bytes as u64) {
                assert_eq!((piece.first_tile, piece.begin), (tile, end));
                assert!(tile == 0 || piece.tiles <= MOST_TILES);
                assert!(piece.end - piece.begin <= BODY_BYTES);
                (tile, end, count) = (tile + piece.tiles, piece.end, count + 1);
            }
            assert_eq!((tile, end), (tiles(bytes as u64), encoded_bytes(place)));
            let least = end.div_ceil(BODY_BYTES);
            assert!((least..=least + 1).contains(&count), "{count} pieces, not {least}");
        }
    }
}
