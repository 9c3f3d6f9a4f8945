//! Quantizing and dequantizing a tensor.

use std::ffi::c_void;

use crate::capi::address::Address;
use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::quantizer::handle::wb_quantizer;
use crate::capi::quantizer::options::{QuantizeRequest, wb_quantize_options};
use crate::capi::structs::{CStruct, Optional, c_struct};
use crate::capi::view::layout::{GivenLayout, wb_layout};
use crate::error::{Result, fail};
use crate::os::sync::Arc;
use crate::quant::quantizer::Quantizer;
use crate::quant::task::{Direction, QuantizeTask};
use crate::status::{WB_ERR_INVALID_ARGUMENT, wb_status};
use crate::tensor::scale_grid::ScaleGrid;

/// The scales of a tensor: for each matrix `rows` by `cols`, contiguous.
#[repr(C)]
pub struct wb_quantizer_scales_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Number of matrices: the product of all dimensions but the last two.
    pub matrices: u64,
    /// Rows of scales of a matrix.
    pub rows: u64,
    /// Columns of scales of a matrix.
    pub cols: u64,
    /// Bytes of all scales.
    pub bytes: u64,
}

c_struct!(wb_quantizer_scales_info);

/// What wb_quantizer_quantize or wb_quantizer_dequantize did.
#[repr(C)]
pub struct wb_quantizer_result {
    /// Size of the struct.
    pub struct_size: u32,
    /// How often the source was read: 2 if a block is larger than the staging memory.
    pub passes: u32,
    /// Number of NaN and infinite values; not counted with given scales.
    pub nonfinite: u64,
    /// Bytes of device memory used for staging.
    pub staging_bytes: u64,
}

c_struct!(wb_quantizer_result);

/// Fills `info` with the shape and the bytes of a tensor's scales. Fails with WB_ERR_OUT_OF_RANGE
/// or WB_ERR_NOT_SUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_get_scales_info(
    layout: *const wb_layout,
    options: *const wb_quantize_options,
    info: *mut wb_quantizer_scales_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |layout: GivenLayout, options: QuantizeRequest| -> info {
        ScaleGrid::new(&layout.layout, options.block).map(|grid| wb_quantizer_scales_info {
            matrices: grid.matrices,
            rows: grid.scale_rows,
            cols: grid.blocks.scale_cols,
            bytes: grid.all_scales() * options.scale_type.bytes(),
            ..CStruct::init()
        })
    })
}

/// Quantizes a tensor: each value is multiplied by the rounded inverse of its block's scale and
/// rounded to the nearest FP8 value, ties to even, with the same bits on every device. Values out
/// of range, infinity included, become the largest FP8 value; NaN becomes 0x7f. A scale is the
/// largest finite magnitude of the block divided by the format's largest value, rounded up to a
/// power of two for WB_DTYPE_F8_E8M0; a block of zeros has scale 1.
///
/// `source` is a float32, float16 or bfloat16 tensor of any strides, from which the layout's offset
/// counts. `target` receives one byte for each element, contiguous, and `scales` what
/// wb_quantizer_get_scales_info says, unless `use_given_scales` is set. Each may be in host memory,
/// best pinned, or in device memory. `result` may be NULL.
///
/// Stream order: the host waits until everything is written, and not for work queued on other
/// streams: synchronize the one that writes a source, or given scales, in device memory first. One
/// tensor at a time: other threads wait, and a progress callback of the same quantizer fails with
/// WB_ERR_BUSY. Fails with WB_ERR_STAGING, WB_ERR_UNALIGNED (for values in device memory),
/// WB_ERR_NOT_SUPPORTED, WB_ERR_NOT_FINITE, WB_ERR_CANCELLED, WB_ERR_OUT_OF_RANGE or
/// WB_ERR_OVERFLOW, and as wb_device_alloc does. After an error the contents of `target` and
/// `scales` are undefined.
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
    let result = Optional(result);
    call!(error, |quantizer: Arc<Quantizer>,
                  source: Address,
                  layout: GivenLayout,
                  target: Address,
                  scales: Address,
                  options: QuantizeRequest|
     -> result {
        run(&quantizer, Direction::Quantize, (source, layout), target, scales, options)
    })
}

/// Dequantizes a tensor: each FP8 value is multiplied by its block's scale and rounded to the
/// layout's type.
///
/// `source` and `scales` are as wb_quantizer_quantize wrote them. `target` is the address from
/// which the layout's offset counts; in host memory the layout must be contiguous. Otherwise as
/// wb_quantizer_quantize.
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
    let result = Optional(result);
    call!(error, |quantizer: Arc<Quantizer>,
                  source: Address,
                  scales: Address,
                  target: Address,
                  layout: GivenLayout,
                  options: QuantizeRequest|
     -> result {
        run(&quantizer, Direction::Dequantize, (target, layout), source, scales, options)
    })
}

/// Quantizes or dequantizes between a tensor, whose layout is given, and its FP8 values.
fn run(
    quantizer: &Quantizer,
    direction: Direction,
    (unquantized, layout): (Address, GivenLayout),
    quantized: Address,
    scales: Address,
    options: QuantizeRequest,
) -> Result<wb_quantizer_result> {
    let GivenLayout { layout, offset_bytes } = layout;
    let grid = ScaleGrid::new(&layout, options.block)?;
    let (tensor, fp8) = match direction {
        Direction::Quantize => ("the source", "the FP8 target"),
        Direction::Dequantize => ("the target", "the FP8 source"),
    };
    let unquantized = unquantized.tensor(&layout, offset_bytes, tensor)?;
    let scale_bytes = match layout.elements() {
        0 => 0,
        _ => grid.all_scales() * options.scale_type.bytes(),
    };
    if options.scale_bytes != 0 && options.scale_bytes != scale_bytes {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "there are {} bytes for scales; {} matrices with {} x {} scales of {} bytes take \
             {scale_bytes}",
            options.scale_bytes,
            grid.matrices,
            grid.scale_rows,
            grid.blocks.scale_cols,
            options.scale_type.bytes()
        );
    }
    let quantized = quantized.span(layout.elements(), fp8)?;
    let scales = scales.span(scale_bytes, "the scales")?;
    let device = quantizer.device();
    let task = QuantizeTask {
        direction,
        unquantized: device.locate(unquantized)?,
        quantized: device.locate(quantized)?,
        scales: device.locate(scales)?,
        layout,
        format: options.format,
        scale_type: options.scale_type,
        use_given_scales: options.use_given_scales,
        block: options.block,
        reject_nonfinite: options.reject_nonfinite,
    };
    let found = options.reporter.run(|progress| quantizer.run(&task, progress))?;
    Ok(wb_quantizer_result {
        passes: found.passes,
        nonfinite: found.nonfinite,
        staging_bytes: found.staging_bytes,
        ..CStruct::init()
    })
}
