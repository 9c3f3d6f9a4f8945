//! References that go when a stream has passed a point, or when no engine's thread has to wait for
//! it. One thread per process, started by the first of them, watches the events and drops them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::{Device, Event};
use crate::error::{Result, fail, no_thread};
use crate::log;
use crate::process::PerProcess;
use crate::status::WB_ERR_TIMEOUT;
use crate::sync;

/// First and longest pause between two looks at the events.
const PAUSE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// Failed looks at an event, up to a second of them, after which its device counts as broken.
const MOST_FAILURES: u32 = 1000;

/// A reference that waits. `payload` is taken before `device` is let go.
struct Waiting {
    event: Option<Box<dyn Event>>,
    /// Looks at the event that failed.
    failures: u32,
    payload: Option<Box<dyn Send>>,
    device: Arc<Device>,
}

#[derive(Default)]
struct Queue {
    arrived: Vec<Waiting>,
    /// The thread runs.
    watched: bool,
}

/// What the thread and those who give it something share.
#[derive(Default)]
struct Reclaim {
    queue: Mutex<Queue>,
    arrived: Condvar,
    gone: Condvar,
}

/// A forked child has one of its own: what its parent had queued is the parent's to give back.
fn reclaim() -> &'static Reclaim {
    static RECLAIM: PerProcess<Reclaim> = PerProcess::new();
    RECLAIM.get(|_| Reclaim::default())
}

/// Starts the thread where it does not run yet: what is to be dropped after it is not kept for want
/// of one.
pub fn start() -> Result<()> {
    let mut queue = sync::lock(&reclaim().queue);
    if !queue.watched {
        thread::Builder::new()
            .name("weighbridge-reclaim".into())
            .spawn(watch)
            .map_err(|error| no_thread("the thread that gives memory back", &error))?;
        queue.watched = true;
    }
    Ok(())
}

/// Drops `payload` once `event` is complete (at once without one), on a thread of this library. In
/// a forked child nothing is dropped: there is no such thread, and CUDA must be left alone.
pub fn drop_after(event: Option<Box<dyn Event>>, payload: Box<dyn Send>, device: &Arc<Device>) {
    let waiting = Waiting { event, failures: 0, payload: Some(payload), device: device.clone() };
    if device.backend().check_process().is_err() {
        std::mem::forget(waiting);
        return;
    }
    let reclaim = reclaim();
    let mut waiting = Some(waiting);
    log::settle(|| {
        let mut queue = sync::lock(&reclaim.queue);
        queue.arrived.extend(waiting.take());
        device.usage().deferred.fetch_add(1, Ordering::AcqRel);
        Ok(())
    });
    // What did not get there is kept for ever: something may still use it.
    std::mem::forget(waiting);
    reclaim.arrived.notify_one();
    // The next reference, or a drain, tries again; until then this one and its memory stay.
    log::settle(start);
}

/// Waits until nothing of the device is waiting any more.
pub fn drain(device: &Arc<Device>, timeout: Duration) -> Result<()> {
    device.backend().check_process()?;
    let left = || device.usage().deferred.load(Ordering::Acquire);
    if left() > 0 {
        start()?;
    }
    let deadline = Instant::now() + timeout;
    let reclaim = reclaim();
    let mut queue = sync::lock(&reclaim.queue);
    while left() > 0 {
        let now = Instant::now();
        if now >= deadline {
            fail!(
                WB_ERR_TIMEOUT,
                "after {timeout:?}, {} references still wait for their streams: is one of them \
                 stuck, or the time too short?",
                left()
            );
        }
        queue = sync::wait_timeout(&reclaim.gone, queue, deadline - now);
    }
    Ok(())
}

fn watch() {
    let reclaim = reclaim();
    let mut waiting: Vec<Waiting> = Vec::new();
    let mut pause = PAUSE.0;
    loop {
        let mut queue = sync::lock(&reclaim.queue);
        while queue.arrived.is_empty() && waiting.is_empty() {
            queue = sync::wait(&reclaim.arrived, queue);
        }
        if queue.arrived.is_empty() {
            queue = sync::wait_timeout(&reclaim.arrived, queue, pause);
            pause = (pause * 2).min(PAUSE.1);
        }
        if !queue.arrived.is_empty() {
            waiting.append(&mut queue.arrived);
            pause = PAUSE.0;
        }
        drop(queue);
        waiting.retain_mut(|waiting| !dropped(waiting, reclaim));
    }
}

/// Drops the reference if its time has come.
fn dropped(waiting: &mut Waiting, reclaim: &Reclaim) -> bool {
    let complete = waiting.event.as_ref().is_none_or(|event| match event.is_complete() {
        Ok(complete) => complete,
        // Once is no answer. A device that answers nothing else runs nothing any more.
        Err(error) => {
            waiting.failures += 1;
            if waiting.failures == 1 {
                log::record(&error);
            }
            waiting.failures >= MOST_FAILURES
        }
    });
    if complete {
        waiting.event = None;
        let payload = waiting.payload.take();
        log::settle(move || {
            drop(payload);
            Ok(())
        });
        let _queue = sync::lock(&reclaim.queue);
        waiting.device.usage().deferred.fetch_sub(1, Ordering::AcqRel);
        reclaim.gone.notify_all();
    }
    complete
}
