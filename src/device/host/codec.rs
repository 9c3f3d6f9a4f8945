//! The functions of `kernels/codec.c`, for the widest instructions of this processor, on several
//! threads.
// The C functions take addresses; each caller here has spans of as many bytes.
#![allow(unsafe_code)]

use once_cell::race::OnceBox;

use crate::device::kernel::Window;
use crate::os::bytes;
use crate::os::parallel::most_threads;
use crate::os::span::Span;
use crate::os::sync::thread;
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE, UNIT, tiles};

/// Tiles for which another thread pays off: 4 MiB.
const WORTH_A_THREAD: u64 = 512;

type Begin = unsafe extern "C" fn(u32, *const u8, u64, *mut u8);
type Encode = unsafe extern "C" fn(*const u8, u64, u64, u64, *mut u8, *mut u8, u64) -> u64;
type Decode =
    unsafe extern "C" fn(u32, *const u8, u64, u64, u64, u64, *mut u8, *const Window) -> u64;
type Verify = unsafe extern "C" fn(*const u8, u64, u64, u64, u64, *const u8) -> u64;

/// What is decompressed: compressed bytes, and a window of them.
#[derive(Clone, Copy)]
pub struct Source {
    span: Span,
    window: Window,
}

impl From<Span> for Source {
    fn from(span: Span) -> Self {
        Self { span, window: Window::default() }
    }
}

impl From<(Span, Window)> for Source {
    fn from((span, window): (Span, Window)) -> Self {
        Self { span, window }
    }
}

/// The functions of one instruction set.
#[derive(Clone, Copy)]
pub struct Codec {
    begin: Begin,
    encode: Encode,
    decode: Decode,
    verify: Verify,
}

/// Declares a function of `kernels/codec.c` by its name and the suffix of its instruction set.
macro_rules! function {
    ($name:literal, $suffix:literal, ($($argument:ty),*) $(-> $result:ty)?) => {{
        unsafe extern "C" {
            #[link_name = concat!("wb_codec_", $name, $suffix)]
            fn function($(_: $argument),*) $(-> $result)?;
        }
        function
    }};
}

macro_rules! codec {
    ($suffix:literal) => {
        Codec {
            begin: function!("begin", $suffix, (u32, *const u8, u64, *mut u8)),
            encode: function!(
                "encode",
                $suffix,
                (*const u8, u64, u64, u64, *mut u8, *mut u8, u64) -> u64
            ),
            decode: function!(
                "decode",
                $suffix,
                (u32, *const u8, u64, u64, u64, u64, *mut u8, *const Window) -> u64
            ),
            verify: function!("verify", $suffix, (*const u8, u64, u64, u64, u64, *const u8) -> u64),
        }
    };
}

/// The instruction sets that this processor has; the widest is last.
pub fn codecs() -> &'static [Codec] {
    static CODECS: OnceBox<Vec<Codec>> = OnceBox::new();
    CODECS.get_or_init(|| {
        let mut codecs = Box::new(vec![codec!("_plain")]);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
                codecs.push(codec!("_avx2"));
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2");
                if avx512 {
                    codecs.push(codec!("_avx512"));
                }
            }
        }
        codecs
    })
}

/// The codec with the widest instructions.
pub fn widest() -> Codec {
    codecs()[codecs().len() - 1]
}

impl Codec {
    /// Compresses `source` to `target`, which has [`CodedType::max_bytes`] bytes. Returns the bytes
    /// used. `threads` 0 stands for the processors.
    pub fn encode(self, coded: CodedType, source: Span, target: Span, threads: usize) -> u64 {
        let decoded_bytes = source.bytes() as u64;
        let whole = tiles(decoded_bytes);
        // SAFETY: the header and the source are in the spans.
        unsafe { (self.begin)(coded as u32, pointer(source), decoded_bytes, pointer(target)) };
        // Each thread encodes into the place that its tiles have if all are raw.
        let first_body = HEADER + ENTRY * whole;
        let parts = in_parts(whole, threads, &|first, count| {
            let (from, to) = (pointer(source), pointer(target));
            let bodies = part_pointer(target, first_body + first * TILE);
            // SAFETY: entries and bodies of these tiles, which no other thread has, and their source
            // are in the spans.
            unsafe { (self.encode)(from, decoded_bytes, first, count, to, bodies, 0) }
        });
        // Then they are moved together.
        let mut used = first_body;
        for (first, count, bytes) in parts {
            let from = target.part((first_body + first * TILE) as usize, bytes as usize);
            let to = target.part(used as usize, bytes as usize);
            if to != from {
                bytes::copy(to, from);
            }
            for tile in first..first + count {
                let at = target.part((HEADER + tile * ENTRY) as usize, 4);
                let offset = u64::from(bytes::read_u32(at)) + used / UNIT;
                bytes::write_u32(at, offset as u32);
            }
            used += bytes;
        }
        bytes::write_u64(target.part(16, 8), used);
        used
    }

    /// Decompresses the tiles from `first` on to `target`. Returns the number of the first one that
    /// is damaged, if one is.
    pub fn decode(
        self,
        coded: CodedType,
        encoded: impl Into<Source>,
        decoded_bytes: u64,
        first: u64,
        target: Span,
        threads: usize,
    ) -> Option<u64> {
        let Source { span: encoded, window } = encoded.into();
        let encoded_bytes = encoded.bytes() as u64;
        let parts = in_parts(tiles(target.bytes() as u64), threads, &|at, count| {
            let (from, to) = (pointer(encoded), part_pointer(target, at * TILE));
            let entries = if window.entries == 0 { 0 } else { window.entries + at * ENTRY };
            let window = Window { entries, ..window };
            let (coded, at) = (coded as u32, first + at);
            // SAFETY: the C function reads within `encoded_bytes` and the window whatever they contain,
            // and writes these tiles, which are in the span.
            unsafe {
                (self.decode)(coded, from, encoded_bytes, decoded_bytes, at, count, to, &window)
            }
        });
        let damaged = parts.into_iter().find(|(at, count, damaged)| *damaged < first + at + count);
        damaged.map(|(_, _, damaged)| damaged)
    }

    /// Counts the tiles of `decoded` whose checksum is not that of the directory.
    pub fn verify(
        self,
        encoded: Span,
        decoded_bytes: u64,
        first: u64,
        decoded: Span,
        threads: usize,
    ) -> u64 {
        let encoded_bytes = encoded.bytes() as u64;
        let parts = in_parts(tiles(decoded.bytes() as u64), threads, &|at, count| {
            let (from, values) = (pointer(encoded), part_pointer(decoded, at * TILE));
            // SAFETY: the C function reads within `encoded_bytes`, and these tiles.
            unsafe { (self.verify)(from, encoded_bytes, decoded_bytes, first + at, count, values) }
        });
        parts.into_iter().map(|(_, _, wrong)| wrong).sum()
    }
}

/// Calls `work` with the first tile and the number of tiles of each part, on several threads.
/// Returns the parts with the results, in their order.
fn in_parts(
    tiles: u64,
    threads: usize,
    work: &(dyn Fn(u64, u64) -> u64 + Sync),
) -> Vec<(u64, u64, u64)> {
    let threads = match tiles / WORTH_A_THREAD {
        0..=1 => 1,
        worth => worth.min(if threads == 0 { most_threads() } else { threads } as u64),
    };
    let step = tiles.div_ceil(threads).max(1);
    let parts: Vec<_> =
        (0..tiles.div_ceil(step)).map(|at| (at * step, step.min(tiles - at * step))).collect();
    let run = |(first, count): (u64, u64)| (first, count, work(first, count));
    if parts.len() <= 1 {
        return parts.into_iter().map(run).collect();
    }
    thread::scope(|scope| {
        let started: Vec<_> = parts
            .iter()
            .skip(1)
            .map(|&part| {
                let builder = thread::Builder::new().name("weighbridge-codec".into());
                (builder.spawn_scoped(scope, move || run(part)), part)
            })
            .collect();
        let first = parts.first().map(|&part| run(part));
        // If a thread cannot start, or panics, this one does its work.
        let others = started.into_iter().map(|(thread, part)| {
            thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| run(part))
        });
        first.into_iter().chain(others).collect()
    })
}

fn pointer(span: Span) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(span.start())
}

fn part_pointer(span: Span, offset: u64) -> *mut u8 {
    pointer(span).wrapping_add(offset as usize)
}
