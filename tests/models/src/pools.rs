//! Slots of an expert cache in a budget that changes, while steps run and graphs are replayed: the cache
//! itself, `ExpertPools` and `Resize` of the library, under a lock as in `Offloader`, beside its
//! schedule. No slot loses its memory while queued work may use it, every slot that a call uses has
//! memory and no bytes of earlier owners, the state outlives sleep, calls that a graph holds find as many
//! slots as they need, and no more device memory exists than a budget allows. Which expert is in which
//! slot is decided by the kernel, which is not modelled.

use std::sync::atomic::Ordering::Release;

use loom::thread;
use weighbridge::cache::cache::{CacheOptions, ExpertCache, ExpertIds, RouteOptions};
use weighbridge::cache::experts::ExpertTensor;
use weighbridge::device::backend::Stream;
use weighbridge::device::device::Device;
use weighbridge::memory::buffer::{Buffer, BufferOptions};
use weighbridge::offload::addresses::Addresses;
use weighbridge::offload::moves::{Resize, ResizeProgress};
use weighbridge::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use weighbridge::offload::schedule::schedule::Schedule;
use weighbridge::os::span::Span;
use weighbridge::os::sync::{self, Arc, Mutex};
use weighbridge::plan::residency;
use weighbridge::status::{WB_ERR_BUSY, WB_ERR_SLOTS_BUDGET};
use weighbridge::tensor::dtype::{Dtype, WB_DTYPE_U8};
use weighbridge::tensor::layout::Layout;

use crate::backend::{self, Account, Graph};
use crate::ranges::PAGE;

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
    schedule: Schedule,
    account: Arc<Account>,
    cache: Arc<ExpertCache>,
    /// As the state of an offloader.
    state: Mutex<(Addresses, Option<Resize>)>,
    device: Arc<Device>,
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
        Arc::new(Self { schedule, account, cache, state, device })
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

    /// Begins a resize to so many pages, as `Offloader::resize`. Returns the pages of the budget: no
    /// less than graphs need.
    fn resize(&self, pages: usize, graphs_dropped: bool, stream: Stream) -> usize {
        let mut state = sync::lock(&self.state);
        let (addresses, resize) = &mut *state;
        let claim = addresses.pools.claim(graphs_dropped).unwrap();
        let pages = if pages == 0 { 0 } else { pages.max(claim.least_bytes as usize / PAGE) };
        let bytes = (pages * PAGE) as u64;
        self.account.limit((bytes as usize).max(self.account.held()));
        let mut change = self.schedule.change(stream).unwrap();
        change.wait_for_replays().unwrap();
        if graphs_dropped {
            addresses.pools.forget_graphs();
        }
        match pages {
            0 => addresses.pools.sleep(),
            _ => {
                let share = residency::bytes_for_caches(&[], 0, bytes, claim).unwrap();
                addresses.pools.share(share);
            }
        }
        let resize =
            resize.get_or_insert_with(|| Resize::new(&self.device, Vec::new(), 0, false).unwrap());
        resize.redirect(Vec::new(), bytes, pages == 0);
        if let Err(error) = resize.advance(addresses, &mut change) {
            // A capture came between, and needs more slots: the caller resizes again.
            assert_eq!(error.status, WB_ERR_SLOTS_BUDGET, "{error}");
        }
        pages
    }

    /// Goes on with a resize.
    fn progress(&self, stream: Stream) -> ResizeProgress {
        let mut state = sync::lock(&self.state);
        let (addresses, resize) = &mut *state;
        let mut change = self.schedule.change(stream).unwrap();
        let resize = resize.as_mut().unwrap();
        resize.advance(addresses, &mut change).unwrap();
        resize.progress(addresses)
    }

    /// Goes on until the cache has the slots that it is to have, and checks what is held.
    fn finish(&self, pages: usize, stream: Stream) {
        for _ in 0..20 {
            let progress = self.progress(stream);
            if progress.pending_units == 0 {
                assert_eq!(progress.device_bytes, self.account.held() as u64);
                assert!(self.account.held() <= pages * PAGE, "{progress:?}");
                assert_eq!(self.cache.info().slots as usize, pages.saturating_sub(1));
                return self.account.limit(pages * PAGE);
            }
        }
        panic!("a resize to {pages} pages does not end");
    }
}

/// Whose work ends.
#[derive(PartialEq)]
enum Pace {
    /// All that is queued, between two calls of a resize.
    Together,
    /// At once what the library queues; what the engine does only after the calls of a resize.
    SlowStep,
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
