//! The cache on the host device, compared with the reference after every call.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::cache::cache::{CacheOptions, ExpertCache};
use crate::cache::calls::{ExpertIds, RouteOptions};
use crate::cache::experts::ExpertTensor;
use crate::cache::reference::Reference;
use crate::device::backend::Stream;
use crate::device::device::{Device, DeviceOptions};
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::status::{
    WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
    WB_ERR_SLOTS_BUDGET,
};
use crate::tensor::dtype::Dtype;
use crate::tensor::layout::Layout;

/// The bytes of an expert of a tensor, which no other has.
fn weights(layer: usize, expert: usize, tensor: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (layer * 83 + expert * 31 + tensor * 7 + at * 3) as u8).collect()
}

fn named(name: &str) -> Dtype {
    Dtype::all().find(|dtype| dtype.name() == name).unwrap()
}

/// Two tensors: whole numbers of 16 bytes with a gap behind each expert, and single bytes at an odd
/// address.
const KINDS: [(&str, &str, &[i64], i64); 2] =
    [("w13", "bfloat16", &[4, 8], 40), ("w2.scale", "uint8", &[3], 3)];

fn bytes_of(kind: usize) -> usize {
    KINDS[kind].2.iter().product::<i64>() as usize * named(KINDS[kind].1).bytes()
}

fn describe(device: &Arc<Device>, layers: &[usize]) -> Vec<ExpertTensor> {
    let mut tensors = Vec::new();
    for (layer, experts) in layers.iter().enumerate() {
        for (index, (name, dtype, shape, stride)) in KINDS.iter().enumerate() {
            let dtype = named(dtype);
            let whole: Vec<i64> = [*experts as i64].iter().chain(*shape).copied().collect();
            let inner = Layout::new(dtype, shape, None).unwrap();
            let strides: Vec<i64> = [*stride].iter().chain(inner.strides()).copied().collect();
            let layout = Layout::new(dtype, &whole, Some(&strides)).unwrap();
            let offset = if index == 1 { 5 } else { 0 };
            let options = BufferOptions::default();
            let bytes = offset + layout.span_bytes() as usize;
            let buffer = Buffer::alloc(device, bytes, &options, &mut None).unwrap();
            for expert in 0..*experts {
                let at = offset + expert * *stride as usize * dtype.bytes();
                let each = bytes_of(index);
                bytes::write(buffer.data().part(at, each), &weights(layer, expert, index, each));
            }
            let (layer, offset) = (layer as u64, offset as u64);
            tensors.push(ExpertTensor { layer, name: (*name).into(), layout, offset, buffer });
        }
    }
    tensors
}

struct Bench {
    cache: Arc<ExpertCache>,
    device: Arc<Device>,
    streams: Vec<OwnedStream>,
    ids: DeviceMemory,
    slots: DeviceMemory,
    reference: Reference,
    layers: Vec<usize>,
    wide: bool,
}

impl Bench {
    fn new(layers: &[usize], slots: usize, lanes: u32, wide: bool) -> Self {
        Self::with_pieces(layers, slots, lanes, wide, None)
    }

    fn with_pieces(
        layers: &[usize],
        slots: usize,
        lanes: u32,
        wide: bool,
        piece: Option<u64>,
    ) -> Self {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let options = CacheOptions { slots: slots as u64, lanes, piece, ..CacheOptions::default() };
        let cache = ExpertCache::new(&device, describe(&device, layers), options).unwrap();
        let numbers = || DeviceMemory::alloc(&device, 4096).unwrap().unwrap();
        let bytes = (bytes_of(0) + bytes_of(1)) as u64;
        Self {
            cache,
            streams: (0..3).map(|_| OwnedStream::new(&device).unwrap()).collect(),
            ids: numbers(),
            slots: numbers(),
            reference: Reference::new(layers, slots, bytes),
            layers: layers.to_vec(),
            device,
            wide,
        }
    }

    fn width(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    fn give(&self, ids: &[i64]) -> ExpertIds {
        let numbers: Vec<u8> = match self.wide {
            true => ids.iter().flat_map(|id| id.to_ne_bytes()).collect(),
            false => ids.iter().flat_map(|id| (*id as i32).to_ne_bytes()).collect(),
        };
        bytes::write(self.ids.span().part(0, numbers.len()), &numbers);
        let address = self.ids.span().start() as u64;
        ExpertIds { address, count: ids.len() as u64, wide: self.wide }
    }

    fn stream(&self, index: usize) -> Stream {
        self.streams[index].get()
    }

    fn found(&self, count: usize) -> Vec<i64> {
        let found = bytes::read(self.slots.span().part(0, count * self.width()));
        match self.wide {
            true => {
                found.as_chunks::<8>().0.iter().map(|number| i64::from_ne_bytes(*number)).collect()
            }
            false => found
                .as_chunks::<4>()
                .0
                .iter()
                .map(|number| i32::from_ne_bytes(*number).into())
                .collect(),
        }
    }

    /// Routes, and compares everything with the reference. Returns the slots that were taken.
    fn route(&mut self, layer: usize, ids: &[i64], lane: u32) -> Result<Vec<usize>> {
        self.route_pass(layer, ids, RouteOptions { lane, ..RouteOptions::default() })
    }

    fn route_pass(
        &mut self,
        layer: usize,
        ids: &[i64],
        options: RouteOptions,
    ) -> Result<Vec<usize>> {
        let stream = self.stream(options.lane as usize % 2);
        let (given, out) = (self.give(ids), self.slots.span().start() as u64);
        self.cache.route(layer as u64, given, out, options, stream)?;
        self.device.backend().synchronize(stream).unwrap();
        let cut = |pass: u32| self.layers[layer] * pass as usize / options.passes as usize;
        let pass = cut(options.pass)..cut(options.pass + 1);
        let (wanted, victims) = self.reference.call(layer, ids, Some(options.lane), pass);
        assert_eq!(self.found(ids.len()), wanted, "layer {layer}, ids {ids:?}");
        self.check();
        Ok(victims)
    }

    fn prefetch(&mut self, layer: usize, ids: &[i64]) -> Vec<usize> {
        let (given, stream) = (self.give(ids), self.stream(2));
        self.cache.prefetch(layer as u64, given, stream).unwrap();
        self.device.backend().synchronize(stream).unwrap();
        let victims = self.reference.call(layer, ids, None, 0..self.layers[layer]).1;
        self.check();
        victims
    }

    /// The slots hold the experts of the reference, whole, and the counters are equal.
    fn check(&self) {
        for (at, slot) in self.reference.slots.iter().enumerate() {
            let Some((layer, expert)) = slot.holds else { continue };
            for kind in 0..KINDS.len() {
                let bytes = bytes_of(kind);
                let wanted = weights(layer, expert, kind, bytes);
                let start = self.cache.tensor(kind as u64).unwrap().address as usize + at * bytes;
                assert_eq!(self.at(start, bytes), wanted, "slot {at} of tensor {kind}");
            }
        }
        assert_eq!(self.cache.counters().unwrap(), self.reference.counters);
    }

    /// The bytes at an address of the slots, read through a view of them.
    fn at(&self, start: usize, bytes: usize) -> Vec<u8> {
        let to = Buffer::alloc(&self.device, bytes, &BufferOptions::default(), &mut None).unwrap();
        let pool = self.cache.pool_span();
        let from = pool.part(start - pool.start(), bytes);
        self.device.copy(to.data(), from, self.stream(2)).unwrap();
        self.device.backend().synchronize(self.stream(2)).unwrap();
        bytes::read(to.data())
    }
}

/// A kernel that computes an id without a slot on slot 0 and weighs it with 0 must not read NaN.
#[test]
fn slots_are_zeros_before_an_expert_is_in_them() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let memory = DeviceMemory::alloc(&device, 4096).unwrap().unwrap();
    bytes::fill(memory.span(), 0xff);
    let options = CacheOptions { slots: 3, memory: Some(memory.span()), ..CacheOptions::default() };
    let cache = ExpertCache::new(&device, describe(&device, &[4]), options).unwrap();
    assert!(bytes::is_filled(cache.pool_span(), 0));
    assert_eq!(cache.pool_span().start(), memory.span().start());
}

#[test]
fn experts_are_gathered_whole_and_ids_become_their_slots() {
    for wide in [false, true] {
        let mut bench = Bench::new(&[4, 4], 3, 1, wide);
        assert_eq!(bench.route(0, &[2, 0, 2], 0).unwrap(), [0, 1]);
        assert_eq!(bench.found(3), [1, 0, 1]);
        // A hit moves nothing, and 3 takes the slot that was never used.
        assert_eq!(bench.route(0, &[3, 0], 0).unwrap(), [2]);
        // Expert 2 of layer 0 was used longest ago.
        assert_eq!(bench.route(1, &[2], 0).unwrap(), [1]);
        assert_eq!(bench.found(1), [1]);
        let all = bench.cache.counters().unwrap();
        assert_eq!((all[0].hits, all[0].misses, all[1].evictions), (1, 3, 1));
        assert_eq!(all[0].bytes, 3 * (64 + 3));
    }
}

#[test]
fn ids_without_an_expert_get_no_slot_and_are_counted() {
    let mut bench = Bench::new(&[4], 4, 1, true);
    bench.route(0, &[-1, 1, 4, i64::MIN, i64::MAX, 1 << 33], 0).unwrap();
    assert_eq!(bench.found(6), [-1, 0, -1, -1, -1, -1]);
    assert_eq!(bench.cache.counters().unwrap()[0].ignored, 5);
}

#[test]
fn a_call_of_one_lane_evicts_nothing_of_anothers_last_call() {
    let mut bench = Bench::new(&[8], 4, 2, false);
    bench.route(0, &[0, 1], 0).unwrap();
    bench.route(0, &[2, 3], 1).unwrap();
    // Lane 0 holds slots 0 and 1, though they were used longest ago.
    assert_eq!(bench.route(0, &[4, 5], 1).unwrap(), [2, 3]);
    // Its own slots are free with its next call.
    assert_eq!(bench.route(0, &[6, 7], 0).unwrap(), [0, 1]);
}

#[test]
fn a_hint_takes_free_slots_only_and_the_call_then_hits() {
    let mut bench = Bench::new(&[8, 8], 3, 1, false);
    bench.route(0, &[0, 1], 0).unwrap();
    assert_eq!(bench.prefetch(1, &[4, 5, 6]), [2]);
    let counters = bench.cache.counters().unwrap()[1];
    assert_eq!((counters.prefetched, counters.refused, counters.misses), (1, 2, 0));
    bench.route(1, &[4], 0).unwrap();
    assert_eq!(bench.cache.counters().unwrap()[1].hits, 1);
}

#[test]
fn more_experts_than_slots_are_refused_and_computed_in_passes() {
    let mut bench = Bench::new(&[7], 3, 1, false);
    let ids = [6, 5, 4, 3, 2, 1, 0];
    let failure = bench.route(0, &ids, 0).unwrap_err();
    assert_eq!(failure.status, WB_ERR_SLOTS_BUDGET);
    assert!(failure.message.contains("in 3 passes"), "{}", failure.message);
    assert_eq!(bench.cache.counters().unwrap()[0].calls, 0);
    assert_eq!(bench.cache.passes(0, 7).unwrap(), 3);
    assert_eq!(bench.cache.passes(0, 3).unwrap(), 1);
    let mut computed = BTreeSet::new();
    for pass in 0..3 {
        bench.route_pass(0, &ids, RouteOptions { lane: 0, pass, passes: 3 }).unwrap();
        for (id, slot) in ids.iter().zip(bench.found(7)) {
            assert!(slot < 0 || computed.insert(*id), "expert {id} is in two passes");
        }
    }
    assert_eq!(computed.len(), 7);
}

#[test]
fn resize_keeps_what_remains_and_reset_empties_all() {
    let mut bench = Bench::new(&[8], 6, 1, false);
    bench.route(0, &[0, 1, 2], 0).unwrap();
    bench.route(0, &[5, 6, 7], 0).unwrap();
    let stream = bench.stream(0);
    assert_eq!(bench.cache.resize(7, stream).unwrap_err().status, WB_ERR_OUT_OF_RANGE);
    assert_eq!(bench.cache.resize(2, stream).unwrap_err().status, WB_ERR_SLOTS_BUDGET);
    bench.cache.resize(4, stream).unwrap();
    bench.reference.resize(4, 4);
    bench.route(0, &[0, 1, 7], 0).unwrap();
    assert_eq!(bench.cache.info().slots, 4);
    bench.cache.resize(6, stream).unwrap();
    bench.reference.resize(4, 6);
    assert_eq!(bench.route(0, &[3, 4], 0).unwrap(), [4, 5]);
    bench.cache.reset(stream).unwrap();
    bench.reference.resize(0, 6);
    assert_eq!(bench.route(0, &[3, 4], 0).unwrap(), [0, 1]);
}

#[test]
fn memory_of_the_caller_holds_the_slots_and_stays() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let memory = DeviceMemory::alloc(&device, 1024).unwrap().unwrap();
    let options = |bytes| CacheOptions {
        slots: 4,
        memory: Some(memory.span().part(0, bytes)),
        ..CacheOptions::default()
    };
    // 4 slots of 64 bytes, and 4 of 3 bytes at the next multiple of 256.
    let few = ExpertCache::new(&device, describe(&device, &[4]), options(267)).err().unwrap();
    assert_eq!(few.status, WB_ERR_OUT_OF_RANGE);
    let cache = ExpertCache::new(&device, describe(&device, &[4]), options(268)).unwrap();
    assert_eq!(cache.tensor(0).unwrap().address, memory.span().start() as u64);
    assert_eq!(cache.tensor(1).unwrap().address, memory.span().start() as u64 + 256);
    let ids = DeviceMemory::alloc(&device, 8).unwrap().unwrap();
    bytes::write(ids.span(), &3i64.to_ne_bytes());
    let given = ExpertIds { address: ids.span().start() as u64, count: 1, wide: true };
    cache.route(0, given, given.address, RouteOptions::default(), Stream(0)).unwrap();
    let view = cache.view(0).unwrap();
    assert_eq!(view.layout().shape(), [4, 4, 8]);
    drop((view, cache));
    assert_eq!(bytes::read(memory.span().part(0, 64)), weights(0, 3, 0, 64));
    // The ids were rewritten in place.
    assert_eq!(bytes::read(ids.span()), 0i64.to_ne_bytes());
}

#[test]
fn a_budget_is_a_ceiling_for_slots_and_state() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let measure = |slots, device_bytes| {
        let options = CacheOptions { slots, device_bytes, ..CacheOptions::default() };
        ExpertCache::measure(&device, describe(&device, &[16, 16]), options)
    };
    let least = measure(1, 0).unwrap().bytes();
    assert_eq!(measure(0, least - 1).unwrap_err().status, WB_ERR_SLOTS_BUDGET);
    for budget in least..least + 4000 {
        let found = measure(0, budget).unwrap();
        assert!(found.bytes() <= budget);
        let slots = u64::from(found.slots);
        assert!(slots == 32 || measure(slots + 1, 0).unwrap().bytes() > budget, "{budget}");
    }
    let options = CacheOptions { slots: 5, ..CacheOptions::default() };
    let before = device.counters().device_bytes.load(std::sync::atomic::Ordering::Acquire);
    let cache = ExpertCache::new(&device, describe(&device, &[16, 16]), options).unwrap();
    let after = device.counters().device_bytes.load(std::sync::atomic::Ordering::Acquire);
    assert_eq!(after - before, measure(5, 0).unwrap().bytes());
    assert_eq!(cache.info().slot_bytes + cache.info().state_bytes, after - before);
    assert_eq!(measure(0, 0).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
    assert_eq!(measure(33, 0).unwrap_err().status, WB_ERR_OUT_OF_RANGE);
}

#[test]
fn descriptions_that_make_no_cache_are_refused() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<ExpertTensor>), status, words: &str| {
        let mut tensors = describe(&device, &[4, 4]);
        change(&mut tensors);
        let options = CacheOptions { slots: 4, ..CacheOptions::default() };
        let failure = ExpertCache::new(&device, tensors, options).err().unwrap();
        assert_eq!(failure.status, status, "{}", failure.message);
        assert!(failure.message.contains(words), "{}", failure.message);
    };
    let layout = |shape: &[i64], strides| Layout::new(named("bfloat16"), shape, strides).unwrap();
    let other = &[0i64, 8, 1][..];
    refused(&|all| drop(all.drain(..)), WB_ERR_INVALID_ARGUMENT, "no expert tensor");
    refused(&|all| drop(all.pop()), WB_ERR_INVALID_ARGUMENT, "layer 1 has no tensor \"w2.scale\"");
    refused(&|all| all[2].layer = 7, WB_ERR_INVALID_ARGUMENT, "without a gap");
    refused(&|all| all[2].layer = 0, WB_ERR_INVALID_ARGUMENT, "described twice");
    refused(
        &|all| all[2].layout = layout(&[4, 4, 4], None),
        WB_ERR_INVALID_ARGUMENT,
        "of their own",
    );
    refused(
        &|all| all[0].layout = layout(&[3, 4, 8], None),
        WB_ERR_INVALID_ARGUMENT,
        "has 4 experts",
    );
    refused(
        &|all| all[0].layout = layout(&[4, 4, 8], Some(other)),
        WB_ERR_INVALID_ARGUMENT,
        "overlap",
    );
    refused(
        &|all| all[0].layout = layout(&[4, 4, 8], Some(&[32, 1, 4])),
        WB_ERR_NOT_SUPPORTED,
        "must be contiguous",
    );
    refused(
        &|all| all[0].layout = layout(&[], None),
        WB_ERR_INVALID_ARGUMENT,
        "counts the experts",
    );
    refused(&|all| all[0].offset = 1 << 40, WB_ERR_OUT_OF_RANGE, "its buffer has");
    let elsewhere = Device::open("host", DeviceOptions::default()).unwrap();
    let foreign = describe(&elsewhere, &[4]).swap_remove(0).buffer;
    refused(&|all| all[0].buffer = foreign.clone(), WB_ERR_INVALID_ARGUMENT, "another device");
}

/// All sequences of three calls of a tiny cache that is full: a victim is never a slot that the call
/// needs, nor one of another lane's last call, and every id of a route has a slot.
#[test]
fn victims_are_never_needed_in_any_short_sequence_of_calls() {
    let kinds: Vec<(usize, Vec<i64>, Option<u32>)> = (0..2)
        .flat_map(|layer| {
            let ids = [vec![0], vec![1], vec![2], vec![0, 1], vec![1, 2]];
            let lanes = [Some(0), Some(1), None];
            ids.into_iter().flat_map(move |ids| lanes.map(|lane| (layer, ids.clone(), lane)))
        })
        .collect();
    let mut full = Reference::new(&[3, 3], 4, 1);
    full.call(0, &[0, 1], None, 0..3);
    full.call(1, &[0, 1], None, 0..3);
    let (mut states, mut evicted) = (vec![full], 0);
    for _ in 0..3 {
        let mut following = Vec::new();
        for state in &states {
            for (layer, ids, lane) in &kinds {
                let mut next = state.clone();
                let (slots, victims) = next.call(*layer, ids, *lane, 0..3);
                for victim in victims {
                    let slot = &state.slots[victim];
                    let needed = |id: &i64| slot.holds == Some((*layer, *id as usize));
                    assert!(!ids.iter().any(needed), "{state:?}");
                    assert!(slot.held.iter().all(|held| Some(*held) == *lane), "{state:?}");
                    evicted += 1;
                }
                assert!(lane.is_none() || slots.iter().all(|slot| *slot >= 0), "{state:?}");
                following.push(next);
            }
        }
        states = following;
    }
    assert_eq!(states.len(), 27_000);
    assert!(evicted > 10_000, "{evicted}");
}

#[derive(Debug, Clone)]
enum Step {
    Route { layer: usize, ids: Vec<i64>, lane: u32 },
    Pass { layer: usize, ids: Vec<i64>, pass: u32, passes: u32 },
    Prefetch { layer: usize, ids: Vec<i64> },
    Resize { slots: u64 },
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let ids = || prop::collection::vec(-1i64..11, 0..5);
    prop_oneof![
        8 => (0usize..3, ids(), 0u32..2).prop_map(|(layer, ids, lane)| Step::Route { layer, ids, lane }),
        2 => (0usize..3, prop::collection::vec(0i64..11, 1..20), 0u32..4)
            .prop_map(|(layer, ids, pass)| Step::Pass { layer, ids, pass: pass % 3, passes: 3 }),
        2 => (0usize..3, ids()).prop_map(|(layer, ids)| Step::Prefetch { layer, ids }),
        1 => (8u64..13).prop_map(|slots| Step::Resize { slots }),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_call_does_what_the_reference_does(
        steps in prop::collection::vec(step(), 1..40),
        wide in any::<bool>(),
    ) {
        let mut bench = Bench::new(&[10, 7, 10], 12, 2, wide);
        for step in steps {
            match step {
                Step::Route { layer, ids, lane } => drop(bench.route(layer, &ids, lane).unwrap()),
                Step::Pass { layer, ids, pass, passes } => {
                    let options = RouteOptions { lane: 0, pass, passes };
                    bench.route_pass(layer, &ids, options).unwrap();
                }
                Step::Prefetch { layer, ids } => drop(bench.prefetch(layer, &ids)),
                Step::Resize { slots } => {
                    let before = bench.cache.info().slots;
                    if bench.cache.resize(slots, bench.stream(1)).is_ok() {
                        bench.reference.resize(before.min(slots) as usize, slots as usize);
                    }
                }
                Step::Reset => {
                    bench.cache.reset(bench.stream(0)).unwrap();
                    let slots = bench.cache.info().slots as usize;
                    bench.reference.resize(0, slots);
                }
            }
        }
    }
}

const PIECE: u64 = 2 << 20;

impl Bench {
    /// Gives the pool memory for so many slots, and none for 0.
    fn set_pool(&mut self, slots: u32) {
        let stream = self.stream(1);
        let before = self.cache.info();
        while !self.cache.has_pool_of(slots) {
            match self.cache.is_larger_than(slots) {
                true => self.cache.shrink_pool(slots, stream).unwrap(),
                false => self.cache.grow_pool(slots, stream).unwrap(),
            }
        }
        if before.capacity != u64::from(slots) {
            let keep = before.slots.min(u64::from(slots));
            self.reference.resize(keep as usize, slots as usize);
        }
        let held = self.device.counters().device_bytes.load(std::sync::atomic::Ordering::Acquire);
        let ids = self.ids.span().bytes() + self.slots.span().bytes();
        assert_eq!(held, self.cache.device_bytes() + ids as u64);
        assert_eq!(self.cache.device_bytes(), self.cache.bytes_for(slots));
        self.device.backend().synchronize(stream).unwrap();
    }
}

#[test]
fn a_pool_without_memory_refuses_calls_and_keeps_its_counters() {
    let mut bench = Bench::with_pieces(&[8], 4, 1, true, Some(PIECE));
    let address = bench.cache.tensor(0).unwrap().address;
    assert_eq!(bench.cache.device_bytes(), 3 * PIECE, "the state, and slots of two tensors");
    bench.route(0, &[1, 2, 3], 0).unwrap();
    bench.route(0, &[1], 0).unwrap();
    bench.set_pool(0);
    assert_eq!(bench.cache.device_bytes(), 0);
    let (given, out) = (bench.give(&[1]), bench.slots.span().start() as u64);
    let stream = bench.stream(0);
    let refused = [
        bench.cache.route(0, given, out, RouteOptions::default(), stream),
        bench.cache.prefetch(0, given, stream),
        bench.cache.resize(1, stream),
        bench.cache.passes(0, 1).map(drop),
    ];
    for failure in refused {
        assert_eq!(failure.unwrap_err().status, WB_ERR_BUSY);
    }
    bench.cache.reset(stream).unwrap();
    assert_eq!(bench.cache.counters().unwrap(), bench.reference.counters);
    bench.set_pool(2);
    bench.route(0, &[1, 2], 0).unwrap();
    assert_eq!(bench.cache.counters().unwrap()[0].hits, 1, "it was empty");
    assert_eq!(bench.cache.tensor(0).unwrap().address, address);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_whose_memory_changes_does_what_the_reference_does(
        steps in prop::collection::vec((step(), 1u32..28), 1..30),
    ) {
        let mut bench = Bench::with_pieces(&[10, 7, 10], 12, 2, false, Some(PIECE));
        for (step, slots) in steps {
            match step {
                Step::Route { layer, ids, lane } => {
                    // Each of two lanes has half.
                    let enough = bench.cache.info().slots >= 10;
                    if enough { bench.route(layer, &ids, lane).unwrap(); }
                }
                Step::Prefetch { layer, ids } if bench.cache.info().slots > 0 => {
                    bench.prefetch(layer, &ids);
                }
                // Each lane needs a slot; none is for sleep.
                _ => bench.set_pool(if slots == 1 { 0 } else { slots }),
            }
        }
    }
}
