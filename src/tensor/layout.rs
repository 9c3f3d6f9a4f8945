//! [`Layout`]: type, shape and strides of a tensor, and the bytes that it spans.

use std::collections::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::error::{Error, Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW};
use crate::tensor::dtype::Dtype;

/// The most dimensions, which is PyTorch's limit, too.
pub const MAX_NDIM: usize = 64;

/// Type, shape and strides, checked: the bytes that they span fit in 63 bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    dtype: Dtype,
    /// Shape, then strides in elements, in one allocation.
    dims: Arc<[i64]>,
    /// Bytes from the lowest element to the first, which are not 0 with negative strides.
    before: u64,
    /// Bytes from the lowest element to the end of the highest; 0 without elements.
    span: u64,
}

impl Layout {
    /// Checks a layout. Without strides it is contiguous in row-major order, which an opaque type
    /// always is.
    pub fn new(dtype: Dtype, shape: &[i64], strides: Option<&[i64]>) -> Result<Self> {
        let ndim = shape.len();
        if ndim > MAX_NDIM {
            fail!(WB_ERR_INVALID_ARGUMENT, "asked {ndim} dimensions; the most are {MAX_NDIM}");
        }
        if let Some(size) = shape.iter().find(|size| **size < 0) {
            fail!(WB_ERR_INVALID_ARGUMENT, "a dimension of shape {shape:?} is {size}: negative");
        }
        let mut dims: SmallVec<[i64; 16]> = SmallVec::new();
        dims.extend_from_slice(shape);
        match strides {
            Some(strides) if strides.len() == ndim => dims.extend_from_slice(strides),
            Some(strides) => {
                fail!(WB_ERR_INVALID_ARGUMENT, "{} strides for {ndim} dimensions", strides.len())
            }
            None => {
                dims.resize(2 * ndim, 1);
                contiguous(&mut dims, ndim).ok_or_else(|| overflow(dtype, shape, None))?;
            }
        }
        if dtype.is_opaque() {
            check_blocks(dtype, shape, strides)?;
        }
        let (before, span) = extent(dtype, &dims[..ndim], &dims[ndim..])
            .ok_or_else(|| overflow(dtype, shape, strides))?;
        Ok(Self { dtype, dims: Arc::from(&dims[..]), before, span })
    }

    /// The same layout with the numbers of an equal one in `known`, which then live as long as
    /// `known` does.
    pub fn shared_in(mut self, known: &mut HashSet<Arc<[i64]>>) -> Self {
        match known.get(&self.dims) {
            Some(same) => self.dims = same.clone(),
            None => drop(known.insert(self.dims.clone())),
        }
        self
    }

    /// The type of an element.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of dimensions.
    pub fn ndim(&self) -> usize {
        self.dims.len() / 2
    }

    /// Sizes of the dimensions, in elements.
    pub fn shape(&self) -> &[i64] {
        &self.dims[..self.ndim()]
    }

    /// Strides of the dimensions, in elements.
    pub fn strides(&self) -> &[i64] {
        &self.dims[self.ndim()..]
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape().iter().map(|size| *size as u64).product()
    }

    /// Bytes from the lowest element to the first.
    pub fn bytes_before(&self) -> u64 {
        self.before
    }

    /// Bytes that the tensor spans, including gaps; 0 without elements.
    pub fn span_bytes(&self) -> u64 {
        self.span
    }
}

/// Fills the strides, which follow the shape in `dims`; `None` if they overflow.
fn contiguous(dims: &mut [i64], ndim: usize) -> Option<()> {
    let mut stride = 1i64;
    for index in (0..ndim).rev() {
        dims[ndim + index] = stride;
        stride = stride.checked_mul(dims[index].max(1))?;
    }
    Some(())
}

/// Bytes before the first element and total bytes; `None` if they overflow.
fn extent(dtype: Dtype, shape: &[i64], strides: &[i64]) -> Option<(u64, u64)> {
    let mut elements = 1i64;
    for size in shape.iter().map(|size| (*size).max(1)) {
        elements = elements.checked_mul(size)?;
    }
    let block = i64::from(dtype.block_elements());
    (elements / block).checked_mul(dtype.bytes() as i64)?;
    if shape.contains(&0) {
        return Some((0, 0));
    }
    let (mut low, mut high) = (0i64, 0i64);
    for (size, stride) in shape.iter().zip(strides) {
        let reach = (size - 1).checked_mul(*stride)?;
        if reach < 0 {
            low = low.checked_add(reach)?;
        } else {
            high = high.checked_add(reach)?;
        }
    }
    let bytes = dtype.bytes() as i64;
    // Whole blocks: check_blocks.
    let span = (high.checked_sub(low)?.checked_add(1)? / block).checked_mul(bytes)?;
    Some((low.checked_neg()?.checked_mul(bytes)? as u64, span as u64))
}

/// Fails unless rows are whole blocks without gaps.
fn check_blocks(dtype: Dtype, shape: &[i64], strides: Option<&[i64]>) -> Result<()> {
    let (name, block) = (dtype.name(), i64::from(dtype.block_elements()));
    let last = shape.last().copied().unwrap_or(1);
    if last % block != 0 {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "shape {shape:?} of the opaque type {name:?}: its blocks have {block} elements, and the last \
             dimension {last} is not a multiple of that"
        );
    }
    let mut dims = shape.to_vec();
    dims.resize(2 * shape.len(), 1);
    let contiguous = contiguous(&mut dims, shape.len()).is_some();
    if strides.is_some_and(|strides| contiguous && dims[shape.len()..] != *strides) {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "strides {strides:?} of the opaque type {name:?}, whose blocks cannot be addressed by \
             element: give none, for rows that follow one another"
        );
    }
    Ok(())
}

fn overflow(dtype: Dtype, shape: &[i64], strides: Option<&[i64]>) -> Error {
    let strides = strides.map_or(String::new(), |strides| format!(" with strides {strides:?}"));
    let each = match dtype.block_elements() {
        1 => "each".into(),
        block => format!("for each {block} elements"),
    };
    let message = format!(
        "shape {shape:?}{strides} of {} ({} bytes {each}) spans more than 2^63 bytes",
        dtype.name(),
        dtype.bytes()
    );
    Error::new(WB_ERR_OVERFLOW, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::dtype::{WB_DTYPE_F32, WB_DTYPE_I8};
    use proptest::prelude::*;

    fn f32s(shape: &[i64], strides: Option<&[i64]>) -> Result<Layout> {
        Layout::new(Dtype::from_code(WB_DTYPE_F32).unwrap(), shape, strides)
    }

    #[test]
    fn contiguous_strides_are_row_major() {
        let layout = f32s(&[2, 3, 4], None).unwrap();
        assert_eq!(layout.strides(), [12, 4, 1]);
        assert_eq!((layout.elements(), layout.span_bytes()), (24, 96));
    }

    #[test]
    fn the_span_includes_gaps_and_no_more() {
        assert_eq!(f32s(&[3, 2], Some(&[10, 1])).unwrap().span_bytes(), (2 * 10 + 1 + 1) * 4);
        assert_eq!(f32s(&[], None).unwrap().span_bytes(), 4);
        assert_eq!(f32s(&[5, 0, 7], None).unwrap().span_bytes(), 0);
        assert_eq!(f32s(&[4], Some(&[0])).unwrap().span_bytes(), 4);
    }

    #[test]
    fn negative_strides_reach_below_the_first_element() {
        let layout = f32s(&[4], Some(&[-1])).unwrap();
        assert_eq!((layout.bytes_before(), layout.span_bytes()), (12, 16));
    }

    #[test]
    fn overflowing_layouts_are_rejected() {
        for (shape, strides) in [
            (vec![i64::MAX, 2], None),
            (vec![1 << 62], None),
            (vec![0, i64::MAX, i64::MAX], None),
            (vec![3, 2], Some(vec![i64::MAX, 1])),
            (vec![2, 2], Some(vec![i64::MIN, i64::MIN])),
        ] {
            let error = f32s(&shape, strides.as_deref()).unwrap_err();
            assert_eq!(error.status, WB_ERR_OVERFLOW, "{shape:?} {strides:?}");
        }
        assert_eq!(f32s(&[-1], None).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
        assert_eq!(f32s(&[2], Some(&[1, 1])).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
        assert_eq!(f32s(&[1; 65], None).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
    }

    #[test]
    fn blocks_of_an_opaque_type_count_as_their_bytes() {
        let q4 = Dtype::opaque("test_layout_q4", 256, 144).unwrap();
        let layout = Layout::new(q4, &[3, 512], None).unwrap();
        assert_eq!((layout.elements(), layout.span_bytes()), (1536, 3 * 2 * 144));
        assert_eq!(Layout::new(q4, &[3, 512], Some(&[512, 1])).unwrap(), layout);
        assert_eq!(Layout::new(q4, &[0, 512], None).unwrap().span_bytes(), 0);
        for (shape, strides) in [
            (vec![512, 3], None),
            (vec![], None),
            (vec![3, 512], Some(vec![1, 3])),
            (vec![3, 512], Some(vec![513, 1])),
        ] {
            let error = Layout::new(q4, &shape, strides.as_deref()).unwrap_err();
            assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT, "{shape:?} {strides:?}");
            assert!(error.message.contains("test_layout_q4"), "{error:?}");
        }
        let wide = Dtype::opaque("test_layout_wide", 1, u32::MAX).unwrap();
        assert_eq!(Layout::new(wide, &[1 << 32], None).unwrap_err().status, WB_ERR_OVERFLOW);
        assert!(Layout::new(wide, &[1 << 30], None).is_ok());
    }

    proptest! {
        #[test]
        fn the_span_is_that_of_all_elements_enumerated(
            dims in prop::collection::vec((1i64..5, -20i64..20), 0..4)
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            let dtype = Dtype::from_code(WB_DTYPE_I8).unwrap();
            let layout = Layout::new(dtype, &shape, Some(&strides)).unwrap();
            let mut offsets = vec![0i64];
            for (size, stride) in shape.iter().zip(&strides) {
                offsets = offsets.iter()
                    .flat_map(|offset| (0..*size).map(move |index| offset + index * stride))
                    .collect();
            }
            let (low, high) = (offsets.iter().min().unwrap(), offsets.iter().max().unwrap());
            prop_assert_eq!(layout.bytes_before(), (-low) as u64);
            prop_assert_eq!(layout.span_bytes(), (high - low + 1) as u64);
        }
    }
}
