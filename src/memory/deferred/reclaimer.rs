//! The queue between those who give references up and the one thread that drops them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::device::process::Process;
use crate::device::{Device, Event};
use crate::error::{Error, Result, fail};
use crate::log;
use crate::status::{WB_ERR_INTERNAL, WB_ERR_TIMEOUT};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};

/// First and longest pause between two looks at the events.
const PAUSE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// A reference that waits. `payload` is taken before `device` is let go.
pub struct Waiting {
    event: Option<Box<dyn Event>>,
    payload: Option<Box<dyn Send>>,
    device: Arc<Device>,
}

/// What lies between the two sides, behind the lock.
pub struct Queue {
    arrived: Vec<Waiting>,
    /// The process whose thread watches: a forked child has this memory and not that thread.
    watcher: Option<Process>,
}

impl Queue {
    /// Nothing waits and nobody watches.
    pub const EMPTY: Self = Self { arrived: Vec::new(), watcher: None };
}

/// The queue with its two signals.
pub struct Reclaimer {
    pub queue: Mutex<Queue>,
    pub arrived: Condvar,
    pub gone: Condvar,
}

impl Reclaimer {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a reference in. `start` starts the thread that watches, where this process has none.
    pub fn push(
        &self,
        event: Option<Box<dyn Event>>,
        payload: Box<dyn Send>,
        device: &Arc<Device>,
        start: impl FnOnce() -> io::Result<()>,
    ) {
        let waiting = Waiting { event, payload: Some(payload), device: device.clone() };
        device.usage().deferred.fetch_add(1, Ordering::AcqRel);
        let mut queue = self.queue();
        if queue.watcher.as_ref().is_some_and(|watcher| !watcher.is_this()) {
            // What a parent process had queued is the parent's to give back.
            queue.arrived.drain(..).for_each(std::mem::forget);
            queue.watcher = None;
        }
        queue.arrived.push(waiting);
        let mut failed = None;
        if queue.watcher.is_none() {
            let started = start();
            queue.watcher = started.is_ok().then(Process::this);
            failed = started.err();
        }
        drop(queue);
        self.arrived.notify_one();
        if let Some(error) = failed {
            // The next reference tries again; until then this one and its memory stay.
            let message = format!("the thread that gives memory back could not start: {error}");
            log::record(&Error::new(WB_ERR_INTERNAL, message));
        }
    }

    /// Waits until nothing of the device is waiting any more.
    pub fn drain(&self, device: &Device, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut queue = self.queue();
        loop {
            let left = device.usage().deferred.load(Ordering::Acquire);
            if left == 0 {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                fail!(
                    WB_ERR_TIMEOUT,
                    "after {timeout:?}, {left} references still wait for their streams: is one of \
                     them stuck, or the time too short?"
                );
            }
            queue = self
                .gone
                .wait_timeout(queue, deadline - now)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
    }
}

/// The thread that watches: what it has taken from the queue, and how long it pauses.
pub struct Watcher {
    waiting: Vec<Waiting>,
    pause: Duration,
}

impl Watcher {
    /// One that has taken nothing yet.
    pub fn new() -> Self {
        Self { waiting: Vec::new(), pause: PAUSE.0 }
    }

    /// Waits for something to look at, and drops what is due.
    pub fn look(&mut self, reclaimer: &Reclaimer) {
        let mut queue = reclaimer.queue();
        while queue.arrived.is_empty() && self.waiting.is_empty() {
            queue = reclaimer.arrived.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if queue.arrived.is_empty() {
            let woken = reclaimer.arrived.wait_timeout(queue, self.pause);
            queue = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        if !queue.arrived.is_empty() {
            self.waiting.append(&mut queue.arrived);
            self.pause = PAUSE.0;
        }
        drop(queue);
        self.waiting.retain_mut(|waiting| !dropped(waiting, reclaimer));
    }
}

/// Drops the reference if its time has come.
fn dropped(waiting: &mut Waiting, reclaimer: &Reclaimer) -> bool {
    let complete = waiting.event.as_ref().is_none_or(|event| match event.is_complete() {
        Ok(complete) => complete,
        // The context is broken or gone: nothing on the device reads memory any more.
        Err(error) => {
            log::record(&error);
            true
        }
    });
    if complete {
        waiting.event = None;
        let payload = waiting.payload.take();
        if catch_unwind(AssertUnwindSafe(move || drop(payload))).is_err() {
            log::record(&Error::new(WB_ERR_INTERNAL, "giving memory back panicked"));
        }
        let _queue = reclaimer.queue();
        waiting.device.usage().deferred.fetch_sub(1, Ordering::AcqRel);
        reclaimer.gone.notify_all();
    }
    complete
}
