//! A budget that changes while steps run and graphs are replayed: `Addresses` and `Resize` of the
//! library, under a lock as in `Offloader`, beside its schedule. No memory is exchanged that queued work
//! may use, every read finds the bytes of its unit, and no more device memory exists than a budget
//! allows. The commit is not modelled, nor host memory of the library's own.

use std::ops::Deref;
use std::sync::atomic::Ordering::Release;

use loom::thread;
use weighbridge::device::backend::Stream;
use weighbridge::offload::addresses::Addresses;
use weighbridge::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use weighbridge::offload::schedule::schedule::Schedule;
use weighbridge::os::span::Span;
use weighbridge::os::sync::{self, Arc, Mutex};
use weighbridge::plan::heat::Heat;
use weighbridge::status::WB_ERR_BUSY;

use crate::backend::{self, Graph};
use crate::ranges::PAGE;
use crate::resizing::{Pace, Resizing};

pub const MODELS: &[crate::Model] = &[
    ("moves: units come beside a step", 3, || beside_a_step(SLOTS, ALL, Pace::Together)),
    ("moves: units come beside a slow step", 3, || beside_a_step(SLOTS, ALL, Pace::SlowStep)),
    ("moves: units leave beside a step", 3, || beside_a_step(ALL, SLOTS, Pace::Together)),
    ("moves: units leave beside a slow step", 3, || beside_a_step(ALL, SLOTS, Pace::SlowStep)),
    ("moves: sleep beside a step", 3, || beside_a_step(ALL, 0, Pace::Together)),
    ("moves: waking beside a step", 3, || beside_a_step(0, ALL, Pace::Together)),
    ("moves: replays beside eager steps, while units leave", 3, replays_beside_eager_steps),
    (
        "moves: another budget while copies are in flight",
        3,
        another_budget_while_copies_are_in_flight,
    ),
];

/// Enumerated: a name, the number of cases, and the run of one.
pub const ENUMERATED: crate::Enumerated =
    ("moves: every order of resizes, captures, replays and steps", CASES, every_order);

/// Models that break a rule, which must be found.
pub const BROKEN: &[crate::Model] = &[
    ("moves: a unit is read after its release", 3, reads_after_release),
    ("moves: a replay is in flight on another stream", 3, a_replay_on_another_stream),
    ("moves: a graph that was said to be dropped is replayed", 3, a_dropped_graph),
];

const GROUPS: usize = 3;
/// Budgets in pages: two slots, of three units; with three more pages; and with all: three units, parameters
/// that the plan keeps resident, and two pieces.
const SLOTS: usize = 2;
const MOST: usize = 5;
const ALL: usize = 8;

const OPERATIONS: usize = 9;
const LENGTH: u32 = 4;
/// Prefetched or on demand; work ends at once, or that of the engine only when it is waited for, or all.
const KINDS: usize = 6;
const CASES: usize = OPERATIONS.pow(LENGTH) * KINDS;

// SAFETY: nothing reads or writes there: the backend only keeps account.
fn span(page: usize) -> Span {
    unsafe { Span::new((page + 1) * PAGE, PAGE) }
}

/// A part of a group: its addresses, and where its bytes come from.
type Part = (Span, Span);

struct World {
    resizing: Resizing,
    groups: Vec<Vec<Part>>,
}

impl Deref for World {
    type Target = Resizing;

    fn deref(&self) -> &Resizing {
        &self.resizing
    }
}

impl World {
    /// Groups of one unit each in two slots; of the first one also parameters that are resident in
    /// the plan, and of the second one a unit of two pieces, the first of which is on the device.
    fn new(prefetched: bool, keep_host_copy: bool) -> Arc<Self> {
        let (device, account) = backend::device();
        account.has_run.store(true, Release);
        account.limit(MOST * PAGE);
        let mut addresses =
            Addresses::without_units(&device, (SLOTS * PAGE) as u64, keep_host_copy);
        let host = |group: usize| span(100 + group);
        let mut groups: Vec<Vec<Part>> = Vec::new();
        let mut units: Vec<CarriedUnit> = Vec::new();
        for group in 0..GROUPS {
            let slot = span(group % SLOTS);
            let offset = slot.start() - PAGE;
            addresses.add_carried(group, host(group), offset..offset + PAGE).unwrap();
            let target = addresses.homes[group].memory.span();
            groups.push(vec![(target, host(group))]);
            units.push(CarriedUnit {
                host: host(group),
                slot: Some(slot),
                target: Some(target),
                encoded: Vec::new(),
                prefetched,
                groups: vec![group],
            });
        }
        addresses.create_slots().unwrap();
        addresses.put_slots().unwrap();
        let resident = addresses.add_resident(GROUPS, PAGE).unwrap();
        groups[0].push((resident.span(), host(GROUPS)));
        let heat = Heat::new(2 * PAGE as u64, PAGE as u64);
        let pieces = addresses.add_pieces(GROUPS + 1, PAGE, &[true, false], heat).unwrap();
        for piece in 0..2 {
            let part = pieces.span().part(piece * PAGE, PAGE);
            groups[1].push((part, host(GROUPS + 1 + piece)));
        }
        for (group, parts) in groups.iter().enumerate().take(2) {
            let of_group = CarriedUnit { slot: None, target: None, ..units[group].clone() };
            units.push(CarriedUnit { host: parts[1].0, groups: vec![group], ..of_group });
            for (at, from) in &parts[1..] {
                let stream = account.new_stream();
                device.copy(*at, *from, stream).unwrap();
                device.backend().synchronize(stream).unwrap();
            }
        }
        if keep_host_copy {
            addresses.copy_to_host().unwrap();
        }
        let arrangement = Arrangement {
            units,
            groups: (0..GROUPS).map(|group| format!("layers.{group}")).collect(),
            ring: if prefetched { (0..GROUPS).collect() } else { Vec::new() },
            depth: SLOTS,
        };
        let schedule = Schedule::new(&device, arrangement, Passages::default()).unwrap();
        let state = Mutex::new((addresses, None));
        let resizing = Resizing { device, account, schedule, state };
        Arc::new(Self { resizing, groups })
    }

    fn read(&self, group: usize, stream: Stream) {
        for (at, from) in &self.groups[group] {
            self.account.read(*at, *from, stream).unwrap();
        }
    }

    /// Acquires, uses and releases a group, unless the offloader is asleep or its slot is held.
    fn visit(&self, group: usize, stream: Stream) {
        match self.schedule.acquire(group, stream, None) {
            Ok(()) => self.read(group, stream),
            Err(error) => return assert_eq!(error.status, WB_ERR_BUSY, "{error}"),
        }
        while let Err(error) = self.schedule.release(group, stream) {
            // It fell asleep half way.
            assert_eq!(error.status, WB_ERR_BUSY, "{error}");
            thread::yield_now();
        }
    }

    fn step(&self, stream: Stream) {
        (0..GROUPS).for_each(|group| self.visit(group, stream));
    }

    fn capture(&self, stream: Stream) -> Graph {
        self.account.begin_capture(stream);
        self.step(stream);
        self.schedule.join(stream).unwrap();
        self.account.end_capture(stream)
    }

    /// Says that `hot` of the two pieces are hot, and moves them to the device if pieces have moved.
    fn rebalance(&self, hot: usize, stream: Stream) {
        let mut state = sync::lock(&self.state);
        let (addresses, resize) = &mut *state;
        let memory = addresses.homes.last().unwrap().memory.clone();
        addresses.prefer(&memory, 0..(hot * PAGE) as u64, 2.0);
        let Some(resize) = resize.as_mut() else { return };
        let mut change = self.schedule.change(stream).unwrap();
        resize.rebalance(addresses, &mut change, PAGE as u64 * 2).unwrap();
    }
}

/// A thread makes a part of a step while another one resizes.
fn beside_a_step(before: usize, after: usize, pace: Pace) {
    let world = World::new(true, after == 0);
    let (engine, other) = (world.account.new_stream(), world.account.new_stream());
    world.resize(before, false, other);
    world.finish(before, other);
    world.account.has_run.store(pace == Pace::SlowStep, Release);
    world.account.stall((pace == Pace::SlowStep).then_some(engine));
    let stepping = world.clone();
    let thread =
        thread::spawn(move || [1, 0].into_iter().for_each(|at| stepping.visit(at, engine)));
    world.resize(after, false, other);
    world.account.has_run.store(true, Release);
    world.progress(other);
    thread.join().unwrap();
    world.progress(other);
    world.account.stall(None);
    world.finish(after, other);
    world.step(engine);
}

/// Replays come between the calls of a resize on their stream, whatever another thread does on its own
/// stream, which the engine orders with them.
fn replays_beside_eager_steps() {
    let world = World::new(false, false);
    let (engine, other) = (world.account.new_stream(), world.account.new_stream());
    world.resize(MOST, false, engine);
    world.finish(MOST, engine);
    let graph = world.capture(engine);
    let turn = Arc::new(Mutex::new(()));
    let (eager, its_turn) = (world.clone(), turn.clone());
    let thread = thread::spawn(move || {
        let _turn = sync::lock(&its_turn);
        eager.account.order(engine, other);
        eager.visit(0, other);
        eager.account.order(other, engine);
    });
    let replay = || {
        let _turn = sync::lock(&turn);
        world.account.replay(&graph, engine).unwrap();
    };
    replay();
    world.resize(SLOTS, false, engine);
    replay();
    world.progress(engine);
    thread.join().unwrap();
    world.finish(SLOTS, engine);
    replay();
    world.step(engine);
}

/// A unit that is no longer to come holds its memory until its copy has ended.
fn another_budget_while_copies_are_in_flight() {
    let world = World::new(true, false);
    let stream = world.account.new_stream();
    world.account.has_run.store(false, Release);
    world.rebalance(1, stream);
    world.resize(MOST, false, stream);
    world.rebalance(2, stream);
    world.resize(MOST, false, stream);
    let account = world.account.clone();
    let runs = thread::spawn(move || account.has_run.store(true, Release));
    world.progress(stream);
    runs.join().unwrap();
    world.finish(MOST, stream);
    world.step(stream);
}

/// Runs a sequence of calls, and replays all graphs between them and at the end.
fn every_order(case: usize) {
    let (kind, mut operations) = (case % KINDS, case / KINDS);
    let (prefetched, ends) = (kind % 2 > 0, kind / 2);
    let world = World::new(prefetched, !prefetched);
    let stream = world.account.new_stream();
    world.account.stall((ends == 1).then_some(stream));
    world.account.has_run.store(ends < 2, Release);
    let (mut graphs, mut budget, mut hot) = (Vec::new(), MOST, 0);
    let replay = |graphs: &[Graph]| {
        if !world.schedule.is_asleep() {
            graphs.iter().for_each(|graph| world.account.replay(graph, stream).unwrap());
        }
    };
    for _ in 0..LENGTH {
        let operation = operations % OPERATIONS;
        operations /= OPERATIONS;
        match operation {
            0 => world.step(stream),
            1 if world.schedule.is_asleep() => {}
            1 => graphs.push(world.capture(stream)),
            2 => replay(&graphs),
            3..=6 => {
                budget = [0, SLOTS, MOST, ALL][operation - 3];
                world.resize(budget, false, stream);
            }
            7 => {
                hot = 2.min(hot + 1);
                world.rebalance(hot, stream);
            }
            _ => {
                graphs.clear();
                budget = SLOTS;
                world.resize(budget, true, stream);
            }
        }
        replay(&graphs);
    }
    let last = if budget == 0 { MOST } else { budget };
    world.resize(last, false, stream);
    replay(&graphs);
    world.account.stall(None);
    world.account.has_run.store(true, Release);
    world.finish(last, stream);
    world.step(stream);
    replay(&graphs);
    world.step(stream);
}

fn reads_after_release() {
    let world = World::new(true, false);
    let stream = world.account.new_stream();
    world.account.stall(Some(stream));
    world.visit(0, stream);
    world.read(0, stream);
    world.account.stall(None);
    world.resize(ALL, false, stream);
    world.finish(ALL, stream);
}

fn a_replay_on_another_stream() {
    let world = World::new(true, false);
    let (stream, other) = (world.account.new_stream(), world.account.new_stream());
    let graph = world.capture(stream);
    world.account.replay(&graph, stream).unwrap();
    world.resize(ALL, false, other);
    world.finish(ALL, other);
}

fn a_dropped_graph() {
    let world = World::new(true, false);
    let stream = world.account.new_stream();
    world.resize(ALL, false, stream);
    world.finish(ALL, stream);
    let graph = world.capture(stream);
    world.resize(SLOTS, true, stream);
    world.finish(SLOTS, stream);
    world.account.replay(&graph, stream).unwrap();
}
