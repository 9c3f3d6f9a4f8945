//! The ring of slots: threads with streams of their own acquire and release groups. A slot is never
//! refilled while it is acquired or before its last use, and never read before its copy has ended.

use std::sync::atomic::Ordering::Release;

use loom::thread;
use weighbridge::device::backend::Stream;
use weighbridge::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use weighbridge::offload::schedule::schedule::Schedule;
use weighbridge::os::span::Span;
use weighbridge::os::sync::Arc;
use weighbridge::status::WB_ERR_BUSY;

use crate::backend::{self, Account};

pub const MODELS: &[crate::Model] = &[
    ("ring: two threads, prefetch", 4, || two_threads(true, &[0, 2], &[1, 2])),
    ("ring: two threads, on demand", 4, || two_threads(false, &[0, 2], &[1, 2])),
    ("ring: a group again and again, out of order", 4, || two_threads(true, &[0, 0, 0], &[1])),
    ("ring: a step on two streams while copies end", 4, a_step_while_copies_end),
];

/// Models that break a rule, which must be found.
pub const BROKEN: &[crate::Model] = &[
    ("ring: a stream that did not wait reads a slot", 4, reads_without_a_wait),
    ("ring: a slot is read after its release", 4, reads_after_release),
];

const BYTES: usize = 4096;

/// Groups of one unit each in two slots.
pub struct Bench {
    pub schedule: Schedule,
    pub account: Arc<Account>,
    units: Vec<CarriedUnit>,
}

impl Bench {
    pub fn new(groups: usize, prefetched: bool) -> Arc<Self> {
        let (device, account) = backend::device();
        // SAFETY: nothing reads or writes there: the backend only keeps account.
        let span = |at: usize| unsafe { Span::new((at + 1) * BYTES, BYTES) };
        let units: Vec<_> = (0..groups)
            .map(|group| CarriedUnit {
                host: span(100 + group),
                slot: Some(span(group % 2)),
                target: None,
                encoded: Vec::new(),
                prefetched,
                groups: vec![group],
            })
            .collect();
        let arrangement = Arrangement {
            units: units.clone(),
            groups: (0..groups).map(|group| format!("layers.{group}")).collect(),
            ring: if prefetched { (0..groups).collect() } else { Vec::new() },
            depth: 2,
        };
        let schedule = Schedule::new(&device, arrangement, Passages::default()).unwrap();
        Arc::new(Self { schedule, account, units })
    }

    /// Acquires, uses and releases a group, unless another thread holds its slot.
    fn visit(&self, group: usize, stream: Stream) {
        match self.schedule.acquire(group, stream, None) {
            Ok(()) => {}
            Err(error) => return assert_eq!(error.status, WB_ERR_BUSY, "{error}"),
        }
        self.use_and_release(group, stream);
    }

    /// Uses and releases a group that is acquired.
    pub fn use_and_release(&self, group: usize, stream: Stream) {
        let slot = self.units[group].slot.unwrap();
        self.account.hold(slot, true);
        self.read(group, stream);
        self.account.hold(slot, false);
        self.schedule.release(group, stream).unwrap();
    }

    fn read(&self, group: usize, stream: Stream) {
        let unit = &self.units[group];
        self.account.read(unit.slot.unwrap(), unit.host, stream).unwrap();
    }
}

fn two_threads(prefetched: bool, visits: &'static [usize], other_visits: &'static [usize]) {
    let bench = Bench::new(3, prefetched);
    let (first, second) = (bench.account.new_stream(), bench.account.new_stream());
    bench.schedule.reset(first, None).unwrap();
    let other = bench.clone();
    let thread =
        thread::spawn(move || other_visits.iter().for_each(|group| other.visit(*group, second)));
    visits.iter().for_each(|group| bench.visit(*group, first));
    thread.join().unwrap();
}

fn a_step_while_copies_end() {
    let bench = Bench::new(4, true);
    let streams = [bench.account.new_stream(), bench.account.new_stream()];
    bench.schedule.reset(streams[0], None).unwrap();
    let account = bench.account.clone();
    let runs = thread::spawn(move || account.has_run.store(true, Release));
    (0..4).for_each(|group| bench.visit(group, streams[group % 2]));
    bench.visit(0, streams[0]);
    runs.join().unwrap();
}

fn reads_without_a_wait() {
    let bench = Bench::new(3, true);
    let (first, second) = (bench.account.new_stream(), bench.account.new_stream());
    bench.schedule.reset(first, None).unwrap();
    bench.schedule.acquire(0, first, None).unwrap();
    bench.read(0, second);
}

fn reads_after_release() {
    let bench = Bench::new(3, true);
    let stream = bench.account.new_stream();
    bench.schedule.reset(stream, None).unwrap();
    bench.visit(0, stream);
    bench.visit(2, stream);
    bench.read(0, stream);
}
