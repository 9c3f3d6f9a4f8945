//! What cannot be returned (an error while memory is given back) goes to the sink that the host
//! program installed; without one it is only counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result, catch_panic};
use crate::os::process::PerProcess;

type Sink = Arc<dyn Fn(&Error) + Send + Sync>;
type Installed = RwLock<Option<Sink>>;

static SINK: PerProcess<Installed> = PerProcess::new();
static RECORDED: AtomicU64 = AtomicU64::new(0);

/// This process's sink. A forked child goes on with its parent's, unless that was just being changed.
/// Not by sync.rs, which has tests panic with a lock held: panics are recorded here.
fn installed() -> &'static Installed {
    SINK.get(|parent| {
        let inherited = parent.and_then(|sink| sink.try_read().ok()?.clone());
        RwLock::new(inherited)
    })
}

/// Installs the sink, or takes it away.
pub fn set_sink(sink: Option<Sink>) {
    *installed().write().unwrap_or_else(PoisonError::into_inner) = sink;
}

/// Records an error that no caller is there to receive.
pub fn record(error: &Error) {
    RECORDED.fetch_add(1, Ordering::Relaxed);
    if let Some(sink) = &*installed().read().unwrap_or_else(PoisonError::into_inner) {
        sink(error);
    }
}

/// Does what a destructor has to do. An error or a panic is recorded: nobody is there to receive it, and
/// a panic that leaves a destructor may end the process. Whether it was done.
pub fn best_effort(body: impl FnOnce() -> Result<()>) -> bool {
    catch_panic(body).inspect_err(record).is_ok()
}

/// The same for a wait behind which memory goes: one failure is no answer, so it is asked again. Where the
/// device is gone nothing runs any more, and there is nothing to record.
pub fn best_effort_wait(mut wait: impl FnMut() -> Result<()>, is_lost: impl Fn() -> bool) -> bool {
    best_effort(|| match wait().or_else(|_| wait()) {
        Err(_) if is_lost() => Ok(()),
        answer => answer,
    })
}

/// How many errors were recorded since the process began.
pub fn recorded() -> u64 {
    RECORDED.load(Ordering::Relaxed)
}
