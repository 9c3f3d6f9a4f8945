//! [`Kernel`]: the kernels of `kernels/` with their arguments, for any kind of device.

use crate::device::experts::{ExpertCall, ExpertState};
use crate::os::span::Span;
use crate::tensor::coded::CodedType;
use crate::tensor::fp8::{Fp8Format, ScaleType, SourceType};
use crate::tensor::scale_grid::Blocks;

/// Compressed bytes from `begin` on that were copied to device memory, and where their header and entries of the
/// directory were copied to, as `kernels/codec.h` has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The address to which they were copied.
    pub memory: u64,
    /// The offset of the first one in all compressed bytes.
    pub begin: u64,
    /// How many they are.
    pub bytes: u64,
    /// The address to which the header was copied.
    pub header: u64,
    /// The address to which the entries of the tiles to decode were copied.
    pub entries: u64,
}

/// Where the compressed bytes of a [`Kernel::Decode`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeSource {
    /// Where a caller says.
    Given,
    /// In host memory, which is read over the link beside other kernels: few threads are used.
    Host,
    /// In host memory, of which a part was copied to a window, where it is read instead.
    Window(Window),
    /// In device memory of the library. If there is a [link](crate::tensor::coded::link) in their place,
    /// which the library alone writes, they are where it leads to.
    Kept,
}

/// A kernel to queue. Addresses are the device's; the memory must stay until the kernel has run.
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    /// Sets bytes to 0.
    Zero {
        /// The bytes.
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
    /// Compresses values.
    Encode {
        /// Type of the values.
        coded: CodedType,
        /// The values, at a multiple of 16.
        source: Span,
        /// Receives the compressed bytes, at a multiple of 16: as many as [`CodedType::max_bytes`]
        /// says.
        target: Span,
    },
    /// Decompresses whole tiles. Of damaged ones the result is undefined, and nothing outside of the
    /// spans is accessed.
    Decode {
        /// Type of the values.
        coded: CodedType,
        /// The compressed bytes, at a multiple of 16.
        encoded: Span,
        /// Decoded bytes of all tiles.
        decoded_bytes: u64,
        /// The first tile to decode.
        first_tile: u64,
        /// Receives the values, at a multiple of 16, from the first tile on.
        target: Span,
        /// Where the compressed bytes are.
        source: DecodeSource,
    },
    /// Compares the checksums of decoded tiles.
    Verify {
        /// The compressed bytes, at a multiple of 16.
        encoded: Span,
        /// Decoded bytes of all tiles.
        decoded_bytes: u64,
        /// The first tile to verify.
        first_tile: u64,
        /// The values, at a multiple of 16, from the first tile on.
        decoded: Span,
        /// A 64-bit count, to which the tiles that differ are added.
        mismatches: Span,
    },
    /// Finds the experts of a call in the slots of a cache, or gives them slots and copies them there,
    /// and rewrites their numbers. Launches with one state run one after another.
    ExpertsRoute {
        /// The cache.
        state: ExpertState,
        /// The call.
        call: ExpertCall,
    },
    /// Empties the slots of a cache from one on, and sets how many are in use.
    ExpertsResize {
        /// The cache.
        state: ExpertState,
        /// The first slot that is emptied.
        keep: u32,
        /// Slots in use.
        slots: u32,
    },
}
