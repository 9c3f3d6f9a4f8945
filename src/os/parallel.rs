//! Work on a large range in pieces, on several threads, with progress and cancellation.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result, catch_panic, fail};
use crate::os::span::Span;
use crate::os::sync;
use crate::os::sync::{Mutex, thread};
use crate::status::WB_ERR_CANCELLED;

/// Bytes of a piece: large enough to amortise its overhead, small enough to balance the threads, to
/// share the work on staging memory among some, and to cancel soon.
const PIECE: usize = 8 << 20;
/// On a machine of 32 cores as many threads make pages present faster than 16 do.
const MOST_THREADS: usize = 32;

/// The kind of work that progress is reported of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Making pages present.
    Fault,
    /// Registering pages with the device.
    Pin,
    /// Reading a file, or copying.
    Read,
    /// Quantizing.
    Quantize,
    /// Compressing.
    Compress,
}

/// Receives the phase, the bytes done and the total bytes, always on the calling thread; returns
/// `false` to cancel.
pub type Progress<'a> = Option<&'a mut dyn FnMut(Phase, u64, u64) -> bool>;

/// Reports progress. Fails with `WB_ERR_CANCELLED` if the callback cancels.
pub fn report(progress: &mut Progress<'_>, phase: Phase, done: usize, total: usize) -> Result<()> {
    let Some(receive) = progress else { return Ok(()) };
    if !receive(phase, done as u64, total as u64) {
        fail!(WB_ERR_CANCELLED, "cancelled by the progress callback after {done} of {total} bytes");
    }
    Ok(())
}

/// Does two things at the same time, `beside` on a thread of its own if one can be started. Returns the
/// error of `here` first.
pub fn both(
    beside: impl FnOnce() -> Result<()> + Send,
    here: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let beside = Mutex::new(Some(beside));
    let work = || match sync::lock(&beside).take() {
        Some(work) => catch_panic(work),
        None => Ok(()),
    };
    let (done, other) = thread::scope(|scope| {
        let name = "weighbridge-beside".into();
        let started = thread::Builder::new().name(name).spawn_scoped(scope, work);
        let done = here();
        // Nothing panics in the thread that is not caught.
        (done, started.map_or(Ok(()), |started| started.join().unwrap_or(Ok(()))))
    });
    done?;
    other?;
    work()
}

/// The number of threads of work that names none: the processors allowed, or fewer.
pub fn most_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

/// The number of threads for a range: `asked`, by default (0) [`most_threads`], and at most
/// one for each piece.
pub fn threads_for(asked: usize, bytes: usize) -> usize {
    let pieces = bytes.div_ceil(PIECE).max(1);
    let threads = match asked {
        // To ask for the processors reads several files: skipped where the result does not matter.
        0 if pieces == 1 => 1,
        0 => most_threads(),
        asked => asked,
    };
    threads.clamp(1, pieces)
}

/// Calls `work` for every piece of the range, on `threads` threads including the calling one. The
/// first error, or a cancellation, stops all of them.
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
    // Works on the next piece; false if there is none or the work was stopped.
    let step = || {
        let offset = next.fetch_add(PIECE, Ordering::Relaxed);
        if offset >= span.bytes() || stopped.load(Ordering::Relaxed) {
            return false;
        }
        let piece = span.part(offset, PIECE);
        match work(piece) {
            Ok(()) => {
                done.fetch_add(piece.bytes(), Ordering::Relaxed);
                true
            }
            Err(error) => {
                stop(error);
                false
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // If a thread cannot start, the others do its work.
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
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => report(progress, phase, span.bytes(), span.bytes()),
    }
}
