//! One task on its way: chunks are brought, their sizes found, and what is made of them let go.

use crate::device::backend::{Location, Stream, WaitScope};
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::device::owned::DeviceMemory;
use crate::device::policy::Tristate;
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::bytes;
use crate::os::parallel::{Phase, Progress, report, threads_for};
use crate::os::span::Span;
use crate::os::sync::{Arc, thread};
use crate::quant::chunking::{ALIGNMENT, Chunks, Need};
use crate::quant::task::{Direction, QuantizeTask};
use crate::quant::workspace::Workspace;
use crate::tensor::fp8::SourceType;
use crate::tensor::scale_grid::{Blocks, ScaleGrid};

/// Bytes that a lane which is alone copies at a time.
const PIECE: u64 = 16 << 20;

/// One chunk's way.
struct Lane<'a> {
    stream: Stream,
    memory: Span,
    /// Pinned memory for what cannot be copied as it lies: the way in, the way out.
    bounce: Option<&'a Arc<Buffer>>,
    /// Another stream, where this lane is alone.
    helper: Option<Stream>,
    /// What the host copies once the stream is done: to, from.
    leaving: Option<(Span, Span)>,
}

/// One task on its way.
pub struct Pipeline<'a> {
    pub device: &'a Arc<Device>,
    pub task: &'a QuantizeTask,
    pub wide: SourceType,
    pub geometry: &'a ScaleGrid,
    pub need: Need,
    pub chunks: Chunks,
}

impl Pipeline<'_> {
    /// The whole task; what is queued may still run when it ends.
    pub fn all(&mut self, state: &mut Workspace, progress: &mut Progress<'_>) -> Result<()> {
        let staging = state.staging.as_ref().map_or(Span::EMPTY, DeviceMemory::span);
        self.make_bounce(state)?;
        let cuda = self.device.capabilities().cuda;
        let mut lanes: Vec<Lane<'_>> = (0..self.chunks.lanes as usize)
            .map(|at| Lane {
                stream: state.streams[at].get(),
                memory: staging
                    .part(at * self.chunks.lane_bytes as usize, self.chunks.lane_bytes as usize),
                bounce: state.bounce.get(at),
                helper: (cuda && self.chunks.lanes == 1).then(|| state.streams[1].get()),
                leaving: None,
            })
            .collect();
        let behind = self.chunks.lanes * self.chunks.lane_bytes;
        let scales = staging.part(behind as usize, self.chunks.scale_bytes as usize);
        let nonfinite = state.nonfinite.span();
        let (mut done, mut turn) = (0, 0);
        for matrix in 0..self.geometry.matrices {
            if self.chunks.scales_first {
                self.two_passes(matrix, &mut lanes, scales, nonfinite, &mut done, progress)?;
            } else {
                self.one_pass(matrix, &mut lanes, nonfinite, (&mut done, &mut turn), progress)?;
            }
        }
        lanes.iter_mut().try_for_each(|lane| self.finish(lane))
    }

    /// The rows of each chunk.
    fn cuts(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (rows, step) = (self.geometry.blocks.rows, self.chunks.rows.max(1));
        (0..rows.div_ceil(step)).map(move |at| (at * step, ((at + 1) * step).min(rows)))
    }

    /// Each chunk finds its own scales.
    fn one_pass(
        &self,
        matrix: u64,
        lanes: &mut [Lane<'_>],
        nonfinite: Span,
        (done, turn): (&mut u64, &mut usize),
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        for (from, to) in self.cuts() {
            let count = lanes.len();
            let lane = &mut lanes[*turn % count];
            *turn += 1;
            self.finish(lane)?;
            let mut parts = Parts(lane.memory);
            let room = parts.next((to - from) * self.need.row_in);
            let out = parts.next((to - from) * self.need.row_out);
            let scales = self.geometry.scales_of(from, to);
            let (sizes, inverses) = (parts.next(scales * 4), parts.next(scales * 4));
            let stored = parts.next(scales * self.task.scale_type.bytes());
            self.device.backend().launch(Kernel::Zero { span: sizes }, lane.stream)?;
            let (source, blocks) =
                self.bring(matrix, (from, to), lane, room, Some((sizes, nonfinite)))?;
            self.make_scales(sizes, stored, inverses, lane.stream)?;
            let first = self.geometry.first_scale(from);
            self.device.copy(self.scales_at(matrix, first, scales), stored, lane.stream)?;
            self.convert(matrix, (from, to), source, blocks, inverses, out, lane)?;
            self.tell(done, to - from, progress)?;
        }
        Ok(())
    }

    /// The scales of the whole matrix come first: found in a pass of their own, or given.
    fn two_passes(
        &self,
        matrix: u64,
        lanes: &mut [Lane<'_>],
        memory: Span,
        nonfinite: Span,
        done: &mut u64,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let count = self.geometry.scales();
        let mut parts = Parts(memory);
        let (sizes, inverses) = (parts.next(count * 4), parts.next(count * 4));
        let stored = parts.next(count * self.task.scale_type.bytes());
        let first = lanes[0].stream;
        lanes.iter_mut().try_for_each(|lane| self.finish(lane))?;
        if self.need.given {
            self.device.copy(stored, self.scales_at(matrix, 0, count), first)?;
            let kind = self.task.scale_type;
            let as_they_are = self.task.direction == Direction::Dequantize;
            let invert = Kernel::Inverses { kind, scales: stored, inverses, as_they_are };
            self.device.backend().launch(invert, first)?;
        } else {
            self.device.backend().launch(Kernel::Zero { span: sizes }, first)?;
            self.device.backend().synchronize(first)?;
            for (at, (from, to)) in self.cuts().enumerate() {
                let count = lanes.len();
                let lane = &mut lanes[at % count];
                self.finish(lane)?;
                let room = Parts(lane.memory).next((to - from) * self.need.row_in);
                let mine = self.scales_from(sizes, self.geometry.first_scale(from));
                self.bring(matrix, (from, to), lane, room, Some((mine, nonfinite)))?;
                self.tell(done, 0, progress)?;
            }
            lanes.iter_mut().try_for_each(|lane| self.finish(lane))?;
            self.make_scales(sizes, stored, inverses, first)?;
            self.device.copy(self.scales_at(matrix, 0, count), stored, first)?;
        }
        self.device.backend().synchronize(first)?;
        for (at, (from, to)) in self.cuts().enumerate() {
            let count = lanes.len();
            let lane = &mut lanes[at % count];
            self.finish(lane)?;
            let mut parts = Parts(lane.memory);
            let room = parts.next((to - from) * self.need.row_in);
            let (source, blocks) = self.bring(matrix, (from, to), lane, room, None)?;
            let out = parts.next((to - from) * self.need.row_out);
            let mine = self.scales_from(inverses, self.geometry.first_scale(from));
            self.convert(matrix, (from, to), source, blocks, mine, out, lane)?;
            self.tell(done, to - from, progress)?;
        }
        // The next matrix's scales go where these are.
        lanes.iter_mut().try_for_each(|lane| self.finish(lane))
    }

    /// Four-byte entries from a scale on.
    fn scales_from(&self, entries: Span, first: u64) -> Span {
        entries.part(first as usize * 4, usize::MAX)
    }

    fn scales_at(&self, matrix: u64, first: u64, count: u64) -> Span {
        let before = matrix * self.geometry.scales() + first;
        let bytes = self.task.scale_type.bytes();
        self.task.scales.span.part((before * bytes) as usize, (count * bytes) as usize)
    }

    /// Where the kernels find rows of a matrix: brought into `room` by the lane's stream if need be, and
    /// their largest sizes found, piece by piece as they come, where `sizes` are wanted.
    fn bring(
        &self,
        matrix: u64,
        (from, to): (u64, u64),
        lane: &Lane<'_>,
        room: Span,
        wanted: Option<(Span, Span)>,
    ) -> Result<(u64, Blocks)> {
        let rows = |from: u64, to: u64| match (self.task.direction, self.need.row_in) {
            (Direction::Quantize, 1..) => packed(&self.geometry.rows(from, to)),
            _ => self.geometry.rows(from, to),
        };
        let find = |source: u64, blocks: Blocks, stream: Stream| {
            let Some((sizes, nonfinite)) = wanted else { return Ok(()) };
            let wide = self.wide;
            self.device
                .backend()
                .launch(Kernel::Absmax { wide, source, blocks, sizes, nonfinite }, stream)
        };
        let (whole, first, lies) = match self.task.direction {
            Direction::Quantize => {
                let lies = strided(&self.geometry.rows(from, to), self.wide.bytes());
                (self.task.unquantized.span, self.wide_at(matrix, from), lies)
            }
            Direction::Dequantize => {
                let narrow = self.task.quantized.span;
                let first = narrow.start() as u64 + self.elements_before(matrix, from);
                (narrow, first, strided(&packed(&self.geometry.rows(from, to)), 1))
            }
        };
        if self.need.row_in == 0 {
            find(first, rows(from, to), lane.stream)?;
            return Ok((first, rows(from, to)));
        }
        let here = match lane.bounce {
            Some(bounce) => {
                let packed = bounce.data().part(0, room.bytes());
                gather(packed, whole, first, &lies);
                packed
            }
            None => whole.part(first as usize - whole.start(), room.bytes()),
        };
        let source = room.start() as u64;
        let Some(helper) = lane.helper.filter(|_| wanted.is_some()) else {
            self.device.copy(room, here, lane.stream)?;
            find(source, rows(from, to), lane.stream)?;
            return Ok((source, rows(from, to)));
        };
        // Nothing else is under way: the sizes of what has come are found while the rest comes.
        let backend = self.device.backend();
        let event = backend.new_event(false)?;
        let step = (PIECE / self.need.row_in).max(1);
        for begin in (from..to).step_by(step as usize) {
            let end = (begin + step).min(to);
            let part = |span: Span| {
                let skip = ((begin - from) * self.need.row_in) as usize;
                span.part(skip, ((end - begin) * self.need.row_in) as usize)
            };
            self.device.copy(part(room), part(here), lane.stream)?;
            event.record(lane.stream)?;
            event.hold(helper, WaitScope::Capture)?;
            // The sizes are those of rows from `from` on.
            let first_row = from % self.geometry.blocks.block_rows + (begin - from);
            find(part(room).start() as u64, Blocks { first_row, ..rows(begin, end) }, helper)?;
        }
        event.record(helper)?;
        event.hold(lane.stream, WaitScope::Capture)?;
        Ok((source, rows(from, to)))
    }

    /// The address of a matrix's row on the wide side.
    fn wide_at(&self, matrix: u64, row: u64) -> u64 {
        let element = self.geometry.start(matrix) + row as i64 * self.geometry.blocks.row_stride;
        (self.task.unquantized.span.start() as u64 + self.task.layout.bytes_before())
            .wrapping_add_signed(element * self.wide.bytes() as i64)
    }

    /// Elements without gaps that lie before a matrix's row.
    fn elements_before(&self, matrix: u64, row: u64) -> u64 {
        matrix * self.geometry.elements() + row * self.geometry.blocks.cols
    }

    fn make_scales(&self, sizes: Span, scales: Span, inverses: Span, stream: Stream) -> Result<()> {
        let (most, kind) = (self.task.format.most(), self.task.scale_type);
        let kernel = Kernel::Scales { sizes, most, kind, scales, inverses };
        self.device.backend().launch(kernel, stream)
    }

    /// Lets rows go to where they belong, or to where they leave from.
    #[allow(clippy::too_many_arguments)]
    fn convert(
        &self,
        matrix: u64,
        (from, to): (u64, u64),
        source: u64,
        blocks: Blocks,
        inverses: Span,
        out: Span,
        lane: &mut Lane<'_>,
    ) -> Result<()> {
        let near = self.need.row_out == 0;
        let elements = (to - from) * blocks.cols;
        let before = self.elements_before(matrix, from);
        let (wide, format, narrow) = (self.wide, self.task.format, self.task.quantized.span);
        let (kernel, goal) = match self.task.direction {
            Direction::Quantize => {
                let goal = narrow.part(before as usize, elements as usize);
                let target = if near { goal } else { out };
                (Kernel::Quantize { wide, format, source, blocks, inverses, target }, goal)
            }
            Direction::Dequantize => {
                let bytes = elements * wide.bytes();
                let skip = self.wide_at(matrix, from) as usize - self.task.unquantized.span.start();
                let goal = self.task.unquantized.span.part(skip, bytes as usize);
                let target = if near { self.wide_at(matrix, from) } else { out.start() as u64 };
                let blocks = if near { blocks } else { packed(&blocks) };
                let read = if self.need.row_in == 0 {
                    narrow.part(before as usize, elements as usize)
                } else {
                    lane.memory.part(source as usize - lane.memory.start(), elements as usize)
                };
                let scales = inverses;
                (Kernel::Dequantize { wide, format, source: read, blocks, scales, target }, goal)
            }
        };
        self.device.backend().launch(kernel, lane.stream)?;
        if near {
            return Ok(());
        }
        let bytes = ((to - from) * self.need.row_out) as usize;
        match lane.bounce {
            Some(bounce) => {
                let behind = self.chunks.rows * self.need.row_in;
                let room = bounce.data().part(behind as usize, bytes);
                self.device.copy(room, out, lane.stream)?;
                lane.leaving = Some((goal, room));
                Ok(())
            }
            None => self.device.copy(goal, out, lane.stream),
        }
    }

    /// Waits for the lane, and lets what leaves it by the host go.
    fn finish(&self, lane: &mut Lane<'_>) -> Result<()> {
        self.device.backend().synchronize(lane.stream)?;
        if let Some((to, from)) = lane.leaving.take() {
            bytes::copy(to, from);
        }
        Ok(())
    }

    fn tell(&self, done: &mut u64, rows: u64, progress: &mut Progress<'_>) -> Result<()> {
        *done += rows * self.geometry.blocks.cols * self.wide.bytes();
        let all = self.task.layout.elements() * self.wide.bytes();
        report(progress, Phase::Quantize, *done as usize, all as usize)
    }

    /// Pinned memory for each lane, where the source or the target cannot be copied as it lies.
    fn make_bounce(&self, state: &mut Workspace) -> Result<()> {
        let (source, target) = match self.task.direction {
            Direction::Quantize => (self.task.unquantized, self.task.quantized),
            Direction::Dequantize => (self.task.quantized, self.task.unquantized),
        };
        let packed =
            self.task.direction == Direction::Dequantize || is_packed(&self.geometry.blocks);
        let pinned = |place: Location| self.device.backend().is_pinned(place.span);
        let comes = self.need.row_in > 0 && !(packed && pinned(source)?);
        let leaves = self.need.row_out > 0 && !pinned(target)?;
        if !comes && !leaves {
            state.bounce.clear();
            return Ok(());
        }
        let bytes = (self.chunks.rows * (self.need.row_in + self.need.row_out)) as usize;
        if state.bounce.iter().any(|bounce| bounce.data().bytes() < bytes) {
            state.bounce.clear();
        }
        while state.bounce.len() < self.chunks.lanes as usize {
            let options = BufferOptions { pin: Tristate::On, ..Default::default() };
            state.bounce.push(Buffer::alloc(self.device, bytes, &options, &mut None)?);
        }
        Ok(())
    }
}

/// The same rows without gaps.
fn packed(blocks: &Blocks) -> Blocks {
    Blocks { row_stride: blocks.cols as i64, col_stride: 1, ..*blocks }
}

/// Whether the rows lie without gaps.
pub fn is_packed(blocks: &Blocks) -> bool {
    *blocks == packed(blocks)
}

/// Gathers rows on several threads: one does not fill a link.
fn gather(to: Span, from: Span, first: u64, matrix: &bytes::Strided) {
    let threads = threads_for(0, to.bytes() * 8) as u64;
    let rows = matrix.rows.div_ceil(threads);
    let line = (matrix.cols * matrix.bytes) as usize;
    thread::scope(|scope| {
        for begin in (0..matrix.rows).step_by(rows as usize).skip(1) {
            let part = move || gather_rows(to, from, first, matrix, begin, rows, line);
            let named = thread::Builder::new().name("weighbridge-gather".into());
            if named.spawn_scoped(scope, part).is_err() {
                part();
            }
        }
        gather_rows(to, from, first, matrix, 0, rows, line);
    });
}

fn gather_rows(
    to: Span,
    from: Span,
    first: u64,
    matrix: &bytes::Strided,
    begin: u64,
    rows: u64,
    line: usize,
) {
    let rows = rows.min(matrix.rows - begin);
    let first = (first as i64 + begin as i64 * matrix.row_stride) as u64;
    let to = to.part(begin as usize * line, rows as usize * line);
    bytes::gather(to, from, first, &bytes::Strided { rows, ..*matrix });
}

fn strided(blocks: &Blocks, bytes: u64) -> bytes::Strided {
    bytes::Strided {
        rows: blocks.rows,
        cols: blocks.cols,
        row_stride: blocks.row_stride * bytes as i64,
        col_stride: blocks.col_stride * bytes as i64,
        bytes,
    }
}

/// Parts of a span, one behind the other.
struct Parts(Span);

impl Parts {
    fn next(&mut self, bytes: u64) -> Span {
        let taken = self.0.part(0, bytes as usize);
        self.0 = self.0.part(bytes.next_multiple_of(ALIGNMENT) as usize, usize::MAX);
        taken
    }
}
