//! The log: errors that no call can return, such as a failure to free memory. They go to the sink
//! that the host program installed, and are counted in any case.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result, catch_panic};
use crate::os::process::PerProcess;

/// Receives every logged error.
pub type Sink = Arc<dyn Fn(&Error) + Send + Sync>;

type Installed = RwLock<Option<Sink>>;

static SINK: PerProcess<Installed> = PerProcess::new();
static RECORDED: AtomicU64 = AtomicU64::new(0);

/// This process's sink. A forked child inherits its parent's, unless it was being changed at the
/// fork. The lock is taken without sync.rs, where tests force panics: panics are logged here.
fn installed() -> &'static Installed {
    SINK.get(|parent| {
        let inherited = parent.and_then(|sink| sink.try_read().ok()?.clone());
        RwLock::new(inherited)
    })
}

/// Installs or removes the sink.
pub fn set_sink(sink: Option<Sink>) {
    *installed().write().unwrap_or_else(PoisonError::into_inner) = sink;
}

/// Logs an error.
pub fn record(error: &Error) {
    RECORDED.fetch_add(1, Ordering::Relaxed);
    if let Some(sink) = &*installed().read().unwrap_or_else(PoisonError::into_inner) {
        sink(error);
    }
}

/// Runs the work of a destructor; logs an error or a panic, since a panic that leaves a destructor
/// can abort the process. Returns whether it succeeded.
pub fn best_effort(body: impl FnOnce() -> Result<()>) -> bool {
    catch_panic(body).inspect_err(record).is_ok()
}

/// The same for a wait after which memory is freed. A failed wait is tried once more, because one
/// failure does not show that the work is done. On a lost device nothing runs, so its failure
/// counts as done.
pub fn best_effort_wait(mut wait: impl FnMut() -> Result<()>, is_lost: impl Fn() -> bool) -> bool {
    best_effort(|| match wait().or_else(|_| wait()) {
        Err(_) if is_lost() => Ok(()),
        result => result,
    })
}

/// Number of errors logged since the process began.
pub fn recorded() -> u64 {
    RECORDED.load(Ordering::Relaxed)
}
