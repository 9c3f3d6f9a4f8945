//! The kernels of `kernels/host.c`, for the widest instructions of this processor, on several
//! threads.
// The C functions take addresses; the code that makes a Kernel keeps their memory.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use once_cell::race::OnceBox;

use crate::device::experts::{ExpertCall, ExpertState};
use crate::device::host::codec;
use crate::device::kernel::{DecodeSource, Kernel, Window};
use crate::os::bytes;
use crate::os::float_modes::StandardFloatModes;
use crate::os::parallel::most_threads;
use crate::os::span::Span;
use crate::os::sync::thread;
use crate::tensor::coded::{LINK, LINK_MAGIC};
use crate::tensor::scale_grid::Blocks;

/// Elements for which another thread pays off.
const WORTH_A_THREAD: u64 = 1 << 20;

type Absmax = unsafe extern "C" fn(*const u8, *const Blocks, *mut u32, *mut u64);
type Convert = unsafe extern "C" fn(*const u8, *const Blocks, *const f32, *mut u8);
type Scales = unsafe extern "C" fn(*const u32, u64, f32, *mut u8, *mut f32);
type Inverses = unsafe extern "C" fn(*const u8, u64, i32, *mut f32);

/// The kernels of one instruction set: by `SourceType`, then by `Fp8Format` or `ScaleType`.
struct Table {
    absmax: [Absmax; 3],
    quantize: [[Convert; 2]; 3],
    dequantize: [[Convert; 2]; 3],
    scales: [Scales; 2],
    inverses: [Inverses; 2],
}

// The kernels of `kernels/experts.c`.
unsafe extern "C" {
    fn wb_experts_route_plain(state: *const ExpertState, call: *const ExpertCall);
    fn wb_experts_resize_plain(state: *const ExpertState, keep: u32, slots: u32);
}

/// Declares a kernel of `kernels/host.c` by the parts of its name.
macro_rules! kernel {
    (($($argument:ty),*), $($part:literal),*) => {{
        unsafe extern "C" {
            #[link_name = concat!("wb_", $($part),*)]
            fn kernel($(_: $argument),*);
        }
        kernel
    }};
}

macro_rules! absmax {
    ($($part:literal),*) => {
        kernel!((*const u8, *const Blocks, *mut u32, *mut u64), "absmax_", $($part),*)
    };
}

/// Quantizes or dequantizes.
macro_rules! convert {
    ($($part:literal),*) => {
        kernel!((*const u8, *const Blocks, *const f32, *mut u8), $($part),*)
    };
}

macro_rules! scales {
    ($($part:literal),*) => {
        kernel!((*const u32, u64, f32, *mut u8, *mut f32), "scales_", $($part),*)
    };
}

macro_rules! inverses {
    ($($part:literal),*) => {
        kernel!((*const u8, u64, i32, *mut f32), "inverses_", $($part),*)
    };
}

/// The kernels of one instruction set, which is the suffix of their names.
macro_rules! table {
    ($suffix:literal) => {
        Table {
            absmax: [absmax!("f32", $suffix), absmax!("f16", $suffix), absmax!("bf16", $suffix)],
            quantize: [
                [convert!("quantize_f32_e4m3", $suffix), convert!("quantize_f32_e5m2", $suffix)],
                [convert!("quantize_f16_e4m3", $suffix), convert!("quantize_f16_e5m2", $suffix)],
                [convert!("quantize_bf16_e4m3", $suffix), convert!("quantize_bf16_e5m2", $suffix)],
            ],
            dequantize: [
                [
                    convert!("dequantize_f32_e4m3", $suffix),
                    convert!("dequantize_f32_e5m2", $suffix),
                ],
                [
                    convert!("dequantize_f16_e4m3", $suffix),
                    convert!("dequantize_f16_e5m2", $suffix),
                ],
                [
                    convert!("dequantize_bf16_e4m3", $suffix),
                    convert!("dequantize_bf16_e5m2", $suffix),
                ],
            ],
            scales: [scales!("f32", $suffix), scales!("e8m0", $suffix)],
            inverses: [inverses!("f32", $suffix), inverses!("e8m0", $suffix)],
        }
    };
}

/// The tables that this processor can run; the widest instructions are last.
fn tables() -> &'static [Table] {
    static TABLES: OnceBox<Vec<Table>> = OnceBox::new();
    TABLES.get_or_init(|| {
        let mut tables = Box::new(vec![table!("_plain")]);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                tables.push(table!("_avx2"));
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                tables.push(table!("_avx512"));
            }
        }
        tables
    })
}

/// Runs a kernel with the widest instructions.
pub fn run(kernel: Kernel) {
    if let Some(table) = tables().last() {
        run_with(table, kernel);
    }
}

/// Runs a kernel of a table. Its results do not depend on the floating-point modes of the thread,
/// which a stream's thread inherits from the one that made the stream.
fn run_with(table: &Table, kernel: Kernel) {
    let _modes = StandardFloatModes::set();
    match kernel {
        Kernel::Zero { span } => bytes::fill(span, 0),
        Kernel::Absmax { source_type, source, blocks, absmax, nonfinite } => {
            let kernel = table.absmax[source_type as usize];
            // No two threads share a block.
            let counts = in_parts(blocks, blocks.block_rows, &|part, row| {
                let (mut nonfinite, skip) = (0u64, scales_before(&blocks, row));
                let from = address(source, row as i64 * blocks.row_stride, source_type.bytes());
                // SAFETY: the source and a magnitude for each block stay (Kernel's promise).
                unsafe { kernel(from, &part, pointer::<u32>(absmax).add(skip), &mut nonfinite) };
                nonfinite
            });
            // SAFETY: eight bytes, aligned, which kernels only add to.
            let all = unsafe { &*pointer::<AtomicU64>(nonfinite) };
            all.fetch_add(counts.into_iter().sum(), Ordering::Relaxed);
        }
        Kernel::Scales { absmax, format_max, scale_type, scales, inverses } => {
            let count = (absmax.bytes() / 4) as u64;
            // SAFETY: `count` magnitudes, scales and inverses (Kernel's promise).
            unsafe {
                let (absmax, scales) = (pointer::<u32>(absmax), pointer::<u8>(scales));
                (table.scales[scale_type as usize])(
                    absmax,
                    count,
                    format_max,
                    scales,
                    pointer(inverses),
                );
            }
        }
        Kernel::Inverses { scale_type, scales, inverses, copy } => {
            let count = (inverses.bytes() / 4) as u64;
            let kernel = table.inverses[scale_type as usize];
            // SAFETY: `count` scales and inverses (Kernel's promise).
            unsafe { kernel(pointer(scales), count, i32::from(copy), pointer(inverses)) };
        }
        Kernel::Quantize { source_type, format, source, blocks, inverses, target } => {
            let kernel = table.quantize[source_type as usize][format as usize];
            in_parts(blocks, 1, &|part, row| {
                let from = address(source, row as i64 * blocks.row_stride, source_type.bytes());
                let to = address(target.start() as u64, (row * blocks.cols) as i64, 1);
                // SAFETY: source, inverses and target stay (Kernel's promise).
                unsafe {
                    kernel(
                        from,
                        &part,
                        pointer::<f32>(inverses).add(scales_before(&blocks, row)),
                        to,
                    )
                };
                0
            });
        }
        Kernel::ExpertsRoute { state, call } => {
            // SAFETY: the state and what it and the call name stay (Kernel's promise).
            unsafe { wb_experts_route_plain(&state, &call) };
        }
        Kernel::ExpertsResize { state, keep, slots } => {
            // SAFETY: as above.
            unsafe { wb_experts_resize_plain(&state, keep, slots) };
        }
        Kernel::Dequantize { source_type, format, source, blocks, scales, target } => {
            let kernel = table.dequantize[source_type as usize][format as usize];
            in_parts(blocks, 1, &|part, row| {
                let from = address(source.start() as u64, (row * blocks.cols) as i64, 1);
                let to = address(target, row as i64 * blocks.row_stride, source_type.bytes());
                // SAFETY: source, scales and target stay (Kernel's promise).
                unsafe {
                    kernel(from, &part, pointer::<f32>(scales).add(scales_before(&blocks, row)), to)
                };
                0
            });
        }
        Kernel::Encode { coded, source, target } => {
            codec::widest().encode(coded, source, target, 0);
        }
        Kernel::Decode { coded, encoded, decoded_bytes, first_tile, target, source } => {
            let encoded = match source {
                DecodeSource::Kept => (follow(encoded), Window::default()),
                DecodeSource::Given | DecodeSource::Host => (encoded, Window::default()),
                DecodeSource::Window(window) => (encoded, window),
            };
            codec::widest().decode(coded, encoded, decoded_bytes, first_tile, target, 0);
        }
        Kernel::Verify { encoded, decoded_bytes, first_tile, decoded, mismatches } => {
            let found = codec::widest().verify(encoded, decoded_bytes, first_tile, decoded, 0);
            // SAFETY: eight bytes, aligned, which kernels only add to.
            let all = unsafe { &*pointer::<AtomicU64>(mismatches) };
            all.fetch_add(found, Ordering::Relaxed);
        }
    }
}

/// The number of the first scale of a row.
fn scales_before(blocks: &Blocks, row: u64) -> usize {
    ((blocks.first_row + row) / blocks.block_rows * blocks.scale_cols) as usize
}

/// Calls `work` for parts of the rows on several threads, with each part and the number of its
/// first row. A part's scales begin at those of its first row. Parts begin at a multiple of `step`
/// rows in a block.
fn in_parts(blocks: Blocks, step: u64, work: &(dyn Fn(Blocks, u64) -> u64 + Sync)) -> Vec<u64> {
    let part = |from: u64, to: u64| {
        // Each thread has its own.
        let _modes = StandardFloatModes::set();
        let first_row = (blocks.first_row + from) % blocks.block_rows;
        work(Blocks { rows: to - from, first_row, ..blocks }, from)
    };
    let threads = match blocks.rows * blocks.cols / WORTH_A_THREAD {
        0..=1 => 1,
        worth => worth.min(most_threads() as u64),
    };
    // The first row of each part, counted from the first block's first row.
    let rows = blocks.rows.div_ceil(threads).next_multiple_of(step);
    let cut = |at: u64| (at * rows).saturating_sub(blocks.first_row % step).min(blocks.rows);
    let parts: Vec<(u64, u64)> = (0..=threads)
        .map(|at| (if at == 0 { 0 } else { cut(at) }, cut(at + 1)))
        .filter(|(from, to)| from < to)
        .collect();
    thread::scope(|scope| {
        let started: Vec<_> = parts
            .iter()
            .skip(1)
            .map(|&(from, to)| {
                let run = move || part(from, to);
                let builder = thread::Builder::new().name("weighbridge-kernel".into());
                (builder.spawn_scoped(scope, run), from, to)
            })
            .collect();
        let first = parts.first().map(|&(from, to)| part(from, to));
        // If a thread cannot start, this one does its work.
        let others = started.into_iter().map(|(thread, from, to)| match thread {
            Ok(thread) => thread.join().unwrap_or_default(),
            Err(_) => part(from, to),
        });
        first.into_iter().chain(others).collect()
    })
}

/// The compressed bytes that a link leads to, if there is one.
fn follow(encoded: Span) -> Span {
    let number = |at: usize| bytes::read_u64(encoded.part(8 * at, 8));
    if (encoded.bytes() as u64) < LINK || number(0) != LINK_MAGIC {
        return encoded;
    }
    // SAFETY: the library alone writes links, to memory that it keeps as long as the link.
    unsafe { Span::new(number(1) as usize, number(2) as usize) }
}

fn pointer<T>(span: Span) -> *mut T {
    std::ptr::with_exposed_provenance_mut(span.start())
}

fn address(start: u64, elements: i64, bytes: u64) -> *mut u8 {
    let at = start.wrapping_add_signed(elements.wrapping_mul(bytes as i64));
    std::ptr::with_exposed_provenance_mut(at as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::mapping::Mapping;
    use crate::tensor::fp8::{Fp8Format, SourceType};
    use crate::tensor::fp8_reference;

    /// Quantizes numbers, given by their bits, with a scale of 1 and every table.
    fn codes(bytes: &[u8], source_type: SourceType, format: Fp8Format) -> Vec<Vec<u8>> {
        let mapped = |bytes: &[u8]| {
            let mapping = Mapping::anonymous(bytes.len()).unwrap();
            let span = mapping.span().part(0, bytes.len());
            bytes::write(span, bytes);
            (mapping, span)
        };
        let count = bytes.len() as u64 / source_type.bytes();
        let (_source, source) = mapped(bytes);
        let (_target, target) = mapped(&vec![0; count as usize]);
        let (_inverses, inverses) = mapped(&1f32.to_ne_bytes());
        let blocks = Blocks {
            rows: 1,
            cols: count,
            row_stride: count as i64,
            col_stride: 1,
            block_rows: 1,
            block_cols: count,
            scale_cols: 1,
            first_row: 0,
        };
        let kernel = Kernel::Quantize {
            source_type,
            format,
            source: source.start() as u64,
            blocks,
            inverses,
            target,
        };
        let run = |table| {
            bytes::fill(target, 0xaa);
            run_with(table, kernel);
            bytes::read(target)
        };
        tables().iter().map(run).collect()
    }

    fn check(numbers: &[f32], bytes: &[u8], source_type: SourceType) {
        for format in [Fp8Format::E4m3, Fp8Format::E5m2] {
            let wanted: Vec<u8> =
                numbers.iter().map(|number| fp8_reference::encode(*number, format)).collect();
            for (at, found) in codes(bytes, source_type, format).into_iter().enumerate() {
                let wrong = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
                let shown = wrong.map(|at| (numbers[at], found[at], wanted[at]));
                assert_eq!(shown, None, "table {at}, {source_type:?} to {format:?}");
            }
        }
    }

    #[test]
    fn every_16_bit_number_is_rounded_as_defined() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_ne_bytes).collect();
        let bf16: Vec<f32> =
            (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
        check(&bf16, &all, SourceType::Bf16);
        let f16: Vec<f32> = (0..=u16::MAX)
            .map(|bits| {
                let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
                let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
                sign * match exponent {
                    0 => fraction * 2f32.powi(-24),
                    31 if fraction == 0.0 => f32::INFINITY,
                    31 => f32::NAN,
                    _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
                }
            })
            .collect();
        check(&f16, &all, SourceType::F16);
    }

    #[test]
    fn f32_numbers_around_every_rounding_boundary_are_rounded_as_defined() {
        // Both sides of every code and of every middle between two codes, and bits all over the
        // range.
        let mut bits: Vec<u32> = (0..100_000u32).map(|at| at.wrapping_mul(0x9e37_79b1)).collect();
        for format in [Fp8Format::E4m3, Fp8Format::E5m2] {
            for code in 0..0x7e {
                let (one, next) =
                    (fp8_reference::decode(code, format), fp8_reference::decode(code + 1, format));
                for edge in [one, (one + next) / 2.0] {
                    let middle = (edge as f32).to_bits();
                    bits.extend([middle.wrapping_sub(1), middle, middle + 1]);
                    bits.extend([middle | 1 << 31, (middle + 1) | 1 << 31]);
                }
            }
        }
        let numbers: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
        let bytes: Vec<u8> = bits.iter().copied().flat_map(u32::to_ne_bytes).collect();
        check(&numbers, &bytes, SourceType::F32);
    }

    /// Everything that a thread's modes could change, on every table: codes, scales, inverses and
    /// dequantized numbers of subnormal, tiny, odd and large ones.
    #[cfg(target_arch = "x86_64")]
    fn results() -> Vec<Vec<u8>> {
        use crate::tensor::fp8::ScaleType;
        // Parts on several threads, where there are several processors.
        let (rows, cols) = (64u64, 2 * WORTH_A_THREAD / 64);
        let count = (rows * cols) as usize;
        let mapping = |bytes: usize| Mapping::anonymous(bytes.max(1)).unwrap();
        let [source, absmax, codes, back] =
            [count * 4, rows as usize * 4, count, count * 4].map(mapping);
        let [scales, inverses, nonfinite] = [rows as usize * 4, rows as usize * 4, 8].map(mapping);
        // A loop, since iterators are slow where nothing is optimized.
        let exponents = [0u32, 0, 1, 40, 100, 110, 120, 127, 130, 200];
        let (mut numbers, mut at) = (Vec::with_capacity(count * 4), 0u32);
        while at < count as u32 {
            let bits = at.wrapping_mul(0x9e37_79b1);
            let row = at as usize / cols as usize;
            let exponent = exponents[row % exponents.len()].saturating_sub(at % 3);
            numbers.extend_from_slice(&(bits & 0x807f_ffff | exponent << 23).to_ne_bytes());
            at += 1;
        }
        bytes::write(source.span().part(0, count * 4), &numbers);
        let blocks = Blocks {
            rows,
            cols,
            row_stride: cols as i64,
            col_stride: 1,
            block_rows: 1,
            block_cols: cols,
            scale_cols: 1,
            first_row: 0,
        };
        let start = |mapping: &Mapping| mapping.span().start() as u64;
        let rows_of = |mapping: &Mapping| mapping.span().part(0, rows as usize * 4);
        let mut found = Vec::new();
        for table in tables() {
            for (scale_type, scale_bytes) in [(ScaleType::F32, 4), (ScaleType::E8m0, 1)] {
                let scales = scales.span().part(0, rows as usize * scale_bytes);
                bytes::fill(absmax.span(), 0);
                let (source_type, format) = (SourceType::F32, Fp8Format::E4m3);
                let kernels = [
                    Kernel::Absmax {
                        source_type,
                        source: start(&source),
                        blocks,
                        absmax: rows_of(&absmax),
                        nonfinite: nonfinite.span(),
                    },
                    Kernel::Scales {
                        absmax: rows_of(&absmax),
                        format_max: 448.0,
                        scale_type,
                        scales,
                        inverses: rows_of(&inverses),
                    },
                    Kernel::Quantize {
                        source_type,
                        format,
                        source: start(&source),
                        blocks,
                        inverses: rows_of(&inverses),
                        target: codes.span().part(0, count),
                    },
                ];
                kernels.into_iter().for_each(|kernel| run_with(table, kernel));
                found.extend([bytes::read(scales), bytes::read(rows_of(&inverses))]);
                found.push(bytes::read(codes.span().part(0, count)));
                for copy in [false, true] {
                    let inverses = rows_of(&inverses);
                    run_with(table, Kernel::Inverses { scale_type, scales, inverses, copy });
                    found.push(bytes::read(inverses));
                }
                for source_type in [SourceType::F32, SourceType::F16, SourceType::Bf16] {
                    let kernel = Kernel::Dequantize {
                        source_type,
                        format,
                        source: codes.span().part(0, count),
                        blocks,
                        scales: rows_of(&inverses),
                        target: start(&back),
                    };
                    run_with(table, kernel);
                    let bytes = count * source_type.bytes() as usize;
                    found.push(bytes::read(back.span().part(0, bytes)));
                }
            }
        }
        found
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_callers_floating_point_modes_change_no_bit() {
        use crate::os::float_modes::with_modes;
        let wanted = results();
        let (flush, as_zero) = (0x8000, 0x0040);
        for rounding in [0, 0x2000, 0x4000, 0x6000] {
            for modes in [0, flush | as_zero] {
                let found = with_modes(0x1f80 | rounding | modes, results);
                let same = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
                assert_eq!(same, None, "rounding {rounding:#x}, modes {modes:#x}");
            }
        }
    }

    #[test]
    #[ignore = "all 2^32 numbers take minutes: make test-slow"]
    fn every_32_bit_number_is_rounded_as_defined() {
        for chunk in 0..256u32 {
            eprintln!("{chunk} of 256");
            let bits = (chunk << 24)..=(chunk << 24 | 0x00ff_ffff);
            let numbers: Vec<f32> = bits.clone().map(f32::from_bits).collect();
            let bytes: Vec<u8> = bits.flat_map(u32::to_ne_bytes).collect();
            check(&numbers, &bytes, SourceType::F32);
        }
    }
}
