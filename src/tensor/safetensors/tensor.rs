//! A tensor of a file, and what its type and shape in the file are.

use std::ffi::CStr;
use std::num::TryFromIntError;

use safetensors::tensor::Dtype as FileDtype;

use crate::error::{Error, Result};
use crate::status::WB_ERR_FORMAT;
use crate::tensor::dtype::Dtype;
use crate::tensor::layout::Layout;

/// One tensor of a file.
#[derive(Debug)]
pub struct Tensor {
    pub(super) name: Box<CStr>,
    /// Its type in the file; of a compressed one that of its values.
    pub file_dtype: FileDtype,
    /// Type and shape, opaque for a type without `WB_DTYPE_*`; `None` if its rows are not whole
    /// bytes. Of a compressed one those of its values.
    pub layout: Option<Layout>,
    /// Whether its data are its values compressed.
    pub is_encoded: bool,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

impl Tensor {
    /// Its name.
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }

    /// Its name for C.
    pub fn c_name(&self) -> &CStr {
        &self.name
    }

    /// Bytes that its values are compressed to; 0 if they are not.
    pub fn encoded_bytes(&self) -> u64 {
        if self.is_encoded { self.bytes } else { 0 }
    }
}

/// The index of a tensor by its name; `by_name` are the indexes in the order of names.
pub fn find(tensors: &[Tensor], by_name: &[u32], name: &str) -> Option<usize> {
    let named = |at: &u32| tensors[*at as usize].c_name().to_bytes().cmp(name.as_bytes());
    let at = by_name.binary_search_by(named).ok()?;
    Some(by_name[at] as usize)
}

/// Bytes of a tensor; `None` if they overflow, or end within a byte.
pub fn bytes_of(dtype: FileDtype, shape: &[u64]) -> Option<u64> {
    let mut elements = 1u64;
    for size in shape {
        elements = elements.checked_mul(*size)?;
    }
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// The layout in elements; `None` if its rows are not whole bytes. A packed type's last dimension
/// counts values in the file, and elements of several values here.
pub fn layout(file_dtype: FileDtype, shape: &[u64]) -> Result<Option<Layout>> {
    let mut shape: Vec<i64> = shape
        .iter()
        .map(|size| i64::try_from(*size))
        .collect::<Result<_, TryFromIntError>>()
        .map_err(|error| Error::new(WB_ERR_FORMAT, error.to_string()))?;
    let name = file_dtype.to_string();
    let Some(dtype) = Dtype::from_safetensors(&name) else {
        // The fewest elements that are whole bytes.
        let bits = file_dtype.bitsize() as u32;
        let block = if bits.is_multiple_of(8) { 1 } else { 8 >> bits.trailing_zeros() };
        let dtype = Dtype::opaque(&name, block, block * bits / 8)?;
        let whole = shape.last().copied().unwrap_or(1) % i64::from(block) == 0;
        return if whole { Layout::new(dtype, &shape, None).map(Some) } else { Ok(None) };
    };
    if dtype.packed() > 1 {
        let Some(last) = shape.last_mut().filter(|last| **last % dtype.packed() as i64 == 0) else {
            return Ok(None);
        };
        *last /= dtype.packed() as i64;
    }
    Layout::new(dtype, &shape, None).map(Some)
}
