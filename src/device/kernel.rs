//! [`Kernel`]: the kernels of `kernels/` with their arguments, for any kind of device.

use crate::os::span::Span;
use crate::tensor::fp8::{Fp8Format, ScaleType, SourceType};
use crate::tensor::scale_grid::Blocks;

/// A kernel to queue. Addresses are the device's; the memory must stay until the kernel has run.
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    /// Sets bytes to 0.
    Zero {
        /// The bytes, a multiple of four.
        span: Span,
    },
    /// Finds the largest finite magnitude of each block, and counts NaN and infinities.
    Absmax {
        /// Type of the source.
        source_type: SourceType,
        /// Address of the first element.
        source: u64,
        /// The matrix.
        blocks: Blocks,
        /// The bits of an `f32` for each block, which are raised to the largest magnitude.
        absmax: Span,
        /// A 64-bit count, to which the elements that are not finite are added.
        nonfinite: Span,
    },
    /// Computes scales and their inverses from magnitudes.
    Scales {
        /// The result of [`Kernel::Absmax`].
        absmax: Span,
        /// The format's largest number.
        format_max: f32,
        /// How scales are stored.
        scale_type: ScaleType,
        /// Receives the scales.
        scales: Span,
        /// Receives the inverses, as `f32`.
        inverses: Span,
    },
    /// Computes the inverses of given scales.
    Inverses {
        /// How the scales are stored.
        scale_type: ScaleType,
        /// The scales.
        scales: Span,
        /// Receives the inverses, as `f32`.
        inverses: Span,
        /// Converts the scales to `f32` without inverting them.
        copy: bool,
    },
    /// Quantizes a matrix.
    Quantize {
        /// Type of the source.
        source_type: SourceType,
        /// Format of the target.
        format: Fp8Format,
        /// Address of the source's first element.
        source: u64,
        /// The matrix; strides are the source's.
        blocks: Blocks,
        /// The inverse of each block's scale, as `f32`.
        inverses: Span,
        /// Receives the elements, without gaps.
        target: Span,
    },
    /// Dequantizes a matrix.
    Dequantize {
        /// Type of the target.
        source_type: SourceType,
        /// Format of the source.
        format: Fp8Format,
        /// The elements, without gaps.
        source: Span,
        /// The matrix; strides are the target's.
        blocks: Blocks,
        /// Each block's scale, as `f32`.
        scales: Span,
        /// Address of the target's first element.
        target: u64,
    },
}
