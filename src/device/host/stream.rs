//! [`Streams`]: the host device's streams, each a thread that runs its work in order.

use std::collections::{HashMap, VecDeque};

use crate::device::backend::Stream;
use crate::error::{Result, fail, thread_error};
use crate::os::process::Process;
use crate::os::sync::{Arc, Condvar, Mutex, MutexGuard, thread};
use crate::os::{log, sync};
use crate::status::WB_ERR_INVALID_ARGUMENT;

type Work = Box<dyn FnOnce() + Send>;

/// A stream. Its thread ends when it is dropped and the queue is empty.
pub struct HostStream(Arc<Queue>);

struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Work>,
    pushed: u64,
    finished: u64,
    closed: bool,
}

impl Queue {
    fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        sync::lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, QueueState>) -> MutexGuard<'a, QueueState> {
        sync::wait(&self.changed, state)
    }

    /// Waits for the work that is queued now.
    fn synchronize(&self) {
        let mut state = self.lock();
        let until = state.pushed;
        while state.finished < until {
            state = self.wait(state);
        }
    }

    /// Whether its work is done and no more can be queued.
    fn is_finished(&self) -> bool {
        let state = self.lock();
        state.closed && state.finished == state.pushed
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                drop(state);
                log::best_effort(|| {
                    work();
                    Ok(())
                });
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
    /// Starts a stream.
    pub fn start() -> Result<Self> {
        let queue = Arc::new(Queue::new());
        let running = queue.clone();
        thread::Builder::new()
            .name("weighbridge-stream".into())
            .spawn(move || running.run())
            .map_err(|error| thread_error("a stream of the host device", &error))?;
        Ok(Self(queue))
    }

    /// Queues work.
    pub fn push(&self, work: Work) {
        let mut state = self.0.lock();
        state.waiting.push_back(work);
        state.pushed += 1;
        self.0.changed.notify_all();
    }

    /// Waits for the work that is queued now.
    pub fn synchronize(&self) {
        self.0.synchronize();
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        log::best_effort(|| {
            self.0.lock().closed = true;
            self.0.changed.notify_all();
            Ok(())
        });
    }
}

/// The streams of a device, by their handles.
pub struct Streams {
    process: Process,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    streams: HashMap<usize, Arc<HostStream>>,
    /// The queues of released streams. Finished ones are removed at the next release.
    released: Vec<Arc<Queue>>,
    last: usize,
}

impl Streams {
    /// No streams. The default stream starts at its first use.
    pub fn new(process: Process) -> Self {
        Self { process, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        sync::lock(&self.table)
    }

    /// The stream of a handle.
    pub fn find(&self, stream: Stream) -> Result<Arc<HostStream>> {
        self.process.check()?;
        let mut table = self.table();
        if let Some(found) = table.streams.get(&stream.0) {
            return Ok(found.clone());
        }
        if stream.0 != 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "{:#x} is not a stream of this host device, or was released: create one with \
                 wb_device_stream_new, or pass NULL",
                stream.0
            );
        }
        let default = Arc::new(HostStream::start()?);
        table.streams.insert(0, default.clone());
        Ok(default)
    }

    /// Adds a stream.
    pub fn add(&self) -> Result<Stream> {
        self.process.check()?;
        let stream = Arc::new(HostStream::start()?);
        let mut table = self.table();
        table.last += 1;
        let handle = table.last;
        table.streams.insert(handle, stream);
        Ok(Stream(handle))
    }

    /// Releases a stream of [`Streams::add`]. Work queued on it still runs.
    pub fn remove(&self, stream: Stream) -> Result<()> {
        let found = self.find(stream)?;
        if stream.0 == 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "the default stream cannot be released");
        }
        let mut table = self.table();
        table.released.retain(|queue| !queue.is_finished());
        table.released.push(found.0.clone());
        table.streams.remove(&stream.0);
        Ok(())
    }

    /// Waits for the work that is queued now on all streams, including released ones.
    pub fn synchronize_all(&self) {
        let queues: Vec<_> = {
            let table = self.table();
            let streams = table.streams.values().map(|stream| &stream.0);
            streams.chain(&table.released).cloned().collect()
        };
        queues.iter().for_each(|queue| queue.synchronize());
    }
}

impl Drop for Streams {
    /// A forked child leaks the table: it has no threads, and one may have held a lock at the fork.
    fn drop(&mut self) {
        if !self.process.is_current() {
            std::mem::forget(std::mem::take(&mut self.table));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_stream_runs_its_work_in_order() {
        let stream = HostStream::start().unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (send, order) = mpsc::channel();
        let first = send.clone();
        stream.push(Box::new(move || {
            gate.recv().unwrap();
            first.send(1).unwrap();
        }));
        stream.push(Box::new(move || send.send(2).unwrap()));
        open.send(()).unwrap();
        stream.synchronize();
        assert_eq!(order.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_released_stream_finishes_its_work_despite_a_panic() {
        let stream = HostStream::start().unwrap();
        let (send, receive) = mpsc::channel();
        stream.push(Box::new(|| panic!("on purpose")));
        stream.push(Box::new(move || send.send(7).unwrap()));
        drop(stream);
        assert_eq!(receive.recv().unwrap(), 7);
    }

    #[test]
    fn released_streams_are_waited_for_and_then_removed() {
        let streams = Streams::new(Process::current());
        let (send, receive) = mpsc::channel();
        for at in 0..100 {
            let (stream, send) = (streams.add().unwrap(), send.clone());
            let work = move || {
                thread::sleep(Duration::from_millis(1));
                send.send(at).unwrap();
            };
            streams.find(stream).unwrap().push(Box::new(work));
            streams.remove(stream).unwrap();
            streams.synchronize_all();
            assert_eq!(receive.try_recv(), Ok(at));
        }
        let left = streams.table().released.len();
        assert!(left <= 2, "{left} finished streams are kept");
    }
}
