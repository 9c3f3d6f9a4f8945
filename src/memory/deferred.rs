//! References that go when a stream has passed a point, or when no engine's thread has to wait for
//! it. One thread per process, started by the first of them, watches the events and drops them.

mod reclaimer;

use std::thread;
use std::time::Duration;

use crate::device::{Device, Event};
use crate::error::Result;
use crate::sync::{Arc, Condvar, Mutex};
use reclaimer::{Queue, Reclaimer, Watcher};

static RECLAIMER: Reclaimer =
    Reclaimer { queue: Mutex::new(Queue::EMPTY), arrived: Condvar::new(), gone: Condvar::new() };

/// Drops `payload` once `event` is complete (at once without one), on a thread of this library. In
/// a forked child nothing is dropped: there is no such thread, and CUDA must be left alone.
pub fn drop_after(event: Option<Box<dyn Event>>, payload: Box<dyn Send>, device: &Arc<Device>) {
    if device.backend().check_process().is_err() {
        std::mem::forget((event, payload, device.clone()));
        return;
    }
    RECLAIMER.push(event, payload, device, || {
        thread::Builder::new().name("weighbridge-reclaim".into()).spawn(watch).map(drop)
    });
}

/// Waits until nothing of the device is waiting any more.
pub fn drain(device: &Arc<Device>, timeout: Duration) -> Result<()> {
    device.backend().check_process()?;
    RECLAIMER.drain(device, timeout)
}

fn watch() {
    let mut watcher = Watcher::new();
    loop {
        watcher.look(&RECLAIMER);
    }
}
