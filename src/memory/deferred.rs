//! References that go when a stream has passed a point, or when no engine's thread has to wait for
//! it. One thread per process, started by the first of them, watches the events and drops them.

#[doc(hidden)]
pub mod reclaimer;

use std::time::Duration;

use crate::device::backend::Event;
use crate::device::device::Device;
use crate::error::{Result, thread_error};
use crate::memory::deferred::reclaimer::{Reclaimer, Watcher};
use crate::os::process::PerProcess;
use crate::os::sync::{Arc, thread};

/// A forked child has one of its own: what its parent had queued is the parent's to give back.
fn reclaimer() -> &'static Reclaimer {
    static RECLAIMER: PerProcess<Reclaimer> = PerProcess::new();
    RECLAIMER.get(|_| Reclaimer::default())
}

/// Starts the thread where it does not run yet: what is to be dropped after it is not kept for want
/// of one.
pub fn start() -> Result<()> {
    reclaimer().start(spawn)
}

/// Drops `payload` once `event` is complete (at once without one), on a thread of this library. In
/// a forked child nothing is dropped: there is no such thread, and CUDA must be left alone.
pub fn drop_after(event: Option<Box<dyn Event>>, payload: Box<dyn Send>, device: &Arc<Device>) {
    if device.backend().check_process().is_err() {
        std::mem::forget((event, payload, device.clone()));
        return;
    }
    reclaimer().push(event, payload, device, spawn);
}

/// Waits until nothing of the device is waiting any more.
pub fn drain(device: &Arc<Device>, timeout: Duration) -> Result<()> {
    device.backend().check_process()?;
    reclaimer().drain(device, timeout, spawn)
}

fn spawn() -> Result<()> {
    let thread = thread::Builder::new().name("weighbridge-reclaim".into());
    let started = thread.spawn(|| {
        let mut watcher = Watcher::default();
        loop {
            watcher.look(reclaimer());
        }
    });
    started.map(drop).map_err(|error| thread_error("the thread that gives memory back", &error))
}
