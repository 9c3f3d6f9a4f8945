//! Tensors that are quantized while their rows arrive: a caller copies rows to the device, and kernels
//! follow each copy on its stream. Nothing here waits.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::error::Result;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::quant::chunking::Chunks;
use crate::quant::gather::{is_packed, packed};
use crate::quant::pipeline::{AbsmaxOutput, LoadedRows, Pipeline, PipelineLane, RowRange};
use crate::quant::quantizer::{checked, staging_needs};
use crate::quant::task::QuantizeTask;

/// A tensor in host memory to quantize, in chunks that have their own scales.
pub struct ArrivingTensor<'a>(Pipeline<'a>);

/// Rows that are quantized together.
#[derive(Clone, Copy)]
pub struct ArrivingRows {
    range: RowRange,
    /// Where they are, without gaps.
    pub source: Span,
}

impl<'a> ArrivingTensor<'a> {
    /// In chunks of at most `most` bytes of the source, or of a row of blocks if that has more. `None` for
    /// what only a quantizer can do: rows with gaps, targets in pageable memory, chunks that need more
    /// than `limit` bytes of device memory, and sources that kernels read where they are.
    pub fn new(
        device: &'a Arc<Device>,
        task: &'a QuantizeTask,
        most: u64,
        limit: u64,
    ) -> Result<Option<Self>> {
        let (source_type, grid) = checked(task)?;
        let needs = staging_needs(device, task, source_type, &grid)?;
        let has_gaps = task.layout.span_bytes() != task.layout.elements() * source_type.bytes();
        if needs.row_in == 0 || needs.given_scales || has_gaps || !is_packed(&grid.blocks) {
            return Ok(None);
        }
        if needs.row_out > 0 && !device.backend().is_pinned(task.quantized.span)? {
            return Ok(None);
        }
        let chunks = Chunks::of_loaded_bytes(&grid, needs, most, limit);
        Ok(chunks.map(|chunks| Self(Pipeline { device, task, source_type, grid, needs, chunks })))
    }

    /// The task.
    pub fn task(&self) -> &'a QuantizeTask {
        self.0.task
    }

    /// Bytes of device memory that the largest chunk needs, a multiple of 256.
    pub fn lane_bytes(&self) -> usize {
        self.0.chunks.lane_bytes as usize
    }

    /// All rows, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ArrivingRows> + '_ {
        let pipeline = &self.0;
        let ranges = (0..pipeline.grid.matrices).flat_map(|matrix| pipeline.ranges(matrix));
        ranges.map(|range| {
            let source = pipeline.task.unquantized.span;
            let first = pipeline.unquantized_address(range.matrix, range.begin) as usize;
            let bytes = (range.count() * pipeline.needs.row_in) as usize;
            ArrivingRows { range, source: source.part(first - source.start(), bytes) }
        })
    }

    /// Queues the kernels of rows whose copy to the beginning of `lane` is queued on the stream, and the
    /// copies of what they write. Adds the numbers that are not finite to the count in `nonfinite`.
    pub fn queue(
        &self,
        rows: ArrivingRows,
        lane: Span,
        nonfinite: Span,
        stream: Stream,
    ) -> Result<()> {
        let (pipeline, range) = (&self.0, rows.range);
        let parts = pipeline.chunk_parts(range, lane);
        let loaded = LoadedRows {
            address: parts.rows_in.start() as u64,
            blocks: packed(&pipeline.grid.rows(range.begin, range.end)),
        };
        let mut lane = PipelineLane {
            stream,
            staging: lane,
            host_staging: None,
            second_stream: None,
            pending_copy: None,
        };
        let backend = pipeline.device.backend();
        backend.with_context(&mut || {
            backend.launch(Kernel::Zero { span: parts.absmax }, stream)?;
            let output = AbsmaxOutput { absmax: parts.absmax, nonfinite };
            pipeline.launch_absmax(loaded.address, loaded.blocks, Some(output), stream)?;
            pipeline.store(range, &loaded, &parts, &mut lane)
        })
    }
}
