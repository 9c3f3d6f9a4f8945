//! A stream of the host device: a thread that runs what is queued, in order.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use crate::device::Event;
use crate::error::{Error, Result};
use crate::log;
use crate::status::{WB_ERR_INTERNAL, WB_ERR_OUT_OF_MEMORY};

type Work = Box<dyn FnOnce() + Send>;

/// The queue's end for those who push; the thread ends once it is dropped and the queue is empty.
pub struct HostStream(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    pushed: u64,
    finished: u64,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    log::record(&Error::new(WB_ERR_INTERNAL, "work on a host stream panicked"));
                }
                state = self.lock();
                state.finished += 1;
                self.changed.notify_all();
            } else if state.closed {
                return;
            } else {
                state = self.wait(state);
            }
        }
    }
}

impl HostStream {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let theirs = queue.clone();
        thread::Builder::new()
            .name("weighbridge-stream".into())
            .spawn(move || theirs.run())
            .map_err(|error| {
                let message = format!("a stream needs a thread and none could be made: {error}");
                Error::new(WB_ERR_OUT_OF_MEMORY, message)
                    .with_code(error.raw_os_error().unwrap_or(0))
            })?;
        Ok(Self(queue))
    }

    /// Queues work.
    pub fn push(&self, work: Work) {
        let mut state = self.0.lock();
        state.waiting.push_back(work);
        state.pushed += 1;
        self.0.changed.notify_all();
    }

    /// Waits for what is queued now.
    pub fn synchronize(&self) {
        let mut state = self.0.lock();
        let until = state.pushed;
        while state.finished < until {
            state = self.0.wait(state);
        }
    }

    /// The point behind what is queued now.
    pub fn record(&self) -> HostEvent {
        HostEvent { queue: self.0.clone(), until: self.0.lock().pushed }
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// A point in a host stream; it outlives the stream.
pub struct HostEvent {
    queue: Arc<Queue>,
    until: u64,
}

impl Event for HostEvent {
    fn is_complete(&self) -> Result<bool> {
        Ok(self.queue.lock().finished >= self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn work_runs_in_order_and_events_wait_for_what_came_before() {
        let stream = HostStream::start().unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (send, order) = mpsc::channel();
        let first = send.clone();
        stream.push(Box::new(move || {
            gate.recv().unwrap();
            first.send(1).unwrap();
        }));
        let event = stream.record();
        stream.push(Box::new(move || send.send(2).unwrap()));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!event.is_complete().unwrap());
        open.send(()).unwrap();
        stream.synchronize();
        assert!(event.is_complete().unwrap());
        assert_eq!(order.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_released_stream_finishes_its_work_and_survives_a_panic() {
        let stream = HostStream::start().unwrap();
        let (send, receive) = mpsc::channel();
        stream.push(Box::new(|| panic!("on purpose")));
        stream.push(Box::new(move || send.send(7).unwrap()));
        drop(stream);
        assert_eq!(receive.recv().unwrap(), 7);
    }
}
