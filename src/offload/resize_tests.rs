//! Resizes at any point of any schedule, with copies delayed: every read gets the bytes of its time, no
//! address changes, and the counts are those of the memory that is held. Also of weights that are carried
//! compressed.

use std::time::Duration;

use proptest::prelude::*;

use crate::device::backend::{Location, Stream};
use crate::device::device::{Device, DeviceOptions};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::deferred;
use crate::offload::device_plan::DevicePlan;
use crate::offload::offloader::Offloader;
use crate::offload::tests::parameter;
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::{Arc, thread};
use crate::plan::compression::Compression;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::{Budget, PlanOptions};
use crate::status::{WB_ERR_BUSY, WB_ERR_TIMEOUT};
use crate::tensor::dtype::{Dtype, WB_DTYPE_BF16};
use crate::tensor::layout::Layout;

const PIECE: u64 = 2 << 20;
const GROUPS: usize = 5;
/// Read of a weight, from its start and from its end.
const READ: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Operation {
    /// Acquires a group, reads it on the stream and releases it.
    Read(usize),
    /// Acquires a group that stays acquired.
    Hold(usize),
    /// Reads the groups that are held, and releases them.
    Let,
    /// Lets the stream sleep.
    Delay,
    /// Resizes to the slots and so many pieces; to nothing for the largest number.
    Resize(u64),
    Progress,
    Wait,
    /// By bytes of one value, or by bytes without order.
    Replace(usize, u8, bool),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..GROUPS).prop_map(Operation::Read),
        1 => (0..GROUPS).prop_map(Operation::Hold),
        1 => Just(Operation::Let),
        2 => Just(Operation::Delay),
        4 => (0..13u64).prop_map(Operation::Resize),
        2 => Just(Operation::Progress),
        2 => Just(Operation::Wait),
        1 => (0..GROUPS, 1..100u8, any::<bool>())
            .prop_map(|(at, value, random)| Operation::Replace(at, value, random)),
    ]
}

struct World {
    device: Arc<Device>,
    offloader: Arc<Offloader>,
    stream: Stream,
    layouts: Vec<Layout>,
    /// The bytes of each group's weight.
    contents: Vec<Arc<Buffer>>,
    /// Where they are on the device.
    spans: Vec<Span>,
    held: Vec<usize>,
    slots: u64,
    /// No more device memory is held now.
    limit: u64,
    /// What was read, and what it must be.
    reads: Vec<(Arc<Buffer>, Vec<u8>)>,
}

fn filled(device: &Arc<Device>, size: usize, value: u8) -> Arc<Buffer> {
    let buffer = Buffer::alloc(device, size, &BufferOptions::default(), &mut None).unwrap();
    bytes::fill(buffer.data(), value);
    buffer
}

/// Bytes that cannot be compressed.
fn without_order(device: &Arc<Device>, size: usize, seed: u8) -> Arc<Buffer> {
    let buffer = filled(device, size, seed);
    let mut bits = u64::from(seed);
    for at in 0..size / 8 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes::write_u64(buffer.data().part(8 * at, 8), bits ^ bits >> 29);
    }
    buffer
}

/// A plan and its commit.
#[derive(Debug, Clone, Copy)]
struct Setting {
    mode: TransferMode,
    offloaded: usize,
    depth: u32,
    keep: bool,
    compress: bool,
}

fn setting() -> impl Strategy<Value = Setting> {
    (any::<bool>(), 1..=GROUPS, 1..3u32, any::<bool>(), any::<bool>()).prop_map(
        |(prefetched, offloaded, depth, keep, compress)| {
            let mode = if prefetched { TransferMode::Prefetch } else { TransferMode::OnDemand };
            Setting { mode, offloaded, depth, keep, compress }
        },
    )
}

impl World {
    fn new(halves: &[usize], setting: Setting) -> Self {
        let sizes: Vec<usize> = halves.iter().map(|half| 2 * half).collect();
        let Setting { mode, offloaded, depth, keep, compress } = setting;
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let layout = |size: &usize| {
            let dtype = Dtype::from_code(WB_DTYPE_BF16).unwrap();
            Layout::new(dtype, &[*size as i64 / 2], None).unwrap()
        };
        let layouts: Vec<_> = sizes.iter().map(layout).collect();
        let content = |(at, size): (usize, &usize)| match at % 2 {
            0 => without_order(&device, *size, 101 + at as u8),
            _ => filled(&device, *size, 101 + at as u8),
        };
        let contents: Vec<_> = sizes.iter().enumerate().map(content).collect();
        let parameters = layouts.iter().enumerate().map(|(at, layout)| {
            let mut parameter = parameter(&format!("w{at}"), [1, 1]);
            parameter.group = format!("layers.{at}").as_str().into();
            parameter.layout = layout.clone();
            parameter.resident = at >= offloaded;
            parameter
        });
        let mut options = PlanOptions::new(Budget::OffloadBytes(1 << 30));
        options.transfer_mode = mode;
        options.fixed_addresses = true;
        options.keep_host_copy = keep;
        options.allowed.everything_fits = true;
        options.depth = depth;
        if compress {
            options.compress = Compression::Selected(vec!["w*".into()]);
        }
        let plan = DevicePlan::new(&device, parameters.collect(), options).unwrap();
        let sources: Vec<_> =
            contents.iter().map(|source| Some(Location::host(source.data()))).collect();
        let stream = device.backend().new_stream().unwrap();
        let options = BufferOptions::default();
        let offloader =
            Offloader::commit(plan, &sources, &[], stream, &options, &mut None).unwrap();
        let span = |(at, size): (usize, &usize)| {
            let address = offloader.parameter_info(at).unwrap().device_address.unwrap();
            let state = offloader.state().unwrap();
            let mut homes = state.addresses.as_ref().unwrap().homes.iter();
            let home = homes.find(|home| home.used().start() as u64 == address).unwrap();
            home.used().part(0, *size)
        };
        let spans = sizes.iter().enumerate().map(span).collect();
        let slots = offloader.stats().unwrap().slot_bytes;
        let limit = device.counters().snapshot().device_bytes;
        let (held, reads) = (Vec::new(), Vec::new());
        Self { device, offloader, stream, layouts, contents, spans, held, slots, limit, reads }
    }

    /// Queues reads of a group, which is acquired.
    fn read(&mut self, group: usize) {
        let span = self.spans[group];
        for from_end in [false, true] {
            let offset = if from_end { span.bytes() - READ } else { 0 };
            let to = filled(&self.device, READ, 0);
            self.device.copy(to.data(), span.part(offset, READ), self.stream).unwrap();
            self.reads.push((to, bytes::read(self.contents[group].data().part(offset, READ))));
        }
    }

    fn run(&mut self, operation: Operation) {
        let (device, offloader, stream) =
            (self.device.clone(), self.offloader.clone(), self.stream);
        match operation {
            Operation::Read(group) => match offloader.acquire_group(group, stream, None) {
                // Asleep, or its slot is held.
                Err(error) => assert_eq!(error.status, WB_ERR_BUSY),
                Ok(()) => {
                    self.read(group);
                    offloader.release_group(group, stream).unwrap();
                }
            },
            Operation::Hold(group) => match offloader.acquire_group(group, stream, None) {
                Err(error) => assert_eq!(error.status, WB_ERR_BUSY),
                Ok(()) => self.held.push(group),
            },
            Operation::Let => {
                for group in std::mem::take(&mut self.held) {
                    self.read(group);
                    offloader.release_group(group, stream).unwrap();
                }
            }
            Operation::Delay => {
                let sleep = || thread::sleep(Duration::from_micros(300));
                device.call(stream, Box::new(sleep)).unwrap();
            }
            Operation::Resize(pieces) => {
                let before = offloader.resize_advance(stream).unwrap().device_bytes;
                let budget = if pieces == 12 { 0 } else { self.slots + pieces * PIECE };
                self.limit = before.max(budget);
                offloader.resize(Budget::DeviceBytes(budget), false, stream).unwrap();
            }
            Operation::Progress => {
                offloader.resize_advance(stream).unwrap();
            }
            Operation::Wait => match offloader.resize_wait(stream, Duration::from_millis(20)) {
                Err(error) => assert_eq!(error.status, WB_ERR_TIMEOUT),
                Ok(progress) => assert_eq!(progress.pending_units, 0),
            },
            Operation::Replace(at, value, random) => {
                let make = if random { without_order } else { filled };
                let source = make(&device, self.layouts[at].span_bytes() as usize, value);
                let (name, layout) = (format!("w{at}"), self.layouts[at].clone());
                match offloader.replace(&name, layout, Location::host(source.data()), stream) {
                    // A resize is in progress, or the group is acquired.
                    Err(error) => assert_eq!(error.status, WB_ERR_BUSY),
                    Ok(()) => self.contents[at] = source,
                }
            }
        }
        let held = self.device.counters().snapshot().device_bytes;
        assert!(held <= self.limit, "{operation:?}: {held} of {} bytes", self.limit);
    }

    fn end(mut self) {
        self.run(Operation::Let);
        self.run(Operation::Resize(4));
        let progress = self.offloader.resize_wait(self.stream, Duration::from_secs(60)).unwrap();
        assert_eq!(progress.device_bytes, self.device.counters().snapshot().device_bytes);
        assert!(progress.device_bytes <= self.slots + 4 * PIECE);
        (0..GROUPS).for_each(|group| self.run(Operation::Read(group)));
        self.device.backend().synchronize(self.stream).unwrap();
        for (at, (read, bytes)) in self.reads.iter().enumerate() {
            assert!(bytes::read(read.data()) == *bytes, "read {at} has other bytes");
        }
        for (at, span) in self.spans.iter().enumerate() {
            let address = self.offloader.parameter_info(at).unwrap().device_address;
            assert_eq!(address, Some(span.start() as u64));
        }
        let device = self.device.clone();
        device.backend().release_stream(self.stream).unwrap();
        drop(self);
        deferred::drain(&device, Duration::from_secs(10)).unwrap();
        assert_eq!(device.counters().snapshot(), Default::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_read_gets_its_bytes_while_the_budget_changes(
        halves in prop::collection::vec(READ..2_500_000usize, GROUPS),
        setting in setting(),
        operations in prop::collection::vec(operation(), 1..50),
    ) {
        let mut world = World::new(&halves, setting);
        operations.into_iter().for_each(|operation| world.run(operation));
        world.end();
    }
}
