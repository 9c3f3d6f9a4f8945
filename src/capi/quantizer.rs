//! `wb_quantizer`: numbers to 8 bits and back, in staging memory of bounded size.

use std::ffi::c_void;
use std::ptr;

use crate::capi::arguments::{
    Sized32, check_output, check_reserved, check_struct, one_of, read_struct, write_struct,
};
use crate::capi::buffer::{wb_progress, with_progress};
use crate::capi::device::wb_device;
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::handle::Handle;
use crate::capi::view::wb_layout;
use crate::capi::{handle, view};
use crate::device::backend::Location;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::os::span::Span;
use crate::quant::quantizer::Quantizer;
use crate::quant::task::{Direction, QuantizeTask};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW, wb_status};
use crate::tensor::Dtype;
use crate::tensor::dtype::{WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E8M0, WB_DTYPE_F32, wb_dtype};
use crate::tensor::fp8::{Fp8Format, ScaleType};
use crate::tensor::scale_grid::ScaleGrid;

/// Bytes of staging memory where none are asked for.
const STAGING_BYTES: u64 = 128 << 20;

/// Numbers to 8 bits and back, one tensor at a time, in staging memory of bounded size.
pub struct wb_quantizer {
    _opaque: [u8; 0],
}

impl Handle for Quantizer {
    type Opaque = wb_quantizer;
    const NAME: &'static str = "wb_quantizer";
}

/// How to quantize. Begin with WB_QUANTIZE_OPTIONS_INIT.
#[repr(C)]
pub struct wb_quantize_options {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// WB_DTYPE_F8_E4M3FN or WB_DTYPE_F8_E5M2; 0 for the first.
    pub format: wb_dtype,
    /// WB_DTYPE_F32, or WB_DTYPE_F8_E8M0 for powers of two; 0 for the first.
    pub scale_dtype: wb_dtype,
    /// 1 if the caller gives the scales, 0 if they are computed and written.
    pub use_given_scales: i32,
    /// Rows that share a scale, of the last but one dimension; 0 for all.
    pub block_rows: u64,
    /// Columns that share a scale, of the last dimension; 0 for all.
    pub block_cols: u64,
    /// 1 when NaN and infinities are to be an error.
    pub reject_nonfinite: i32,
    /// 0.
    pub reserved0: u32,
    /// Bytes that there are for scales, to be checked; 0 where the caller is sure.
    pub scale_bytes: u64,
    /// Told how far the work is; may cancel it. NULL for none.
    pub progress: wb_progress,
    /// Handed to `progress`.
    pub progress_user: *mut c_void,
    /// 0.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), begins with its size; numbers, a pointer and a nullable function.
unsafe impl Sized32 for wb_quantize_options {
    const NAME: &'static str = "wb_quantize_options";
}

/// The scales of a tensor. Begin with WB_QUANTIZER_SCALES_INFO_INIT.
#[repr(C)]
pub struct wb_quantizer_scales_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// 0.
    pub reserved0: u32,
    /// Matrices: the product of all dimensions but the last two.
    pub matrices: u64,
    /// Rows of scales of a matrix.
    pub rows: u64,
    /// Columns of scales of a matrix.
    pub cols: u64,
    /// Bytes of all scales, which lie in this order without gaps.
    pub bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers.
unsafe impl Sized32 for wb_quantizer_scales_info {
    const NAME: &'static str = "wb_quantizer_scales_info";
}

/// What was done. Begin with WB_QUANTIZER_RESULT_INIT.
#[repr(C)]
pub struct wb_quantizer_result {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// How often the source was read: 2 where blocks reach over more than the staging memory.
    pub passes: u32,
    /// Numbers that were NaN or infinite; not counted where scales were given.
    pub nonfinite: u64,
    /// Bytes of device memory that were taken for staging, never more than the limit.
    pub staging_bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers.
unsafe impl Sized32 for wb_quantizer_result {
    const NAME: &'static str = "wb_quantizer_result";
}

/// Makes a quantizer, which takes at most `staging_bytes` bytes of device memory while it works (0 for
/// 128 MiB), and keeps what it took for the next tensor. On the host device it takes none.
///
/// Ownership: one reference; the quantizer holds the device. Any thread.
/// Errors: those of wb_buffer_alloc and wb_device_alloc, WB_ERR_DRIVER.
///
/// # Safety
/// `device` is NULL or alive; `quantizer` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_new(
    device: *const wb_device,
    staging_bytes: u64,
    quantizer: *mut *mut wb_quantizer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(quantizer, "quantizer")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        let limit = if staging_bytes == 0 { STAGING_BYTES } else { staging_bytes };
        let made = Quantizer::new(&device, limit)?;
        // SAFETY: not NULL.
        unsafe { *quantizer = handle::give(made) };
        Ok(())
    })
}

/// Adds a reference. Any thread.
///
/// # Safety
/// `quantizer` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_retain(quantizer: *const wb_quantizer) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<Quantizer>(quantizer) });
}

/// Drops a reference. Any thread.
///
/// # Safety
/// `quantizer` is NULL or alive, and this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_release(quantizer: *mut wb_quantizer) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<Quantizer>(quantizer) }.map(drop));
}

/// Answers how many scales a tensor has. Any thread.
/// Errors: WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_SUPPORTED.
///
/// # Safety
/// Pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_get_scales_info(
    layout: *const wb_layout,
    options: *const wb_quantize_options,
    info: *mut wb_quantizer_scales_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let ((layout, _), options) = unsafe { (view::layout(layout)?, options_from(options)?) };
        let geometry = ScaleGrid::new(&layout, options.block)?;
        let described = wb_quantizer_scales_info {
            struct_size: size_of::<wb_quantizer_scales_info>() as u32,
            reserved0: 0,
            matrices: geometry.matrices,
            rows: geometry.scale_rows,
            cols: geometry.blocks.scale_cols,
            bytes: geometry.all_scales() * options.kind.bytes(),
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// Quantizes a tensor: each number is divided by its block's scale and rounded to the nearest 8-bit
/// number, to even of two. What is too large becomes the largest number, infinity too; NaN becomes
/// 0x7f. A scale is the block's largest finite size over the format's largest number, but for powers
/// of two the next of these from there on; a block of zeros has scale 1. Number times the rounded
/// inverse of the scale is what is rounded, on every device to the same bits.
///
/// `source` is the address from which the layout's offset counts; float32, float16 or bfloat16, any
/// strides. `target` takes as many bytes as there are elements, without gaps; `scales` what
/// wb_quantizer_get_scales_info says. Each may be in host memory, best pinned, or in device memory.
///
/// Stream order: the host waits until all is where it goes; what is queued on other streams is not
/// waited for. Any thread; one tensor at a time.
/// Errors: WB_ERR_BUSY from the progress function of the same quantizer, WB_ERR_STAGING, WB_ERR_UNALIGNED for numbers in device memory that do not lie at a multiple of
/// their size, WB_ERR_NOT_SUPPORTED for types, WB_ERR_NOT_FINITE, WB_ERR_CANCELLED,
/// WB_ERR_OUT_OF_RANGE, WB_ERR_OVERFLOW, WB_ERR_DRIVER, and those of wb_device_alloc. What was written
/// before an error is not to be used.
///
/// # Safety
/// Handles are NULL or alive; the source may be read, target and scales written (scales read where
/// they are given); `result` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_quantize(
    quantizer: *const wb_quantizer,
    source: *const c_void,
    layout: *const wb_layout,
    target: *mut c_void,
    scales: *mut c_void,
    options: *const wb_quantize_options,
    result: *mut wb_quantizer_result,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe {
        run(quantizer, Direction::Quantize, (source, layout), target, scales, options, result)
    })
}

/// The way back: each 8-bit number times its block's scale, rounded to the layout's type.
///
/// `source` and `scales` are what wb_quantizer_quantize has written; `target` is the address from
/// which the layout's offset counts, in device memory, or in host memory without gaps. Otherwise as
/// wb_quantizer_quantize.
///
/// # Safety
/// As for wb_quantizer_quantize, the other way round.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_dequantize(
    quantizer: *const wb_quantizer,
    source: *const c_void,
    scales: *const c_void,
    target: *mut c_void,
    layout: *const wb_layout,
    options: *const wb_quantize_options,
    result: *mut wb_quantizer_result,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe {
        run(quantizer, Direction::Dequantize, (target, layout), source, scales, options, result)
    })
}

/// The options as the library takes them.
pub(super) struct Options {
    pub format: Fp8Format,
    pub kind: ScaleType,
    pub given: bool,
    pub block: (u64, u64),
    pub reject_nonfinite: bool,
    scale_bytes: u64,
    progress: wb_progress,
    user: *mut c_void,
}

/// # Safety
/// `given` is NULL or valid for the size that it begins with.
pub(super) unsafe fn options_from(given: *const wb_quantize_options) -> Result<Options> {
    let defaults = wb_quantize_options {
        struct_size: size_of::<wb_quantize_options>() as u32,
        format: 0,
        scale_dtype: 0,
        use_given_scales: 0,
        block_rows: 0,
        block_cols: 0,
        reject_nonfinite: 0,
        reserved0: 0,
        scale_bytes: 0,
        progress: None,
        progress_user: ptr::null_mut(),
        reserved: [0; 4],
    };
    // SAFETY: the caller's promise.
    let given = if given.is_null() { defaults } else { unsafe { read_struct(given, defaults) }? };
    check_reserved(&[u64::from(given.reserved0)], "wb_quantize_options")?;
    check_reserved(&given.reserved, "wb_quantize_options")?;
    let yes_or_no = [(0, false), (1, true)];
    Ok(Options {
        format: match given.format {
            0 => Fp8Format::of(Dtype::from_code(WB_DTYPE_F8_E4M3FN)?)?,
            given => Fp8Format::of(Dtype::from_code(given)?)?,
        },
        kind: one_of(
            given.scale_dtype,
            "scale_dtype",
            &[
                (0, ScaleType::F32),
                (WB_DTYPE_F32, ScaleType::F32),
                (WB_DTYPE_F8_E8M0, ScaleType::E8m0),
            ],
        )?,
        given: one_of(given.use_given_scales, "use_given_scales", &yes_or_no)?,
        block: (given.block_rows, given.block_cols),
        reject_nonfinite: one_of(given.reject_nonfinite, "reject_nonfinite", &yes_or_no)?,
        scale_bytes: given.scale_bytes,
        progress: given.progress,
        user: given.progress_user,
    })
}

/// # Safety
/// As for wb_quantizer_quantize.
unsafe fn run(
    quantizer: *const wb_quantizer,
    way: Direction,
    (wide, layout): (*const c_void, *const wb_layout),
    narrow: *const c_void,
    scales: *const c_void,
    options: *const wb_quantize_options,
    done: *mut wb_quantizer_result,
) -> Result<()> {
    if !done.is_null() {
        // SAFETY: the caller's promise.
        unsafe { check_struct(done) }?;
    }
    // SAFETY: the caller's promise.
    let (quantizer, (layout, offset), options) = unsafe {
        (handle::share::<Quantizer>(quantizer)?, view::layout(layout)?, options_from(options)?)
    };
    let geometry = ScaleGrid::new(&layout, options.block)?;
    // SAFETY: the caller's promise.
    let wide = place(&quantizer, unsafe { view::source(wide, &layout, offset) }?)?;
    let bytes = geometry.all_scales() * options.kind.bytes();
    let bytes = if layout.elements() == 0 { 0 } else { bytes };
    if options.scale_bytes != 0 && options.scale_bytes != bytes {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "there are {} bytes for scales; {} matrices with {} x {} scales of {} bytes take {bytes}",
            options.scale_bytes,
            geometry.matrices,
            geometry.scale_rows,
            geometry.blocks.scale_cols,
            options.kind.bytes()
        );
    }
    // SAFETY: the caller's promise.
    let (narrow, scales) = unsafe {
        (named(narrow, layout.elements(), "8-bit numbers")?, named(scales, bytes, "scales")?)
    };
    let task = QuantizeTask {
        direction: way,
        unquantized: wide,
        quantized: place(&quantizer, narrow)?,
        scales: place(&quantizer, scales)?,
        layout,
        format: options.format,
        scale_type: options.kind,
        use_given_scales: options.given,
        block: options.block,
        reject_nonfinite: options.reject_nonfinite,
    };
    // SAFETY: the caller's promise.
    let found = unsafe {
        with_progress(options.progress, options.user, |progress| quantizer.run(&task, progress))
    }?;
    if done.is_null() {
        return Ok(());
    }
    let described = wb_quantizer_result {
        struct_size: size_of::<wb_quantizer_result>() as u32,
        passes: found.passes,
        nonfinite: found.nonfinite,
        staging_bytes: found.staging_bytes,
    };
    // SAFETY: the caller's promise.
    unsafe { write_struct(done, &described) }
}

/// # Safety
/// The bytes are the caller's.
unsafe fn named(address: *const c_void, bytes: u64, what: &str) -> Result<Span> {
    if bytes == 0 {
        return Ok(Span::EMPTY);
    }
    if address.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the {what} have {bytes} bytes and their address is NULL");
    }
    // SAFETY: the caller's promise.
    match unsafe { Span::checked(address as u64, bytes) } {
        Some(span) => Ok(span),
        None => fail!(
            WB_ERR_OVERFLOW,
            "the {bytes} bytes of the {what} at {address:p} go past the last address"
        ),
    }
}

fn place(quantizer: &Quantizer, span: Span) -> Result<Location> {
    let backend = quantizer.device().backend();
    let on_device = span.bytes() > 0 && backend.is_device_memory(span.start() as u64)?;
    Ok(Location { span, on_device })
}
