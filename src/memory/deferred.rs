//! References that go when a stream has passed a point, or when no engine's thread has to wait for
//! it. One thread per process, started by the first of them, watches the events and drops them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::process::Process;
use crate::device::{Device, Event};
use crate::error::{Error, Result, fail};
use crate::log;
use crate::status::{WB_ERR_INTERNAL, WB_ERR_OUT_OF_MEMORY, WB_ERR_TIMEOUT};

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
    /// The process whose thread watches: a forked child has this memory and not that thread.
    watcher: Option<Process>,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { arrived: Vec::new(), watcher: None });
static ARRIVED: Condvar = Condvar::new();
static GONE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Drops `payload` once `event` is complete (at once without one), on a thread of this library. In
/// a forked child nothing is dropped: there is no such thread, and CUDA must be left alone.
pub fn drop_after(event: Option<Box<dyn Event>>, payload: Box<dyn Send>, device: &Arc<Device>) {
    let waiting = Waiting { event, failures: 0, payload: Some(payload), device: device.clone() };
    if device.backend().check_process().is_err() {
        std::mem::forget(waiting);
        return;
    }
    device.usage().deferred.fetch_add(1, Ordering::AcqRel);
    let mut queue = queue();
    if queue.watcher.as_ref().is_some_and(|watcher| !watcher.is_this()) {
        // What a parent process had queued is the parent's to give back.
        queue.arrived.drain(..).for_each(std::mem::forget);
        queue.watcher = None;
    }
    queue.arrived.push(waiting);
    let started = start_watcher(&mut queue);
    drop(queue);
    ARRIVED.notify_one();
    if let Err(error) = started {
        // The next reference, or a drain, tries again; until then this one and its memory stay.
        log::record(&error);
    }
}

fn start_watcher(queue: &mut Queue) -> Result<()> {
    if queue.watcher.is_none() {
        let thread = thread::Builder::new().name("weighbridge-reclaim".into());
        thread.spawn(watch).map_err(|error| {
            let message = "the thread that gives memory back could not start";
            Error::system(WB_ERR_OUT_OF_MEMORY, message, "pthread_create", &error)
        })?;
        queue.watcher = Some(Process::this());
    }
    Ok(())
}

/// Waits until nothing of the device is waiting any more.
pub fn drain(device: &Arc<Device>, timeout: Duration) -> Result<()> {
    device.backend().check_process()?;
    let deadline = Instant::now() + timeout;
    let mut queue = queue();
    loop {
        let left = device.usage().deferred.load(Ordering::Acquire);
        if left == 0 {
            return Ok(());
        }
        start_watcher(&mut queue)?;
        let now = Instant::now();
        if now >= deadline {
            fail!(
                WB_ERR_TIMEOUT,
                "after {timeout:?}, {left} references still wait for their streams: is one of them \
                 stuck, or the time too short?"
            );
        }
        queue = GONE
            .wait_timeout(queue, deadline - now)
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .0;
    }
}

fn watch() {
    let mut waiting: Vec<Waiting> = Vec::new();
    let mut pause = PAUSE.0;
    loop {
        let mut queue = queue();
        while queue.arrived.is_empty() && waiting.is_empty() {
            queue = ARRIVED.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if queue.arrived.is_empty() {
            let woken = ARRIVED.wait_timeout(queue, pause);
            queue = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            pause = (pause * 2).min(PAUSE.1);
        }
        if !queue.arrived.is_empty() {
            waiting.append(&mut queue.arrived);
            pause = PAUSE.0;
        }
        drop(queue);
        waiting.retain_mut(|waiting| !dropped(waiting));
    }
}

/// Drops the reference if its time has come.
fn dropped(waiting: &mut Waiting) -> bool {
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
        if catch_unwind(AssertUnwindSafe(move || drop(payload))).is_err() {
            log::record(&Error::new(WB_ERR_INTERNAL, "giving memory back panicked"));
        }
        let _queue = queue();
        waiting.device.usage().deferred.fetch_sub(1, Ordering::AcqRel);
        GONE.notify_all();
    }
    complete
}
