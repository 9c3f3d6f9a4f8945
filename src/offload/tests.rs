use crate::device::backend::{Location, Stream};
use crate::device::device::{Device, DeviceOptions};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::view::Accessor;
use crate::offload::device_plan::DevicePlan;
use crate::offload::offloader::Offloader;
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::plan::parameter::{AccessPattern, Origin, Parameter, TransferMode};
use crate::plan::plan::{Budget, PlanOptions};
use crate::plan::quantization::QuantizationRule;
use crate::status::WB_ERR_OUT_OF_RANGE;
use crate::tensor::dtype::{Dtype, WB_DTYPE_F32};
use crate::tensor::fp8::{Fp8Format, ScaleType};
use crate::tensor::layout::Layout;

pub(super) const DEFAULT: Stream = Stream(0);

pub(super) fn matrix(shape: [i64; 2]) -> Layout {
    Layout::new(Dtype::from_code(WB_DTYPE_F32).unwrap(), &shape, None).unwrap()
}

pub(super) fn parameter(name: &str, shape: [i64; 2]) -> Parameter {
    Parameter {
        name: name.into(),
        group: "layer".into(),
        layout: matrix(shape),
        source: 0,
        storage_id: 0,
        access_pattern: AccessPattern::Dense,
        resident: false,
        transfer_mode: TransferMode::Auto,
        origin: Origin::Given,
        encoded_bytes: None,
    }
}

/// Host memory of float32 numbers, all of one value.
pub(super) fn numbers(device: &Arc<Device>, shape: [i64; 2], value: f32) -> Arc<Buffer> {
    let count = (shape[0] * shape[1]) as usize;
    let buffer = Buffer::alloc(device, 4 * count, &BufferOptions::default(), &mut None).unwrap();
    bytes::write(buffer.data(), &value.to_ne_bytes().repeat(count));
    buffer
}

/// An offloader of one group on the host device, with no bytes yet.
pub(super) fn offloader(
    device: &Arc<Device>,
    parameters: Vec<Parameter>,
    quantize: Option<QuantizationRule>,
) -> Arc<Offloader> {
    let options = PlanOptions { quantize, ..PlanOptions::new(Budget::OffloadBytes(1 << 30)) };
    let plan = DevicePlan::new(device, parameters, options).unwrap();
    let sources = vec![None; plan.plan.parameters.len()];
    Offloader::commit(plan, &sources, &[], DEFAULT, &BufferOptions::default(), &mut None).unwrap()
}

/// FP8 with a scale for each block.
fn rule(block: (u64, u64)) -> QuantizationRule {
    QuantizationRule {
        select: Vec::new(),
        format: Fp8Format::E4m3,
        scale_type: ScaleType::F32,
        block,
        reject_nonfinite: false,
    }
}

/// Whether all FP8 numbers of the parameter are 448, the largest: what any constant becomes.
fn is_largest(offloader: &Offloader, name: &str) -> bool {
    let view =
        offloader.host_view(offloader.find_parameter(name).unwrap(), Accessor::Host).unwrap();
    let offset = view.address() - view.buffer().unwrap().data().start();
    let bytes = view.layout().span_bytes() as usize;
    bytes::is_filled(view.buffer().unwrap().data().part(offset, bytes), 0x7e)
}

/// One quantizer serves all replacements: each makes no streams and takes no memory after the
/// first.
#[test]
fn replacements_share_one_quantizer() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let offloader = offloader(&device, vec![parameter("w", [64, 64])], Some(rule((0, 0))));
    let source = numbers(&device, [64, 64], 3.0);
    let replace = || {
        let location = Location::host(source.data());
        offloader.replace("w", matrix([64, 64]), location, DEFAULT).unwrap();
        assert!(is_largest(&offloader, "w"));
    };
    assert_eq!(offloader.stats().unwrap().staging_bytes, 0);
    replace();
    let staging_bytes = offloader.stats().unwrap().staging_bytes;
    assert!((1..=17 << 20).contains(&staging_bytes), "{staging_bytes}");
    let (before, stats) = (device.backend().new_stream().unwrap(), device.counters().snapshot());
    (0..10).for_each(|_| replace());
    let after = device.backend().new_stream().unwrap();
    // The host device numbers its streams.
    assert_eq!(after.0 - before.0, 1, "a replacement made a stream");
    assert_eq!(device.counters().snapshot(), stats);
    assert_eq!(offloader.stats().unwrap().staging_bytes, staging_bytes);
}

/// A matrix whose rows need more staging memory than an offloader keeps is quantized with more.
#[test]
fn a_replacement_may_need_more_staging_memory_than_is_kept() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let shape = [1, 2 << 20];
    let offloader = offloader(&device, vec![parameter("w", shape)], Some(rule((1, 1))));
    let source = numbers(&device, shape, 3.0);
    offloader.replace("w", matrix(shape), Location::host(source.data()), DEFAULT).unwrap();
    assert!(is_largest(&offloader, "w"));
    let staging_bytes = offloader.stats().unwrap().staging_bytes;
    assert!((1..=17 << 20).contains(&staging_bytes), "{staging_bytes}");
}

#[test]
fn a_name_keeps_its_address_until_its_parameter_is_removed() {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let names = ["a", "b", "c"];
    let parameters = names.iter().map(|name| parameter(name, [16, 16])).collect();
    let offloader = offloader(&device, parameters, None);
    let address = |name: &str| {
        let index = offloader.find_parameter(name).unwrap();
        let infos = offloader.parameter_infos(index, 1).unwrap();
        assert_eq!(infos[0].name.to_str().unwrap(), name);
        infos[0].name.as_ptr()
    };
    let before = names.map(address);
    let source = numbers(&device, [32, 16], 1.0);
    offloader.replace("b", matrix([32, 16]), Location::host(source.data()), DEFAULT).unwrap();
    offloader.remove("a", DEFAULT).unwrap();
    assert_eq!(["b", "c"].map(address), before[1..]);
    assert_eq!(offloader.stats().unwrap().parameters, 2);
    assert_eq!(offloader.parameter_infos(0, 2).unwrap().len(), 2);
    for (first, count) in [(2, 1), (1, 2), (usize::MAX, 2)] {
        let error = offloader.parameter_infos(first, count).unwrap_err();
        assert_eq!(error.status, WB_ERR_OUT_OF_RANGE);
    }
}
