//! A device that runs nothing and keeps account instead: every piece of work on a stream has a number,
//! and every stream knows up to which number of each other stream it has waited. So one order of
//! calls stands for every speed at which streams could have run: what is not waited for is wrong,
//! however it would have ended.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicBool, AtomicU64};

use crate::error::Result;
use crate::pages::Span;
use crate::sync::{Arc, Mutex, MutexGuard};

/// A stream by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);

/// How far each stream has come, as something else knows it.
#[derive(Debug, Clone, Default)]
struct Clock(Vec<u64>);

impl Clock {
    fn of(&self, stream: Stream) -> u64 {
        self.0.get(stream.0).copied().unwrap_or(0)
    }

    fn advance(&mut self, stream: Stream) -> u64 {
        self.0.resize(self.0.len().max(stream.0 + 1), 0);
        self.0[stream.0] += 1;
        self.0[stream.0]
    }

    fn learn(&mut self, other: &Clock) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
    }

    fn knows(&self, other: &Clock) -> bool {
        (0..other.0.len()).all(|stream| self.of(Stream(stream)) >= other.of(Stream(stream)))
    }
}

/// What lies in a slot, and who has used it since it was written.
#[derive(Default)]
struct Slot {
    written: Option<(Stream, u64)>,
    from: usize,
    used: Vec<(Stream, u64)>,
    held: u32,
}

/// The account.
#[derive(Default)]
struct Account {
    streams: Vec<Clock>,
    /// What the host has seen to be done: all that is queued from then on comes behind it.
    done: Clock,
    slots: HashMap<usize, Slot>,
}

impl Account {
    /// Queues a piece of work; its number, and what the stream has waited for.
    fn queue(&mut self, stream: Stream) -> (u64, Clock) {
        let clock = &mut self.streams[stream.0];
        clock.learn(&self.done);
        (clock.advance(stream), clock.clone())
    }
}

/// Counters of what lives on the device.
pub struct Usage {
    pub deferred: AtomicU64,
}

/// The device, and its own backend.
pub struct Device {
    account: Arc<Mutex<Account>>,
    /// Whether what is queued counts as run.
    pub has_run: Arc<AtomicBool>,
    usage: Usage,
}

impl Device {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            account: Arc::new(Mutex::new(Account::default())),
            has_run: Arc::new(AtomicBool::new(false)),
            usage: Usage { deferred: AtomicU64::new(0) },
        })
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn backend(&self) -> &Self {
        self
    }

    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    pub fn check_process(&self) -> Result<()> {
        Ok(())
    }

    pub fn is_gone(&self) -> bool {
        false
    }

    pub fn synchronize(&self, stream: Stream) -> Result<()> {
        let mut account = self.account();
        let clock = account.streams[stream.0].clone();
        account.done.learn(&clock);
        Ok(())
    }

    pub fn capture(&self, _: Stream) -> Result<Option<u64>> {
        Ok(None)
    }

    pub fn within(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        work()
    }

    pub fn new_stream(&self) -> Stream {
        let mut account = self.account();
        account.streams.push(Clock::default());
        Stream(account.streams.len() - 1)
    }

    pub fn new_event(&self, _: bool) -> Result<Box<dyn Event>> {
        let (account, has_run) = (self.account.clone(), self.has_run.clone());
        Ok(Box::new(Point { account, has_run, at: Mutex::new(Clock::default()) }))
    }

    /// Writes a slot: nobody holds it, and every use of what was in it lies before.
    pub fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        let mut account = self.account();
        let (number, knows) = account.queue(stream);
        let slot = account.slots.entry(to.start()).or_default();
        assert_eq!(slot.held, 0, "a slot was refilled while it was held");
        for (other, number) in slot.used.drain(..).chain(slot.written) {
            assert!(knows.of(other) >= number, "a slot was refilled before its last use");
        }
        (slot.written, slot.from) = (Some((stream, number)), from.start());
        Ok(())
    }

    /// Reads a slot, which must hold what was acquired.
    pub fn read(&self, at: Span, from: Span, stream: Stream) {
        let mut account = self.account();
        let (number, knows) = account.queue(stream);
        let slot = account.slots.entry(at.start()).or_default();
        let (writer, written) = slot.written.expect("a slot was acquired that was never filled");
        assert!(knows.of(writer) >= written, "a slot is read before its copy has ended");
        assert_eq!(slot.from, from.start(), "a slot holds another unit");
        slot.used.push((stream, number));
    }

    /// From when a group's slot was acquired until it is released.
    pub fn hold(&self, slot: Span, holds: bool) {
        let mut account = self.account();
        let held = &mut account.slots.entry(slot.start()).or_default().held;
        *held = if holds { *held + 1 } else { *held - 1 };
    }
}

/// What a wait means in a capture; there are none here.
pub enum Waiting {
    Within,
    FromOutside,
}

/// A point in a stream.
pub trait Event: Send + Sync {
    fn record(&self, stream: Stream) -> Result<()>;
    fn hold(&self, stream: Stream, waiting: Waiting) -> Result<()>;
    fn is_complete(&self) -> Result<bool>;
    fn synchronize(&self) -> Result<()>;
    fn seconds_since(&self, earlier: &dyn Event) -> Result<Option<f64>>;
}

struct Point {
    account: Arc<Mutex<Account>>,
    has_run: Arc<AtomicBool>,
    at: Mutex<Clock>,
}

impl Point {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn at(&self) -> MutexGuard<'_, Clock> {
        self.at.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Event for Point {
    fn record(&self, stream: Stream) -> Result<()> {
        let (_, knows) = self.account().queue(stream);
        *self.at() = knows;
        Ok(())
    }

    fn hold(&self, stream: Stream, _: Waiting) -> Result<()> {
        let at = self.at().clone();
        self.account().streams[stream.0].learn(&at);
        Ok(())
    }

    fn is_complete(&self) -> Result<bool> {
        if self.has_run.load(Ordering::Acquire) {
            self.synchronize()?;
        }
        let at = self.at().clone();
        Ok(self.account().done.knows(&at))
    }

    fn synchronize(&self) -> Result<()> {
        let at = self.at().clone();
        self.account().done.learn(&at);
        Ok(())
    }

    fn seconds_since(&self, _: &dyn Event) -> Result<Option<f64>> {
        Ok(self.is_complete()?.then_some(0.0))
    }
}

/// A stream of the library's own.
pub struct OwnedStream(Stream);

impl OwnedStream {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self(device.new_stream()))
    }

    pub fn get(&self) -> Stream {
        self.0
    }
}
