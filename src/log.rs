//! What cannot be returned (an error while memory is given back) goes to the sink that the host
//! program installed; without one it is only counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::sync::RwLock;

type Sink = Box<dyn Fn(&Error) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);
static RECORDED: AtomicU64 = AtomicU64::new(0);

/// Installs the sink, or takes it away.
pub fn set_sink(sink: Option<Sink>) {
    *SINK.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = sink;
}

/// Records an error that no caller is there to receive.
pub fn record(error: &Error) {
    RECORDED.fetch_add(1, Ordering::Relaxed);
    if let Some(sink) = &*SINK.read().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        sink(error);
    }
}

/// How many errors were recorded since the process began.
pub fn recorded() -> u64 {
    RECORDED.load(Ordering::Relaxed)
}
