//! Units in pieces at any point of any schedule: every read gets the bytes of its time, no budget is
//! exceeded, no address changes, and once nothing is pending the hottest pieces are on the device.

use std::time::Duration;

use proptest::prelude::*;

use crate::device::backend::{Location, Stream};
use crate::device::device::{Device, DeviceOptions};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::deferred;
use crate::offload::device_plan::DevicePlan;
use crate::offload::offloader::Offloader;
use crate::offload::rebalance::Rebalance;
use crate::offload::tests::parameter;
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::{Arc, thread};
use crate::plan::parameter::{AccessPattern, TransferMode};
use crate::plan::plan::{Budget, PlanOptions};
use crate::status::{WB_ERR_BUSY, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE, WB_ERR_TIMEOUT};
use crate::tensor::dtype::{Dtype, WB_DTYPE_U8};
use crate::tensor::layout::Layout;

const PIECE: u64 = 2 << 20;
const COUNT: usize = 4;
/// Bytes with the same value.
const BLOCK: usize = 64 << 10;
const READ: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Operation {
    Read(usize, usize),
    Hold(usize),
    Let,
    Delay,
    /// A range as parts of the parameter, in thousandths, and its weight.
    Prefer(usize, usize, usize, u8),
    /// With so many pieces at most.
    Rebalance(u64),
    Resize(u64),
    ResizeOffloaded(u64),
    Wait,
    Replace(usize, u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    let part = || 0..1000usize;
    prop_oneof![
        6 => (0..COUNT, part()).prop_map(|(at, part)| Operation::Read(at, part)),
        1 => (0..COUNT).prop_map(Operation::Hold),
        1 => Just(Operation::Let),
        2 => Just(Operation::Delay),
        4 => (0..COUNT, part(), part(), 0..9u8)
            .prop_map(|(at, one, other, weight)| Operation::Prefer(at, one, other, weight)),
        6 => (0..7u64).prop_map(Operation::Rebalance),
        3 => (0..14u64).prop_map(Operation::Resize),
        1 => (1..14u64).prop_map(Operation::ResizeOffloaded),
        2 => Just(Operation::Wait),
        1 => (0..COUNT, 1..100u8).prop_map(|(at, seed)| Operation::Replace(at, seed)),
    ]
}

struct World {
    device: Arc<Device>,
    offloader: Arc<Offloader>,
    stream: Stream,
    layouts: Vec<Layout>,
    seeds: Vec<u8>,
    spans: Vec<Span>,
    held: Vec<usize>,
    limit: u64,
    reads: Vec<(Arc<Buffer>, u8)>,
}

fn value(seed: u8, offset: usize) -> u8 {
    ((usize::from(seed) + 7 * (offset / BLOCK)) % 251) as u8
}

fn buffer(device: &Arc<Device>, size: usize) -> Arc<Buffer> {
    Buffer::alloc(device, size, &BufferOptions::default(), &mut None).unwrap()
}

fn patterned(device: &Arc<Device>, size: usize, seed: u8) -> Arc<Buffer> {
    let made = buffer(device, size);
    for offset in (0..size).step_by(BLOCK) {
        bytes::fill(made.data().part(offset, BLOCK), value(seed, offset));
    }
    made
}

impl World {
    /// Every second parameter is sparse; two of three are in the same group.
    fn new(sizes: &[usize], budget: Budget, keep: bool) -> Self {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let dtype = Dtype::from_code(WB_DTYPE_U8).unwrap();
        let layout = |size: &usize| Layout::new(dtype, &[*size as i64], None).unwrap();
        let layouts: Vec<_> = sizes.iter().map(layout).collect();
        let seeds: Vec<u8> = (0..COUNT).map(|at| 101 + at as u8).collect();
        let made = sizes.iter().zip(&seeds).map(|(size, seed)| patterned(&device, *size, *seed));
        let sources: Vec<_> = made.collect();
        let parameters = layouts.iter().enumerate().map(|(at, layout)| {
            let mut parameter = parameter(&format!("w{at}"), [1, 1]);
            parameter.group = format!("layers.{}", group_of(at)).as_str().into();
            parameter.layout = layout.clone();
            if at % 2 == 1 {
                parameter.access_pattern = AccessPattern::Sparse;
            }
            parameter
        });
        let mut options = PlanOptions::new(budget);
        options.transfer_mode = TransferMode::ZeroCopy;
        options.fixed_addresses = true;
        options.keep_host_copy = keep;
        options.allowed.everything_fits = true;
        options.allowed.nothing_offloaded = true;
        let plan = DevicePlan::new(&device, parameters.collect(), options).unwrap();
        let sources: Vec<_> =
            sources.iter().map(|source| Some(Location::host(source.data()))).collect();
        let stream = device.backend().new_stream().unwrap();
        let options = BufferOptions::default();
        let offloader =
            Offloader::commit(plan.clone(), &sources, &[], stream, &options, &mut None).unwrap();
        let span = |(at, size): (usize, &usize)| {
            let location = offloader.state().unwrap().own_location(at).unwrap();
            assert!(location.on_device);
            location.span.part(0, *size)
        };
        let spans = sizes.iter().enumerate().map(span).collect();
        let limit = device.counters().snapshot().device_bytes;
        assert_eq!(limit, plan.plan.resident_bytes);
        for at in 0..COUNT {
            let planned = plan.plan.resident_bytes_of(at);
            assert_eq!(offloader.parameter_info(at).unwrap().resident_bytes, planned);
        }
        let (held, reads) = (Vec::new(), Vec::new());
        Self { device, offloader, stream, layouts, seeds, spans, held, limit, reads }
    }

    fn read(&mut self, at: usize, offset: usize) {
        let offset = offset / READ * READ;
        let span = self.spans[at].part(offset, READ);
        let to = buffer(&self.device, READ);
        self.device.copy(to.data().part(0, span.bytes()), span, self.stream).unwrap();
        self.reads.push((to, value(self.seeds[at], offset)));
    }

    fn run(&mut self, operation: Operation) {
        let (device, offloader, stream) =
            (self.device.clone(), self.offloader.clone(), self.stream);
        match operation {
            Operation::Read(at, part) => {
                match offloader.acquire_group(group_of(at), stream, None) {
                    // Asleep.
                    Err(error) => assert_eq!(error.status, WB_ERR_BUSY),
                    Ok(()) => {
                        self.read(at, part * (self.spans[at].bytes() - READ) / 1000);
                        offloader.release_group(group_of(at), stream).unwrap();
                    }
                }
            }
            Operation::Hold(at) => match offloader.acquire_group(group_of(at), stream, None) {
                Err(error) => assert_eq!(error.status, WB_ERR_BUSY),
                Ok(()) => self.held.push(at),
            },
            Operation::Let => {
                for at in std::mem::take(&mut self.held) {
                    self.read(at, 0);
                    offloader.release_group(group_of(at), stream).unwrap();
                }
            }
            Operation::Delay => {
                let sleep = || thread::sleep(Duration::from_micros(300));
                device.call(stream, Box::new(sleep)).unwrap();
            }
            Operation::Prefer(at, one, other, weight) => {
                let bytes = self.spans[at].bytes();
                let [from, to] = [one.min(other), one.max(other)].map(|part| bytes * part / 1000);
                let (from, bytes, weight) = (from as u64, (to - from) as u64, f64::from(weight));
                offloader.prefer(at, from, bytes, weight).unwrap();
            }
            Operation::Rebalance(pieces) => {
                let pending = offloader.resize_advance(stream).unwrap().pending_units;
                let before = self.resident();
                let done = offloader.rebalance(pieces * PIECE, stream).unwrap();
                assert!(done.copied_bytes <= pieces * PIECE, "{done:?}");
                if pieces == 0 && pending == 0 {
                    assert_eq!(self.resident(), before);
                }
                self.check_hottest(done);
            }
            Operation::Resize(pieces) => {
                let before = offloader.resize_advance(stream).unwrap().device_bytes;
                self.limit = before.max(pieces * PIECE);
                offloader.resize(Budget::DeviceBytes(pieces * PIECE), false, stream).unwrap();
            }
            Operation::ResizeOffloaded(pieces) => {
                let before = offloader.resize_advance(stream).unwrap().device_bytes;
                let all = offloader.resize_bounds().unwrap().1;
                self.limit = before.max(all.saturating_sub(pieces * PIECE));
                offloader.resize(Budget::OffloadBytes(pieces * PIECE), false, stream).unwrap();
            }
            Operation::Wait => match offloader.resize_wait(stream, Duration::from_millis(20)) {
                Err(error) => assert_eq!(error.status, WB_ERR_TIMEOUT),
                Ok(progress) => assert_eq!(progress.pending_units, 0),
            },
            Operation::Replace(at, seed) => {
                let source = patterned(&device, self.spans[at].bytes(), seed);
                let (name, layout) = (format!("w{at}"), self.layouts[at].clone());
                match offloader.replace(&name, layout, Location::host(source.data()), stream) {
                    Err(error) => assert_eq!(error.status, WB_ERR_BUSY),
                    Ok(()) => self.seeds[at] = seed,
                }
            }
        }
        let held = self.device.counters().snapshot().device_bytes;
        assert!(held <= self.limit, "{operation:?}: {held} of {} bytes", self.limit);
    }

    fn resident(&self) -> Vec<bool> {
        let state = self.offloader.state().unwrap();
        let homes = &state.addresses.as_ref().unwrap().homes;
        homes.iter().map(|home| home.is_on_device()).collect()
    }

    fn check_hottest(&self, done: Rebalance) {
        let state = self.offloader.state().unwrap();
        let homes = &state.addresses.as_ref().unwrap().homes;
        let heats = |on_device: bool| {
            let found = homes.iter().filter(move |home| home.is_on_device() == on_device);
            found.map(|home| home.heat.unwrap())
        };
        let coldest = heats(true).fold(f64::INFINITY, f64::min);
        let hottest = heats(false).fold(0.0, f64::max);
        assert!(done.pending_bytes > 0 || hottest <= coldest, "{hottest} beside {coldest}");
    }

    /// Ends what is in progress, and rebalances until nothing is pending.
    fn rebalance_fully(&mut self) -> Rebalance {
        self.run(Operation::Let);
        for _ in 0..100_000 {
            let done = self.offloader.rebalance(3 * PIECE, self.stream).unwrap();
            if done.pending_bytes == 0 {
                self.check_hottest(done);
                return done;
            }
            thread::sleep(Duration::from_micros(20));
        }
        panic!("a rebalance does not end");
    }

    fn end(mut self) {
        let before = self.resident().len();
        self.rebalance_fully();
        let budget = 4 * PIECE + 12345;
        self.limit = self.limit.max(budget);
        self.offloader.resize(Budget::DeviceBytes(budget), false, self.stream).unwrap();
        let done = self.rebalance_fully();
        let all = before as u64 * PIECE;
        assert_eq!(done.progress.device_bytes, all.min(4 * PIECE), "met to the piece");
        assert_eq!(self.device.counters().snapshot().device_bytes, all.min(4 * PIECE));
        let keeps = self.offloader.options().keep_host_copy;
        let host = done.progress.host_bytes;
        assert!(host == all - done.progress.device_bytes || keeps && host <= all, "{host}");
        let infos: Vec<_> =
            (0..COUNT).map(|at| self.offloader.parameter_info(at).unwrap()).collect();
        let stats = self.offloader.stats().unwrap();
        let resident: u64 = infos.iter().map(|info| info.resident_bytes).sum();
        let payload: u64 = self.spans.iter().map(|span| span.bytes() as u64).sum();
        assert_eq!((resident, resident), (stats.resident_bytes, stats.device_parameter_bytes));
        assert_eq!(stats.offloaded_bytes, payload - resident);
        for (at, info) in infos.iter().enumerate() {
            for offset in (0..self.spans[at].bytes()).step_by(BLOCK) {
                self.read(at, offset);
            }
            assert_eq!(info.device_address, Some(self.spans[at].start() as u64));
        }
        self.device.backend().synchronize(self.stream).unwrap();
        for (at, (read, value)) in self.reads.iter().enumerate() {
            let first = read.data().part(0, 1);
            assert!(bytes::is_filled(first, *value), "read {at} is not of {value}");
        }
        let device = self.device.clone();
        device.backend().release_stream(self.stream).unwrap();
        drop(self);
        deferred::drain(&device, Duration::from_secs(10)).unwrap();
        assert_eq!(device.counters().snapshot(), Default::default());
    }
}

fn group_of(at: usize) -> usize {
    at / 2
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_read_gets_its_bytes_while_pieces_move(
        sizes in prop::collection::vec(PIECE as usize..7_000_000, COUNT),
        budget in 0..12u64,
        offloaded in any::<bool>(),
        keep in any::<bool>(),
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let bytes = budget * PIECE + 4321;
        let budget = match offloaded {
            true => Budget::OffloadBytes(bytes + 4 * PIECE),
            false => Budget::DeviceBytes(bytes),
        };
        let mut world = World::new(&sizes, budget, keep);
        operations.into_iter().for_each(|operation| world.run(operation));
        world.end();
    }
}

#[test]
fn a_plan_meets_its_budget_to_the_piece() {
    let sizes = [3 * PIECE as usize, 5 * PIECE as usize, PIECE as usize, 7 * PIECE as usize];
    for pieces in 0..=16 {
        let world = World::new(&sizes, Budget::DeviceBytes(pieces * PIECE + 99), false);
        assert_eq!(world.limit, pieces * PIECE);
        // Dense parameters come before sparse ones.
        let resident = |at: usize| world.offloader.parameter_info(at).unwrap().resident_bytes;
        assert_eq!(resident(0) + resident(2), pieces.min(4) * PIECE);
        world.end();
        let offload = Budget::OffloadBytes(pieces * PIECE + 99);
        if pieces > 0 {
            assert_eq!(World::new(&sizes, offload, false).limit, (16 - pieces) * PIECE);
        }
    }
}

#[test]
fn preferred_pieces_come_to_the_device() {
    let sizes = [8 * PIECE as usize; COUNT];
    let mut world = World::new(&sizes, Budget::DeviceBytes(3 * PIECE), false);
    let resident = |world: &World, at| world.offloader.parameter_info(at).unwrap().resident_bytes;
    let dense = |world: &World| resident(world, 0) + resident(world, 2);
    assert_eq!(dense(&world), 3 * PIECE);
    assert_eq!(world.offloader.rebalance(u64::MAX, world.stream).unwrap().pending_bytes, 0);
    // Rows of the third piece of a sparse parameter, which are read more than any other bytes.
    world.offloader.prefer(1, 2 * PIECE + 4096, 8192, 1000.0).unwrap();
    let done = world.offloader.rebalance(0, world.stream).unwrap();
    assert_eq!((done.copied_bytes, done.pending_bytes), (0, 2 * PIECE));
    world.rebalance_fully();
    assert_eq!((dense(&world), resident(&world, 1)), (2 * PIECE, PIECE));
    world.offloader.prefer(1, 0, 8 * PIECE, 0.0).unwrap();
    world.rebalance_fully();
    assert_eq!((dense(&world), resident(&world, 1)), (3 * PIECE, 0));
    world.end();
}

#[test]
fn what_cannot_be_preferred_is_refused() {
    let sizes = [2 * PIECE as usize; COUNT];
    let world = World::new(&sizes, Budget::DeviceBytes(99), false);
    let status = |at, offset, bytes, weight| {
        world.offloader.prefer(at, offset, bytes, weight).map_err(|error| error.status)
    };
    assert_eq!(status(0, PIECE, PIECE, 1.0), Ok(()));
    assert_eq!(status(0, PIECE, PIECE + 1, 1.0), Err(WB_ERR_OUT_OF_RANGE));
    assert_eq!(status(0, u64::MAX, 2, 1.0), Err(WB_ERR_OUT_OF_RANGE));
    assert_eq!(status(COUNT, 0, 1, 1.0), Err(WB_ERR_OUT_OF_RANGE));
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        assert_ne!(status(0, 0, 1, weight), Ok(()), "{weight}");
    }
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let mut one = parameter("w", [1024, 1024]);
    one.resident = false;
    let mut options = PlanOptions::new(Budget::OffloadBytes(1 << 30));
    (options.transfer_mode, options.fixed_addresses) = (TransferMode::Prefetch, true);
    let plan = DevicePlan::new(&device, vec![one], options).unwrap();
    let stream = device.backend().new_stream().unwrap();
    let options = BufferOptions::default();
    let offloader = Offloader::commit(plan, &[None], &[], stream, &options, &mut None).unwrap();
    assert_eq!(offloader.prefer(0, 0, 1, 1.0).unwrap_err().status, WB_ERR_NOT_SUPPORTED);
    world.end();
}
