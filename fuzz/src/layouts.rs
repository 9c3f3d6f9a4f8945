//! Layouts, blocks and scales: views of a small buffer, the number of scales, and tensors that are quantized
//! and dequantized in memory that ends before an inaccessible page.

use std::ffi::c_void;
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
use crate::oracle::{self, DTYPE_BYTES, SOURCE_DTYPES};

/// Bytes of the buffer for views.
const BUFFER_BYTES: u64 = 4096;

/// Handles and memory that all cases share. The handles are never released.
struct Shared {
    buffer: *mut wb_buffer,
    quantizer: *mut wb_quantizer,
    source: Guarded,
    quantized: Guarded,
    scales: Guarded,
    dequantized: Guarded,
}

// SAFETY: handles may be used by any thread, and the struct owns the memory.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Self {
        let device = c::open(c"host", WB_TRISTATE_OFF, WB_TRISTATE_ON);
        // SAFETY: all pointers are valid.
        let buffer = c::make(|made, error| unsafe {
            wb_buffer_alloc(device, BUFFER_BYTES, ptr::null(), made, error)
        });
        // SAFETY: all pointers are valid.
        let quantizer = c::make(|made, error| unsafe { wb_quantizer_new(device, 0, made, error) });
        Self {
            buffer: buffer.expect("a page is available"),
            quantizer: quantizer.expect("memory is available"),
            source: Guarded::new(1 << 14),
            quantized: Guarded::new(1 << 12),
            scales: Guarded::new(1 << 14),
            dequantized: Guarded::new(1 << 14),
        }
    }
}

/// A tensor and how it is quantized.
struct Case {
    dtype: wb_dtype,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    offset: u64,
    accessor: i32,
    options: wb_quantize_options,
}

/// Decodes a layout and options; the remaining bytes are the tensor's elements.
pub fn run(data: &[u8]) {
    static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(|| Mutex::new(Shared::new()));
    let mut shared = SHARED.lock().expect("a failed case ends the process");
    let mut u = Unstructured::new(data);
    let Ok(case) = read(&mut u) else { return };
    let quantizes = u.ratio(1, 4).unwrap_or(false);
    let extent = match DTYPE_BYTES.get(case.dtype.wrapping_sub(1) as usize) {
        Some(bytes) => oracle::extent(*bytes, &case.shape, case.strides.as_deref()),
        None => None,
    };
    check_view(&case, extent, shared.buffer);
    let scales = check_scales(&case, extent);
    if let (Some(extent), Some(scales), true) = (extent, scales, quantizes) {
        shared.source.fill(u.take_rest());
        check_quantize(&case, extent, scales, &mut shared);
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
        scale_dtype: match u.ratio(1, 32)? {
            true => u.arbitrary()?,
            false => *u.choose(&[WB_DTYPE_F32, WB_DTYPE_F8_E8M0])?,
        },
        use_given_scales: i32::from(u.ratio(1, 8)?),
        block_rows,
        block_cols,
        reject_nonfinite: u.int_in_range(0..=1)?,
        reserved0: u32::from(u.ratio(1, 64)?),
        scale_bytes: if u.ratio(1, 8)? { u.int_in_range(0..=64)? } else { 0 },
        ..unsafe { c::sized() }
    };
    Ok(Case {
        dtype: match u.int_in_range(0..=15)? {
            0 => u.arbitrary()?,
            1..=3 => u.int_in_range(1..=18)?,
            _ => *u.choose(&SOURCE_DTYPES)?,
        },
        strides: u.arbitrary::<bool>()?.then_some(strides),
        shape,
        offset: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=5000)? },
        accessor: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=1)? },
        options,
    })
}

impl Case {
    fn layout(&self) -> wb_layout {
        c::layout(self.dtype, &self.shape, self.strides.as_deref(), self.offset)
    }
}

/// A view can be made exactly if all of it is inside the buffer.
fn check_view(case: &Case, extent: Option<(u64, u64)>, buffer: *const wb_buffer) {
    let layout = case.layout();
    // SAFETY: all pointers are valid.
    let made = c::make(|view, error| unsafe {
        wb_view_new(buffer, &raw const layout, case.accessor, view, error)
    });
    let inside = extent.filter(|_| case.shape.len() <= 64).is_some_and(|(before, span)| {
        let start = i128::from(case.offset) - i128::from(before);
        start >= 0 && start + i128::from(span) <= i128::from(BUFFER_BYTES)
    });
    assert_eq!(made.is_ok(), inside && (0..=1).contains(&case.accessor), "{made:?}");
    let Ok(view) = made else { return };
    // SAFETY: this function owns the view.
    unsafe {
        let mut info: wb_view_info = c::sized();
        c::call(|error| wb_view_get_info(view, &raw mut info, error)).expect("it has an info");
        assert_eq!(info.elements, oracle::elements(&case.shape));
        assert_eq!(Some(info.span_bytes), extent.map(|(_, span)| span));
        wb_view_release(view);
    }
}

/// The number of scales, unless the library refuses the case; it must follow from the blocks.
fn check_scales(case: &Case, extent: Option<(u64, u64)>) -> Option<wb_quantizer_scales_info> {
    let layout = case.layout();
    // SAFETY: all pointers are valid.
    let (info, outcome) = unsafe {
        let mut info: wb_quantizer_scales_info = c::sized();
        let (layout, options) = (&raw const layout, &raw const case.options);
        let outcome =
            c::call(|error| wb_quantizer_get_scales_info(layout, options, &raw mut info, error));
        (info, outcome)
    };
    if let Err(Refused { status, message }) = outcome {
        let known =
            [WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE, WB_ERR_OVERFLOW];
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
    let bytes = if case.options.scale_dtype == WB_DTYPE_F8_E8M0 { 1 } else { 4 };
    let found = [info.matrices, info.rows, info.cols, info.bytes].map(i128::from);
    assert_eq!(found, [matrices, rows, cols, matrices * rows * cols * bytes]);
    Some(info)
}

/// Quantizes and dequantizes; an access past the end of any memory ends the process.
fn check_quantize(
    case: &Case,
    (before, span): (u64, u64),
    scales: wb_quantizer_scales_info,
    shared: &mut Shared,
) {
    let elements = oracle::elements(&case.shape);
    let too_big = |bytes: u64, memory: &Guarded| bytes > memory.bytes() as u64;
    if too_big(span, &shared.source) || too_big(elements, &shared.quantized) {
        return;
    }
    let bytes = if elements == 0 { 0 } else { scales.bytes };
    let (quantized, scales) = (shared.quantized.last(elements), shared.scales.last(bytes));
    let (quantized, scales) = (quantized as *mut c_void, scales as *mut c_void);
    let source = (shared.source.last(span) + before) as *const c_void;
    if case.options.use_given_scales != 0 {
        shared.scales.fill(&[0x3f]);
    }
    let layout = wb_layout { offset_bytes: 0, ..case.layout() };
    let (quantizer, options) = (shared.quantizer, &raw const case.options);
    // SAFETY: a struct of the interface.
    let mut result: wb_quantizer_result = unsafe { c::sized() };
    // SAFETY: all pointers are valid for the bytes that the interface requires.
    let outcome = c::call(|error| unsafe {
        let layout = &raw const layout;
        wb_quantizer_quantize(
            quantizer,
            source,
            layout,
            quantized,
            scales,
            options,
            &raw mut result,
            error,
        )
    });
    let (supported, given) = (SOURCE_DTYPES.contains(&case.dtype), case.options.scale_bytes);
    match outcome {
        Err(Refused { status: WB_ERR_NOT_SUPPORTED, .. }) => return assert!(!supported),
        Err(Refused { status: WB_ERR_INVALID_ARGUMENT, .. }) => return assert_ne!(given, bytes),
        Err(Refused { status: WB_ERR_NOT_FINITE, .. }) => {
            return assert_eq!(case.options.reject_nonfinite, 1);
        }
        Err(refused) => panic!("{refused:?}"),
        Ok(()) => assert!(supported && (given == 0 || given == bytes)),
    }
    if case.dtype == WB_DTYPE_F32 && case.options.use_given_scales == 0 {
        assert_eq!(result.nonfinite, nonfinite(case, source));
    }
    let target = shared.dequantized.last(elements * DTYPE_BYTES[case.dtype as usize - 1] as u64);
    let contiguous = c::layout(case.dtype, &case.shape, None, 0);
    // SAFETY: all pointers are valid for the bytes that the interface requires.
    c::call(|error| unsafe {
        let (target, layout, result) =
            (target as *mut c_void, &raw const contiguous, ptr::null_mut());
        wb_quantizer_dequantize(
            quantizer, quantized, scales, target, layout, options, result, error,
        )
    })
    .expect("a quantized tensor can be dequantized");
}

/// The number of elements of a float32 tensor that are not finite: all bits of the exponent are set.
fn nonfinite(case: &Case, first: *const c_void) -> u64 {
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
    // SAFETY: the library has just read the elements.
    addresses
        .iter()
        .filter(|at| unsafe { (**at as *const u32).read_unaligned() } << 1 >= 0xff << 24)
        .count() as u64
}
