//! What a device computes: the kernels of `kernels/`, as work that any kind of device can queue.

use crate::error::{Result, fail};
use crate::memory::pages::Span;
use crate::status::WB_ERR_NOT_SUPPORTED;
use crate::tensor::Dtype;
use crate::tensor::dtype::{
    WB_DTYPE_BF16, WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2, WB_DTYPE_F8_E8M0, WB_DTYPE_F16,
    WB_DTYPE_F32,
};

/// A type that is quantized from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wide {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Wide {
    /// The type of that name; `WB_ERR_NOT_SUPPORTED` for any other.
    pub fn of(dtype: Dtype) -> Result<Self> {
        match dtype.code() {
            WB_DTYPE_F32 => Ok(Self::F32),
            WB_DTYPE_F16 => Ok(Self::F16),
            WB_DTYPE_BF16 => Ok(Self::Bf16),
            _ => fail!(
                WB_ERR_NOT_SUPPORTED,
                "{dtype:?} is not quantized: float32, float16 and bfloat16 are"
            ),
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The word for it in kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// A type that is quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Four exponent bits, no infinity.
    E4m3,
    /// Five exponent bits.
    E5m2,
}

impl Format {
    /// The type of that code; `WB_ERR_NOT_SUPPORTED` for any other.
    pub fn of(dtype: Dtype) -> Result<Self> {
        match dtype.code() {
            WB_DTYPE_F8_E4M3FN => Ok(Self::E4m3),
            WB_DTYPE_F8_E5M2 => Ok(Self::E5m2),
            _ => fail!(
                WB_ERR_NOT_SUPPORTED,
                "{dtype:?} is not quantized to: float8_e4m3fn and float8_e5m2 are"
            ),
        }
    }

    /// Its type.
    pub fn dtype(self) -> Result<Dtype> {
        Dtype::from_code(match self {
            Self::E4m3 => WB_DTYPE_F8_E4M3FN,
            Self::E5m2 => WB_DTYPE_F8_E5M2,
        })
    }

    /// Its largest number.
    pub fn most(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E5m2 => 57344.0,
        }
    }

    /// The word for it in kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
        }
    }
}

/// How multipliers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleKind {
    /// Single precision.
    F32,
    /// A power of two in 8 bits.
    E8m0,
}

impl ScaleKind {
    /// Its type.
    pub fn dtype(self) -> Result<Dtype> {
        Dtype::from_code(match self {
            Self::F32 => WB_DTYPE_F32,
            Self::E8m0 => WB_DTYPE_F8_E8M0,
        })
    }

    /// Bytes of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::E8m0 => 1,
        }
    }
}

/// `wb_blocks` of `kernels/blocks.h`: a matrix, or some of its rows, with the blocks that share a scale.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// From a row to the next, in elements of the wide side.
    pub row_stride: i64,
    /// From a column to the next.
    pub col_stride: i64,
    /// Rows of a block.
    pub block_rows: u64,
    /// Columns of a block.
    pub block_cols: u64,
    /// Scales of a row of blocks.
    pub scale_cols: u64,
    /// Where in its block the first row is.
    pub first_row: u64,
}

/// Work for a stream. Addresses are the device's.
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    /// Sets bytes to 0; as many as four divide.
    Zero {
        /// What.
        span: Span,
    },
    /// Raises each of `sizes` to the bits of the largest finite size in its block, and counts in `odd`
    /// what is not finite.
    Absmax {
        /// Type of the source.
        wide: Wide,
        /// Its first element.
        source: u64,
        /// The matrix.
        blocks: Blocks,
        /// Four bytes for each scale.
        sizes: Span,
        /// Eight bytes.
        odd: Span,
    },
    /// Makes scales of sizes.
    Scales {
        /// Where the sizes are.
        sizes: Span,
        /// The format's largest number.
        most: f32,
        /// How scales are stored.
        kind: ScaleKind,
        /// Where they go.
        scales: Span,
        /// Where their inverses go, four bytes each.
        inverses: Span,
    },
    /// Inverts scales that were given.
    Inverses {
        /// How they are stored.
        kind: ScaleKind,
        /// Where they are.
        scales: Span,
        /// Where their inverses go, or they themselves in single precision.
        inverses: Span,
        /// Not the inverses but the scales themselves.
        as_they_are: bool,
    },
    /// Quantizes.
    Quantize {
        /// Type of the source.
        wide: Wide,
        /// Type of the target.
        format: Format,
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
        wide: Wide,
        /// Type of the source.
        format: Format,
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
