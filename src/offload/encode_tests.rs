//! Commits that compress by the device's kernels, and by the host's cores.

use crate::codec::in_memory;
use crate::device::backend::Location;
use crate::device::device::{Device, DeviceOptions};
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::device_plan::DevicePlan;
use crate::offload::encoded::host_memory;
use crate::offload::offloader::Offloader;
use crate::offload::tests::{DEFAULT, parameter};
use crate::os::bytes;
use crate::os::parallel::Phase;
use crate::os::sync::Arc;
use crate::plan::compression::Compression;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::plan::{Budget, PlanOptions};
use crate::status::{WB_ERR_CANCELLED, WB_ERR_NOT_SUPPORTED};
use crate::tensor::coded::{CodedType, TILE};
use crate::tensor::dtype::{Dtype, WB_DTYPE_BF16};
use crate::tensor::layout::Layout;

/// Weights of a model, in groups of one, in host memory or in device memory.
struct Weights {
    device: Arc<Device>,
    content: Vec<Arc<Buffer>>,
    on_device: Vec<Option<DeviceMemory>>,
}

impl Weights {
    fn new(device: &Arc<Device>, sizes: &[u64], on_device: impl Fn(usize) -> bool) -> Self {
        let content: Vec<_> = (0..sizes.len()).map(|at| content(device, sizes[at], at)).collect();
        let memory = content.iter().enumerate().map(|(at, content)| {
            let bytes = content.data().bytes();
            let memory = DeviceMemory::alloc(device, bytes).unwrap().filter(|_| on_device(at))?;
            device.copy(memory.span(), content.data(), DEFAULT).unwrap();
            device.backend().synchronize(DEFAULT).unwrap();
            Some(memory)
        });
        Self { device: device.clone(), on_device: memory.collect(), content }
    }

    fn source(&self, at: usize) -> Location {
        match &self.on_device[at] {
            Some(memory) => Location::device(memory.span()),
            None => Location::host(self.content[at].data()),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        let dtype = Dtype::from_code(WB_DTYPE_BF16).unwrap();
        let one = |(at, content): (usize, &Arc<Buffer>)| Parameter {
            group: format!("layers.{at}").into(),
            layout: Layout::new(dtype, &[content.data().bytes() as i64 / 2], None).unwrap(),
            source: self.source(at).span.start() as u64,
            transfer_mode: TransferMode::Prefetch,
            ..parameter(&format!("layers.{at}.w"), [1, 1])
        };
        self.content.iter().enumerate().map(one).collect()
    }

    fn commit(
        &self,
        options: PlanOptions,
        progress: &mut dyn FnMut(Phase, u64, u64) -> bool,
    ) -> Result<Arc<Offloader>> {
        let plan = DevicePlan::new(&self.device, self.parameters(), options)?;
        let sources: Vec<_> = (0..self.content.len()).map(|at| Some(self.source(at))).collect();
        let buffers = BufferOptions::default();
        Offloader::commit(plan, &sources, &[], DEFAULT, &buffers, &mut Some(progress))
    }
}

/// Values of bf16: those of a trained weight, or every fourth time bits without order.
fn content(device: &Arc<Device>, bytes: u64, seed: usize) -> Arc<Buffer> {
    let buffer = host_memory(device, bytes as usize).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed as u64 + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = if seed % 4 == 3 { state as u16 } else { 0x3c00 | state as u16 & 0x81ff };
        value.to_le_bytes()
    };
    let values: Vec<u8> = (0..bytes / 2).take(1 << 17).flat_map(|_| next()).collect();
    let values: Vec<u8> = values.into_iter().cycle().take(bytes as usize).collect();
    bytes::write(buffer.data().part(0, bytes as usize), &values);
    buffer
}

fn options(device_encoding: Option<bool>) -> PlanOptions {
    PlanOptions {
        compress: Compression::Selected(vec!["*".into()]),
        device_encoding,
        ..PlanOptions::new(Budget::OffloadBytes(1 << 30))
    }
}

/// The bytes in host memory of each weight that is compressed.
fn stored(offloader: &Offloader) -> Vec<Vec<u8>> {
    let state = offloader.state().unwrap();
    let blocks = 0..state.host.blocks().len();
    let coded = blocks.filter(|at| state.host.blocks()[*at].encoding.is_some());
    coded.map(|at| bytes::read(state.stored(at))).collect()
}

/// Sizes around tiles, more weights than are in the device's memory at a time, and one that has it alone.
const SIZES: [u64; 7] = [4 * TILE, TILE, 9 * TILE + 24, 64 * TILE, 3 * TILE, 30 * TILE + 2, TILE];

#[test]
fn every_encoder_of_a_commit_writes_the_same_bytes() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    for on_device in [|_: usize| false, |_: usize| true, |at: usize| at.is_multiple_of(2)] {
        let weights = Weights::new(&device, &SIZES, on_device);
        let done = [true, false].map(|by_device| {
            let (mut compressed, mut whole) = (0, 0);
            let mut progress = |phase, done, total| {
                if phase == Phase::Compress {
                    assert!(done > compressed && done <= total);
                    (compressed, whole) = (done, total);
                }
                true
            };
            let offloader = weights.commit(options(Some(by_device)), &mut progress).unwrap();
            let stats = offloader.stats().unwrap();
            assert!(stats.decoded_bytes > 0 && stats.encoded_bytes < stats.decoded_bytes);
            let bytes = (stats.encoded_by.device, stats.encoded_by.host);
            let all = stats.decoded_bytes;
            assert_eq!(bytes, if by_device { (all, 0) } else { (0, all) });
            assert_eq!((compressed, whole), (all, all));
            for (at, content) in weights.content.iter().enumerate() {
                let read = host_memory(&device, content.data().bytes()).unwrap();
                offloader.read(at, read.data()).unwrap();
                assert!(bytes::read(read.data()) == bytes::read(content.data()), "weight {at}");
            }
            stored(&offloader)
        });
        assert!(done[0] == done[1], "the encoders differ");
        for (stored, content) in done[0].iter().zip(&weights.content) {
            let target = host_memory(&device, content.data().bytes()).unwrap();
            in_memory::decode(in_span(stored, &device).data(), 0, target.data(), true, 1).unwrap();
        }
    }
}

fn in_span(bytes: &[u8], device: &Arc<Device>) -> Arc<Buffer> {
    let buffer = host_memory(device, bytes.len()).unwrap();
    bytes::write(buffer.data().part(0, bytes.len()), bytes);
    buffer
}

/// The memory for it is that of the slots, within a budget of device memory.
#[test]
fn the_device_compresses_in_the_memory_of_the_slots() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let weights = Weights::new(&device, &[8 * TILE; 12], |_| false);
    let held = || device.counters().snapshot().device_bytes;
    let before = held();
    let most = CodedType::Bf16.max_bytes(8 * TILE).unwrap().next_multiple_of(256);
    for depth in [1, 2, 4] {
        let bytes = u64::from(depth) * most + 2 * 8 * TILE;
        let budget = Budget::DeviceBytes(bytes);
        let options = |encoding| PlanOptions { budget, depth, ..options(encoding) };
        let by_default = weights.commit(options(None), &mut |_, _, _| true).unwrap();
        let stats = by_default.stats().unwrap();
        assert_eq!(stats.encoded_by.device, 0, "the host device has the same cores");
        assert!(stats.encoded_by.host > 0);
        let expected = stored(&by_default);
        drop(by_default);
        let mut at_most = |_, _, _| {
            assert!(held() - before <= bytes);
            true
        };
        match weights.commit(options(Some(true)), &mut at_most) {
            Ok(offloader) => {
                assert!(depth > 1, "a slot has no space for raw and compressed bytes");
                let stats = offloader.stats().unwrap();
                assert_eq!(
                    (stats.encoded_by.device, stats.encoded_by.host),
                    (stats.decoded_bytes, 0)
                );
                assert!(held() - before <= bytes && stored(&offloader) == expected);
            }
            Err(error) => {
                assert_eq!((depth, error.status), (1, WB_ERR_NOT_SUPPORTED), "{}", error.message);
                assert!(error.message.contains("\"layers."), "{}", error.message);
            }
        }
        assert_eq!(held(), before);
    }
}

/// Without such a budget new memory is taken where the slots are small, and freed.
#[test]
fn memory_that_a_commit_takes_to_compress_is_freed() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let weights = Weights::new(&device, &[8 * TILE; 4], |_| false);
    let held = || device.counters().snapshot().device_bytes;
    let (before, mut most) = (held(), 0);
    let options = PlanOptions { depth: 1, ..options(Some(true)) };
    let mut progress = |_, _, _| {
        most = most.max(held() - before);
        true
    };
    let offloader = weights.commit(options, &mut progress).unwrap();
    let stats = offloader.stats().unwrap();
    assert_eq!(stats.encoded_by.host, 0);
    assert_eq!(held() - before, stats.slot_bytes);
    assert!(most >= stats.slot_bytes + 4 * 8 * TILE, "{most}");
}

#[test]
fn a_commit_is_cancelled_while_the_device_compresses() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let weights = Weights::new(&device, &SIZES, |_| false);
    let before = device.counters().snapshot();
    for after in 1..4 {
        let mut calls = 0;
        let mut progress = |phase, _, _| {
            calls += i32::from(phase == Phase::Compress);
            calls < after
        };
        let error = weights.commit(options(Some(true)), &mut progress).err().unwrap();
        assert_eq!((error.status, calls), (WB_ERR_CANCELLED, after));
        assert_eq!(device.counters().snapshot(), before);
    }
}

/// Several threads compress small blocks at the same time, and one after another large ones.
#[test]
fn every_core_compresses_where_the_device_does_not() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let sizes = [9 << 20, 17 << 20, 10 << 20, 11 << 20, TILE, 12 << 20];
    let weights = Weights::new(&device, &sizes, |_| false);
    let mut before = 0;
    let mut progress = |phase, done, total| {
        if phase == Phase::Compress {
            assert!(before < done && done <= total && total == sizes.iter().sum::<u64>());
            before = done;
        }
        true
    };
    let offloader = weights.commit(options(Some(false)), &mut progress).unwrap();
    assert_eq!(before, sizes.iter().sum::<u64>());
    for (stored, content) in stored(&offloader).iter().zip(&weights.content) {
        let target = host_memory(&device, content.data().bytes()).unwrap();
        in_memory::decode(in_span(stored, &device).data(), 0, target.data(), true, 0).unwrap();
        assert!(bytes::read(target.data()) == bytes::read(content.data()));
    }
}
