//! The element types.

use std::borrow::Cow;
use std::ffi::CStr;

use crate::error::{Error, Result};
use crate::status::{WB_ERR_DLPACK, WB_ERR_INVALID_ARGUMENT};
use crate::tensor::dlpack::DLDataType;

/// An element type: one of `WB_DTYPE_*`.
#[allow(non_camel_case_types)]
pub type wb_dtype = i32;

/// Boolean, 1 byte.
pub const WB_DTYPE_BOOL: wb_dtype = 1;
/// Signed integer, 1 byte.
pub const WB_DTYPE_I8: wb_dtype = 2;
/// Signed integer, 2 bytes.
pub const WB_DTYPE_I16: wb_dtype = 3;
/// Signed integer, 4 bytes.
pub const WB_DTYPE_I32: wb_dtype = 4;
/// Signed integer, 8 bytes.
pub const WB_DTYPE_I64: wb_dtype = 5;
/// Unsigned integer, 1 byte.
pub const WB_DTYPE_U8: wb_dtype = 6;
/// Unsigned integer, 2 bytes.
pub const WB_DTYPE_U16: wb_dtype = 7;
/// Unsigned integer, 4 bytes.
pub const WB_DTYPE_U32: wb_dtype = 8;
/// Unsigned integer, 8 bytes.
pub const WB_DTYPE_U64: wb_dtype = 9;
/// IEEE half precision, 2 bytes.
pub const WB_DTYPE_F16: wb_dtype = 10;
/// bfloat16, 2 bytes.
pub const WB_DTYPE_BF16: wb_dtype = 11;
/// IEEE single precision, 4 bytes.
pub const WB_DTYPE_F32: wb_dtype = 12;
/// IEEE double precision, 8 bytes.
pub const WB_DTYPE_F64: wb_dtype = 13;
/// Two single-precision numbers, real and imaginary, 8 bytes.
pub const WB_DTYPE_C64: wb_dtype = 14;
/// 8-bit float, 4 exponent and 3 mantissa bits, finite with NaN, 1 byte.
pub const WB_DTYPE_F8_E4M3FN: wb_dtype = 15;
/// 8-bit float, 5 exponent and 2 mantissa bits, 1 byte.
pub const WB_DTYPE_F8_E5M2: wb_dtype = 16;
/// 8-bit power of two without sign (a scale), 1 byte.
pub const WB_DTYPE_F8_E8M0: wb_dtype = 17;
/// Two 4-bit floats (2 exponent bits, 1 mantissa bit) packed in 1 byte; shapes count bytes.
pub const WB_DTYPE_F4_E2M1X2: wb_dtype = 18;
/// A type that the library does not know, of a parameter: blocks of bytes, which are copied bit for
/// bit. Its name and the size of its blocks are in `wb_layout`. It has no views, no DLPack tensors
/// and no quantization.
pub const WB_DTYPE_OPAQUE: wb_dtype = 255;

/// An element type's row in the table.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub code: wb_dtype,
    pub name: Cow<'static, CStr>,
    /// Bytes of a block.
    pub bytes: u32,
    /// Elements of a block: 1, except for opaque types.
    pub block: u32,
    /// An opaque type has none.
    pub dlpack: DLDataType,
    pub safetensors: &'static str,
}

const fn entry(
    code: wb_dtype,
    name: &'static CStr,
    bytes: u32,
    dlpack: (u8, u8, u16),
    safetensors: &'static str,
) -> Entry {
    let (dl_code, bits, lanes) = dlpack;
    let dlpack = DLDataType { code: dl_code, bits, lanes };
    Entry { code, name: Cow::Borrowed(name), bytes, block: 1, dlpack, safetensors }
}

/// Every type, in the order of the codes: name, bytes, DLPack code, bits and lanes, safetensors
/// name.
static TABLE: [Entry; 18] = [
    entry(WB_DTYPE_BOOL, c"bool", 1, (6, 8, 1), "BOOL"),
    entry(WB_DTYPE_I8, c"int8", 1, (0, 8, 1), "I8"),
    entry(WB_DTYPE_I16, c"int16", 2, (0, 16, 1), "I16"),
    entry(WB_DTYPE_I32, c"int32", 4, (0, 32, 1), "I32"),
    entry(WB_DTYPE_I64, c"int64", 8, (0, 64, 1), "I64"),
    entry(WB_DTYPE_U8, c"uint8", 1, (1, 8, 1), "U8"),
    entry(WB_DTYPE_U16, c"uint16", 2, (1, 16, 1), "U16"),
    entry(WB_DTYPE_U32, c"uint32", 4, (1, 32, 1), "U32"),
    entry(WB_DTYPE_U64, c"uint64", 8, (1, 64, 1), "U64"),
    entry(WB_DTYPE_F16, c"float16", 2, (2, 16, 1), "F16"),
    entry(WB_DTYPE_BF16, c"bfloat16", 2, (4, 16, 1), "BF16"),
    entry(WB_DTYPE_F32, c"float32", 4, (2, 32, 1), "F32"),
    entry(WB_DTYPE_F64, c"float64", 8, (2, 64, 1), "F64"),
    entry(WB_DTYPE_C64, c"complex64", 8, (5, 64, 1), "C64"),
    entry(WB_DTYPE_F8_E4M3FN, c"float8_e4m3fn", 1, (10, 8, 1), "F8_E4M3"),
    entry(WB_DTYPE_F8_E5M2, c"float8_e5m2", 1, (12, 8, 1), "F8_E5M2"),
    entry(WB_DTYPE_F8_E8M0, c"float8_e8m0fnu", 1, (14, 8, 1), "F8_E8M0"),
    entry(WB_DTYPE_F4_E2M1X2, c"float4_e2m1fn_x2", 1, (17, 4, 2), "F4"),
];

/// An element type.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dtype(pub(super) &'static Entry);

impl std::fmt::Debug for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Dtype {
    /// Every type, in the order of the codes.
    pub fn all() -> impl Iterator<Item = Dtype> {
        TABLE.iter().map(Dtype)
    }

    /// The type of a `WB_DTYPE_*` code. Fails with `WB_ERR_INVALID_ARGUMENT` for any other number,
    /// and for `WB_DTYPE_OPAQUE`, which is not a type without a name.
    pub fn from_code(code: wb_dtype) -> Result<Self> {
        Self::find(|entry| entry.code == code).ok_or_else(|| {
            let message = match code {
                WB_DTYPE_OPAQUE => "WB_DTYPE_OPAQUE is for the layouts of parameters only: this \
                                    call needs the type of an element"
                    .into(),
                _ => format!("{code} is not a WB_DTYPE_* (1 to {})", TABLE.len()),
            };
            Error::new(WB_ERR_INVALID_ARGUMENT, message)
        })
    }

    /// Whether only the size of its blocks is known.
    pub fn is_opaque(self) -> bool {
        self.0.code == WB_DTYPE_OPAQUE
    }

    /// The type of a DLPack data type. Fails with `WB_ERR_DLPACK` if no `WB_DTYPE_*` equals it.
    pub fn from_dlpack(dtype: DLDataType) -> Result<Self> {
        Self::find(|entry| entry.dlpack == dtype).ok_or_else(|| {
            let DLDataType { code, bits, lanes } = dtype;
            let message =
                format!("DLPack type code {code}, {bits} bits, {lanes} lanes has no WB_DTYPE_*");
            Error::new(WB_ERR_DLPACK, message)
        })
    }

    /// The type of a safetensors name such as `"BF16"`.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Self::find(|entry| entry.safetensors == name)
    }

    pub(super) fn find(matches: impl Fn(&Entry) -> bool) -> Option<Self> {
        TABLE.iter().find(|entry| matches(entry)).map(Dtype)
    }

    /// Its `WB_DTYPE_*` code.
    pub fn code(self) -> wb_dtype {
        self.0.code
    }

    /// Its common name, such as `"bfloat16"`.
    pub fn name(self) -> &'static str {
        self.0.name.to_str().unwrap_or_default()
    }

    /// The name for C.
    pub fn c_name(self) -> &'static CStr {
        &self.0.name
    }

    /// Bytes of one element; of one block, if the type is opaque.
    pub fn bytes(self) -> usize {
        self.0.bytes as usize
    }

    /// Elements of a block, which is a part of the last dimension: 1, except for opaque types.
    pub fn block_elements(self) -> u32 {
        self.0.block
    }

    /// Its DLPack data type.
    pub fn dlpack(self) -> DLDataType {
        self.0.dlpack
    }

    /// Values packed in one element: 2 for 4-bit floats, 1 for all others.
    pub fn packed(self) -> usize {
        usize::from(self.0.dlpack.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_code_dlpack_type_and_safetensors_name() {
        for (index, dtype) in Dtype::all().enumerate() {
            assert_eq!(dtype.code() as usize, index + 1);
            assert_eq!(Dtype::from_code(dtype.code()).unwrap(), dtype);
            assert_eq!(Dtype::from_dlpack(dtype.dlpack()).unwrap(), dtype);
            assert_eq!(Dtype::from_safetensors(dtype.0.safetensors), Some(dtype));
            let DLDataType { bits, lanes, .. } = dtype.dlpack();
            assert_eq!(dtype.bytes() * 8, usize::from(bits) * usize::from(lanes));
        }
    }

    #[test]
    fn unknown_types_are_rejected() {
        assert_eq!(Dtype::from_code(0).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
        assert_eq!(Dtype::from_code(19).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
        let int128 = DLDataType { code: 0, bits: 128, lanes: 1 };
        assert_eq!(Dtype::from_dlpack(int128).unwrap_err().status, WB_ERR_DLPACK);
    }
}
