//! [`Streams`]: the host device's streams, each a thread that runs its work in order.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

use crate::device::backend::Stream;
use crate::error::{Result, fail, thread_error};
use crate::os::process::{PerProcess, Process};
use crate::os::span::Span;
use crate::os::sync::{Arc, Condvar, Mutex, MutexGuard, thread};
use crate::os::{log, sync};
use crate::status::WB_ERR_INVALID_ARGUMENT;

type Work = Box<dyn FnOnce() + Send>;

/// The host memory that queued work accesses.
#[derive(Debug, Clone, Copy)]
pub enum Uses {
    /// None: a point in a stream, or a wait for one.
    Nothing,
    /// Both ends of a copy.
    Copy(Span, Span),
    /// Any: a host function of the caller, or a kernel.
    Unknown,
}

impl Uses {
    fn overlaps(self, span: Span, unknown: bool) -> bool {
        let meets = |used: Span| used.start() < span.end() && span.start() < used.end();
        match self {
            Self::Nothing => false,
            Self::Copy(to, from) => meets(to) || meets(from),
            Self::Unknown => unknown,
        }
    }
}

/// The queues of all streams of the process, whichever device made them and whether they are
/// released: any of them can use memory that is freed. Finished ones are removed when a stream is
/// added.
fn queues() -> MutexGuard<'static, Vec<Arc<Queue>>> {
    static QUEUES: PerProcess<Mutex<Vec<Arc<Queue>>>> = PerProcess::new();
    sync::lock(QUEUES.get(|_| Mutex::default()))
}

thread_local! {
    /// The address of the queue whose work this thread runs; 0 on every other thread.
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is a stream's. It must not wait for streams: its own cannot continue, and
/// another can wait for it.
pub fn is_stream_thread() -> bool {
    RUNNING.get() != 0
}

/// Waits until no work that is queued now on a stream of the process uses the span. `unknown` says
/// whether host functions and kernels count, which can use any memory.
pub fn wait_unused(span: Span, unknown: bool) {
    let queues: Vec<_> = queues().clone();
    queues.iter().for_each(|queue| queue.wait_unused(span, unknown));
}

/// Waits for the work that is queued now on all streams of the process.
pub fn wait_idle() {
    let queues: Vec<_> = queues().clone();
    queues.iter().for_each(|queue| queue.synchronize());
}

/// Whether no stream of the process has work.
pub fn is_idle() -> bool {
    queues().iter().all(|queue| queue.is_idle())
}

/// A stream. Its thread ends when it is dropped and the queue is empty.
pub struct HostStream(Arc<Queue>);

struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<(Work, Uses)>,
    /// What the work that runs now uses.
    running: Option<Uses>,
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
        let state = self.lock();
        let until = state.pushed;
        self.wait_until(state, until);
    }

    /// See [`wait_unused`].
    fn wait_unused(&self, span: Span, unknown: bool) {
        let state = self.lock();
        let queued = state.running.iter().chain(state.waiting.iter().map(|(_, uses)| uses));
        let last = queued.enumerate().filter(|(_, uses)| uses.overlaps(span, unknown)).last();
        if let Some((at, _)) = last {
            let until = state.finished + at as u64 + 1;
            self.wait_until(state, until);
        }
    }

    fn wait_until(&self, mut state: MutexGuard<'_, QueueState>, until: u64) {
        while state.finished < until {
            state = self.wait(state);
        }
    }

    /// Whether its work is done.
    fn is_idle(&self) -> bool {
        let state = self.lock();
        state.finished == state.pushed
    }

    /// Whether its work is done and no more can be queued.
    fn is_finished(&self) -> bool {
        let state = self.lock();
        state.closed && state.finished == state.pushed
    }

    fn run(&self) {
        RUNNING.set(std::ptr::from_ref(self).addr());
        let mut state = self.lock();
        loop {
            if let Some((work, uses)) = state.waiting.pop_front() {
                state.running = Some(uses);
                drop(state);
                log::best_effort(|| {
                    work();
                    Ok(())
                });
                state = self.lock();
                state.running = None;
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
        let mut queues = queues();
        queues.retain(|queue| !queue.is_finished());
        queues.push(queue.clone());
        Ok(Self(queue))
    }

    /// Queues work.
    pub fn push(&self, uses: Uses, work: Work) {
        let mut state = self.0.lock();
        state.waiting.push_back((work, uses));
        state.pushed += 1;
        self.0.changed.notify_all();
    }

    /// Waits for the work that is queued now. Fails on a thread of a stream, as CUDA does.
    pub fn synchronize(&self) -> Result<()> {
        if is_stream_thread() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to wait for a stream in a host function, which a stream runs: the streams \
                 would wait for each other; wait on another thread"
            );
        }
        self.0.synchronize();
        Ok(())
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
        self.find(stream)?;
        if stream.0 == 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "the default stream cannot be released");
        }
        self.table().streams.remove(&stream.0);
        Ok(())
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
        stream.push(
            Uses::Unknown,
            Box::new(move || {
                gate.recv().unwrap();
                first.send(1).unwrap();
            }),
        );
        stream.push(Uses::Unknown, Box::new(move || send.send(2).unwrap()));
        open.send(()).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(order.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_released_stream_finishes_its_work_despite_a_panic() {
        let stream = HostStream::start().unwrap();
        let (send, receive) = mpsc::channel();
        stream.push(Uses::Unknown, Box::new(|| panic!("on purpose")));
        stream.push(Uses::Unknown, Box::new(move || send.send(7).unwrap()));
        drop(stream);
        assert_eq!(receive.recv().unwrap(), 7);
    }

    #[test]
    fn released_streams_are_waited_for_and_then_removed() {
        let streams = Streams::new(Process::current());
        let (send, receive) = mpsc::channel();
        let mut handles = Vec::new();
        for at in 0..100 {
            let (stream, send) = (streams.add().unwrap(), send.clone());
            let work = move || {
                thread::sleep(Duration::from_millis(1));
                send.send(at).unwrap();
            };
            let found = streams.find(stream).unwrap();
            handles.push(Arc::downgrade(&found.0));
            found.push(Uses::Unknown, Box::new(work));
            drop(found);
            streams.remove(stream).unwrap();
            wait_idle();
            assert_eq!(receive.try_recv(), Ok(at));
        }
        drop(HostStream::start());
        let kept = queues()
            .iter()
            .filter(|queue| handles.iter().any(|handle| handle.as_ptr() == Arc::as_ptr(queue)))
            .count();
        assert_eq!(kept, 0, "finished queues are kept");
    }

    #[test]
    fn a_stream_of_another_device_is_waited_for() {
        let (one, other) = (Streams::new(Process::current()), Streams::new(Process::current()));
        let stream = one.add().unwrap();
        let (send, receive) = mpsc::channel();
        one.find(stream).unwrap().push(
            Uses::Unknown,
            Box::new(move || {
                thread::sleep(Duration::from_millis(50));
                send.send(()).unwrap();
            }),
        );
        assert!(!is_idle());
        drop((one, other));
        wait_idle();
        receive.try_recv().unwrap();
    }

    #[test]
    fn memory_waits_for_the_copies_that_use_it_and_for_no_other_work() {
        let stream = HostStream::start().unwrap();
        let whole = Span::test_whole();
        let [from, to, other] = [100, 200, 300].map(|at| whole.part(at, 100));
        let (open, gate) = mpsc::channel::<()>();
        let (send, receive) = mpsc::channel();
        stream.push(Uses::Unknown, Box::new(|| {}));
        let copied = send.clone();
        stream.push(
            Uses::Copy(to, from),
            Box::new(move || {
                thread::sleep(Duration::from_millis(50));
                copied.send(1).unwrap();
            }),
        );
        stream.push(Uses::Nothing, Box::new(move || gate.recv().unwrap()));
        stream.push(Uses::Unknown, Box::new(move || send.send(2).unwrap()));
        let queue = stream.0.clone();
        queue.wait_unused(other, false);
        assert!(receive.try_recv().is_err(), "waited for a copy of other memory");
        queue.wait_unused(from, false);
        assert_eq!(receive.try_recv(), Ok(1));
        queue.wait_unused(to, false);
        open.send(()).unwrap();
        queue.wait_unused(other, true);
        assert_eq!(receive.try_recv(), Ok(2));
    }

    #[test]
    fn a_host_function_that_waits_for_a_stream_fails() {
        let stream = Arc::new(HostStream::start().unwrap());
        let (inner, (send, receive)) = (stream.clone(), mpsc::channel());
        stream.push(
            Uses::Unknown,
            Box::new(move || send.send(inner.synchronize().is_err()).unwrap()),
        );
        assert!(receive.recv_timeout(Duration::from_secs(10)).unwrap());
        assert!(!is_stream_thread());
    }
}
