//! The kernels of `kernels/host.c`: which copy of them this processor runs, on how many threads.
// Their arguments are addresses: what they point to is promised by the Kernel's maker.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use once_cell::race::OnceBox;

use crate::device::kernel::Kernel;
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::thread;
use crate::tensor::scale_grid::Blocks;

/// Elements that are worth a thread.
const WORTH_A_THREAD: u64 = 1 << 20;

/// More threads than this are never started for one kernel.
const MOST_THREADS: usize = 16;

type Absmax = unsafe extern "C" fn(*const u8, *const Blocks, *mut u32, *mut u64);
type Quantize = unsafe extern "C" fn(*const u8, *const Blocks, *const f32, *mut u8);
type Dequantize = unsafe extern "C" fn(*const u8, *const Blocks, *const f32, *mut u8);
type Scales = unsafe extern "C" fn(*const u32, u64, f32, *mut u8, *mut f32);
type Inverses = unsafe extern "C" fn(*const u8, u64, i32, *mut f32);

/// One copy of all kernels; by [`SourceType`], then by [`Fp8Format`].
struct Table {
    absmax: [Absmax; 3],
    quantize: [[Quantize; 2]; 3],
    dequantize: [[Dequantize; 2]; 3],
    scales: [Scales; 2],
    inverses: [Inverses; 2],
}

macro_rules! table {
    ($suffix:literal) => {{
        unsafe extern "C" {
            #[link_name = concat!("wb_absmax_f32", $suffix)]
            fn absmax_f32(_: *const u8, _: *const Blocks, _: *mut u32, _: *mut u64);
            #[link_name = concat!("wb_absmax_f16", $suffix)]
            fn absmax_f16(_: *const u8, _: *const Blocks, _: *mut u32, _: *mut u64);
            #[link_name = concat!("wb_absmax_bf16", $suffix)]
            fn absmax_bf16(_: *const u8, _: *const Blocks, _: *mut u32, _: *mut u64);
            #[link_name = concat!("wb_quantize_f32_e4m3", $suffix)]
            fn quantize_f32_e4m3(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_quantize_f32_e5m2", $suffix)]
            fn quantize_f32_e5m2(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_quantize_f16_e4m3", $suffix)]
            fn quantize_f16_e4m3(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_quantize_f16_e5m2", $suffix)]
            fn quantize_f16_e5m2(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_quantize_bf16_e4m3", $suffix)]
            fn quantize_bf16_e4m3(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_quantize_bf16_e5m2", $suffix)]
            fn quantize_bf16_e5m2(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_dequantize_f32_e4m3", $suffix)]
            fn dequantize_f32_e4m3(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_dequantize_f32_e5m2", $suffix)]
            fn dequantize_f32_e5m2(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_dequantize_f16_e4m3", $suffix)]
            fn dequantize_f16_e4m3(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_dequantize_f16_e5m2", $suffix)]
            fn dequantize_f16_e5m2(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_dequantize_bf16_e4m3", $suffix)]
            fn dequantize_bf16_e4m3(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_dequantize_bf16_e5m2", $suffix)]
            fn dequantize_bf16_e5m2(_: *const u8, _: *const Blocks, _: *const f32, _: *mut u8);
            #[link_name = concat!("wb_scales_f32", $suffix)]
            fn scales_f32(_: *const u32, _: u64, _: f32, _: *mut u8, _: *mut f32);
            #[link_name = concat!("wb_scales_e8m0", $suffix)]
            fn scales_e8m0(_: *const u32, _: u64, _: f32, _: *mut u8, _: *mut f32);
            #[link_name = concat!("wb_inverses_f32", $suffix)]
            fn inverses_f32(_: *const u8, _: u64, _: i32, _: *mut f32);
            #[link_name = concat!("wb_inverses_e8m0", $suffix)]
            fn inverses_e8m0(_: *const u8, _: u64, _: i32, _: *mut f32);
        }
        Table {
            absmax: [absmax_f32, absmax_f16, absmax_bf16],
            quantize: [
                [quantize_f32_e4m3, quantize_f32_e5m2],
                [quantize_f16_e4m3, quantize_f16_e5m2],
                [quantize_bf16_e4m3, quantize_bf16_e5m2],
            ],
            dequantize: [
                [dequantize_f32_e4m3, dequantize_f32_e5m2],
                [dequantize_f16_e4m3, dequantize_f16_e5m2],
                [dequantize_bf16_e4m3, dequantize_bf16_e5m2],
            ],
            scales: [scales_f32, scales_e8m0],
            inverses: [inverses_f32, inverses_e8m0],
        }
    }};
}

/// The copies that this processor can run, the plain one first.
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

/// Runs a kernel, with the widest instructions that there are.
pub fn run(kernel: Kernel) {
    if let Some(table) = tables().last() {
        run_with(table, kernel);
    }
}

fn run_with(table: &Table, kernel: Kernel) {
    match kernel {
        Kernel::Zero { span } => bytes::fill(span, 0),
        Kernel::Absmax { source_type, source, blocks, absmax, nonfinite } => {
            let kernel = table.absmax[source_type as usize];
            // Threads share no block.
            let counts = in_parts(blocks, blocks.block_rows, &|part, row| {
                let (mut nonfinite, skip) = (0u64, scales_before(&blocks, row));
                let from = address(source, row as i64 * blocks.row_stride, source_type.bytes());
                // SAFETY: the maker of the kernel keeps the source and a size for each block.
                unsafe { kernel(from, &part, pointer::<u32>(absmax).add(skip), &mut nonfinite) };
                nonfinite
            });
            // SAFETY: eight bytes at a multiple of eight, which kernels only add to.
            let all = unsafe { &*pointer::<AtomicU64>(nonfinite) };
            all.fetch_add(counts.into_iter().sum(), Ordering::Relaxed);
        }
        Kernel::Scales { absmax, format_max, scale_type, scales, inverses } => {
            let count = (absmax.bytes() / 4) as u64;
            // SAFETY: as many of each.
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
            // SAFETY: as many of each.
            unsafe { kernel(pointer(scales), count, i32::from(copy), pointer(inverses)) };
        }
        Kernel::Quantize { source_type, format, source, blocks, inverses, target } => {
            let kernel = table.quantize[source_type as usize][format as usize];
            in_parts(blocks, 1, &|part, row| {
                let from = address(source, row as i64 * blocks.row_stride, source_type.bytes());
                let to = address(target.start() as u64, (row * blocks.cols) as i64, 1);
                // SAFETY: the maker of the kernel keeps source, inverses and target.
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
        Kernel::Dequantize { source_type, format, source, blocks, scales, target } => {
            let kernel = table.dequantize[source_type as usize][format as usize];
            in_parts(blocks, 1, &|part, row| {
                let from = address(source.start() as u64, (row * blocks.cols) as i64, 1);
                let to = address(target, row as i64 * blocks.row_stride, source_type.bytes());
                // SAFETY: the maker of the kernel keeps source, scales and target.
                unsafe {
                    kernel(from, &part, pointer::<f32>(scales).add(scales_before(&blocks, row)), to)
                };
                0
            });
        }
    }
}

/// Scales of the rows of blocks that lie before a row's.
fn scales_before(blocks: &Blocks, row: u64) -> usize {
    ((blocks.first_row + row) / blocks.block_rows * blocks.scale_cols) as usize
}

/// Calls `work` for parts of the rows on several threads: with each part, whose scales begin at those of
/// its own first row, and the number of that row. Parts begin where a multiple of `step` rows of a
/// block has gone.
fn in_parts(blocks: Blocks, step: u64, work: &(dyn Fn(Blocks, u64) -> u64 + Sync)) -> Vec<u64> {
    let part = |from: u64, to: u64| {
        let first_row = (blocks.first_row + from) % blocks.block_rows;
        work(Blocks { rows: to - from, first_row, ..blocks }, from)
    };
    let most = || thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS) as u64;
    let threads = match blocks.rows * blocks.cols / WORTH_A_THREAD {
        0..=1 => 1,
        worth => worth.min(most()),
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
        // A thread that could not be had makes this slower, not wrong.
        let others = started.into_iter().map(|(thread, from, to)| match thread {
            Ok(thread) => thread.join().unwrap_or_default(),
            Err(_) => part(from, to),
        });
        first.into_iter().chain(others).collect()
    })
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

    /// Quantizes numbers as they are, given by their bits, with every copy of the kernels.
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
                assert_eq!(shown, None, "copy {at}, {source_type:?} to {format:?}");
            }
        }
    }

    #[test]
    fn every_number_of_16_bits_is_rounded_as_defined() {
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
    fn numbers_of_32_bits_around_every_edge_are_rounded_as_defined() {
        // Both sides of every code, of every middle between two, and bits all over the range.
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

    #[test]
    #[ignore = "all 2^32 numbers take minutes: make test-slow"]
    fn every_number_of_32_bits_is_rounded_as_defined() {
        for chunk in 0..256u32 {
            eprintln!("{chunk} of 256");
            let bits = (chunk << 24)..=(chunk << 24 | 0x00ff_ffff);
            let numbers: Vec<f32> = bits.clone().map(f32::from_bits).collect();
            let bytes: Vec<u8> = bits.flat_map(u32::to_ne_bytes).collect();
            check(&numbers, &bytes, SourceType::F32);
        }
    }
}
