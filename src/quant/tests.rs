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

/// Host memory with these bytes.
fn buffer_of(device: &Arc<Device>, bytes: &[u8]) -> Arc<Buffer> {
    let buffer = Buffer::alloc(device, bytes.len(), &BufferOptions::default(), &mut None).unwrap();
    bytes::write(buffer.data(), bytes);
    buffer
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn location(buffer: &Buffer) -> Location {
    Location::host(buffer.data())
}

/// The bytes that an error message says are needed.
fn needed_bytes(message: &str) -> u64 {
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

fn scale_types() -> impl Strategy<Value = ScaleType> {
    prop::sample::select(vec![ScaleType::F32, ScaleType::E8m0])
}

/// Numbers of any bits; half of them are of ordinary size.
fn seeds() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![any::<u32>(), 0x3f00_0000u32..0x4000_0000], 64)
}

/// A tensor in memory, by its definition.
struct Tensor {
    layout: Layout,
    grid: ScaleGrid,
    numbers: Vec<f32>,
}

impl Tensor {
    /// With gaps after each dimension; transposed, the first dimension is the innermost one.
    fn new(
        shape: &[i64],
        gaps: &[i64],
        transposed: bool,
        block: (u64, u64),
        seeds: &[u32],
    ) -> Self {
        let mut strides = vec![0i64; shape.len()];
        let mut order: Vec<usize> = (0..shape.len()).collect();
        if !transposed {
            order.reverse();
        }
        let mut next = 1;
        for at in order {
            strides[at] = next;
            next = next * shape[at] + gaps[at];
        }
        let layout = layout(shape, Some(&strides));
        let count = (layout.span_bytes() / 4) as usize;
        let number = |at: usize| f32::from_bits(seeds[at % 64].rotate_left(at as u32 / 64));
        let numbers = (0..count).map(number).collect();
        Self { grid: ScaleGrid::new(&layout, block).unwrap(), layout, numbers }
    }

    /// Where an element is among the numbers.
    fn offset(&self, index: &[i64]) -> usize {
        let strides = self.layout.strides();
        index.iter().zip(strides).map(|(at, stride)| at * stride).sum::<i64>() as usize
    }

    fn number(&self, index: &[i64]) -> f32 {
        self.numbers[self.offset(index)]
    }

    /// The scale of an element.
    fn scale_of(&self, index: &[i64]) -> usize {
        let from_end = |at: usize| index.len().checked_sub(at).map_or(0, |dim| index[dim] as u64);
        let leading = index[..index.len().saturating_sub(2)].iter().zip(self.layout.shape());
        let matrix = leading.fold(0, |at, (index, size)| at * *size as u64 + *index as u64);
        let blocks = &self.grid.blocks;
        let (row, col) = (from_end(2) / blocks.block_rows, from_end(1) / blocks.block_cols);
        (matrix * self.grid.scales() + row * blocks.scale_cols + col) as usize
    }

    /// The largest finite absolute value of each block, and how many numbers are not finite.
    fn largest(&self) -> (Vec<f32>, u64) {
        let mut largest = vec![0f32; self.grid.all_scales() as usize];
        let mut nonfinite = 0;
        for index in indexes(self.layout.shape()) {
            let (number, scale) = (self.number(&index), self.scale_of(&index));
            if number.is_finite() {
                largest[scale] = largest[scale].max(number.abs());
            } else {
                nonfinite += 1;
            }
        }
        (largest, nonfinite)
    }
}

fn stored_scale(bytes: &[u8], at: usize, scale_type: ScaleType) -> u32 {
    match scale_type {
        ScaleType::F32 => u32::from_ne_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap()),
        ScaleType::E8m0 => u32::from(bytes[at]),
    }
}

#[test]
fn matrices_start_where_their_indexes_say() {
    let layout = layout(&[2, 3, 4, 5, 6], Some(&[7000, 1, -900, 6, 1]));
    let grid = ScaleGrid::new(&layout, (0, 0)).unwrap();
    let starts: Vec<i64> = (0..grid.matrices).map(|matrix| grid.start(matrix)).collect();
    let expected: Vec<i64> = indexes(&[2, 3, 4])
        .iter()
        .map(|index| index[0] * 7000 + index[1] - index[2] * 900)
        .collect();
    assert_eq!(starts, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Quantizing and dequantizing give the bits of the reference, for any shape, strides, blocks
    /// and numbers.
    #[test]
    fn tensors_are_quantized_as_the_reference_says(
        shape in prop::collection::vec(1i64..9, 0..4),
        gaps in prop::collection::vec(0i64..3, 4),
        transposed in any::<bool>(),
        block in (0u64..5, 0u64..5),
        format in formats(),
        scale_type in scale_types(),
        seeds in seeds(),
    ) {
        let tensor = Tensor::new(&shape, &gaps, transposed, block, &seeds);
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let quantizer = Quantizer::new(&device, 1 << 20).unwrap();
        let source = buffer_of(&device, &bytes_of(&tensor.numbers));
        let target = buffer_of(&device, &vec![0xaa; tensor.layout.elements() as usize]);
        let scale_bytes = (tensor.grid.all_scales() * scale_type.bytes()) as usize;
        let scales = buffer_of(&device, &vec![0xaa; scale_bytes]);
        let task = QuantizeTask {
            layout: tensor.layout.clone(),
            direction: Direction::Quantize,
            unquantized: location(&source),
            quantized: location(&target),
            format,
            scales: location(&scales),
            scale_type,
            use_given_scales: false,
            block,
            reject_nonfinite: false,
        };
        let result = quantizer.run(&task, &mut None).unwrap();
        let (largest, nonfinite) = tensor.largest();
        prop_assert_eq!(result.nonfinite, nonfinite);
        let expected: Vec<_> = largest
            .iter()
            .map(|largest| fp8_reference::scale(*largest, format, scale_type))
            .collect();
        let stored = bytes::read(scales.data());
        for (at, (scale, _)) in expected.iter().enumerate() {
            let found = stored_scale(&stored, at, scale_type);
            prop_assert_eq!(found, *scale, "scale {} of {}", at, largest[at]);
        }
        let scale = |index: &[i64]| expected[tensor.scale_of(index)].1;
        let codes = bytes::read(target.data());
        for (index, found) in indexes(&shape).iter().zip(&codes) {
            let inverse = 1.0 / scale(index);
            let code = fp8_reference::encode(tensor.number(index) * inverse, format);
            prop_assert_eq!(*found, code, "{:?} times {}", index, inverse);
        }
        let back =
            QuantizeTask { direction: Direction::Dequantize, use_given_scales: true, ..task };
        quantizer.run(&back, &mut None).unwrap();
        let returned = bytes::read(source.data());
        for (index, code) in indexes(&shape).iter().zip(&codes) {
            let at = 4 * tensor.offset(index);
            let found = f32::from_ne_bytes(returned[at..at + 4].try_into().unwrap());
            let number = fp8_reference::decode(*code, format) as f32 * scale(index);
            let both_nan = found.is_nan() && number.is_nan();
            prop_assert!(both_nan || found.to_bits() == number.to_bits(), "{index:?}");
        }
    }

    /// The staging memory keeps to its limit, and chunks that have their own scales have whole
    /// blocks.
    #[test]
    fn chunks_keep_to_the_staging_limit(
        rows in 1i64..5000,
        cols in 1i64..5000,
        block in (0u64..300, 0u64..300),
        limit in 0u64..(8 << 20),
        copies_in in any::<bool>(),
        copies_out in any::<bool>(),
        given_scales in any::<bool>(),
    ) {
        let grid = ScaleGrid::new(&layout(&[rows, cols], None), block).unwrap();
        let needs = StagingNeeds {
            row_in: if copies_in { cols as u64 * 4 } else { 0 },
            row_out: if copies_out { cols as u64 } else { 0 },
            scale: 4,
            given_scales,
        };
        match Chunks::new(&grid, needs, limit, 3) {
            Ok(chunks) => {
                prop_assert!(chunks.bytes() <= limit);
                prop_assert!(chunks.rows >= 1 && chunks.lanes >= 1);
                let whole_blocks = chunks.rows % grid.blocks.block_rows == 0;
                let all_rows = chunks.rows == rows as u64;
                prop_assert!(whole_blocks || all_rows || chunks.scales_first);
                prop_assert!(!given_scales || chunks.scales_first);
            }
            Err(error) => {
                prop_assert_eq!(error.status, WB_ERR_STAGING);
                // A row and the scales do not fit, or nothing beside them would.
                let scales = grid.scales() * 12;
                prop_assert!(needs.row_in + needs.row_out + scales + 2048 > limit);
            }
        }
        // The bytes that the error names are enough, and one byte less is not.
        let message = Chunks::new(&grid, needs, 0, 3).unwrap_err().message;
        let least = needed_bytes(&message);
        prop_assert!(Chunks::new(&grid, needs, least, 3).is_ok(), "{}", message);
        prop_assert!(Chunks::new(&grid, needs, least - 1, 3).is_err(), "{}", message);
    }
}

#[test]
fn nonfinite_numbers_are_rejected_on_request() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let quantizer = Quantizer::new(&device, 1 << 20).unwrap();
    let source = buffer_of(&device, &bytes_of(&[1.0, f32::NAN, f32::NEG_INFINITY, 448.0]));
    let (target, scales) = (buffer_of(&device, &[0; 4]), buffer_of(&device, &[0; 4]));
    let mut task = QuantizeTask {
        layout: layout(&[4], None),
        direction: Direction::Quantize,
        unquantized: location(&source),
        quantized: location(&target),
        format: Fp8Format::E4m3,
        scales: location(&scales),
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
