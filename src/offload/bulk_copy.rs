//! Copies of parameters into host memory and into device memory, outside of steps.

use crate::device::backend::Location;
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::Result;
use crate::memory::buffer::Buffer;
use crate::memory::transfer::{DIRECT_PIECE_BYTES, Direction, PIECE_BYTES, Pages, Piece, Transfer};
use crate::os::bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, report, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::plan::ALIGNMENT;

/// Bytes from which on a source that is pinned is copied directly. Smaller sources are gathered in
/// staging memory, so that many of them are one copy: a copy costs as much as 100 KB on the link.
const LEAST_DIRECT: usize = 1 << 20;

/// A copy.
#[derive(Debug, Clone, Copy)]
pub struct CopyJob {
    /// Its target: host or device memory, as the function that runs it says.
    pub to: Span,
    /// Its source, of as many bytes.
    pub from: Location,
}

/// Copies into `buffer`, in which all targets lie. Returns when all bytes are there.
pub fn into_host(
    device: &Arc<Device>,
    buffer: &Buffer,
    jobs: &[CopyJob],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    into_region(device, buffer, buffer.data(), jobs, threads, progress)
}

/// As [`into_host`], of targets that lie close together.
pub fn into_place(
    device: &Arc<Device>,
    buffer: &Buffer,
    jobs: &[CopyJob],
    threads: usize,
) -> Result<()> {
    let first = jobs.iter().map(|job| job.to.start()).min();
    let end = jobs.iter().map(|job| job.to.end()).max();
    let Some((first, end)) = first.zip(end) else { return Ok(()) };
    let region = buffer.data().part(first - buffer.data().start(), end - first);
    into_region(device, buffer, region, jobs, threads, &mut None)
}

/// As [`into_host`]; all targets lie in a region of the buffer.
fn into_region(
    device: &Arc<Device>,
    buffer: &Buffer,
    region: Span,
    jobs: &[CopyJob],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let (from_device, mut from_host): (Vec<CopyJob>, Vec<CopyJob>) =
        jobs.iter().copied().partition(|job| job.from.on_device);
    if !from_host.is_empty() {
        from_host.sort_by_key(|job| job.to.start());
        let threads = threads_for(threads, region.bytes());
        in_pieces(region, threads, Phase::Read, progress, &|piece| {
            copy_into_piece(&from_host, piece, piece);
            Ok(())
        })?;
    }
    if from_device.is_empty() {
        return Ok(());
    }
    let stream = OwnedStream::new(device)?;
    let direct = buffer.pinned_bytes() > 0;
    let most = if direct { DIRECT_PIECE_BYTES } else { PIECE_BYTES };
    let parts: Vec<CopyJob> = from_device.iter().flat_map(|job| parts_of(*job, most)).collect();
    let pieces: Vec<Piece> = parts
        .iter()
        .map(|part| Piece { device: part.from.span, direct: direct.then_some(part.to), lane: 0 })
        .collect();
    let transfer = Transfer {
        device,
        direction: Direction::FromDevice,
        streams: &[stream.get()],
        pieces: &pieces,
        threads: threads_for(threads, bytes_of(&from_device)),
        pages: Pages::Present,
        stage: &|at, offset, staging| {
            bytes::copy(parts[at].to.part(offset, staging.bytes()), staging);
            Ok(())
        },
        then: None,
    };
    run(&transfer, progress)
}

/// Copies into `memory` of the device, in which all targets lie. Returns when all bytes are there.
/// Bytes of the memory that lie between targets, fewer than [`ALIGNMENT`], may be overwritten.
pub fn into_device(
    device: &Arc<Device>,
    memory: Span,
    jobs: &[CopyJob],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let (mut direct, mut staged) = (Vec::new(), Vec::new());
    let cuda = device.capabilities().cuda;
    for job in jobs.iter().filter(|job| job.to.bytes() > 0) {
        let large = job.to.bytes() >= LEAST_DIRECT;
        // The host device copies from any memory.
        let copyable = job.from.on_device || !cuda;
        if copyable || (large && device.backend().is_pinned(job.from.span)?) {
            direct.extend(
                parts_of(*job, DIRECT_PIECE_BYTES).map(|part| (part.to, Some(part.from.span))),
            );
        } else {
            staged.push(*job);
        }
    }
    staged.sort_by_key(|job| job.to.start());
    let mut ends = Vec::new();
    for run in staged.chunk_by(|job, next| next.to.start() < job.to.end() + ALIGNMENT as usize) {
        let (first, last) = (run[0].to.start(), run[run.len() - 1].to.end());
        let run = memory.part(first - memory.start(), last - first);
        let offsets = (0..run.bytes()).step_by(PIECE_BYTES);
        ends.extend(offsets.map(|offset| (run.part(offset, PIECE_BYTES), None)));
    }
    // Direct copies run after the staged pieces, which overwrite the bytes between their targets.
    ends.append(&mut direct);
    let piece = |(device, direct)| Piece { device, direct, lane: 0 };
    let pieces: Vec<Piece> = ends.into_iter().map(piece).collect();
    let stream = OwnedStream::new(device)?;
    let transfer = Transfer {
        device,
        direction: Direction::ToDevice,
        streams: &[stream.get()],
        pieces: &pieces,
        threads: threads_for(threads, bytes_of(&staged)),
        pages: Pages::Present,
        stage: &|at, offset, staging| {
            copy_into_piece(&staged, pieces[at].device.part(offset, staging.bytes()), staging);
            Ok(())
        },
        then: None,
    };
    run(&transfer, progress)
}

/// Makes a transfer, and reports its progress.
pub fn run(transfer: &Transfer<'_>, progress: &mut Progress<'_>) -> Result<()> {
    let total = transfer.pieces.iter().map(|piece| piece.device.bytes()).sum();
    let mut done = 0;
    transfer.run(&mut |at| {
        done += transfer.pieces[at].device.bytes();
        report(progress, Phase::Read, done, total)
    })
}

/// Makes one copy into device memory.
pub fn write_device(device: &Arc<Device>, job: CopyJob) -> Result<()> {
    into_device(device, job.to, &[job], 0, &mut None)
}

fn bytes_of(jobs: &[CopyJob]) -> usize {
    jobs.iter().map(|job| job.to.bytes()).sum()
}

/// A job in parts of at most `most` bytes.
fn parts_of(job: CopyJob, most: usize) -> impl Iterator<Item = CopyJob> {
    (0..job.to.bytes()).step_by(most).map(move |offset| {
        let part = |span: Span| span.part(offset, most);
        CopyJob { to: part(job.to), from: Location { span: part(job.from.span), ..job.from } }
    })
}

/// Copies the parts of the jobs, sorted by target, that lie in a piece of the targets' memory, to
/// `memory`, which has the piece's bytes or will be copied to it.
fn copy_into_piece(jobs: &[CopyJob], piece: Span, memory: Span) {
    let first = jobs.partition_point(|job| job.to.end() <= piece.start());
    for job in jobs[first..].iter().take_while(|job| job.to.start() < piece.end()) {
        let skip = piece.start().saturating_sub(job.to.start());
        let start = piece.start().max(job.to.start());
        let most = piece.end() - start;
        bytes::copy(memory.part(start - piece.start(), most), job.from.span.part(skip, most));
    }
}
