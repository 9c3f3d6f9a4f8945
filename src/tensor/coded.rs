//! The types that are compressed, and the sizes of the compressed format, which docs/codec.md defines.

use crate::error::{Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE};
use crate::tensor::dtype::{
    Dtype, WB_DTYPE_BF16, WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2, WB_DTYPE_F16, WB_DTYPE_F32,
    wb_dtype,
};

/// Decoded bytes of a tile.
pub const TILE: u64 = 8192;
/// Bytes of the header.
pub const HEADER: u64 = 64;
/// Bytes of a tile's entry in the directory.
pub const ENTRY: u64 = 16;
/// Where a header has the number of all compressed bytes.
pub const ENCODED_BYTES_AT: usize = 16;
/// Bodies are multiples of it, and offsets count it.
pub const UNIT: u64 = 16;
/// Offsets of bodies have 32 bits.
const MOST_BYTES: u64 = UNIT << 32;

/// What stands in the place of compressed bytes that do not fit there begins with; their first bytes differ.
pub const LINK_MAGIC: u64 = 0x314c_4257;
/// Bytes of it: the magic, the device's address of the compressed bytes, and how many may be read.
pub const LINK: u64 = 24;

/// A link to compressed bytes that are elsewhere.
pub fn link(address: u64, bytes: u64) -> [u8; LINK as usize] {
    let mut link = [0; LINK as usize];
    for (at, number) in [LINK_MAGIC, address, bytes].into_iter().enumerate() {
        link[8 * at..8 * at + 8].copy_from_slice(&number.to_le_bytes());
    }
    link
}

/// A type that is compressed. The discriminant is its number in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodedType {
    /// bfloat16.
    Bf16 = 1,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// Four exponent bits, three mantissa bits.
    E4m3,
    /// Five exponent bits, two mantissa bits.
    E5m2,
}

impl CodedType {
    /// Every type, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Bf16, Self::F16, Self::F32, Self::E4m3, Self::E5m2];

    /// The coded type of a dtype. Fails with `WB_ERR_NOT_SUPPORTED` for any other dtype.
    pub fn of(dtype: Dtype) -> Result<Self> {
        match Self::ALL.into_iter().find(|coded| coded.code() == dtype.code()) {
            Some(coded) => Ok(coded),
            None => fail!(
                WB_ERR_NOT_SUPPORTED,
                "{dtype:?} is not compressed: bfloat16, float16, float32, float8_e4m3fn and \
                 float8_e5m2 are"
            ),
        }
    }

    /// The `WB_DTYPE_*` of the type.
    pub fn code(self) -> wb_dtype {
        match self {
            Self::Bf16 => WB_DTYPE_BF16,
            Self::F16 => WB_DTYPE_F16,
            Self::F32 => WB_DTYPE_F32,
            Self::E4m3 => WB_DTYPE_F8_E4M3FN,
            Self::E5m2 => WB_DTYPE_F8_E5M2,
        }
    }

    /// The type of a number in a header.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|coded| *coded as u8 == number)
    }

    /// Bytes of a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::E4m3 | Self::E5m2 => 1,
        }
    }

    /// Bits of its exponent.
    pub fn exponent_bits(self) -> u32 {
        match self {
            Self::Bf16 | Self::F32 => 8,
            Self::F16 | Self::E5m2 => 5,
            Self::E4m3 => 4,
        }
    }

    /// Bits of a value in each plane of signs and mantissas.
    pub fn plane_bits(self) -> &'static [u64] {
        match self {
            Self::Bf16 => &[8],
            Self::F16 => &[8, 2, 1],
            Self::F32 => &[8, 8, 8],
            Self::E4m3 => &[4],
            Self::E5m2 => &[2, 1],
        }
    }

    /// Its name in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
        }
    }

    /// What weights of the type are usually compressed to, in percent: docs/codec.md has the ratios.
    pub fn usual_percent(self) -> u64 {
        match self {
            Self::Bf16 => 68,
            Self::F16 => 87,
            Self::F32 => 84,
            Self::E4m3 => 85,
            Self::E5m2 => 72,
        }
    }

    /// The largest size that `bytes` bytes are compressed to: all of them raw, with the header and the
    /// directory. Fails if these are not whole values, or more than the format has.
    pub fn max_bytes(self, bytes: u64) -> Result<u64> {
        if !bytes.is_multiple_of(self.bytes()) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "{bytes} bytes are not a whole number of {} values of {} bytes",
                self.name(),
                self.bytes()
            );
        }
        let most = bytes
            .checked_next_multiple_of(UNIT)
            .and_then(|bodies| bodies.checked_add(HEADER + ENTRY * tiles(bytes)));
        match most {
            Some(most) if most <= MOST_BYTES => Ok(most),
            _ => fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked to compress {bytes} bytes: one compressed tensor has at most 2^36 bytes; \
                 compress parts of it"
            ),
        }
    }
}

/// The number of tiles of `bytes` decoded bytes.
pub fn tiles(bytes: u64) -> u64 {
    bytes.div_ceil(TILE)
}
