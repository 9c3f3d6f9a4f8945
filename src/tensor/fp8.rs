//! The types of quantization: sources, 8-bit floats, and scales.

use crate::error::{Result, fail};
use crate::status::WB_ERR_NOT_SUPPORTED;
use crate::tensor::dtype::{
    Dtype, WB_DTYPE_BF16, WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2, WB_DTYPE_F8_E8M0, WB_DTYPE_F16,
    WB_DTYPE_F32,
};

/// A type that is quantized to FP8, and dequantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl SourceType {
    /// The source type of a dtype. Fails with `WB_ERR_NOT_SUPPORTED` for any other dtype.
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

    /// Its name in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// An 8-bit floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp8Format {
    /// Four exponent bits, three mantissa bits, no infinity.
    E4m3,
    /// Five exponent bits, two mantissa bits.
    E5m2,
}

impl Fp8Format {
    /// The format of a dtype. Fails with `WB_ERR_NOT_SUPPORTED` for any other dtype.
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

    /// Its dtype.
    pub fn dtype(self) -> Result<Dtype> {
        Dtype::from_code(match self {
            Self::E4m3 => WB_DTYPE_F8_E4M3FN,
            Self::E5m2 => WB_DTYPE_F8_E5M2,
        })
    }

    /// Its largest finite number.
    pub fn max(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E5m2 => 57344.0,
        }
    }

    /// Its name in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
        }
    }
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleType {
    /// Single precision.
    F32,
    /// A power of two, as an 8-bit exponent.
    E8m0,
}

impl ScaleType {
    /// Its dtype.
    pub fn dtype(self) -> Result<Dtype> {
        Dtype::from_code(match self {
            Self::F32 => WB_DTYPE_F32,
            Self::E8m0 => WB_DTYPE_F8_E8M0,
        })
    }

    /// Bytes of a scale.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::E8m0 => 1,
        }
    }

    /// Its name in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::E8m0 => "e8m0",
        }
    }
}
