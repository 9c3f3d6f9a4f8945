//! How many rows go through the staging memory at a time, and how often.

use crate::error::{Result, fail, human};
use crate::status::WB_ERR_STAGING;
use crate::tensor::scale_grid::ScaleGrid;

/// Every part of the staging memory begins at a multiple of this.
pub const ALIGNMENT: u64 = 256;

/// Chunks under way at a time: one comes, one is worked on, one leaves.
pub const LANES: u64 = 3;

/// A size and an inverse for each scale.
const SCRATCH: u64 = 8;

/// What a row takes of the staging memory, and the scales.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Bytes of a row that is brought to the device; 0 where it is there.
    pub row_in: u64,
    /// Bytes of a row that is brought away.
    pub row_out: u64,
    /// Bytes of a stored scale.
    pub scale: u64,
    /// Scales are given, and not found from the numbers.
    pub given: bool,
}

/// How a matrix goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Rows of a chunk.
    pub rows: u64,
    /// Chunks under way at a time.
    pub lanes: u64,
    /// The sizes of all blocks are found first, in a pass of their own, or given.
    pub scales_first: bool,
    /// Bytes of each lane.
    pub lane_bytes: u64,
    /// Bytes for the scales of the whole matrix, if they come first.
    pub scale_bytes: u64,
}

impl Chunks {
    /// The fewest passes, then the most lanes, within `limit` bytes.
    pub fn new(geometry: &ScaleGrid, need: Need, limit: u64, most_lanes: u64) -> Result<Self> {
        let blocks = &geometry.blocks;
        let step = blocks.block_rows;
        let lane = |rows: u64| Self::lane_bytes(geometry, need, rows);
        if !need.given {
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
                let chunks = blocks.rows.div_ceil(rows) * geometry.matrices;
                return Ok(Self {
                    rows,
                    lanes: lanes.min(chunks),
                    scales_first: false,
                    lane_bytes: lane(rows),
                    scale_bytes: 0,
                });
            }
        }
        let scale_bytes = (geometry.scales() * (SCRATCH + need.scale) + 3 * ALIGNMENT)
            .next_multiple_of(ALIGNMENT);
        let row = |rows: u64| {
            (rows * need.row_in).next_multiple_of(ALIGNMENT)
                + (rows * need.row_out).next_multiple_of(ALIGNMENT)
        };
        for lanes in (1..=most_lanes).rev() {
            let most = limit.saturating_sub(scale_bytes) / lanes;
            if scale_bytes < limit && row(1) <= most {
                let rows = largest(blocks.rows, |count| row(count) <= most);
                let lane_bytes = row(rows);
                let lanes = lanes.min(blocks.rows.div_ceil(rows));
                return Ok(Self { rows, lanes, scales_first: true, lane_bytes, scale_bytes });
            }
        }
        let by_rows = scale_bytes + row(1).max(1);
        let least = match need.given {
            true => by_rows,
            false => by_rows.min(lane(step.min(blocks.rows))),
        };
        fail!(
            WB_ERR_STAGING,
            "asked for at most {} of staging memory; one row of {} elements with the scales needs {}: \
             raise staging_bytes",
            human(limit),
            blocks.cols,
            human(least)
        )
    }

    fn lane_bytes(geometry: &ScaleGrid, need: Need, rows: u64) -> u64 {
        let scales = geometry.scales_of(0, rows);
        [rows * need.row_in, rows * need.row_out, scales * 4, scales * 4, scales * need.scale]
            .iter()
            .map(|bytes| bytes.next_multiple_of(ALIGNMENT))
            .sum()
    }

    /// Bytes of staging memory in all.
    pub fn bytes(&self) -> u64 {
        self.lanes * self.lane_bytes + self.scale_bytes
    }
}

/// The largest number up to `most`, at least 1, for which it holds; it holds for 1 and then for no
/// number above one for which it does not.
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
