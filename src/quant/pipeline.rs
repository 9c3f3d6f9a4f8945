//! A pipeline: one task, and the lanes that its chunks go through. `passes` runs it, `rows` moves a
//! chunk.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::memory::buffer::Buffer;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::quant::chunking::{Chunks, StagingNeeds};
use crate::quant::task::QuantizeTask;
use crate::tensor::fp8::SourceType;
use crate::tensor::scale_grid::{Blocks, ScaleGrid};

/// A task with all that follows from it.
pub struct Pipeline<'a> {
    pub device: &'a Arc<Device>,
    pub task: &'a QuantizeTask,
    pub source_type: SourceType,
    pub grid: ScaleGrid,
    pub needs: StagingNeeds,
    pub chunks: Chunks,
}

/// Work on one chunk at a time.
pub struct PipelineLane<'a> {
    pub stream: Stream,
    /// Its part of the device's staging memory.
    pub staging: Span,
    /// Pinned host memory, if the source or the target cannot be copied directly: first for rows
    /// that are loaded, then for rows that are stored.
    pub host_staging: Option<&'a Arc<Buffer>>,
    /// Another stream, if this is the only lane.
    pub second_stream: Option<Stream>,
    /// A copy, target and source, that the host makes once the stream has finished.
    pub pending_copy: Option<(Span, Span)>,
}

/// Some rows of one of the matrices.
#[derive(Clone, Copy)]
pub struct RowRange {
    pub matrix: u64,
    pub begin: u64,
    pub end: u64,
}

impl RowRange {
    pub fn count(self) -> u64 {
        self.end - self.begin
    }
}

/// Rows where kernels can read them.
pub struct LoadedRows {
    /// Address of the first element.
    pub address: u64,
    pub blocks: Blocks,
}

/// The parts of a lane's staging memory for a chunk that has its own scales.
pub struct ChunkParts {
    pub rows_in: Span,
    pub rows_out: Span,
    pub absmax: Span,
    pub inverses: Span,
    /// The scales as they are stored.
    pub scales: Span,
}

/// Where the largest absolute values of blocks are computed.
#[derive(Clone, Copy)]
pub struct AbsmaxOutput {
    /// Four bytes for each block, from that of the first row on.
    pub absmax: Span,
    /// Counts the numbers that are NaN or infinite.
    pub nonfinite: Span,
}
