//! One chunk: its rows are loaded into device memory, converted, and copied to the target.

use crate::device::backend::{Stream, WaitScope};
use crate::device::kernel::Kernel;
use crate::error::Result;
use crate::os::bytes;
use crate::os::span::Span;
use crate::quant::gather::{gather, packed, strided};
use crate::quant::pipeline::{AbsmaxOutput, LoadedRows, Pipeline, PipelineLane, RowRange};
use crate::quant::task::Direction;
use crate::tensor::scale_grid::Blocks;

/// Bytes that are copied at a time if there is only one lane.
const PIECE_BYTES: u64 = 16 << 20;

impl Pipeline<'_> {
    /// Makes rows readable for kernels: copies them into `staging` on the lane's stream, unless
    /// kernels read the source directly. Computes the largest absolute value of each block if
    /// `output` is given.
    pub fn load(
        &self,
        range: RowRange,
        lane: &PipelineLane<'_>,
        staging: Span,
        output: Option<AbsmaxOutput>,
    ) -> Result<LoadedRows> {
        let rows = self.grid.rows(range.begin, range.end);
        if self.needs.row_in == 0 {
            let address = match self.task.direction {
                Direction::Quantize => self.unquantized_address(range.matrix, range.begin),
                Direction::Dequantize => self.quantized_address(range.matrix, range.begin),
            };
            self.launch_absmax(address, rows, output, lane.stream)?;
            return Ok(LoadedRows { address, blocks: rows });
        }
        let blocks = match self.task.direction {
            Direction::Quantize => packed(&rows),
            Direction::Dequantize => rows,
        };
        let loaded = LoadedRows { address: staging.start() as u64, blocks };
        let source = self.copyable_source(range, lane, staging.bytes());
        match (lane.second_stream, output) {
            (Some(second), Some(output)) => {
                self.load_in_pieces(range, lane.stream, second, (staging, source), output)?;
            }
            _ => {
                self.device.copy(staging, source, lane.stream)?;
                self.launch_absmax(loaded.address, loaded.blocks, output, lane.stream)?;
            }
        }
        Ok(loaded)
    }

    /// Rows as one span that can be copied to the device: in the source, or gathered in the lane's
    /// pinned memory.
    fn copyable_source(&self, range: RowRange, lane: &PipelineLane<'_>, bytes: usize) -> Span {
        let rows = self.grid.rows(range.begin, range.end);
        let (source, first, matrix) = match self.task.direction {
            Direction::Quantize => (
                self.task.unquantized.span,
                self.unquantized_address(range.matrix, range.begin),
                strided(&rows, self.source_type.bytes()),
            ),
            Direction::Dequantize => (
                self.task.quantized.span,
                self.quantized_address(range.matrix, range.begin),
                strided(&packed(&rows), 1),
            ),
        };
        match lane.host_staging {
            Some(buffer) => {
                let gathered = buffer.data().part(0, bytes);
                gather(gathered, source, first, &matrix);
                gathered
            }
            None => source.part(first as usize - source.start(), bytes),
        }
    }

    /// Copies rows of the unquantized tensor, and computes the largest absolute values of those
    /// that have been copied on a second stream meanwhile: with one lane, nothing else is in
    /// flight.
    fn load_in_pieces(
        &self,
        range: RowRange,
        stream: Stream,
        second: Stream,
        (to, from): (Span, Span),
        output: AbsmaxOutput,
    ) -> Result<()> {
        let event = self.device.backend().new_event(false)?;
        let step = (PIECE_BYTES / self.needs.row_in).max(1);
        for begin in (range.begin..range.end).step_by(step as usize) {
            let end = (begin + step).min(range.end);
            let part = |span: Span| {
                let skip = ((begin - range.begin) * self.needs.row_in) as usize;
                span.part(skip, ((end - begin) * self.needs.row_in) as usize)
            };
            self.device.copy(part(to), part(from), stream)?;
            event.record(stream)?;
            event.wait(second, WaitScope::Capture)?;
            // `absmax` begins with the block of the range's first row.
            let first_row = range.begin % self.grid.blocks.block_rows + (begin - range.begin);
            let blocks = Blocks { first_row, ..packed(&self.grid.rows(begin, end)) };
            self.launch_absmax(part(to).start() as u64, blocks, Some(output), second)?;
        }
        event.record(second)?;
        event.wait(stream, WaitScope::Capture)
    }

    pub fn launch_absmax(
        &self,
        source: u64,
        blocks: Blocks,
        output: Option<AbsmaxOutput>,
        stream: Stream,
    ) -> Result<()> {
        let Some(AbsmaxOutput { absmax, nonfinite }) = output else { return Ok(()) };
        let source_type = self.source_type;
        let kernel = Kernel::Absmax { source_type, source, blocks, absmax, nonfinite };
        self.device.backend().launch(kernel, stream)
    }

    /// Converts loaded rows: to where they belong, or into `staging`, from where they are copied
    /// there. `multipliers` are the inverse scales, or to dequantize the scales, from the block of
    /// the first row on.
    pub fn convert(
        &self,
        range: RowRange,
        loaded: &LoadedRows,
        multipliers: Span,
        staging: Span,
        lane: &mut PipelineLane<'_>,
    ) -> Result<()> {
        let direct = self.needs.row_out == 0;
        let elements = (range.count() * loaded.blocks.cols) as usize;
        let quantized = self.quantized_rows(range, elements);
        let (source_type, format) = (self.source_type, self.task.format);
        let (kernel, target) = match self.task.direction {
            Direction::Quantize => {
                let kernel = Kernel::Quantize {
                    source_type,
                    format,
                    source: loaded.address,
                    blocks: loaded.blocks,
                    inverses: multipliers,
                    target: if direct { quantized } else { staging },
                };
                (kernel, quantized)
            }
            Direction::Dequantize => {
                let first = self.unquantized_address(range.matrix, range.begin);
                let whole = self.task.unquantized.span;
                let bytes = elements * source_type.bytes() as usize;
                let kernel = Kernel::Dequantize {
                    source_type,
                    format,
                    source: match self.needs.row_in {
                        0 => quantized,
                        _ => {
                            let skip = loaded.address as usize - lane.staging.start();
                            lane.staging.part(skip, elements)
                        }
                    },
                    blocks: if direct { loaded.blocks } else { packed(&loaded.blocks) },
                    scales: multipliers,
                    target: if direct { first } else { staging.start() as u64 },
                };
                (kernel, whole.part(first as usize - whole.start(), bytes))
            }
        };
        self.device.backend().launch(kernel, lane.stream)?;
        if direct {
            return Ok(());
        }
        match lane.host_staging {
            Some(buffer) => {
                let skip = self.chunks.rows * self.needs.row_in;
                let bytes = range.count() * self.needs.row_out;
                let staged = buffer.data().part(skip as usize, bytes as usize);
                self.device.copy(staged, staging, lane.stream)?;
                lane.pending_copy = Some((target, staged));
                Ok(())
            }
            None => self.device.copy(target, staging, lane.stream),
        }
    }

    /// Waits for the lane's stream, and makes its pending copy.
    pub fn finish(&self, lane: &mut PipelineLane<'_>) -> Result<()> {
        self.device.backend().synchronize(lane.stream)?;
        if let Some((to, from)) = lane.pending_copy.take() {
            bytes::copy(to, from);
        }
        Ok(())
    }

    /// Address of a row's first element in the unquantized tensor.
    pub fn unquantized_address(&self, matrix: u64, row: u64) -> u64 {
        let element = self.grid.start(matrix) + row as i64 * self.grid.blocks.row_stride;
        (self.task.unquantized.span.start() as u64 + self.task.layout.bytes_before())
            .wrapping_add_signed(element * self.source_type.bytes() as i64)
    }

    /// Address of a row's first element in the FP8 tensor.
    fn quantized_address(&self, matrix: u64, row: u64) -> u64 {
        self.task.quantized.span.start() as u64 + self.elements_before(matrix, row)
    }

    /// Rows in the FP8 tensor.
    fn quantized_rows(&self, range: RowRange, elements: usize) -> Span {
        let before = self.elements_before(range.matrix, range.begin);
        self.task.quantized.span.part(before as usize, elements)
    }

    fn elements_before(&self, matrix: u64, row: u64) -> u64 {
        matrix * self.grid.elements() + row * self.grid.blocks.cols
    }
}
