//! Work on a large range in pieces, by several threads, with progress and cancellation.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result, fail};
use crate::os::span::Span;
use crate::os::sync;
use crate::os::sync::{Mutex, thread};
use crate::status::WB_ERR_CANCELLED;

/// Bytes of a piece: large enough to amortise, small enough to balance and to cancel between.
const PIECE: usize = 32 << 20;
/// More threads than this do not make faulting faster on any machine measured.
const MOST_THREADS: usize = 16;

/// What long work is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Making pages present.
    Fault,
    /// Registering pages with the device.
    Pin,
    /// Reading a file.
    Read,
    /// Quantizing.
    Quantize,
}

/// Receives (phase, bytes done, bytes in all), always on the calling thread; `false` cancels.
pub type Progress<'a> = Option<&'a mut dyn FnMut(Phase, u64, u64) -> bool>;

/// Reports progress; `WB_ERR_CANCELLED` when the receiver asks to stop.
pub fn report(progress: &mut Progress<'_>, phase: Phase, done: usize, total: usize) -> Result<()> {
    let Some(receive) = progress else { return Ok(()) };
    if !receive(phase, done as u64, total as u64) {
        fail!(WB_ERR_CANCELLED, "cancelled by the progress callback after {done} of {total} bytes");
    }
    Ok(())
}

/// Threads for a range: what was asked, or one for each piece up to the processors allowed.
pub fn threads_for(asked: usize, bytes: usize) -> usize {
    let pieces = bytes.div_ceil(PIECE).max(1);
    let most = match asked {
        // The answer takes the kernel some files: it is not asked for what one thread does anyway.
        0 if pieces == 1 => 1,
        0 => thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS),
        asked => asked,
    };
    most.clamp(1, pieces)
}

/// Calls `work` for every piece of the range, on `threads` threads of which this one is the first.
/// The first error, or a cancellation, stops all of them.
pub fn in_pieces(
    span: Span,
    threads: usize,
    phase: Phase,
    progress: &mut Progress<'_>,
    work: &(dyn Fn(Span) -> Result<()> + Sync),
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    let stop = |error: Error| {
        stopped.store(true, Ordering::Relaxed);
        sync::lock(&first_error).get_or_insert(error);
    };
    let step = || {
        let offset = next.fetch_add(PIECE, Ordering::Relaxed);
        if offset >= span.bytes() || stopped.load(Ordering::Relaxed) {
            return false;
        }
        let piece = span.part(offset, PIECE);
        match work(piece) {
            Ok(()) => done.fetch_add(piece.bytes(), Ordering::Relaxed),
            Err(error) => {
                return {
                    stop(error);
                    false
                };
            }
        };
        true
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // A thread that cannot be had makes this slower, not wrong.
            let _ = thread::Builder::new()
                .name("weighbridge-pages".into())
                .spawn_scoped(scope, || while step() {});
        }
        while step() {
            let so_far = done.load(Ordering::Relaxed);
            if let Err(error) = report(progress, phase, so_far, span.bytes()) {
                stop(error);
            }
        }
    });
    match first_error.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(error) => Err(error),
        None => report(progress, phase, span.bytes(), span.bytes()),
    }
}
