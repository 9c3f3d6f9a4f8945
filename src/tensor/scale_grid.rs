//! A tensor as matrices, and the blocks of each that share a scale.

use crate::error::{Result, fail};
use crate::status::WB_ERR_OUT_OF_RANGE;
use crate::tensor::Layout;

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

/// More would not be counted in 63 bits of bytes.
const MOST_SCALES: u64 = 1 << 60;

/// Rows and columns are the last two dimensions; all before them count matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleGrid {
    /// How many matrices there are.
    pub matrices: u64,
    /// Sizes and strides of the dimensions that count them.
    leading: Vec<(u64, i64)>,
    /// One whole matrix.
    pub blocks: Blocks,
    /// Rows of scales of a matrix.
    pub scale_rows: u64,
}

impl ScaleGrid {
    /// Cuts a layout into blocks of so many rows and columns; 0 for all of them.
    pub fn new(layout: &Layout, block: (u64, u64)) -> Result<Self> {
        let (shape, strides) = (layout.shape(), layout.strides());
        let at = |from_end: usize| match shape.len().checked_sub(from_end) {
            // The stride of a single element is not used, and may be any number.
            Some(dim) if shape[dim] != 1 => (shape[dim] as u64, Some(strides[dim])),
            _ => (1, None),
        };
        let ((rows, row_stride), (cols, col_stride)) = (at(2), at(1));
        let (row_stride, col_stride) = (row_stride.unwrap_or(cols as i64), col_stride.unwrap_or(1));
        let leading = &shape[..shape.len().saturating_sub(2)];
        let leading: Vec<(u64, i64)> =
            leading.iter().zip(strides).map(|(size, stride)| (*size as u64, *stride)).collect();
        let of = |asked: u64, all: u64| if asked == 0 { all } else { asked.min(all) }.max(1);
        let (block_rows, block_cols) = (of(block.0, rows), of(block.1, cols));
        let (scale_rows, scale_cols) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
        let most = u64::from(u32::MAX);
        if rows > most || cols > most || scale_rows * scale_cols > most {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "a matrix of {rows} rows and {cols} columns with {scale_rows} x {scale_cols} scales \
                 has more of one than 2^32 - 1: reshape it or take larger blocks"
            );
        }
        let blocks = Blocks {
            rows,
            cols,
            row_stride,
            col_stride,
            block_rows,
            block_cols,
            scale_cols,
            first_row: 0,
        };
        // A layout's elements are fewer than 2^63, and so are its matrices.
        let matrices = leading.iter().map(|(size, _)| size).product();
        let geometry = Self { matrices, leading, blocks, scale_rows };
        if geometry.scales().checked_mul(matrices).is_none_or(|scales| scales > MOST_SCALES) {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "{matrices} matrices with {scale_rows} x {scale_cols} scales each have more than \
                 {MOST_SCALES}: take larger blocks"
            );
        }
        Ok(geometry)
    }

    /// Elements from the tensor's first to a matrix's first.
    pub fn start(&self, matrix: u64) -> i64 {
        let mut left = matrix;
        let mut start = 0;
        for (size, stride) in self.leading.iter().rev() {
            start += (left % size) as i64 * stride;
            left /= size;
        }
        start
    }

    /// Scales of one matrix.
    pub fn scales(&self) -> u64 {
        self.scale_rows * self.blocks.scale_cols
    }

    /// Scales of all of them.
    pub fn all_scales(&self) -> u64 {
        self.scales() * self.matrices
    }

    /// Elements of one matrix.
    pub fn elements(&self) -> u64 {
        self.blocks.rows * self.blocks.cols
    }

    /// Rows `from..to` of a matrix, whose first scale is that of row `from`.
    pub fn rows(&self, from: u64, to: u64) -> Blocks {
        Blocks { rows: to - from, first_row: from % self.blocks.block_rows, ..self.blocks }
    }

    /// The first scale of the row of blocks that a row is in.
    pub fn first_scale(&self, row: u64) -> u64 {
        row / self.blocks.block_rows * self.blocks.scale_cols
    }

    /// Scales of the rows `from..to`.
    pub fn scales_of(&self, from: u64, to: u64) -> u64 {
        let blocks = to.div_ceil(self.blocks.block_rows) - from / self.blocks.block_rows;
        blocks * self.blocks.scale_cols
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;
    use crate::tensor::dtype::WB_DTYPE_U8;

    fn geometry(shape: &[i64], strides: Option<&[i64]>) -> Result<ScaleGrid> {
        let dtype = Dtype::from_code(WB_DTYPE_U8).unwrap();
        ScaleGrid::new(&Layout::new(dtype, shape, strides).unwrap(), (0, 0))
    }

    #[test]
    fn matrices_begin_where_the_leading_dimensions_say() {
        let geometry = geometry(&[2, 3, 4, 5], Some(&[-100, 30, 5, 1])).unwrap();
        let starts: Vec<i64> =
            (0..geometry.matrices).map(|matrix| geometry.start(matrix)).collect();
        assert_eq!(starts, [0, 30, 60, -100, -70, -40]);
    }

    #[test]
    fn more_matrices_than_memory_holds_are_counted_and_not_listed() {
        assert_eq!(geometry(&[1 << 50, 2, 3], None).unwrap().all_scales(), 1 << 50);
        let error = geometry(&[1 << 62, 1, 1], None).unwrap_err();
        assert_eq!(error.status, WB_ERR_OUT_OF_RANGE);
    }
}
