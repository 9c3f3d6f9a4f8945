//! Deferred releases: references that are dropped after a point of a stream, or without making the
//! caller wait for the drop. One thread per process, started at the first use, drops them.

#[doc(hidden)]
pub mod reclaimer;

use std::time::Duration;

use crate::device::backend::Event;
use crate::device::device::Device;
use crate::error::{Result, thread_error};
pub use crate::memory::deferred::reclaimer::is_after_event;
use crate::memory::deferred::reclaimer::{Reclaimer, Watcher};
use crate::os::process::PerProcess;
use crate::os::sync::{Arc, thread};

/// A forked child has a reclaimer of its own: its parent drops what it has queued.
fn reclaimer() -> &'static Reclaimer {
    static RECLAIMER: PerProcess<Reclaimer> = PerProcess::new();
    RECLAIMER.get(|_| Reclaimer::default())
}

/// Starts the thread if it does not run yet, so that a later [`drop_after`] cannot fail to.
pub fn start() -> Result<()> {
    reclaimer().start(spawn)
}

/// Drops `payload` on the reclaimer's thread once `event` is complete, or at once without an event.
/// In a forked child nothing is dropped: it has no such thread and must not call CUDA.
pub fn drop_after(event: Option<Box<dyn Event>>, payload: Box<dyn Send>, device: &Arc<Device>) {
    if device.backend().check_process().is_err() {
        std::mem::forget((event, payload, device.clone()));
        return;
    }
    reclaimer().push(event, payload, device, spawn);
}

/// Waits until no reference of the device is pending, and releases what could not be released
/// before. Fails with `WB_ERR_TIMEOUT` after `timeout`.
pub fn drain(device: &Arc<Device>, timeout: Duration) -> Result<()> {
    device.backend().check_process()?;
    reclaimer().drain(device, timeout, spawn)?;
    device.retry_releases()
}

fn spawn() -> Result<()> {
    let thread = thread::Builder::new().name("weighbridge-reclaim".into());
    let started = thread.spawn(|| {
        let mut watcher = Watcher::default();
        loop {
            watcher.look(reclaimer());
        }
    });
    started.map(drop).map_err(|error| thread_error("the thread that frees memory", &error))
}
