//! The queue between those who give references up and the one thread that drops them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::device::backend::Event;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::os::sync::{Arc, Condvar, Mutex};
use crate::os::{log, sync};
use crate::status::WB_ERR_TIMEOUT;

/// First and longest pause between two looks at the events.
const PAUSE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// Failed looks at an event, up to a second of them, after which its device counts as broken.
const MOST_FAILURES: u32 = 1000;

/// A reference that waits. `payload` is taken before `device` is let go.
struct PendingRelease {
    event: Option<Box<dyn Event>>,
    /// Looks at the event that failed.
    failures: u32,
    payload: Option<Box<dyn Send>>,
    device: Arc<Device>,
}

/// What lies between the two sides, behind the lock.
#[derive(Default)]
struct Queue {
    arrived: Vec<PendingRelease>,
    /// The thread runs.
    watched: bool,
}

/// The queue with its two signals.
pub struct Reclaimer {
    queue: Mutex<Queue>,
    arrived: Condvar,
    gone: Condvar,
}

impl Default for Reclaimer {
    fn default() -> Self {
        Self { queue: Mutex::default(), arrived: Condvar::new(), gone: Condvar::new() }
    }
}

impl Reclaimer {
    /// Starts the thread that watches, by `spawn`, where it does not run yet.
    pub fn start(&self, spawn: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut queue = sync::lock(&self.queue);
        if !queue.watched {
            spawn()?;
            queue.watched = true;
        }
        Ok(())
    }

    /// Takes a reference in.
    pub fn push(
        &self,
        event: Option<Box<dyn Event>>,
        payload: Box<dyn Send>,
        device: &Arc<Device>,
        spawn: impl FnOnce() -> Result<()>,
    ) {
        let device = device.clone();
        let mut waiting =
            Some(PendingRelease { event, failures: 0, payload: Some(payload), device });
        log::best_effort(|| {
            let mut queue = sync::lock(&self.queue);
            if let Some(waiting) = waiting.take() {
                waiting.device.counters().deferred.fetch_add(1, Ordering::AcqRel);
                queue.arrived.push(waiting);
            }
            Ok(())
        });
        // What did not get there is kept for ever: something may still use it.
        std::mem::forget(waiting);
        self.arrived.notify_one();
        // The next reference, or a drain, tries again; until then this one and its memory stay.
        log::best_effort(|| self.start(spawn));
    }

    /// Waits until nothing of the device is waiting any more.
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
            queue = sync::wait_timeout(&self.gone, &self.queue, queue, deadline - now);
        }
        Ok(())
    }
}

/// The thread that watches: what it has taken from the queue, and how long it pauses.
pub struct Watcher {
    waiting: Vec<PendingRelease>,
    pause: Duration,
}

impl Default for Watcher {
    fn default() -> Self {
        Self { waiting: Vec::new(), pause: PAUSE.0 }
    }
}

impl Watcher {
    /// Waits for something to look at, and drops what is due.
    pub fn look(&mut self, reclaimer: &Reclaimer) {
        let mut queue = sync::lock(&reclaimer.queue);
        while queue.arrived.is_empty() && self.waiting.is_empty() {
            queue = sync::wait(&reclaimer.arrived, queue);
        }
        if queue.arrived.is_empty() {
            queue = sync::wait_timeout(&reclaimer.arrived, &reclaimer.queue, queue, self.pause);
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
fn dropped(waiting: &mut PendingRelease, reclaimer: &Reclaimer) -> bool {
    let complete = waiting.event.as_ref().is_none_or(|event| match event.is_complete() {
        Ok(complete) => complete,
        // Nothing runs on a device that is no more.
        Err(_) if waiting.device.backend().is_lost() => true,
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
        log::best_effort(move || {
            drop(payload);
            Ok(())
        });
        let _queue = sync::lock(&reclaimer.queue);
        waiting.device.counters().deferred.fetch_sub(1, Ordering::AcqRel);
        reclaimer.gone.notify_all();
    }
    complete
}
