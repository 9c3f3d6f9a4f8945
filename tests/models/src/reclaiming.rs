//! The deferred-free queue: what is given up goes once, on the thread that watches, not before its
//! stream has passed; and whoever drains hears of it.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;

use crate::device::{Device, Stream};
use crate::error::{Result, no_thread};
use crate::reclaimer::{Reclaimer, Watcher};
use crate::sync::Arc;

pub const MODELS: &[crate::Model] = &[
    ("reclaiming: two threads give up and drain", 4, two_threads_give_up),
    ("reclaiming: nothing goes before its stream has passed", 4, nothing_goes_early),
    ("reclaiming: a thread that cannot start is tried again", 4, a_thread_that_cannot_start),
];

/// Memory that was given up. Gone too early where `passed` says that its stream has not passed.
struct Memory {
    passed: Option<Arc<AtomicBool>>,
    gone: Arc<AtomicUsize>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let passed = self.passed.as_ref().is_none_or(|passed| passed.load(Acquire));
        assert!(passed, "memory went before its stream had passed");
        self.gone.fetch_add(1, SeqCst);
    }
}

/// One process: its queue, and what has gone.
#[derive(Clone)]
struct Bench {
    reclaimer: Arc<Reclaimer>,
    device: Arc<Device>,
    gone: Arc<AtomicUsize>,
    started: Arc<AtomicUsize>,
    /// How many references there will be: the thread ends behind the last.
    references: usize,
}

impl Bench {
    fn new(references: usize) -> Self {
        Self {
            reclaimer: Arc::new(Reclaimer::new()),
            device: Device::new(),
            gone: Arc::default(),
            started: Arc::default(),
            references,
        }
    }

    fn start(&self) -> Result<()> {
        assert_eq!(self.started.fetch_add(1, SeqCst), 0, "one thread watches");
        let bench = self.clone();
        thread::spawn(move || {
            let mut watcher = Watcher::new();
            while bench.gone.load(SeqCst) < bench.references {
                watcher.look(&bench.reclaimer);
            }
        });
        Ok(())
    }

    fn give_up(&self, behind: Option<Stream>, start: impl FnOnce() -> Result<()>) {
        let event = behind.map(|stream| {
            let event = self.device.new_event(false).unwrap();
            event.record(stream).unwrap();
            event
        });
        let passed = behind.map(|_| self.device.has_run.clone());
        let memory = Memory { passed, gone: self.gone.clone() };
        self.reclaimer.push(event, Box::new(memory), &self.device, start);
    }

    fn drain(&self) {
        self.reclaimer.drain(&self.device, Duration::from_secs(3600), || self.start()).unwrap();
    }
}

fn two_threads_give_up() {
    let bench = Bench::new(2);
    let other = bench.clone();
    let thread = thread::spawn(move || other.give_up(None, || other.start()));
    bench.give_up(None, || bench.start());
    thread.join().unwrap();
    bench.drain();
    assert_eq!(bench.gone.load(SeqCst), 2);
}

fn nothing_goes_early() {
    let bench = Bench::new(2);
    let stream = bench.device.new_stream();
    let has_run = bench.device.has_run.clone();
    bench.give_up(Some(stream), || bench.start());
    let runs = thread::spawn(move || has_run.store(true, Release));
    bench.give_up(None, || bench.start());
    bench.drain();
    assert_eq!(bench.gone.load(SeqCst), 2);
    runs.join().unwrap();
}

fn a_thread_that_cannot_start() {
    let bench = Bench::new(2);
    bench.give_up(None, || Err(no_thread("of the model", &io::ErrorKind::WouldBlock.into())));
    assert_eq!(bench.gone.load(SeqCst), 0);
    bench.give_up(None, || bench.start());
    bench.drain();
    assert_eq!(bench.gone.load(SeqCst), 2);
}
