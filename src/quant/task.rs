//! One tensor to quantize or to dequantize, and what came of it.

use crate::device::backend::Location;
use crate::tensor::Layout;
use crate::tensor::fp8::{Fp8Format, ScaleType};

/// Which way numbers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To 8 bits.
    Quantize,
    /// From 8 bits; the scales are given.
    Dequantize,
}

/// What is quantized, or comes back.
#[derive(Debug, Clone)]
pub struct QuantizeTask {
    /// Which way.
    pub direction: Direction,
    /// Type, shape and strides of the wide side.
    pub layout: Layout,
    /// Its bytes, from the lowest.
    pub unquantized: Location,
    /// The 8-bit numbers: as many bytes as there are elements, without gaps.
    pub quantized: Location,
    /// Their type.
    pub format: Fp8Format,
    /// Where the scales go, or where they are.
    pub scales: Location,
    /// How they are stored.
    pub scale_type: ScaleType,
    /// They are given.
    pub use_given_scales: bool,
    /// Rows and columns that share a scale; 0 for all.
    pub block: (u64, u64),
    /// NaN and infinities are an error.
    pub reject_nonfinite: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuantizeResult {
    /// Numbers that were NaN or infinite; not counted where scales were given.
    pub nonfinite: u64,
    /// Bytes of device memory that were taken for staging.
    pub staging_bytes: u64,
    /// How often the source was read.
    pub passes: u32,
}
