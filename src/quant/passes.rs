//! Runs a pipeline: its chunks go through the lanes in turn, in one pass, or in two if the scales
//! are needed first.

use crate::device::backend::{Location, Stream};
use crate::device::kernel::Kernel;
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::os::parallel::{Phase, Progress, report};
use crate::os::span::Span;
use crate::quant::chunking::ALIGNMENT;
use crate::quant::gather::is_packed;
use crate::quant::pipeline::{
    AbsmaxOutput, ChunkParts, LoadedRows, Pipeline, PipelineLane, RowRange,
};
use crate::quant::task::Direction;
use crate::quant::workspace::Workspace;

/// The lanes of a task, and what they share.
struct Lanes<'a> {
    lanes: Vec<PipelineLane<'a>>,
    /// Device memory for the scales of a whole matrix.
    scales: Span,
    nonfinite: Span,
    /// The lane of the next chunk.
    next: usize,
    rows_done: u64,
}

impl<'a> Lanes<'a> {
    /// The lane of the next chunk.
    fn take_next(&mut self) -> &mut PipelineLane<'a> {
        let at = self.next % self.lanes.len();
        self.next += 1;
        &mut self.lanes[at]
    }
}

impl Pipeline<'_> {
    /// Runs the whole task. After an error, work may still be queued on the workspace's streams.
    pub fn run(&self, workspace: &mut Workspace, progress: &mut Progress<'_>) -> Result<()> {
        self.reserve_host_staging(workspace)?;
        let staging = workspace.staging.as_ref().map_or(Span::EMPTY, DeviceMemory::span);
        let lane_bytes = self.chunks.lane_bytes as usize;
        let count = self.chunks.lanes as usize;
        let alone = count == 1 && self.device.capabilities().cuda;
        let lane = |at: usize| PipelineLane {
            stream: workspace.streams[at].get(),
            staging: staging.part(at * lane_bytes, lane_bytes),
            host_staging: workspace.host_staging.get(at),
            second_stream: alone.then(|| workspace.streams[1].get()),
            pending_copy: None,
        };
        let mut lanes = Lanes {
            lanes: (0..count).map(lane).collect(),
            scales: staging.part(count * lane_bytes, self.chunks.scale_bytes as usize),
            nonfinite: workspace.nonfinite.span(),
            next: 0,
            rows_done: 0,
        };
        for matrix in 0..self.grid.matrices {
            match self.chunks.scales_first {
                true => self.run_scales_first(matrix, &mut lanes, progress)?,
                false => self.run_one_pass(matrix, &mut lanes, progress)?,
            }
        }
        self.finish_all(&mut lanes)
    }

    /// The rows of each chunk of a matrix.
    pub fn ranges(&self, matrix: u64) -> impl Iterator<Item = RowRange> + use<> {
        let (rows, step) = (self.grid.blocks.rows, self.chunks.rows.max(1));
        (0..rows.div_ceil(step)).map(move |at| RowRange {
            matrix,
            begin: at * step,
            end: ((at + 1) * step).min(rows),
        })
    }

    /// Quantizes a matrix in one pass: each chunk has its own scales.
    fn run_one_pass(
        &self,
        matrix: u64,
        lanes: &mut Lanes<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        for range in self.ranges(matrix) {
            let nonfinite = lanes.nonfinite;
            let lane = lanes.take_next();
            self.finish(lane)?;
            let parts = self.chunk_parts(range, lane.staging);
            let output = AbsmaxOutput { absmax: parts.absmax, nonfinite };
            self.device.backend().launch(Kernel::Zero { span: parts.absmax }, lane.stream)?;
            let loaded = self.load(range, lane, parts.rows_in, Some(output))?;
            self.store(range, &loaded, &parts, lane)?;
            self.report_rows(lanes, range.count(), progress)?;
        }
        Ok(())
    }

    /// Divides the staging memory of a lane for a chunk that has its own scales.
    pub fn chunk_parts(&self, range: RowRange, staging: Span) -> ChunkParts {
        let mut parts = Parts(staging);
        let count = self.grid.scales_of(range.begin, range.end);
        ChunkParts {
            rows_in: parts.take(range.count() * self.needs.row_in),
            rows_out: parts.take(range.count() * self.needs.row_out),
            absmax: parts.take(count * 4),
            inverses: parts.take(count * 4),
            scales: parts.take(count * self.task.scale_type.bytes()),
        }
    }

    /// Computes the scales of a chunk that was loaded, and converts it.
    pub fn store(
        &self,
        range: RowRange,
        loaded: &LoadedRows,
        parts: &ChunkParts,
        lane: &mut PipelineLane<'_>,
    ) -> Result<()> {
        let (first, count) = (self.grid.first_scale(range.begin), parts.absmax.bytes() as u64 / 4);
        let target = self.scales_at(range.matrix, first, count);
        // A copy on the device may wait for the copies of other lanes.
        let aligned = (target.start() as u64).is_multiple_of(self.task.scale_type.bytes());
        let direct = self.task.scales.on_device && aligned;
        let scales = if direct { target } else { parts.scales };
        self.launch_scales(parts.absmax, scales, parts.inverses, lane.stream)?;
        if !direct {
            self.device.copy(target, scales, lane.stream)?;
        }
        self.convert(range, loaded, parts.inverses, parts.rows_out, lane)
    }

    /// Converts a matrix whose scales are needed first: they are given, or computed in a pass of
    /// their own.
    fn run_scales_first(
        &self,
        matrix: u64,
        lanes: &mut Lanes<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let count = self.grid.scales();
        let mut parts = Parts(lanes.scales);
        let (absmax, multipliers) = (parts.take(count * 4), parts.take(count * 4));
        let stored = parts.take(count * self.task.scale_type.bytes());
        let stream = lanes.lanes[0].stream;
        let backend = self.device.backend();
        if self.needs.given_scales {
            self.device.copy(stored, self.scales_at(matrix, 0, count), stream)?;
            let kernel = Kernel::Inverses {
                scale_type: self.task.scale_type,
                scales: stored,
                inverses: multipliers,
                copy: self.task.direction == Direction::Dequantize,
            };
            backend.launch(kernel, stream)?;
        } else {
            backend.launch(Kernel::Zero { span: absmax }, stream)?;
            backend.synchronize(stream)?;
            for range in self.ranges(matrix) {
                let nonfinite = lanes.nonfinite;
                let lane = lanes.take_next();
                self.finish(lane)?;
                let rows_in = Parts(lane.staging).take(range.count() * self.needs.row_in);
                let absmax = self.scales_from(absmax, range);
                self.load(range, lane, rows_in, Some(AbsmaxOutput { absmax, nonfinite }))?;
                self.report_rows(lanes, 0, progress)?;
            }
            self.finish_all(lanes)?;
            self.launch_scales(absmax, stored, multipliers, stream)?;
            self.device.copy(self.scales_at(matrix, 0, count), stored, stream)?;
        }
        backend.synchronize(stream)?;
        for range in self.ranges(matrix) {
            let lane = lanes.take_next();
            self.finish(lane)?;
            let mut parts = Parts(lane.staging);
            let rows_in = parts.take(range.count() * self.needs.row_in);
            let rows_out = parts.take(range.count() * self.needs.row_out);
            let loaded = self.load(range, lane, rows_in, None)?;
            let multipliers = self.scales_from(multipliers, range);
            self.convert(range, &loaded, multipliers, rows_out, lane)?;
            self.report_rows(lanes, range.count(), progress)?;
        }
        // The scales of the next matrix overwrite these.
        self.finish_all(lanes)
    }

    fn finish_all(&self, lanes: &mut Lanes<'_>) -> Result<()> {
        lanes.lanes.iter_mut().try_for_each(|lane| self.finish(lane))
    }

    /// Entries of four bytes from the block of the range's first row on.
    fn scales_from(&self, entries: Span, range: RowRange) -> Span {
        entries.part(self.grid.first_scale(range.begin) as usize * 4, usize::MAX)
    }

    /// Stored scales of a matrix.
    fn scales_at(&self, matrix: u64, first: u64, count: u64) -> Span {
        let before = matrix * self.grid.scales() + first;
        let bytes = self.task.scale_type.bytes();
        self.task.scales.span.part((before * bytes) as usize, (count * bytes) as usize)
    }

    fn launch_scales(
        &self,
        absmax: Span,
        scales: Span,
        inverses: Span,
        stream: Stream,
    ) -> Result<()> {
        let (format_max, scale_type) = (self.task.format.max(), self.task.scale_type);
        let kernel = Kernel::Scales { absmax, format_max, scale_type, scales, inverses };
        self.device.backend().launch(kernel, stream)
    }

    fn report_rows(
        &self,
        lanes: &mut Lanes<'_>,
        rows: u64,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        lanes.rows_done += rows;
        let done = lanes.rows_done * self.grid.blocks.cols * self.source_type.bytes();
        let total = self.task.layout.elements() * self.source_type.bytes();
        report(progress, Phase::Quantize, done as usize, total as usize)
    }

    /// Makes pinned memory for each lane if the source or the target cannot be copied directly: it
    /// is pageable, or has gaps.
    fn reserve_host_staging(&self, workspace: &mut Workspace) -> Result<()> {
        let (source, target) = match self.task.direction {
            Direction::Quantize => (self.task.unquantized, self.task.quantized),
            Direction::Dequantize => (self.task.quantized, self.task.unquantized),
        };
        let packed = self.task.direction == Direction::Dequantize || is_packed(&self.grid.blocks);
        let is_pinned = |location: Location| self.device.backend().is_pinned(location.span);
        let gathers = self.needs.row_in > 0 && !(packed && is_pinned(source)?);
        let scatters = self.needs.row_out > 0 && !is_pinned(target)?;
        if !gathers && !scatters {
            workspace.host_staging.clear();
            return Ok(());
        }
        let bytes = self.chunks.rows * (self.needs.row_in + self.needs.row_out);
        workspace.reserve_host(self.device, self.chunks.lanes, bytes as usize)
    }
}

/// Takes parts of a span, one after the other.
struct Parts(Span);

impl Parts {
    fn take(&mut self, bytes: u64) -> Span {
        let taken = self.0.part(0, bytes as usize);
        self.0 = self.0.part(bytes.next_multiple_of(ALIGNMENT) as usize, usize::MAX);
        taken
    }
}
