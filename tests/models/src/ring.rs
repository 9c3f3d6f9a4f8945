//! The ring of slots: threads with streams of their own acquire and release groups; a slot is never
//! refilled while it is held or before its last use, and never read before its copy has ended.

use std::sync::atomic::Ordering::Release;

use loom::thread;

use crate::device::{Device, Stream};
use crate::pages::Span;
use crate::schedule::{Arrangement, Moving, Schedule};
use crate::status::WB_ERR_BUSY;
use crate::sync::Arc;

pub const MODELS: &[crate::Model] = &[
    ("ring: two threads, copies ahead", 4, || two_threads(true, &[0, 2], &[1, 2])),
    ("ring: two threads, copies on demand", 4, || two_threads(false, &[0, 2], &[1, 2])),
    ("ring: a group again and again, out of order", 4, || two_threads(true, &[0, 0, 0], &[1])),
    ("ring: a step of two streams while copies end", 4, a_step_while_copies_end),
];

/// What must be found.
pub const BROKEN: &[crate::Model] = &[
    ("ring: a stream that did not wait reads a slot", 4, reads_without_a_wait),
    ("ring: a slot is read after its release", 4, reads_after_release),
];

const BYTES: usize = 4096;

/// Groups of one unit each in two slots.
struct Bench {
    schedule: Schedule,
    device: Arc<Device>,
    units: Vec<Moving>,
}

impl Bench {
    fn new(groups: usize, ahead: bool) -> Arc<Self> {
        let device = Device::new();
        // SAFETY: nobody reads or writes there: the device only keeps account.
        let span = |at: usize| unsafe { Span::new((at + 1) * BYTES, BYTES) };
        let units: Vec<_> = (0..groups)
            .map(|group| Moving {
                host: span(100 + group),
                slot: Some(span(group % 2)),
                ahead,
                groups: vec![group],
            })
            .collect();
        let arrangement = Arrangement {
            units: units.clone(),
            groups: (0..groups).map(|group| format!("layers.{group}")).collect(),
            ring: if ahead { (0..groups).collect() } else { Vec::new() },
            depth: 2,
        };
        let schedule = Schedule::new(&device, &arrangement, None).unwrap();
        Arc::new(Self { schedule, device, units })
    }

    /// Uses a group. A slot that another thread holds cannot be had, and is let be.
    fn visit(&self, group: usize, stream: Stream) {
        match self.schedule.acquire(group, stream) {
            Ok(()) => {}
            Err(error) => return assert_eq!(error.status, WB_ERR_BUSY, "{error}"),
        }
        let unit = &self.units[group];
        let slot = unit.slot.unwrap();
        self.device.hold(slot, true);
        self.device.read(slot, unit.host, stream);
        self.device.hold(slot, false);
        self.schedule.release(group, stream).unwrap();
    }
}

fn two_threads(ahead: bool, my_visits: &'static [usize], their_visits: &'static [usize]) {
    let bench = Bench::new(3, ahead);
    let (mine, theirs) = (bench.device.new_stream(), bench.device.new_stream());
    bench.schedule.reset(mine).unwrap();
    let other = bench.clone();
    let thread =
        thread::spawn(move || their_visits.iter().for_each(|group| other.visit(*group, theirs)));
    my_visits.iter().for_each(|group| bench.visit(*group, mine));
    thread.join().unwrap();
}

fn a_step_while_copies_end() {
    let bench = Bench::new(4, true);
    let streams = [bench.device.new_stream(), bench.device.new_stream()];
    bench.schedule.reset(streams[0]).unwrap();
    let has_run = bench.device.has_run.clone();
    let runs = thread::spawn(move || has_run.store(true, Release));
    (0..4).for_each(|group| bench.visit(group, streams[group % 2]));
    bench.visit(0, streams[0]);
    runs.join().unwrap();
}

fn reads_without_a_wait() {
    let bench = Bench::new(3, true);
    let (mine, theirs) = (bench.device.new_stream(), bench.device.new_stream());
    bench.schedule.reset(mine).unwrap();
    bench.schedule.acquire(0, mine).unwrap();
    bench.device.read(bench.units[0].slot.unwrap(), bench.units[0].host, theirs);
}

fn reads_after_release() {
    let bench = Bench::new(3, true);
    let stream = bench.device.new_stream();
    bench.schedule.reset(stream).unwrap();
    bench.visit(0, stream);
    bench.visit(2, stream);
    bench.device.read(bench.units[0].slot.unwrap(), bench.units[0].host, stream);
}
