//! Captured steps between eager ones: in every order of the groups of either, with every depth, a
//! step reads its own units, captured or not; and a capture beside an eager step of another thread.

use loom::thread;
use weighbridge::device::backend::Stream;
use weighbridge::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use weighbridge::offload::schedule::schedule::Schedule;
use weighbridge::os::span::Span;
use weighbridge::os::sync::Arc;
use weighbridge::status::{WB_ERR_BUSY, WB_ERR_CAPTURING};

use crate::backend::{self, Account, Graph};

pub const MODELS: &[crate::Model] =
    &[("replays: a capture beside an eager step", 3, a_capture_beside_an_eager_step)];

/// Enumerated: a name, the number of cases, and the run of one.
pub const ENUMERATED: crate::Enumerated =
    ("replays: every order of two kinds of steps", CASES, a_replay_between_eager_steps);

const GROUPS: usize = 4;
/// All orders of 4 groups, of 3, of 2 and of 1.
pub const ORDERS: usize = 24 + 24 + 12 + 4;
/// Depths 2 and 3, on demand; with and without `begin_step`.
const KINDS: usize = 6;
const CASES: usize = ORDERS * ORDERS * KINDS;
const BYTES: usize = 4096;

/// Groups of one unit each on a device that keeps account.
pub struct Bench {
    pub schedule: Schedule,
    pub account: Arc<Account>,
    pub units: Vec<CarriedUnit>,
    /// Whether steps begin with `begin_step`.
    explicit: bool,
}

impl Bench {
    /// With as many slots as `depth`. With `explicit`, steps begin with `begin_step`.
    pub fn new(depth: usize, prefetched: bool, explicit: bool) -> Arc<Self> {
        let (device, account) = backend::device();
        // SAFETY: nothing reads or writes there: the backend only keeps account.
        let span = |at: usize| unsafe { Span::new((at + 1) * BYTES, BYTES) };
        let unit = |group: usize| CarriedUnit {
            host: span(100 + group),
            slot: Some(span(group % depth)),
            target: None,
            encoded: Vec::new(),
            prefetched,
            groups: vec![group],
        };
        let units: Vec<_> = (0..GROUPS).map(unit).collect();
        let arrangement = Arrangement {
            units: units.clone(),
            groups: (0..GROUPS).map(|group| format!("layers.{group}")).collect(),
            ring: if prefetched { (0..GROUPS).collect() } else { Vec::new() },
            depth,
        };
        let schedule = Schedule::new(&device, arrangement, Passages::default()).unwrap();
        Arc::new(Self { schedule, account, units, explicit })
    }

    /// A step of the groups.
    pub fn step(&self, groups: &[usize], stream: Stream) {
        if self.explicit {
            self.schedule.begin_step(stream).unwrap();
        }
        for &group in groups {
            self.schedule.acquire(group, stream, None).unwrap();
            self.read(group, stream);
            self.schedule.release(group, stream).unwrap();
        }
    }

    /// Reads the slot of a group, which must have its unit.
    pub fn read(&self, group: usize, stream: Stream) {
        let unit = &self.units[group];
        self.account.read(unit.slot.unwrap(), unit.host, stream).unwrap();
    }

    /// Captures a step of the groups.
    pub fn capture(&self, groups: &[usize], stream: Stream) -> Graph {
        self.account.begin_capture(stream);
        self.step(groups, stream);
        self.schedule.join(stream).unwrap();
        self.account.end_capture(stream)
    }
}

/// The order with a number: some of the groups, each once.
pub fn order(number: usize) -> Vec<usize> {
    let mut left = number;
    for (length, count) in [(4, 24), (3, 24), (2, 12), (1, 4)] {
        if left < count {
            let mut groups: Vec<_> = (0..GROUPS).collect();
            let mut pick = |_| {
                let at = left % groups.len();
                left /= groups.len();
                groups.remove(at)
            };
            return (0..length).map(&mut pick).collect();
        }
        left -= count;
    }
    unreachable!("there are {ORDERS} orders")
}

fn a_replay_between_eager_steps(case: usize) {
    let (kind, orders) = (case % KINDS, case / KINDS);
    let (first, second) = (order(orders % ORDERS), order(orders / ORDERS));
    let (depth, prefetched) = [(2, true), (3, true), (1, false)][kind / 2];
    let bench = Bench::new(depth, prefetched, kind % 2 > 0);
    let stream = bench.account.new_stream();
    bench.schedule.reset(stream, None).unwrap();
    bench.step(&second, stream);
    let graph = bench.capture(&first, stream);
    let replay = || bench.account.replay(&graph, stream).unwrap();
    bench.step(&second, stream);
    replay();
    bench.step(&second, stream);
    bench.step(&first, stream);
    replay();
    replay();
    bench.step(&second, stream);
}

/// What the eager thread does during the capture is refused, or has nothing to do with it.
fn a_capture_beside_an_eager_step() {
    let bench = Bench::new(2, true, true);
    let (captured, eager) = (bench.account.new_stream(), bench.account.new_stream());
    bench.schedule.reset(captured, None).unwrap();
    let other = bench.clone();
    let thread = thread::spawn(move || {
        let unit = &other.units[1];
        match other.schedule.acquire(1, eager, None) {
            Ok(()) => {}
            Err(error) => return assert!(expected(error.status), "{error}"),
        }
        other.account.read(unit.slot.unwrap(), unit.host, eager).unwrap();
        while let Err(error) = other.schedule.release(1, eager) {
            assert_eq!(error.status, WB_ERR_CAPTURING, "{error}");
            thread::yield_now();
        }
    });
    bench.account.begin_capture(captured);
    let whole = bench.schedule.acquire(0, captured, None).and_then(|()| {
        let unit = &bench.units[0];
        bench.account.read(unit.slot.unwrap(), unit.host, captured)?;
        bench.schedule.release(0, captured)
    });
    bench.schedule.join(captured).unwrap();
    let graph = bench.account.end_capture(captured);
    thread.join().unwrap();
    whole.unwrap();
    bench.account.order(eager, captured); // the engine's part: a step follows another
    bench.account.replay(&graph, captured).unwrap();
}

fn expected(status: i32) -> bool {
    status == WB_ERR_BUSY || status == WB_ERR_CAPTURING
}
