//! One tensor to quantize or to dequantize, and the result.

use crate::device::backend::Location;
use crate::error::{Result, fail};
use crate::status::WB_ERR_NOT_FINITE;
use crate::tensor::fp8::{Fp8Format, ScaleType};
use crate::tensor::layout::Layout;

/// The direction of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To FP8.
    Quantize,
    /// From FP8; the scales are given.
    Dequantize,
}

/// A tensor to quantize or to dequantize.
#[derive(Debug, Clone)]
pub struct QuantizeTask {
    /// The direction.
    pub direction: Direction,
    /// Type, shape and strides of the unquantized tensor.
    pub layout: Layout,
    /// The unquantized tensor, from its lowest byte.
    pub unquantized: Location,
    /// The FP8 tensor: as many bytes as there are elements, without gaps.
    pub quantized: Location,
    /// Type of the FP8 tensor.
    pub format: Fp8Format,
    /// The scales, of all blocks without gaps.
    pub scales: Location,
    /// Type of the scales.
    pub scale_type: ScaleType,
    /// Whether the scales are given; otherwise quantizing computes and writes them.
    pub use_given_scales: bool,
    /// Rows and columns that share a scale; 0 for all.
    pub block: (u64, u64),
    /// Whether NaN and infinities are an error.
    pub reject_nonfinite: bool,
}

impl QuantizeTask {
    /// Fails with `WB_ERR_NOT_FINITE` if the task rejects numbers that are NaN or infinite, and has some.
    pub fn check_finite(&self, nonfinite: u64) -> Result<()> {
        if self.reject_nonfinite && nonfinite > 0 {
            fail!(
                WB_ERR_NOT_FINITE,
                "{nonfinite} of {} numbers are NaN or infinite, which the options reject: what was written \
                 must not be used",
                self.layout.elements()
            );
        }
        Ok(())
    }
}

/// The result of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuantizeResult {
    /// Numbers that were NaN or infinite; 0 if the scales were given.
    pub nonfinite: u64,
    /// Bytes of device memory that were used for staging.
    pub staging_bytes: u64,
    /// How often the source was read.
    pub passes: u32,
}
