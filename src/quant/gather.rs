//! Gathers rows with gaps or other strides into memory without gaps, on the host.

use crate::os::bytes;
use crate::os::bytes::Strided;
use crate::os::parallel::threads_for;
use crate::os::span::Span;
use crate::os::sync::thread;
use crate::tensor::scale_grid::Blocks;

/// The same rows without gaps.
pub fn packed(blocks: &Blocks) -> Blocks {
    Blocks { row_stride: blocks.cols as i64, col_stride: 1, ..*blocks }
}

/// Whether the rows have no gaps.
pub fn is_packed(blocks: &Blocks) -> bool {
    *blocks == packed(blocks)
}

/// The rows as elements of `bytes` bytes in memory.
pub fn strided(blocks: &Blocks, bytes: u64) -> Strided {
    Strided {
        rows: blocks.rows,
        cols: blocks.cols,
        row_stride: blocks.row_stride * bytes as i64,
        col_stride: blocks.col_stride * bytes as i64,
        bytes,
    }
}

/// Gathers rows, whose first element is at the address `first` in `from`, on several threads: one
/// thread does not fill a link.
pub fn gather(to: Span, from: Span, first: u64, matrix: &Strided) {
    // A thread for each eighth of the bytes that a copy would have one for, since gathering is
    // slower.
    let threads = threads_for(0, to.bytes() * 8) as u64;
    let step = matrix.rows.div_ceil(threads);
    let line = (matrix.cols * matrix.bytes) as usize;
    let gather_from = |begin: u64| {
        let rows = step.min(matrix.rows - begin);
        let first = (first as i64 + begin as i64 * matrix.row_stride) as u64;
        let to = to.part(begin as usize * line, rows as usize * line);
        bytes::gather(to, from, first, &Strided { rows, ..*matrix });
    };
    thread::scope(|scope| {
        for begin in (0..matrix.rows).step_by(step as usize).skip(1) {
            let named = thread::Builder::new().name("weighbridge-gather".into());
            if named.spawn_scoped(scope, move || gather_from(begin)).is_err() {
                gather_from(begin);
            }
        }
        gather_from(0);
    });
}
