//! [`ScaleGrid`]: a tensor as matrices, each divided into blocks that share a scale.

use crate::error::{Result, fail};
use crate::status::WB_ERR_OUT_OF_RANGE;
use crate::tensor::layout::Layout;

/// A matrix, or some of its rows, and its blocks. The same struct as `wb_blocks` of
/// `kernels/blocks.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// From a row to the next, in elements of the unquantized matrix.
    pub row_stride: i64,
    /// From a column to the next, likewise.
    pub col_stride: i64,
    /// Rows of a block.
    pub block_rows: u64,
    /// Columns of a block.
    pub block_cols: u64,
    /// Blocks side by side, so scales in a row of them.
    pub scale_cols: u64,
    /// Rows of the first block that precede the first row.
    pub first_row: u64,
}

/// The bytes of more scales would not fit in 63 bits.
const MOST_SCALES: u64 = 1 << 60;

/// A tensor's last two dimensions are rows and columns; all others count matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleGrid {
    /// Number of matrices.
    pub matrices: u64,
    /// Sizes and strides of the dimensions that count matrices.
    leading: Vec<(u64, i64)>,
    /// A whole matrix.
    pub blocks: Blocks,
    /// Rows of blocks in a matrix.
    pub scale_rows: u64,
}

impl ScaleGrid {
    /// Divides a layout into blocks of `block` rows and columns; 0 means all of them.
    pub fn new(layout: &Layout, block: (u64, u64)) -> Result<Self> {
        let (shape, strides) = (layout.shape(), layout.strides());
        let at = |from_end: usize| match shape.len().checked_sub(from_end) {
            // The stride of a dimension of size 1 can be any number: it is not used.
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
                 exceeds 2^32 - 1 of one of them: reshape it or use larger blocks"
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
        // A layout has fewer than 2^63 elements, and so fewer matrices.
        let matrices = leading.iter().map(|(size, _)| size).product();
        let grid = Self { matrices, leading, blocks, scale_rows };
        if grid.scales().checked_mul(matrices).is_none_or(|scales| scales > MOST_SCALES) {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "{matrices} matrices with {scale_rows} x {scale_cols} scales each have more than \
                 {MOST_SCALES}: use larger blocks"
            );
        }
        Ok(grid)
    }

    /// Elements from the tensor's first element to a matrix's.
    pub fn start(&self, matrix: u64) -> i64 {
        let mut left = matrix;
        let mut start = 0;
        for (size, stride) in self.leading.iter().rev() {
            start += (left % size) as i64 * stride;
            left /= size;
        }
        start
    }

    /// Scales of a matrix.
    pub fn scales(&self) -> u64 {
        self.scale_rows * self.blocks.scale_cols
    }

    /// Scales of all matrices.
    pub fn all_scales(&self) -> u64 {
        self.scales() * self.matrices
    }

    /// Elements of a matrix.
    pub fn elements(&self) -> u64 {
        self.blocks.rows * self.blocks.cols
    }

    /// Rows `from..to` of a matrix; their first scale is that of row `from`.
    pub fn rows(&self, from: u64, to: u64) -> Blocks {
        Blocks { rows: to - from, first_row: from % self.blocks.block_rows, ..self.blocks }
    }

    /// The number of the first scale of a row.
    pub fn first_scale(&self, row: u64) -> u64 {
        row / self.blocks.block_rows * self.blocks.scale_cols
    }

    /// Number of scales of rows `from..to`.
    pub fn scales_of(&self, from: u64, to: u64) -> u64 {
        let blocks = to.div_ceil(self.blocks.block_rows) - from / self.blocks.block_rows;
        blocks * self.blocks.scale_cols
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::dtype::{Dtype, WB_DTYPE_U8};

    fn grid(shape: &[i64], strides: Option<&[i64]>) -> Result<ScaleGrid> {
        let dtype = Dtype::from_code(WB_DTYPE_U8).unwrap();
        ScaleGrid::new(&Layout::new(dtype, shape, strides).unwrap(), (0, 0))
    }

    #[test]
    fn a_matrix_starts_at_the_strides_of_the_leading_dimensions() {
        let grid = grid(&[2, 3, 4, 5], Some(&[-100, 30, 5, 1])).unwrap();
        let starts: Vec<i64> = (0..grid.matrices).map(|matrix| grid.start(matrix)).collect();
        assert_eq!(starts, [0, 30, 60, -100, -70, -40]);
    }

    #[test]
    fn matrices_are_counted_without_memory_for_each() {
        assert_eq!(grid(&[1 << 50, 2, 3], None).unwrap().all_scales(), 1 << 50);
        let error = grid(&[1 << 62, 1, 1], None).unwrap_err();
        assert_eq!(error.status, WB_ERR_OUT_OF_RANGE);
    }
}
