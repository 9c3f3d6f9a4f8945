//! Copies of parameters into host memory and into device memory, outside of steps.

use crate::device::backend::{Location, Stream};
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::Result;
use crate::memory::buffer::Buffer;
use crate::memory::staging::{STAGING_BYTES, Staging};
use crate::os::bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, report, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;

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
    let (from_device, mut from_host): (Vec<CopyJob>, Vec<CopyJob>) =
        jobs.iter().copied().partition(|job| job.from.on_device);
    if !from_host.is_empty() {
        from_host.sort_by_key(|job| job.to.start());
        let threads = threads_for(threads, buffer.data().bytes());
        in_pieces(buffer.data(), threads, Phase::Read, progress, &|piece| {
            copy_into_piece(&from_host, piece);
            Ok(())
        })?;
    }
    if from_device.is_empty() {
        return Ok(());
    }
    let pinned = buffer.pinned_bytes() > 0;
    on_a_stream(device, &from_device, progress, &|piece, staging, stream| match pinned {
        true => device.copy(piece.to, piece.from.span, stream),
        false => {
            let staged = staging()?.part(0, piece.to.bytes());
            device.copy(staged, piece.from.span, stream)?;
            device.backend().synchronize(stream)?;
            bytes::copy(piece.to, staged);
            Ok(())
        }
    })
}

/// Copies into device memory. Returns when all bytes are there.
pub fn into_device(
    device: &Arc<Device>,
    jobs: &[CopyJob],
    progress: &mut Progress<'_>,
) -> Result<()> {
    on_a_stream(device, jobs, progress, &|piece, staging, stream| match piece.from.on_device {
        true => device.copy(piece.to, piece.from.span, stream),
        false => {
            let staged = staging()?.part(0, piece.to.bytes());
            bytes::copy(staged, piece.from.span);
            device.copy(piece.to, staged, stream)?;
            device.backend().synchronize(stream)
        }
    })
}

/// The parts of the jobs, sorted by target, that lie in a piece of the targets' memory.
fn copy_into_piece(jobs: &[CopyJob], piece: Span) {
    let first = jobs.partition_point(|job| job.to.end() <= piece.start());
    for job in jobs[first..].iter().take_while(|job| job.to.start() < piece.end()) {
        let skip = piece.start().saturating_sub(job.to.start());
        let most = piece.end() - piece.start().max(job.to.start());
        bytes::copy(job.to.part(skip, most), job.from.span.part(skip, most));
    }
}

/// Queues the copy of one piece on a stream. Its second argument makes the staging buffer when it
/// is first called.
type CopyPiece<'a> = dyn Fn(CopyJob, &mut dyn FnMut() -> Result<Span>, Stream) -> Result<()> + 'a;

/// Runs the jobs in pieces. Waits for all that was queued, also after an error.
fn on_a_stream(
    device: &Arc<Device>,
    jobs: &[CopyJob],
    progress: &mut Progress<'_>,
    copy: &CopyPiece<'_>,
) -> Result<()> {
    let mut staging: Option<Staging> = None;
    let stream = OwnedStream::new(device)?;
    let total = jobs.iter().map(|job| job.to.bytes()).sum();
    let largest = jobs.iter().map(|job| job.to.bytes()).max().unwrap_or(0);
    let mut staged = || match &staging {
        Some(staging) => Ok(staging.span()),
        None => Ok(staging.insert(Staging::new(device, largest)?).span()),
    };
    let mut copy_all = || {
        let mut done = 0;
        for job in jobs {
            for offset in (0..job.to.bytes()).step_by(STAGING_BYTES) {
                let part = |span: Span| span.part(offset, STAGING_BYTES);
                let from = Location { span: part(job.from.span), ..job.from };
                let piece = CopyJob { to: part(job.to), from };
                copy(piece, &mut staged, stream.get())?;
                done += piece.to.bytes();
                report(progress, Phase::Read, done, total)?;
            }
        }
        Ok(())
    };
    let copied = copy_all();
    copied.and(device.backend().synchronize(stream.get()))
}
