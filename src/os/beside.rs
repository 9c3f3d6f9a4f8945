//! Work on a thread of its own, whose result is fetched later.

use crate::error::{Result, catch_panic, fail};
use crate::os::process::Process;
use crate::os::sync::thread;
use crate::status::WB_ERR_INTERNAL;

/// The result of some work, or the thread that is at it. A drop waits for the thread.
pub struct Beside<T> {
    process: Process,
    thread: Option<thread::JoinHandle<Result<T>>>,
    ready: Option<Result<T>>,
}

impl<T: Send + 'static> Beside<T> {
    /// Begins work on a thread. If none can start, the calling one does the work.
    pub fn begin(name: &str, work: impl Fn() -> Result<T> + Clone + Send + 'static) -> Self {
        let here = work.clone();
        let started = thread::Builder::new().name(name.into()).spawn(move || catch_panic(work));
        match started {
            Ok(thread) => Self { process: Process::current(), thread: Some(thread), ready: None },
            Err(_) => Self::here(here),
        }
    }

    /// Does the work on the calling thread.
    pub fn here(work: impl FnOnce() -> Result<T>) -> Self {
        Self { process: Process::current(), thread: None, ready: Some(work()) }
    }

    /// Whether a thread is at work.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The result, for which it waits.
    pub fn finish(mut self) -> Result<T> {
        match (self.ready.take(), self.thread.take()) {
            (Some(ready), _) => ready,
            (_, Some(thread)) => thread.join().unwrap_or_else(|_| ended()),
            _ => ended(),
        }
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        match self.process.is_current() {
            true => drop(thread.join()),
            // A forked child has no such thread.
            false => std::mem::forget(thread),
        }
    }
}

/// Panics are caught in the thread, so that this is never seen.
fn ended<T>() -> Result<T> {
    fail!(WB_ERR_INTERNAL, "a thread has ended without a result");
}
