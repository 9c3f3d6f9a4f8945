//! What a device computes: the kernels of `kernels/`, as work that any kind of device can queue.

use crate::os::span::Span;
use crate::tensor::fp8::{Fp8Format, ScaleType, SourceType};
use crate::tensor::scale_grid::Blocks;

/// Work for a stream. Addresses are the device's.
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    /// Sets bytes to 0; as many as four divide.
    Zero {
        /// What.
        span: Span,
    },
    /// Raises each of `sizes` to the bits of the largest finite size in its block, and counts in `nonfinite`
    /// what is not finite.
    Absmax {
        /// Type of the source.
        source_type: SourceType,
        /// Its first element.
        source: u64,
        /// The matrix.
        blocks: Blocks,
        /// Four bytes for each scale.
        absmax: Span,
        /// Eight bytes.
        nonfinite: Span,
    },
    /// Makes scales of sizes.
    Scales {
        /// Where the sizes are.
        absmax: Span,
        /// The format's largest number.
        format_max: f32,
        /// How scales are stored.
        scale_type: ScaleType,
        /// Where they go.
        scales: Span,
        /// Where their inverses go, four bytes each.
        inverses: Span,
    },
    /// Inverts scales that were given.
    Inverses {
        /// How they are stored.
        scale_type: ScaleType,
        /// Where they are.
        scales: Span,
        /// Where their inverses go, or they themselves in single precision.
        inverses: Span,
        /// Not the inverses but the scales themselves.
        copy: bool,
    },
    /// Quantizes.
    Quantize {
        /// Type of the source.
        source_type: SourceType,
        /// Type of the target.
        format: Fp8Format,
        /// The source's first element.
        source: u64,
        /// The matrix.
        blocks: Blocks,
        /// An inverse for each scale.
        inverses: Span,
        /// Where it goes, without gaps.
        target: Span,
    },
    /// The way back.
    Dequantize {
        /// Type of the target.
        source_type: SourceType,
        /// Type of the source.
        format: Fp8Format,
        /// The source, without gaps.
        source: Span,
        /// The matrix; strides are the target's.
        blocks: Blocks,
        /// A multiplier for each block, in single precision.
        scales: Span,
        /// The target's first element.
        target: u64,
    },
}
