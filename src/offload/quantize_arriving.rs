//! Quantizes tensors in host memory while their rows arrive on the device: threads read the sources, and
//! kernels follow each copy on its stream, so that no tensor waits for another.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::memory::transfer::{Direction, PIECE_BYTES, Pages, Piece, Transfer};
use crate::offload::bulk_copy;
use crate::os::bytes;
use crate::os::parallel::{Progress, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::quant::arriving::{ArrivingRows, ArrivingTensor};
use crate::quant::chunking::{ALIGNMENT, LANES};
use crate::quant::task::QuantizeTask;

/// Bytes of a count of numbers that are not finite.
const COUNT_BYTES: usize = 8;

/// Device memory of a fill: lanes for rows and what is made of them, and counts.
struct ArrivalMemory {
    memory: DeviceMemory,
    lane_bytes: usize,
    counts_bytes: usize,
}

impl ArrivalMemory {
    /// The memory of a lane, of which there are [`LANES`] in turn.
    fn lane(&self, lane: usize) -> Span {
        let at = lane % LANES as usize * self.lane_bytes;
        self.memory.span().part(self.counts_bytes + at, self.lane_bytes)
    }

    /// All counts.
    fn counts(&self) -> Span {
        self.memory.span().part(0, self.counts_bytes)
    }

    /// The count of a tensor: its own if each tensor has one.
    fn count(&self, tensor: usize) -> Span {
        self.counts().part(tensor * COUNT_BYTES % self.counts_bytes, COUNT_BYTES)
    }
}

/// What a piece of a transfer brings.
struct Arrival {
    /// Its bytes in the source.
    source: Span,
    /// The index of a tensor, and its rows of which this is the last piece.
    completed: Option<(usize, ArrivingRows)>,
}

/// Quantizes the tensors for which that is possible, with at most `staging_bytes` bytes of device memory.
/// Returns for each task whether it was.
pub fn quantize_arriving(
    device: &Arc<Device>,
    tasks: &[&QuantizeTask],
    staging_bytes: u64,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<bool>> {
    // A refusal is of one tensor. Without one the counts are not read.
    let rejects = tasks.iter().any(|task| task.reject_nonfinite);
    let counted = if rejects { tasks.len() } else { 1 };
    let counts_bytes = (counted * COUNT_BYTES).next_multiple_of(ALIGNMENT as usize);
    let limit = staging_bytes.saturating_sub(counts_bytes as u64) / LANES;
    let arriving = tasks
        .iter()
        .map(|task| ArrivingTensor::new(device, task, PIECE_BYTES as u64, limit))
        .collect::<Result<Vec<_>>>()?;
    let done = arriving.iter().map(Option::is_some).collect();
    let tensors: Vec<_> = arriving.into_iter().flatten().collect();
    let Some(lane_bytes) = tensors.iter().map(ArrivingTensor::lane_bytes).max() else {
        return Ok(done);
    };
    let memory = DeviceMemory::alloc(device, counts_bytes + LANES as usize * lane_bytes)?;
    let Some(memory) = memory else { return Ok(done) };
    let memory = ArrivalMemory { memory, lane_bytes, counts_bytes };
    let (pieces, arrivals) = pieces_of(device, &tensors, &memory)?;
    let owned = (0..LANES).map(|_| OwnedStream::new(device)).collect::<Result<Vec<_>>>()?;
    let streams: Vec<Stream> = owned.iter().map(OwnedStream::get).collect();
    device.backend().launch(Kernel::Zero { span: memory.counts() }, streams[0])?;
    device.backend().synchronize(streams[0])?;
    let transfer = Transfer {
        device,
        direction: Direction::ToDevice,
        streams: &streams,
        pieces: &pieces,
        threads: threads_for(threads, arrivals.iter().map(|one| one.source.bytes()).sum()),
        pages: Pages::Present,
        stage: &|at, offset, staging| {
            bytes::copy(staging, arrivals[at].source.part(offset, staging.bytes()));
            Ok(())
        },
        then: Some(&|at, stream| {
            arrivals[at].completed.map_or(Ok(()), |(tensor, rows)| {
                let lane = memory.lane(pieces[at].lane);
                tensors[tensor].queue(rows, lane, memory.count(tensor), stream)
            })
        }),
    };
    bulk_copy::run(&transfer, progress)?;
    if rejects {
        check_finite(device, &tensors, &memory, streams[0])?;
    }
    Ok(done)
}

/// The pieces of all tensors: the rows that are quantized together have a lane.
fn pieces_of(
    device: &Arc<Device>,
    tensors: &[ArrivingTensor<'_>],
    memory: &ArrivalMemory,
) -> Result<(Vec<Piece>, Vec<Arrival>)> {
    let (mut pieces, mut arrivals) = (Vec::new(), Vec::new());
    let mut lane = 0;
    for (at, tensor) in tensors.iter().enumerate() {
        let pinned = device.backend().is_pinned(tensor.task().unquantized.span)?;
        for rows in tensor.chunks() {
            for offset in (0..rows.source.bytes()).step_by(PIECE_BYTES) {
                let source = rows.source.part(offset, PIECE_BYTES);
                let to = memory.lane(lane).part(offset, source.bytes());
                pieces.push(Piece { device: to, direct: pinned.then_some(source), lane });
                let last = source.end() == rows.source.end();
                arrivals.push(Arrival { source, completed: last.then_some((at, rows)) });
            }
            lane += 1;
        }
    }
    Ok((pieces, arrivals))
}

/// Fails if one of the tensors rejects what was counted in it.
fn check_finite(
    device: &Arc<Device>,
    tensors: &[ArrivingTensor<'_>],
    memory: &ArrivalMemory,
    stream: Stream,
) -> Result<()> {
    let counts = Staging::new(device, memory.counts_bytes)?;
    device.copy(counts.span(), memory.counts(), stream)?;
    device.backend().synchronize(stream)?;
    for (at, tensor) in tensors.iter().enumerate() {
        let count = counts.span().part(at * COUNT_BYTES, COUNT_BYTES);
        tensor.task().check_finite(bytes::read_u64(count))?;
    }
    Ok(())
}
