//! [`Reclaimer`]: the queue of pending releases, which one thread drops.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::device::backend::Event;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::os::sync::{Arc, Condvar, Mutex};
use crate::os::{log, sync};
use crate::status::WB_ERR_TIMEOUT;

/// The shortest and the longest pause between two checks of the events.
const PAUSE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// Failed checks of an event, up to a second of them, after which its device counts as broken.
const MOST_FAILURES: u32 = 1000;

thread_local! {
    static AFTER_EVENT: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread drops a reference after the point of a stream that its owner gave.
pub fn is_after_event() -> bool {
    AFTER_EVENT.get()
}

/// A reference to drop once its event is complete. The payload is dropped before the device.
struct PendingRelease {
    event: Option<Box<dyn Event>>,
    /// Checks of the event that failed.
    failures: u32,
    payload: Option<Box<dyn Send>>,
    device: Arc<Device>,
}

#[derive(Default)]
struct Queue {
    arrived: Vec<PendingRelease>,
    /// Whether the thread runs.
    watched: bool,
}

/// The queue. [`Watcher`] is the thread's side.
pub struct Reclaimer {
    queue: Mutex<Queue>,
    /// Signals a new release.
    arrived: Condvar,
    /// Signals a dropped reference.
    dropped: Condvar,
}

impl Default for Reclaimer {
    fn default() -> Self {
        Self { queue: Mutex::default(), arrived: Condvar::new(), dropped: Condvar::new() }
    }
}

impl Reclaimer {
    /// Starts the thread by `spawn`, if it does not run yet.
    pub fn start(&self, spawn: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut queue = sync::lock(&self.queue);
        if !queue.watched {
            spawn()?;
            queue.watched = true;
        }
        Ok(())
    }

    /// Queues a reference.
    pub fn push(
        &self,
        event: Option<Box<dyn Event>>,
        payload: Box<dyn Send>,
        device: &Arc<Device>,
        spawn: impl FnOnce() -> Result<()>,
    ) {
        let device = device.clone();
        let mut pending =
            Some(PendingRelease { event, failures: 0, payload: Some(payload), device });
        log::best_effort(|| {
            let mut queue = sync::lock(&self.queue);
            if let Some(pending) = pending.take() {
                pending.device.counters().deferred.fetch_add(1, Ordering::AcqRel);
                queue.arrived.push(pending);
            }
            Ok(())
        });
        // A reference that could not be queued is leaked: the device may still use its memory.
        std::mem::forget(pending);
        self.arrived.notify_one();
        // If the thread cannot start, the next push or drain tries again; until then the memory
        // stays.
        log::best_effort(|| self.start(spawn));
    }

    /// Waits until no reference of the device is pending.
    pub fn drain(
        &self,
        device: &Device,
        timeout: Duration,
        spawn: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let left = || device.counters().deferred.load(Ordering::Acquire);
        if left() > 0 {
            self.start(spawn)?;
        }
        let deadline = Instant::now() + timeout;
        let mut queue = sync::lock(&self.queue);
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
            queue = sync::wait_timeout(&self.dropped, &self.queue, queue, deadline - now);
        }
        Ok(())
    }
}

/// The thread's state: the releases that it has taken from the queue, and its pause.
pub struct Watcher {
    pending: Vec<PendingRelease>,
    pause: Duration,
}

impl Default for Watcher {
    fn default() -> Self {
        Self { pending: Vec::new(), pause: PAUSE.0 }
    }
}

impl Watcher {
    /// Waits for a release or for the next check, then drops every reference whose event is
    /// complete.
    pub fn look(&mut self, reclaimer: &Reclaimer) {
        let mut queue = sync::lock(&reclaimer.queue);
        while queue.arrived.is_empty() && self.pending.is_empty() {
            queue = sync::wait(&reclaimer.arrived, queue);
        }
        if queue.arrived.is_empty() {
            queue = sync::wait_timeout(&reclaimer.arrived, &reclaimer.queue, queue, self.pause);
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        if !queue.arrived.is_empty() {
            self.pending.append(&mut queue.arrived);
            self.pause = PAUSE.0;
        }
        drop(queue);
        self.pending.retain_mut(|pending| !pending.drop_if_complete(reclaimer));
    }
}

impl PendingRelease {
    /// Drops the payload if the event is complete. Returns whether it did.
    fn drop_if_complete(&mut self, reclaimer: &Reclaimer) -> bool {
        let complete = self.event.as_ref().is_none_or(|event| match event.is_complete() {
            Ok(complete) => complete,
            // On a lost device nothing runs.
            Err(_) if self.device.backend().is_lost() => true,
            // One failure does not show that the work is done. A device whose every check fails is
            // broken and runs nothing.
            Err(error) => {
                self.failures += 1;
                if self.failures == 1 {
                    log::record(&error);
                }
                self.failures >= MOST_FAILURES
            }
        });
        if complete {
            AFTER_EVENT.set(self.event.take().is_some());
            let payload = self.payload.take();
            log::best_effort(move || {
                drop(payload);
                Ok(())
            });
            AFTER_EVENT.set(false);
            let _queue = sync::lock(&reclaimer.queue);
            self.device.counters().deferred.fetch_sub(1, Ordering::AcqRel);
            reclaimer.dropped.notify_all();
        }
        complete
    }
}
