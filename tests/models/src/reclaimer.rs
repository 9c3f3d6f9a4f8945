//! The queue of deferred releases: the reclaimer's thread drops each reference once, not before its
//! stream has passed, and a drain returns when all were dropped.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::time::Duration;

use loom::sync::atomic::AtomicUsize;
use loom::thread;
use weighbridge::device::backend::Stream;
use weighbridge::device::device::Device;
use weighbridge::error::{Error, Result};
use weighbridge::memory::deferred::reclaimer::{Reclaimer, Watcher};
use weighbridge::os::sync::Arc;
use weighbridge::status::WB_ERR_OUT_OF_MEMORY;

use crate::backend::{self, Account};

pub const MODELS: &[crate::Model] = &[
    ("reclaimer: two threads release and drain", 4, two_threads_release),
    ("reclaimer: nothing is dropped before its stream has passed", 4, nothing_is_dropped_early),
    ("reclaimer: a thread that cannot start is tried again", 4, a_thread_that_cannot_start),
];

/// Memory that was released. Panics when it is dropped before the work of `behind` has run.
struct Memory {
    behind: Option<Arc<Account>>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let passed = self.behind.as_ref().is_none_or(|account| account.has_run.load(Acquire));
        assert!(passed, "memory was dropped before its stream had passed");
        self.dropped.fetch_add(1, SeqCst);
    }
}

/// One process: its reclaimer, and the number of references that were dropped.
#[derive(Clone)]
struct Bench {
    reclaimer: Arc<Reclaimer>,
    device: Arc<Device>,
    account: Arc<Account>,
    dropped: Arc<AtomicUsize>,
    started: Arc<AtomicUsize>,
    /// Number of references that will be released: the thread ends after the last.
    references: usize,
}

impl Bench {
    fn new(references: usize) -> Self {
        let (device, account) = backend::device();
        Self {
            reclaimer: Arc::default(),
            device,
            account,
            dropped: Arc::default(),
            started: Arc::default(),
            references,
        }
    }

    fn start(&self) -> Result<()> {
        assert_eq!(self.started.fetch_add(1, SeqCst), 0, "two threads watch");
        let bench = self.clone();
        thread::spawn(move || {
            let mut watcher = Watcher::default();
            while bench.dropped.load(SeqCst) < bench.references {
                watcher.look(&bench.reclaimer);
            }
        });
        Ok(())
    }

    fn release(&self, behind: Option<Stream>, start: impl FnOnce() -> Result<()>) {
        let event = behind.map(|stream| self.device.record_event(stream).unwrap());
        let behind = behind.map(|_| self.account.clone());
        let memory = Memory { behind, dropped: self.dropped.clone() };
        self.reclaimer.push(event, Box::new(memory), &self.device, start);
    }

    fn drain(&self) {
        self.reclaimer.drain(&self.device, Duration::from_secs(3600), || self.start()).unwrap();
        assert_eq!(self.dropped.load(SeqCst), self.references);
    }
}

fn two_threads_release() {
    let bench = Bench::new(2);
    let other = bench.clone();
    let thread = thread::spawn(move || other.release(None, || other.start()));
    bench.release(None, || bench.start());
    thread.join().unwrap();
    bench.drain();
}

fn nothing_is_dropped_early() {
    let bench = Bench::new(2);
    let stream = bench.account.new_stream();
    let account = bench.account.clone();
    bench.release(Some(stream), || bench.start());
    let runs = thread::spawn(move || account.has_run.store(true, Release));
    bench.release(None, || bench.start());
    bench.drain();
    runs.join().unwrap();
}

fn a_thread_that_cannot_start() {
    let bench = Bench::new(2);
    bench.release(None, || {
        let refused: io::Error = io::ErrorKind::WouldBlock.into();
        Err(Error::system(WB_ERR_OUT_OF_MEMORY, "on purpose", "pthread_create", &refused))
    });
    assert_eq!(bench.dropped.load(SeqCst), 0);
    bench.release(None, || bench.start());
    bench.drain();
}
