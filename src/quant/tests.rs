use proptest::prelude::*;

use crate::device::backend::Location;
use crate::device::device::{Device, DeviceOptions};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::quant::chunking::{Chunks, StagingNeeds};
use crate::quant::quantizer::Quantizer;
use crate::quant::task::{Direction, QuantizeTask};
use crate::status::{WB_ERR_NOT_FINITE, WB_ERR_STAGING};
use crate::tensor::dtype::{Dtype, WB_DTYPE_F32};
use crate::tensor::fp8::{Fp8Format, ScaleType};
use crate::tensor::fp8_reference;
use crate::tensor::layout::Layout;
use crate::tensor::scale_grid::ScaleGrid;

fn layout(shape: &[i64], strides: Option<&[i64]>) -> Layout {
    Layout::new(Dtype::from_code(WB_DTYPE_F32).unwrap(), shape, strides).unwrap()
}

/// Memory of the host with these bytes.
fn holding(device: &Arc<Device>, bytes: &[u8]) -> Arc<Buffer> {
    let buffer = Buffer::alloc(device, bytes.len(), &BufferOptions::default(), &mut None).unwrap();
    bytes::write(buffer.data(), bytes);
    buffer
}

/// The bytes that an error says are needed.
fn named_need(message: &str) -> u64 {
    let (_, needed) = message.split_once(" needs ").unwrap();
    let (bytes, _) = needed.split_once(" bytes").unwrap();
    bytes.rsplit([' ', '(']).next().unwrap().parse().unwrap()
}

/// Every index of a shape, in order.
fn indexes(shape: &[i64]) -> Vec<Vec<i64>> {
    shape.iter().fold(vec![vec![]], |found, size| {
        found
            .iter()
            .flat_map(|index| (0..*size).map(move |at| [index.as_slice(), &[at]].concat()))
            .collect()
    })
}

fn formats() -> impl Strategy<Value = Fp8Format> {
    prop::sample::select(vec![Fp8Format::E4m3, Fp8Format::E5m2])
}

fn kinds() -> impl Strategy<Value = ScaleType> {
    prop::sample::select(vec![ScaleType::F32, ScaleType::E8m0])
}

#[test]
fn matrices_are_found_by_their_number() {
    let layout = layout(&[2, 3, 4, 5, 6], Some(&[7000, 1, -900, 6, 1]));
    let grid = ScaleGrid::new(&layout, (0, 0)).unwrap();
    let starts: Vec<i64> = (0..grid.matrices).map(|matrix| grid.start(matrix)).collect();
    let wanted: Vec<i64> = indexes(&[2, 3, 4])
        .iter()
        .map(|index| index[0] * 7000 + index[1] - index[2] * 900)
        .collect();
    assert_eq!(starts, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any shape, strides and blocks, with numbers of any bits: as the plain definition has it.
    #[test]
    fn tensors_are_quantized_block_by_block(
        shape in prop::collection::vec(1i64..9, 0..4),
        gaps in prop::collection::vec(0i64..3, 4),
        turned in any::<bool>(),
        block in (0u64..5, 0u64..5),
        format in formats(),
        kind in kinds(),
        seed in prop::collection::vec(prop_oneof![any::<u32>(), 0x3f00_0000u32..0x4000_0000], 64),
    ) {
        // Strides with gaps; turned, the first dimension is the dense one.
        let mut strides = vec![0i64; shape.len()];
        let mut next = 1;
        let order: Vec<usize> = if turned { (0..shape.len()).collect() } else { (0..shape.len()).rev().collect() };
        for at in order {
            strides[at] = next;
            next = next * shape[at] + gaps[at];
        }
        let layout = layout(&shape, Some(&strides));
        let count = (layout.span_bytes() / 4) as usize;
        let numbers: Vec<f32> = (0..count).map(|at| f32::from_bits(seed[at % 64].rotate_left(at as u32 / 64))).collect();
        let grid = ScaleGrid::new(&layout, block).unwrap();
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let quantizer = Quantizer::new(&device, 1 << 20).unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        let source = holding(&device, &bytes);
        let target = holding(&device, &vec![0xaa; layout.elements() as usize]);
        let scales = holding(&device, &vec![0xaa; (grid.all_scales() * kind.bytes()) as usize]);
        let host = |buffer: &Buffer| Location::host(buffer.data());
        let task = QuantizeTask {
            layout: layout.clone(),
            direction: Direction::Quantize,
            unquantized: host(&source),
            quantized: host(&target),
            format,
            scales: host(&scales),
            scale_type: kind,
            use_given_scales: false,
            block,
            reject_nonfinite: false,
        };
        let done = quantizer.run(&task, &mut None).unwrap();
        // The definition, element by element.
        let matrix = grid.blocks;
        let at = |index: &[i64]| {
            let flat: i64 = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
            numbers[flat as usize]
        };
        let scale_of = |index: &[i64]| {
            let row = index.len().checked_sub(2).map_or(0, |dim| index[dim] as u64);
            let col = index.len().checked_sub(1).map_or(0, |dim| index[dim] as u64);
            let leading = &index[..index.len().saturating_sub(2)];
            let matrix_at = leading.iter().zip(&shape).fold(0, |at, (i, size)| at * *size as u64 + *i as u64);
            (matrix_at * grid.scales() + row / matrix.block_rows * matrix.scale_cols + col / matrix.block_cols) as usize
        };
        let mut largest = vec![0f32; grid.all_scales() as usize];
        let mut nonfinite = 0;
        for index in indexes(&shape) {
            let number = at(&index);
            if number.is_finite() {
                largest[scale_of(&index)] = largest[scale_of(&index)].max(number.abs());
            } else {
                nonfinite += 1;
            }
        }
        prop_assert_eq!(done.nonfinite, nonfinite);
        let found_scales = bytes::read(scales.data());
        let wanted: Vec<_> = largest.iter().map(|most| fp8_reference::scale(*most, format, kind)).collect();
        for (at, (stored, _)) in wanted.iter().enumerate() {
            let found = match kind {
                ScaleType::F32 => u32::from_ne_bytes(found_scales[4 * at..4 * at + 4].try_into().unwrap()),
                ScaleType::E8m0 => u32::from(found_scales[at]),
            };
            prop_assert_eq!(found, *stored, "scale {} of {}", at, largest[at]);
        }
        let found = bytes::read(target.data());
        for (at_target, index) in indexes(&shape).into_iter().enumerate() {
            let inverse = 1.0 / wanted[scale_of(&index)].1;
            let code = fp8_reference::encode(at(&index) * inverse, format);
            prop_assert_eq!(found[at_target], code, "{:?}: {} by {}", index, at(&index), inverse);
        }
        // And back: the codes' numbers times the scales, where they came from.
        let back = QuantizeTask { direction: Direction::Dequantize, use_given_scales: true, ..task };
        quantizer.run(&back, &mut None).unwrap();
        let returned = bytes::read(source.data());
        for (at_target, index) in indexes(&shape).into_iter().enumerate() {
            let flat: i64 = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
            let bytes = returned[4 * flat as usize..4 * flat as usize + 4].try_into().unwrap();
            let number = f32::from_ne_bytes(bytes);
            let wanted = fp8_reference::decode(found[at_target], format) as f32 * wanted[scale_of(&index)].1;
            prop_assert!(number.to_bits() == wanted.to_bits() || (number.is_nan() && wanted.is_nan()));
        }
    }

    /// The staging memory is never more than allowed, and chunks have whole blocks or two passes.
    #[test]
    fn chunks_keep_the_limit(
        rows in 1i64..5000, cols in 1i64..5000, block in (0u64..300, 0u64..300),
        limit in 0u64..(8 << 20), comes in any::<bool>(), leaves in any::<bool>(), given in any::<bool>(),
    ) {
        let grid = ScaleGrid::new(&layout(&[rows, cols], None), block).unwrap();
        let needs = StagingNeeds {
            row_in: if comes { cols as u64 * 4 } else { 0 },
            row_out: if leaves { cols as u64 } else { 0 },
            scale: 4,
            given_scales: given,
        };
        match Chunks::new(&grid, needs, limit, 3) {
            Ok(chunks) => {
                prop_assert!(chunks.bytes() <= limit);
                prop_assert!(chunks.rows >= 1 && chunks.lanes >= 1);
                let whole = chunks.rows % grid.blocks.block_rows == 0 || chunks.rows == rows as u64;
                prop_assert!(whole || chunks.scales_first);
                prop_assert!(!given || chunks.scales_first);
            }
            Err(error) => {
                prop_assert_eq!(error.status, WB_ERR_STAGING);
                // A row and the scales do not fit, or would leave nothing.
                let scales = grid.scales() * 12;
                prop_assert!(needs.row_in + needs.row_out + scales + 2048 > limit);
            }
        }
        // What an error says is needed is enough, and one byte less is not.
        let refused = Chunks::new(&grid, needs, 0, 3).unwrap_err().message;
        let least = named_need(&refused);
        prop_assert!(Chunks::new(&grid, needs, least, 3).is_ok(), "{}", refused);
        prop_assert!(Chunks::new(&grid, needs, least - 1, 3).is_err(), "{}", refused);
    }
}

#[test]
fn what_is_not_finite_may_be_refused() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let quantizer = Quantizer::new(&device, 1 << 20).unwrap();
    let numbers = [1.0f32, f32::NAN, f32::NEG_INFINITY, 448.0];
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    let (source, target) = (holding(&device, &bytes), holding(&device, &[0; 4]));
    let scales = holding(&device, &[0; 4]);
    let host = |buffer: &Buffer| Location::host(buffer.data());
    let mut task = QuantizeTask {
        layout: layout(&[4], None),
        direction: Direction::Quantize,
        unquantized: host(&source),
        quantized: host(&target),
        format: Fp8Format::E4m3,
        scales: host(&scales),
        scale_type: ScaleType::F32,
        use_given_scales: false,
        block: (0, 0),
        reject_nonfinite: true,
    };
    let error = quantizer.run(&task, &mut None).unwrap_err();
    assert_eq!(error.status, WB_ERR_NOT_FINITE);
    assert!(error.message.contains("2 of 4"), "{}", error.message);
    task.reject_nonfinite = false;
    assert_eq!(quantizer.run(&task, &mut None).unwrap().nonfinite, 2);
    assert_eq!(bytes::read(target.data()), [0x38, 0x7f, 0xfe, 0x7e]);
}
