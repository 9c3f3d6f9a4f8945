//! Caches of experts that are parameters: what slots hold after changes, and budgets.

use std::time::Duration;

use crate::cache::cache::{CacheOptions, ExpertCache};
use crate::cache::calls::{ExpertIds, RouteOptions};
use crate::device::backend::Location;
use crate::device::device::{Device, DeviceOptions};
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::memory::buffer::BufferOptions;
use crate::memory::view::Accessor;
use crate::offload::device_plan::DevicePlan;
use crate::offload::expert_table::ExpertParameter;
use crate::offload::offloader::Offloader;
use crate::offload::tests::{DEFAULT, matrix, numbers, parameter};
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::plan::parameter::{AccessPattern, Parameter};
use crate::plan::plan::{Budget, PlanOptions};
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED,
};

/// Four experts of 1024 numbers.
const EXPERTS: [i64; 2] = [4, 1024];

fn experts(name: &str) -> Parameter {
    Parameter { access_pattern: AccessPattern::Experts, ..parameter(name, EXPERTS) }
}

struct Bench {
    device: Arc<Device>,
    offloader: Arc<Offloader>,
    ids: DeviceMemory,
}

impl Bench {
    /// Two layers of experts, of 1 and 2 everywhere, and a dense parameter before them.
    fn new(options: PlanOptions) -> Self {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let dense = parameter("dense", [16, 16]);
        let parameters = vec![dense, experts("first"), experts("second")];
        let plan = DevicePlan::new(&device, parameters, options).unwrap();
        let values = [([16, 16], 9.0), (EXPERTS, 1.0), (EXPERTS, 2.0)];
        let sources = values.map(|(shape, value)| numbers(&device, shape, value));
        let given: Vec<_> =
            sources.iter().map(|source| Some(Location::host(source.data()))).collect();
        let options = BufferOptions::default();
        let offloader = Offloader::commit(plan, &given, &[], DEFAULT, &options, &mut None).unwrap();
        let ids = DeviceMemory::alloc(&device, 64).unwrap().unwrap();
        Self { device, offloader, ids }
    }

    fn cache(&self, options: CacheOptions) -> Result<Arc<ExpertCache>> {
        let tensor = |(layer, parameter): (u64, &str)| ExpertParameter {
            layer,
            name: "w".into(),
            parameter: parameter.into(),
        };
        let tensors = [(0, "first"), (1, "second")].map(tensor);
        self.offloader.new_expert_cache(tensors.to_vec(), options)
    }

    /// The number that fills the expert of a layer, as its slot has it.
    fn read(&self, cache: &ExpertCache, layer: u64, expert: i32) -> Result<f32> {
        bytes::write(self.ids.span().part(0, 4), &expert.to_ne_bytes());
        let address = self.ids.span().start() as u64;
        let ids = ExpertIds { address, count: 1, wide: false };
        cache.route(layer, ids, address, RouteOptions::default(), DEFAULT)?;
        self.device.backend().synchronize(DEFAULT)?;
        let slot = i32::from_ne_bytes(bytes::read(self.ids.span().part(0, 4)).try_into().unwrap());
        let tensor = cache.tensor(0)?;
        let start = tensor.address - cache.pool_span().start() as u64;
        let at = start + slot as u64 * tensor.expert_bytes;
        let found = bytes::read(cache.pool_span().part(at as usize, tensor.expert_bytes as usize));
        let numbers = found.as_chunks::<4>().0.iter().map(|one| f32::from_ne_bytes(*one));
        let mut numbers: Vec<f32> = numbers.collect();
        numbers.dedup();
        assert_eq!(numbers.len(), 1);
        Ok(numbers[0])
    }

    fn replace(&self, name: &str, shape: [i64; 2], value: f32) {
        let source = numbers(&self.device, shape, value);
        let location = Location::host(source.data());
        self.offloader.replace(name, matrix(shape), location, DEFAULT).unwrap();
    }
}

fn unlimited() -> PlanOptions {
    PlanOptions::new(Budget::OffloadBytes(1 << 20))
}

fn slots(slots: u64) -> CacheOptions {
    CacheOptions { slots, ..CacheOptions::default() }
}

#[test]
fn slots_hold_the_weights_of_the_offloader_also_after_they_were_replaced() {
    let bench = Bench::new(unlimited());
    let cache = bench.cache(slots(3)).unwrap();
    assert_eq!(bench.read(&cache, 0, 3).unwrap(), 1.0);
    assert_eq!(bench.read(&cache, 1, 3).unwrap(), 2.0);
    bench.replace("first", EXPERTS, 5.0);
    assert_eq!(bench.read(&cache, 0, 3).unwrap(), 5.0);
    assert_eq!(bench.read(&cache, 1, 3).unwrap(), 2.0);
    // Other parameters leave slots unchanged.
    let before = cache.counters().unwrap()[0].misses;
    bench.replace("dense", [16, 16], 4.0);
    bench.replace("dense", [16, 8], 6.0);
    bench.read(&cache, 0, 3).unwrap();
    assert_eq!(cache.counters().unwrap()[0].misses, before);
}

#[test]
fn a_cache_follows_experts_that_move() {
    let bench = Bench::new(unlimited());
    let cache = bench.cache(slots(2)).unwrap();
    let address = |name: &str| {
        let at = bench.offloader.find_parameter(name).unwrap();
        bench.offloader.host_view(at, Accessor::Host).unwrap().address()
    };
    let before = address("second");
    // "first" leaves a gap, which a smaller "first" does not fill; compacting moves "second" there.
    bench.replace("first", [1, 1024], 7.0);
    let error = bench.read(&cache, 1, 0).unwrap_err();
    assert_eq!(error.status, WB_ERR_NOT_FOUND, "{error:?}");
    bench.offloader.remove("first", DEFAULT).unwrap();
    bench.offloader.compact(DEFAULT).unwrap();
    assert_ne!(address("second"), before);
    let tensor = ExpertParameter { layer: 0, name: "w".into(), parameter: "second".into() };
    let other = bench.offloader.new_expert_cache(vec![tensor], slots(1)).unwrap();
    assert_eq!(bench.read(&other, 0, 1).unwrap(), 2.0);
    let moved = experts("first");
    let source = numbers(&bench.device, EXPERTS, 3.0);
    bench.offloader.add(moved, Some(Location::host(source.data())), DEFAULT).unwrap();
    // All parameters are there again, one of them at another address.
    assert_eq!(bench.read(&cache, 1, 1).unwrap(), 2.0);
    assert_eq!(bench.read(&cache, 0, 1).unwrap(), 3.0);
    assert_eq!(bench.read(&other, 0, 1).unwrap(), 2.0);
}

#[test]
fn caches_take_no_more_than_the_plan_has_for_them() {
    let free = Bench::new(unlimited());
    let size = free.cache(slots(3)).unwrap().device_bytes();
    let bench = Bench::new(PlanOptions { expert_bytes: size, ..unlimited() });
    let error = bench.cache(slots(4)).err().unwrap();
    assert_eq!(error.status, WB_ERR_BUDGET, "{error:?}");
    let cache = bench.cache(CacheOptions::default()).unwrap();
    assert_eq!((cache.info().slots, cache.device_bytes()), (3, size));
    assert_eq!(bench.offloader.stats().unwrap().expert_bytes, size);
    assert_eq!(bench.cache(slots(1)).err().unwrap().status, WB_ERR_BUDGET);
    drop(cache);
    assert_eq!(bench.offloader.stats().unwrap().expert_bytes, 0);
    assert_eq!(bench.cache(slots(2)).unwrap().info().slots, 2);
}

#[test]
fn a_budget_of_device_memory_counts_caches_beside_residents() {
    let free = Bench::new(unlimited());
    let size = free.cache(slots(2)).unwrap().device_bytes();
    let bench = Bench::new(PlanOptions::new(Budget::DeviceBytes(1024 + size)));
    let cache = bench.cache(CacheOptions::default()).unwrap();
    assert_eq!(cache.info().slots, 2);
    // The budget is used: a resident parameter cannot grow.
    let source = numbers(&bench.device, [32, 16], 1.0);
    let location = Location::host(source.data());
    let error = bench.offloader.replace("dense", matrix([32, 16]), location, DEFAULT).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUDGET, "{error:?}");
}

#[test]
fn parameters_that_a_cache_cannot_read_are_refused() {
    let bench = Bench::new(unlimited());
    let of = |parameter: &str| ExpertParameter {
        layer: 0,
        name: "w".into(),
        parameter: parameter.into(),
    };
    let refused = |parameter: &str| {
        bench.offloader.new_expert_cache(vec![of(parameter)], slots(1)).err().unwrap()
    };
    assert_eq!(refused("third").status, WB_ERR_NOT_FOUND);
    let error = refused("dense");
    assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
    assert!(error.message.contains("prefetch"), "{error:?}");
}

const PIECE: u64 = 2 << 20;

/// Two layers of eight experts of 1.2 MB, for a cache each, and a dense parameter of two pieces.
fn large(budget: u64) -> (Arc<Device>, Arc<Offloader>, Vec<Arc<ExpertCache>>) {
    let (each, dense) = ([8, 300_000], [1000, 1000]);
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let experts =
        |name| Parameter { access_pattern: AccessPattern::Experts, ..parameter(name, each) };
    let parameters = vec![parameter("dense", dense), experts("first"), experts("second")];
    let options =
        PlanOptions { fixed_addresses: true, ..PlanOptions::new(Budget::DeviceBytes(budget)) };
    let plan = DevicePlan::new(&device, parameters, options).unwrap();
    let sources = [(dense, 9.0), (each, 1.0), (each, 2.0)]
        .map(|(shape, value)| numbers(&device, shape, value));
    let given: Vec<_> = sources.iter().map(|source| Some(Location::host(source.data()))).collect();
    let options = BufferOptions::default();
    let offloader = Offloader::commit(plan, &given, &[], DEFAULT, &options, &mut None).unwrap();
    let caches = ["first", "second"].map(|name| {
        let tensor = ExpertParameter { layer: 0, name: "w".into(), parameter: name.into() };
        offloader.new_expert_cache(vec![tensor], slots(2)).unwrap()
    });
    (device, offloader, caches.to_vec())
}

#[test]
fn caches_share_what_a_resize_leaves_them_to_the_piece() {
    let (device, offloader, caches) = large(10 * PIECE);
    let second = Duration::from_secs(10);
    let size = |cache: &ExpertCache| (cache.info().slots, cache.device_bytes() / PIECE);
    assert_eq!(caches.iter().map(|cache| size(cache)).collect::<Vec<_>>(), [(2, 3); 2]);
    // Pieces of the dense parameter, of the states, and of slots.
    for (pieces, wanted) in [
        (14, [(8, 6), (8, 6)]),
        (13, [(8, 6), (6, 5)]),
        (6, [(1, 2), (1, 2)]),
        // Of the dense parameter none is there.
        (4, [(1, 2), (1, 2)]),
        (30, [(8, 6), (8, 6)]),
        (0, [(0, 0), (0, 0)]),
        (9, [(5, 4), (3, 3)]),
    ] {
        offloader.resize(Budget::DeviceBytes(pieces * PIECE), false, DEFAULT).unwrap();
        let progress = offloader.resize_wait(DEFAULT, second).unwrap();
        let found: Vec<_> = caches.iter().map(|cache| size(cache)).collect();
        assert_eq!(found, wanted, "{pieces} pieces");
        assert!(progress.device_bytes <= pieces * PIECE);
        assert_eq!(progress.device_bytes, device.counters().snapshot().device_bytes);
        let expert_bytes = offloader.stats().unwrap().expert_bytes;
        assert_eq!(expert_bytes, wanted.iter().map(|(_, pieces)| pieces * PIECE).sum::<u64>());
    }
    let error = offloader.resize(Budget::DeviceBytes(3 * PIECE), false, DEFAULT).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUDGET, "{error:?}");
    assert_eq!(caches[0].info().slots, 5, "nothing has changed");
    // A budget of host memory leaves caches what they have, also after sleep.
    for budget in [Budget::DeviceBytes(0), Budget::OffloadBytes(1 << 30)] {
        offloader.resize(budget, false, DEFAULT).unwrap();
        offloader.resize_wait(DEFAULT, second).unwrap();
    }
    assert_eq!(caches[1].info().slots, 3);
}

#[test]
fn a_cache_is_made_of_what_the_last_resize_leaves() {
    let (device, offloader, mut caches) = large(10 * PIECE);
    let second = Duration::from_secs(10);
    caches.pop();
    let cache = |options| {
        let tensor = ExpertParameter { layer: 0, name: "w".into(), parameter: "second".into() };
        offloader.new_expert_cache(vec![tensor], options)
    };
    offloader.resize(Budget::DeviceBytes(0), false, DEFAULT).unwrap();
    offloader.resize_wait(DEFAULT, second).unwrap();
    assert_eq!(cache(slots(1)).err().unwrap().status, WB_ERR_BUSY);
    // The existing one takes all.
    offloader.resize(Budget::DeviceBytes(7 * PIECE), false, DEFAULT).unwrap();
    offloader.resize_wait(DEFAULT, second).unwrap();
    assert_eq!(caches[0].info().slots, 6);
    assert_eq!(cache(slots(1)).err().unwrap().status, WB_ERR_BUDGET);
    caches.pop();
    let made = cache(CacheOptions::default()).unwrap();
    assert_eq!(made.info().slots, 6);
    assert_eq!(device.counters().snapshot().device_bytes, 7 * PIECE);
    let memory = DeviceMemory::alloc(&device, 4096).unwrap().unwrap();
    drop(made);
    let options = CacheOptions { memory: Some(memory.span()), ..slots(1) };
    assert_eq!(cache(options).err().unwrap().status, WB_ERR_NOT_SUPPORTED);
}
