//! Layouts, blocks and scales: views of a small buffer, the count of scales, and numbers quantized and
//! brought back where each side ends before a page that nobody may touch.

use std::ptr;
use std::sync::{LazyLock, Mutex};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::buffer::{wb_buffer, wb_buffer_alloc};
use weighbridge::capi::device::{WB_TRISTATE_OFF, WB_TRISTATE_ON};
use weighbridge::capi::quantizer::*;
use weighbridge::capi::view::*;
use weighbridge::status::*;
use weighbridge::tensor::dtype::*;

use crate::c::{self, Refused};
use crate::memory::Guarded;
use crate::oracle::{self, DTYPE_BYTES, WIDE};

/// Bytes of the buffer that is viewed.
const BUFFER_BYTES: u64 = 4096;

/// What the cases share. The handles live as long as the process.
struct Bench {
    buffer: *mut wb_buffer,
    quantizer: *mut wb_quantizer,
    wide: Guarded,
    narrow: Guarded,
    scales: Guarded,
    back: Guarded,
}

// SAFETY: handles may be used by any thread, and the memory is the bench's own.
unsafe impl Send for Bench {}

impl Bench {
    fn new() -> Self {
        let device = c::open(c"host", WB_TRISTATE_OFF, WB_TRISTATE_ON);
        // SAFETY: all pointers are valid.
        let buffer = c::make(|made, error| unsafe {
            wb_buffer_alloc(device, BUFFER_BYTES, ptr::null(), made, error)
        });
        // SAFETY: all pointers are valid.
        let quantizer = c::make(|made, error| unsafe { wb_quantizer_new(device, 0, made, error) });
        Self {
            buffer: buffer.expect("there is a page"),
            quantizer: quantizer.expect("there is memory"),
            wide: Guarded::new(1 << 14),
            narrow: Guarded::new(1 << 12),
            scales: Guarded::new(1 << 14),
            back: Guarded::new(1 << 14),
        }
    }
}

/// A tensor and how it is quantized.
struct Case {
    dtype: wb_dtype,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    offset: u64,
    access: i32,
    options: wb_quantize_options,
}

/// Bytes are read as a layout with options, and the rest of them as numbers.
pub fn run(data: &[u8]) {
    static BENCH: LazyLock<Mutex<Bench>> = LazyLock::new(|| Mutex::new(Bench::new()));
    let mut bench = BENCH.lock().expect("a failed case ends the process");
    let mut u = Unstructured::new(data);
    let Ok(case) = read(&mut u) else { return };
    let quantizes = u.ratio(1, 4).unwrap_or(false);
    let extent = match DTYPE_BYTES.get(case.dtype.wrapping_sub(1) as usize) {
        Some(bytes) => oracle::extent(*bytes, &case.shape, case.strides.as_deref()),
        None => None,
    };
    check_view(&case, extent, bench.buffer);
    let scales = check_scales(&case, extent);
    if let (Some(extent), Some(scales), true) = (extent, scales, quantizes) {
        bench.wide.fill(u.take_rest());
        check_quantize(&case, extent, scales, &mut bench);
    }
}

fn read(u: &mut Unstructured<'_>) -> Result<Case> {
    let dims = if u.ratio(1, 16)? { u.int_in_range(5..=66)? } else { u.int_in_range(0..=4usize)? };
    let wild = u.ratio(1, 6)?;
    let mut number = |low: i8, high: i8| -> Result<i64> {
        if !wild || u.ratio(1, 2)? {
            return u.int_in_range(low..=high).map(i64::from);
        }
        if u.arbitrary()? { u.arbitrary() } else { Ok(1 << u.int_in_range(0..=62)?) }
    };
    let shape = (0..dims).map(|_| number(0, 12)).collect::<Result<Vec<_>>>()?;
    let strides = (0..dims).map(|_| number(-16, 16)).collect::<Result<Vec<_>>>()?;
    let mut block =
        || -> Result<u64> { if u.ratio(1, 16)? { u.arbitrary() } else { u.int_in_range(0..=9) } };
    let (block_rows, block_cols) = (block()?, block()?);
    // SAFETY: a struct of the interface.
    let options = wb_quantize_options {
        format: match u.ratio(1, 32)? {
            true => u.arbitrary()?,
            false => *u.choose(&[WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2])?,
        },
        scale_type: match u.ratio(1, 32)? {
            true => u.arbitrary()?,
            false => *u.choose(&[WB_DTYPE_F32, WB_DTYPE_F8_E8M0])?,
        },
        given_scales: i32::from(u.ratio(1, 8)?),
        block_rows,
        block_cols,
        refuse_nonfinite: u.int_in_range(0..=1)?,
        reserved0: u32::from(u.ratio(1, 64)?),
        scale_bytes: if u.ratio(1, 8)? { u.int_in_range(0..=64)? } else { 0 },
        ..unsafe { c::sized() }
    };
    Ok(Case {
        dtype: match u.int_in_range(0..=15)? {
            0 => u.arbitrary()?,
            1..=3 => u.int_in_range(1..=18)?,
            _ => *u.choose(&WIDE)?,
        },
        strides: u.arbitrary::<bool>()?.then_some(strides),
        shape,
        offset: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=5000)? },
        access: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=1)? },
        options,
    })
}

impl Case {
    fn layout(&self) -> wb_layout {
        c::layout(self.dtype, &self.shape, self.strides.as_deref(), self.offset)
    }
}

/// A view is made where all of it lies in the buffer, and nowhere else.
fn check_view(case: &Case, extent: Option<(u64, u64)>, buffer: *const wb_buffer) {
    let layout = case.layout();
    // SAFETY: all pointers are valid.
    let made = c::make(|view, error| unsafe {
        wb_view_new(buffer, &raw const layout, case.access, view, error)
    });
    let inside = extent.filter(|_| case.shape.len() <= 64).is_some_and(|(before, span)| {
        let start = i128::from(case.offset) - i128::from(before);
        start >= 0 && start + i128::from(span) <= i128::from(BUFFER_BYTES)
    });
    assert_eq!(made.is_ok(), inside && (0..=1).contains(&case.access), "{made:?}");
    let Ok(view) = made else { return };
    // SAFETY: the view is this function's own.
    unsafe {
        let mut info: wb_view_info = c::sized();
        c::call(|error| wb_view_get_info(view, &raw mut info, error)).expect("it is described");
        assert_eq!(info.elements, oracle::elements(&case.shape));
        assert_eq!(Some(info.span_bytes), extent.map(|(_, span)| span));
        wb_view_release(view);
    }
}

/// The count of scales, if the library gives one: it is the one that the blocks make.
fn check_scales(case: &Case, extent: Option<(u64, u64)>) -> Option<wb_quantizer_scales_info> {
    let layout = case.layout();
    // SAFETY: all pointers are valid.
    let (info, told) = unsafe {
        let mut info: wb_quantizer_scales_info = c::sized();
        let (layout, options) = (&raw const layout, &raw const case.options);
        let told = c::call(|error| wb_quantizer_get_scales_info(layout, options, &raw mut info, error));
        (info, told)
    };
    if let Err(Refused { status, message }) = told {
        let known = [
            WB_ERR_INVALID_ARGUMENT,
            WB_ERR_INVALID_ARGUMENT,
            WB_ERR_NOT_SUPPORTED,
            WB_ERR_OUT_OF_RANGE,
            WB_ERR_OVERFLOW,
            WB_ERR_INVALID_ARGUMENT,
        ];
        assert!(known.contains(&status), "{status}: {message}");
        return None;
    }
    assert!(extent.is_some());
    let (leading, matrix) = case.shape.split_at(case.shape.len().saturating_sub(2));
    let of = |from_end: usize| match matrix.len().checked_sub(from_end) {
        Some(at) => i128::from(matrix[at]),
        None => 1,
    };
    let blocks = |all: i128, asked: u64| match asked {
        0 => all.min(1),
        asked => (all + i128::from(asked) - 1) / i128::from(asked),
    };
    let matrices: i128 = leading.iter().map(|size| i128::from(*size)).product();
    let rows = blocks(of(2), case.options.block_rows);
    let cols = blocks(of(1), case.options.block_cols);
    let bytes = if case.options.scale_type == WB_DTYPE_F32 { 4 } else { 1 };
    let told = [info.matrices, info.rows, info.cols, info.bytes].map(i128::from);
    assert_eq!(told, [matrices, rows, cols, matrices * rows * cols * bytes]);
    Some(info)
}

/// Numbers go to 8 bits and back; a page behind each side would end the process if it were touched.
fn check_quantize(
    case: &Case,
    (before, span): (u64, u64),
    scales: wb_quantizer_scales_info,
    bench: &mut Bench,
) {
    let elements = oracle::elements(&case.shape);
    let too_big = |bytes: u64, room: &Guarded| bytes > room.bytes() as u64;
    if too_big(span, &bench.wide) || too_big(elements, &bench.narrow) {
        return;
    }
    let bytes = if elements == 0 { 0 } else { scales.bytes };
    let (narrow, scales) = (bench.narrow.last(elements), bench.scales.last(bytes));
    let source = bench.wide.last(span) + before;
    if case.options.given_scales != 0 {
        bench.scales.fill(&[0x3f]);
    }
    let layout = wb_layout { offset_bytes: 0, ..case.layout() };
    let (quantizer, options) = (bench.quantizer, &raw const case.options);
    // SAFETY: a struct of the interface.
    let mut done: wb_quantizer_result = unsafe { c::sized() };
    // SAFETY: all pointers are valid, for the bytes that the interface says.
    let told = c::call(|error| unsafe {
        let layout = &raw const layout;
        wb_quantizer_quantize(
            quantizer,
            source,
            layout,
            narrow,
            scales,
            options,
            &raw mut done,
            error,
        )
    });
    let (wide, counts) = (WIDE.contains(&case.dtype), case.options.scale_bytes);
    match told {
        Err(Refused { status: WB_ERR_NOT_SUPPORTED, .. }) => return assert!(!wide),
        Err(Refused { status: WB_ERR_INVALID_ARGUMENT, .. }) => return assert_ne!(counts, bytes),
        Err(Refused { status: WB_ERR_NOT_FINITE, .. }) => {
            return assert_eq!(case.options.refuse_nonfinite, 1);
        }
        Err(refused) => panic!("{refused:?}"),
        Ok(()) => assert!(wide && (counts == 0 || counts == bytes)),
    }
    if case.dtype == WB_DTYPE_F32 && case.options.given_scales == 0 {
        assert_eq!(done.nonfinite, nonfinite(case, source));
    }
    let target = bench.back.last(elements * DTYPE_BYTES[case.dtype as usize - 1] as u64);
    let back = c::layout(case.dtype, &case.shape, None, 0);
    // SAFETY: all pointers are valid, for the bytes that the interface says.
    c::call(|error| unsafe {
        let (layout, done) = (&raw const back, ptr::null_mut());
        wb_quantizer_dequantize(quantizer, narrow, scales, target, layout, options, done, error)
    })
    .expect("what was quantized comes back");
}

/// Numbers of a float32 tensor whose exponent has all bits, each element counted where it is looked at.
fn nonfinite(case: &Case, first: u64) -> u64 {
    if oracle::elements(&case.shape) == 0 {
        return 0;
    }
    let mut addresses = vec![first as i64];
    let mut stride = 1;
    let contiguous: Vec<i64> = case
        .shape
        .iter()
        .rev()
        .map(|size| {
            let this = stride;
            stride *= size;
            this
        })
        .collect();
    let contiguous: Vec<i64> = contiguous.into_iter().rev().collect();
    for (size, stride) in case.shape.iter().zip(case.strides.as_ref().unwrap_or(&contiguous)) {
        addresses = addresses
            .iter()
            .flat_map(|at| (0..*size).map(move |index| at + index * stride * 4))
            .collect();
    }
    // SAFETY: the library has just read them.
    let odd = addresses
        .iter()
        .filter(|at| unsafe { (**at as *const u32).read_unaligned() } << 1 >= 0xff << 24);
    odd.count() as u64
}
