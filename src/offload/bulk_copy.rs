//! Filling host memory and device memory from where parameters come from.

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

/// Bytes on their way to where they are kept.
#[derive(Debug, Clone, Copy)]
pub struct CopyJob {
    /// Where they go.
    pub to: Span,
    /// Where they come from; as many bytes.
    pub from: Location,
}

/// Copies into host memory, of which `arena` is all. Returns when every byte is there.
pub fn into_host(
    device: &Arc<Device>,
    arena: &Buffer,
    jobs: &[CopyJob],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let mut from_host: Vec<CopyJob> =
        jobs.iter().filter(|job| !job.from.on_device).copied().collect();
    from_host.sort_by_key(|job| job.to.start());
    if !from_host.is_empty() {
        let threads = threads_for(threads, arena.data().bytes());
        in_pieces(arena.data(), threads, Phase::Read, progress, &|piece| {
            copy_parts(&from_host, piece);
            Ok(())
        })?;
    }
    let from_device: Vec<CopyJob> = jobs.iter().filter(|job| job.from.on_device).copied().collect();
    if from_device.is_empty() {
        return Ok(());
    }
    let pinned = arena.pinned_bytes() > 0;
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

/// Copies into device memory. Returns when every byte is there.
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

/// The parts of the jobs that fall into a piece of the destination.
fn copy_parts(jobs: &[CopyJob], piece: Span) {
    let first = jobs.partition_point(|job| job.to.end() <= piece.start());
    for job in jobs[first..].iter().take_while(|job| job.to.start() < piece.end()) {
        let skip = piece.start().saturating_sub(job.to.start());
        let room = piece.end() - piece.start().max(job.to.start());
        bytes::copy(job.to.part(skip, room), job.from.span.part(skip, room));
    }
}

/// Copies one piece by the stream; the staging buffer is made for the first that asks for it.
type CopyPiece<'a> = dyn Fn(CopyJob, &mut dyn FnMut() -> Result<Span>, Stream) -> Result<()> + 'a;

/// Copies all jobs in pieces, and waits for what was queued whether it went well or not.
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
