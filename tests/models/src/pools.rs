//! Slots of an expert cache in a budget that changes, while steps run and graphs are replayed: the cache
//! itself, `ExpertPools` and `Resize` of the library, under a lock as in `Offloader`, beside its
//! schedule. No slot loses its memory while queued work may use it, every slot that a call uses has
//! memory and no bytes of earlier owners, the state outlives sleep, calls that a graph holds find as many
//! slots as they need, and no more device memory exists than a budget allows. Which expert is in which
//! slot is decided by the kernel, which is not modelled.

use std::ops::Deref;
use std::sync::atomic::Ordering::Release;

use loom::thread;
use weighbridge::cache::cache::{CacheOptions, ExpertCache};
use weighbridge::cache::calls::{ExpertIds, RouteOptions};
use weighbridge::cache::experts::ExpertTensor;
use weighbridge::device::backend::Stream;
use weighbridge::memory::buffer::{Buffer, BufferOptions};
use weighbridge::offload::addresses::Addresses;
use weighbridge::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use weighbridge::offload::schedule::schedule::Schedule;
use weighbridge::os::span::Span;
use weighbridge::os::sync::{Arc, Mutex};
use weighbridge::status::{WB_ERR_BUSY, WB_ERR_SLOTS_BUDGET};
use weighbridge::tensor::dtype::{Dtype, WB_DTYPE_U8};
use weighbridge::tensor::layout::Layout;

use crate::backend::{self, Graph};
use crate::ranges::PAGE;
use crate::resizing::{Pace, Resizing};

pub const MODELS: &[crate::Model] = &[
    ("pools: slots come beside a step", 3, || beside_a_step(FEW, ALL, Pace::Together)),
    ("pools: slots come beside a slow step", 3, || beside_a_step(FEW, ALL, Pace::SlowStep)),
    ("pools: slots go beside a step", 3, || beside_a_step(ALL, FEW, Pace::Together)),
    ("pools: slots go beside a slow step", 3, || beside_a_step(ALL, FEW, Pace::SlowStep)),
    ("pools: sleep beside a step", 3, || beside_a_step(ALL, 0, Pace::Together)),
    ("pools: waking beside a step", 3, || beside_a_step(0, ALL, Pace::Together)),
    ("pools: a capture beside a resize", 3, a_capture_beside_a_resize),
];

/// Enumerated: a name, the number of cases, and the run of one.
pub const ENUMERATED: crate::Enumerated =
    ("pools: every order of resizes, captures, replays and steps", CASES, every_order);

/// Models that break a rule, which must be found.
pub const BROKEN: &[crate::Model] = &[
    ("pools: slots are read after the release of their group", 3, reads_after_release),
    ("pools: a replay is in flight on another stream", 3, a_replay_on_another_stream),
    ("pools: a graph that was said to be dropped is replayed", 3, a_dropped_graph),
];

/// Experts of the layer, each a page; and budgets in pages, one of which is the state's.
const EXPERTS: usize = 4;
const FEW: usize = 3;
const ALL: usize = 1 + EXPERTS;

const OPERATIONS: usize = 9;
const LENGTH: u32 = 4;
/// Work ends at once, or that of the engine only when it is waited for, or all.
const PACES: usize = 3;
const CASES: usize = OPERATIONS.pow(LENGTH) * PACES;

struct World {
    resizing: Resizing,
    cache: Arc<ExpertCache>,
}

impl Deref for World {
    type Target = Resizing;

    fn deref(&self) -> &Resizing {
        &self.resizing
    }
}

impl World {
    /// A group with the experts of one layer, which has slots for all of them.
    fn new() -> Arc<Self> {
        let (device, account) = backend::device_of_caches();
        account.has_run.store(true, Release);
        account.limit(ALL * PAGE);
        let options = BufferOptions::default();
        let buffer = Buffer::alloc(&device, EXPERTS * PAGE, &options, &mut None).unwrap();
        let unit = CarriedUnit {
            host: buffer.data(),
            slot: None,
            target: None,
            encoded: Vec::new(),
            prefetched: false,
            groups: vec![0],
        };
        let shape = [EXPERTS as i64, PAGE as i64];
        let tensor = ExpertTensor {
            layer: 0,
            name: "w".into(),
            layout: Layout::new(Dtype::from_code(WB_DTYPE_U8).unwrap(), &shape, None).unwrap(),
            offset: 0,
            buffer,
        };
        let options = CacheOptions {
            slots: EXPERTS as u64,
            piece: Some(PAGE as u64),
            ..CacheOptions::default()
        };
        let cache = ExpertCache::new(&device, vec![tensor], options).unwrap();
        let slots = cache.tensor(0).unwrap();
        // SAFETY: nothing reads or writes there: the backend only keeps account.
        account.set_slot(unsafe { Span::new(slots.address as usize, PAGE) });
        let mut addresses = Addresses::without_units(&device, 0, false);
        addresses.pools.add(&cache, vec![0], EXPERTS as u32);
        let arrangement = Arrangement {
            units: vec![unit],
            groups: vec!["layers.0".into()].into(),
            ring: Vec::new(),
            depth: 1,
        };
        let schedule = Schedule::new(&device, arrangement, Passages::default()).unwrap();
        let state = Mutex::new((addresses, None));
        let resizing = Resizing { device, account, schedule, state };
        Arc::new(Self { resizing, cache })
    }

    /// Routes so many ids, unless the cache is asleep or has too few slots. Returns whether it did.
    fn route(&self, count: u64, stream: Stream) -> bool {
        let ids = ExpertIds { address: 64, count, wide: false };
        match self.cache.route(0, ids, 64, RouteOptions::default(), stream) {
            Ok(()) => true,
            Err(error) => {
                let refused = [WB_ERR_BUSY, WB_ERR_SLOTS_BUDGET].contains(&error.status);
                assert!(refused, "{error}");
                false
            }
        }
    }

    /// Acquires the group, routes, lets a kernel read the slots, and releases the group.
    fn step(&self, count: u64, stream: Stream) {
        if let Err(error) = self.schedule.acquire(0, stream, None) {
            return assert_eq!(error.status, WB_ERR_BUSY, "{error}");
        }
        if self.route(count, stream) {
            self.account.read_slots(stream).unwrap();
        }
        while let Err(error) = self.schedule.release(0, stream) {
            assert_eq!(error.status, WB_ERR_BUSY, "{error}");
            thread::yield_now();
        }
    }

    fn capture(&self, count: u64, stream: Stream) -> Graph {
        self.account.begin_capture(stream);
        self.step(count, stream);
        self.schedule.join(stream).unwrap();
        self.account.end_capture(stream)
    }
}

/// A thread makes steps while another one resizes.
fn beside_a_step(before: usize, after: usize, pace: Pace) {
    let world = World::new();
    let (engine, other) = (world.account.new_stream(), world.account.new_stream());
    world.resize(before, false, other);
    world.finish(before, other);
    world.account.has_run.store(pace == Pace::SlowStep, Release);
    world.account.stall((pace == Pace::SlowStep).then_some(engine));
    let stepping = world.clone();
    let thread = thread::spawn(move || [3, 1].into_iter().for_each(|at| stepping.step(at, engine)));
    world.resize(after, false, other);
    world.account.has_run.store(true, Release);
    world.progress(other);
    thread.join().unwrap();
    world.progress(other);
    world.account.stall(None);
    world.finish(after, other);
    assert_eq!(world.cache.info().slots as usize, after.saturating_sub(1));
    world.step(1, engine);
}

/// A thread captures a step while another one resizes to fewer slots than it needs: either the capture
/// holds no call, or the resize is refused, and leaves as many slots when it is repeated.
fn a_capture_beside_a_resize() {
    let world = World::new();
    let (engine, other) = (world.account.new_stream(), world.account.new_stream());
    let capturing = world.clone();
    let thread = thread::spawn(move || capturing.capture(3, engine));
    world.resize(2, false, other);
    let graph = thread.join().unwrap();
    let budget = world.resize(2, false, other);
    world.finish(budget, other);
    world.account.order(other, engine);
    world.account.replay(&graph, engine).unwrap();
    world.step(1, engine);
}

/// Runs a sequence of calls, and replays all graphs between them and at the end.
fn every_order(case: usize) {
    let (ends, mut operations) = (case % PACES, case / PACES);
    let world = World::new();
    let stream = world.account.new_stream();
    world.account.stall((ends == 1).then_some(stream));
    world.account.has_run.store(ends < 2, Release);
    let (mut graphs, mut budget) = (Vec::new(), ALL);
    let replay = |graphs: &[Graph]| {
        if !world.schedule.is_asleep() && world.cache.info().slots > 0 {
            graphs.iter().for_each(|graph| world.account.replay(graph, stream).unwrap());
        }
    };
    for _ in 0..LENGTH {
        let operation = operations % OPERATIONS;
        operations /= OPERATIONS;
        match operation {
            0 => {
                world.step(1, stream);
                if world.cache.info().slots > 0 {
                    // The group is released, but resizes are on the stream of this kernel.
                    world.account.read_slots(stream).unwrap();
                }
            }
            1 | 2 if world.schedule.is_asleep() => {}
            1 => graphs.push(world.capture(1, stream)),
            2 => graphs.push(world.capture(3, stream)),
            3 => replay(&graphs),
            4..=7 => budget = world.resize([0, 2, FEW, ALL][operation - 4], false, stream),
            _ => {
                graphs.clear();
                budget = world.resize(2, true, stream);
            }
        }
        replay(&graphs);
    }
    let last = world.resize(if budget == 0 { FEW } else { budget }, false, stream);
    replay(&graphs);
    world.account.stall(None);
    world.account.has_run.store(true, Release);
    world.finish(last, stream);
    assert_eq!(world.cache.info().slots as usize, last - 1);
    world.step(1, stream);
    replay(&graphs);
}

/// A kernel on another stream reads slots, and its group is released before it is queued there.
fn reads_after_release() {
    let world = World::new();
    let (stream, reader) = (world.account.new_stream(), world.account.new_stream());
    world.account.stall(Some(reader));
    world.step(3, stream);
    world.account.order(stream, reader);
    world.account.read_slots(reader).unwrap();
    world.resize(FEW, false, stream);
    world.finish(FEW, stream);
}

fn a_replay_on_another_stream() {
    let world = World::new();
    let (stream, other) = (world.account.new_stream(), world.account.new_stream());
    let graph = world.capture(1, stream);
    world.account.stall(Some(stream));
    world.account.replay(&graph, stream).unwrap();
    world.resize(FEW, false, other);
    world.finish(FEW, other);
}

fn a_dropped_graph() {
    let world = World::new();
    let stream = world.account.new_stream();
    let graph = world.capture(3, stream);
    let budget = world.resize(2, true, stream);
    world.finish(budget, stream);
    world.account.replay(&graph, stream).unwrap();
}
