//! Divides a matrix into chunks of rows that fit into the staging memory.

use crate::error::{Result, fail, format_bytes};
use crate::status::WB_ERR_STAGING;
use crate::tensor::scale_grid::ScaleGrid;

/// Every part of the staging memory begins at a multiple of this.
pub const ALIGNMENT: u64 = 256;

/// Chunks in flight at the same time: one is copied in, one is computed, one is copied out.
pub const LANES: u64 = 3;

/// Bytes of the largest absolute value and of the inverse scale of a block.
const SCRATCH: u64 = 8;

/// Bytes of staging memory that rows and scales need.
#[derive(Debug, Clone, Copy)]
pub struct StagingNeeds {
    /// Bytes of a row that is copied to the device; 0 if the kernels read the source directly.
    pub row_in: u64,
    /// Bytes of a row that is copied from the device; 0 if the kernels write the target directly.
    pub row_out: u64,
    /// Bytes of a stored scale.
    pub scale: u64,
    /// Whether the scales are given.
    pub given_scales: bool,
}

/// How a matrix is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Rows of a chunk.
    pub rows: u64,
    /// Chunks in flight at the same time.
    pub lanes: u64,
    /// Whether the scales of the whole matrix are needed before the first chunk is converted: they
    /// are given, or computed in a pass of their own.
    pub scales_first: bool,
    /// Bytes of each lane.
    pub lane_bytes: u64,
    /// Bytes for the scales of the whole matrix, if they are needed first.
    pub scale_bytes: u64,
}

impl Chunks {
    /// The fewest passes, then the most lanes, within `limit` bytes.
    pub fn new(grid: &ScaleGrid, needs: StagingNeeds, limit: u64, most_lanes: u64) -> Result<Self> {
        let blocks = &grid.blocks;
        let step = blocks.block_rows;
        let lane = |rows: u64| Self::one_pass_bytes(grid, needs, rows);
        if !needs.given_scales {
            for lanes in (1..=most_lanes).rev() {
                // Whole rows of blocks, so that each chunk has its own scales.
                let most = limit / lanes;
                if lane(step.min(blocks.rows)) > most {
                    continue;
                }
                let rows = largest(blocks.rows.div_ceil(step), |count| {
                    lane((count * step).min(blocks.rows)) <= most
                }) * step;
                let rows = rows.min(blocks.rows);
                let chunks = blocks.rows.div_ceil(rows) * grid.matrices;
                return Ok(Self {
                    rows,
                    lanes: lanes.min(chunks),
                    scales_first: false,
                    lane_bytes: lane(rows),
                    scale_bytes: 0,
                });
            }
        }
        let scale_bytes =
            (grid.scales() * (SCRATCH + needs.scale) + 3 * ALIGNMENT).next_multiple_of(ALIGNMENT);
        let row_bytes = |rows: u64| {
            (rows * needs.row_in).next_multiple_of(ALIGNMENT)
                + (rows * needs.row_out).next_multiple_of(ALIGNMENT)
        };
        for lanes in (1..=most_lanes).rev() {
            let most = limit.saturating_sub(scale_bytes) / lanes;
            if scale_bytes < limit && row_bytes(1) <= most {
                let rows = largest(blocks.rows, |count| row_bytes(count) <= most);
                let lane_bytes = row_bytes(rows);
                let lanes = lanes.min(blocks.rows.div_ceil(rows));
                return Ok(Self { rows, lanes, scales_first: true, lane_bytes, scale_bytes });
            }
        }
        let by_rows = scale_bytes + row_bytes(1).max(1);
        let least = match needs.given_scales {
            true => by_rows,
            false => by_rows.min(lane(step.min(blocks.rows))),
        };
        fail!(
            WB_ERR_STAGING,
            "asked for at most {} of staging memory; one row of {} elements with the scales needs {}: \
             raise staging_bytes",
            format_bytes(limit),
            blocks.cols,
            format_bytes(least)
        )
    }

    /// One pass in chunks of at most `most` bytes that are copied to the device, or of a row of
    /// blocks if that has more. `None` if a chunk needs more than `limit` bytes.
    pub fn of_loaded_bytes(
        grid: &ScaleGrid,
        needs: StagingNeeds,
        most: u64,
        limit: u64,
    ) -> Option<Self> {
        let blocks = &grid.blocks;
        let count = most / (blocks.block_rows * needs.row_in).max(1);
        let rows = (count.max(1) * blocks.block_rows).min(blocks.rows);
        let lane_bytes = Self::one_pass_bytes(grid, needs, rows);
        let chunks = Self { rows, lanes: 1, scales_first: false, lane_bytes, scale_bytes: 0 };
        (lane_bytes <= limit).then_some(chunks)
    }

    /// Bytes of a lane for chunks of `rows` rows with their own scales.
    fn one_pass_bytes(grid: &ScaleGrid, needs: StagingNeeds, rows: u64) -> u64 {
        let scales = grid.scales_of(0, rows);
        [rows * needs.row_in, rows * needs.row_out, scales * 4, scales * 4, scales * needs.scale]
            .iter()
            .map(|bytes| bytes.next_multiple_of(ALIGNMENT))
            .sum()
    }

    /// Bytes of staging memory.
    pub fn bytes(&self) -> u64 {
        self.lanes * self.lane_bytes + self.scale_bytes
    }
}

/// The largest number in `1..=most` for which `holds` is true, which is true for 1 and false for
/// all numbers from some number on.
fn largest(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match holds(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}
