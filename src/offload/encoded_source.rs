//! Sources that are compressed already, as tensors of a file that `python -m weighbridge compress` wrote: checking
//! them, and decoding those that are not carried so.

use crate::codec::format::{Info, read_header};
use crate::codec::queue::Encoded;
use crate::codec::{in_memory, queue};
use crate::device::backend::Location;
use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::{Error, Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::bulk_copy::{self, CopyJob};
use crate::offload::device_plan::DevicePlan;
use crate::offload::encoded::host_memory;
use crate::offload::scratch::Scratch;
use crate::os::bytes;
use crate::os::in_order::{Pieces, in_order};
use crate::os::parallel::{Phase, Progress, report, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{Origin, Parameter};
use crate::plan::plan::Plan;
use crate::status::{WB_ERR_DAMAGED, WB_ERR_NOT_SUPPORTED};
use crate::tensor::coded::{CodedType, HEADER, TILE, UNIT, tiles as tiles_of};
use crate::tensor::layout::Layout;

/// Bytes that are decoded at a time before they are copied to the device.
const STAGED_BYTES: u64 = 4096 * TILE;

/// Bytes of a count of wrong tiles.
const COUNT_BYTES: usize = 8;

/// Values that are decoded to where they are kept.
pub struct DecodeJob {
    /// Their place.
    pub to: Span,
    /// What it is in, if that is device memory.
    pub memory: Option<Arc<DeviceMemory>>,
    /// The compressed bytes.
    pub from: Span,
    /// Index of the parameter that they are of.
    pub parameter: usize,
}

/// The compressed source of a parameter and the layout of its values; `None` if it has no such source.
fn layout_of(parameter: &Parameter) -> Option<&Layout> {
    match &parameter.origin {
        Origin::Encoded(_) => Some(&parameter.layout),
        Origin::Quantized(from) => from.encoded_bytes.map(|_| &from.layout),
        Origin::Given | Origin::Scales => None,
    }
}

/// Fails if what a parameter's source begins with is not the header of its values, compressed to as many bytes as
/// the source has.
pub fn check_header(parameter: &Parameter, source: Location) -> Result<()> {
    let Some(layout) = layout_of(parameter) else { return Ok(()) };
    if source.on_device {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "the source of parameter {:?} is compressed bytes in device memory: give them in host memory, or \
             the values that wb_codec_queue_decode makes of them",
            parameter.name
        );
    }
    let available = source.span.bytes() as u64;
    let header = bytes::read(source.span.part(0, HEADER as usize));
    let found = read_header(&header, available).map_err(|error| of_parameter(parameter, &error))?;
    check_info(parameter, layout, &found, available)
}

/// As [`check_header`] for all parameters of a plan, and fails if a directory is not that of as many bytes: then no
/// kernel reads outside of a source.
pub fn check_all(plan: &Plan, sources: &[Option<Location>]) -> Result<()> {
    for (planned, source) in plan.parameters.iter().zip(sources) {
        let parameter = &planned.parameter;
        let (Some(_), Some(source)) = (layout_of(parameter), source) else { continue };
        check_header(parameter, *source)?;
        in_memory::inspect(source.span).map_err(|error| of_parameter(parameter, &error))?;
    }
    Ok(())
}

/// An error of a source, with its parameter and what to do.
fn of_parameter(parameter: &Parameter, error: &Error) -> Error {
    let advice = match error.status {
        WB_ERR_DAMAGED => "; copy its file again, or compress it again from the original",
        _ => "",
    };
    let (name, found) = (&parameter.name, &error.message);
    let message = format!("the compressed source of parameter {name:?}: {found}{advice}");
    Error::new(error.status, message)
}

/// A part of a source that one thread verifies at a time.
const VERIFIED_BYTES: u64 = 512 * TILE;

/// Decodes what a plan carries as its sources have it compressed, and compares checksums, with `threads` threads.
/// Everything else is decoded at the commit in any case. Sources were checked.
pub fn verify_carried(
    plan: &Plan,
    sources: &[Option<Location>],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let mut parts = Vec::new();
    for storage in
        plan.storages.iter().filter(|storage| storage.unit.is_some() && plan.takes_source(storage))
    {
        let parameter = storage.parameters[0];
        let Some(source) = sources[parameter] else { continue };
        let info = in_memory::inspect(source.span)?;
        let offsets = (0..info.decoded_bytes).step_by(VERIFIED_BYTES as usize);
        parts.extend(offsets.map(|offset| (parameter, source.span, info, offset)));
    }
    let bytes_of = |info: &Info, offset: u64| VERIFIED_BYTES.min(info.decoded_bytes - offset);
    let total = parts.iter().map(|(_, _, info, offset)| bytes_of(info, *offset)).sum::<u64>();
    let threads = threads_for(threads, total as usize);
    let scratch = Scratch::new(VERIFIED_BYTES as usize);
    let verify = |at: usize, _| {
        let (parameter, source, info, offset) = &parts[at];
        let bytes = bytes_of(info, *offset) as usize;
        let decoded = scratch.with(|scratch| {
            in_memory::decode_part(info, *source, *offset, scratch.part(0, bytes), true, 1)
        });
        decoded.map_err(|error| of_parameter(&plan.parameters[*parameter].parameter, &error))
    };
    let mut done = 0;
    let mut end = |at: usize| {
        let (_, _, info, offset) = &parts[at];
        done += bytes_of(info, *offset);
        report(progress, Phase::Read, done as usize, total as usize)
    };
    let pieces = Pieces { count: parts.len(), parts: 1, ahead: 2 * threads };
    in_order(pieces, threads, &mut |_| Ok(()), &verify, &mut end)
}

/// The values of a source that comes after the commit, in new host memory; `None` if it is not compressed.
pub fn decoded(
    device: &Arc<Device>,
    parameter: &Parameter,
    source: Option<Location>,
) -> Result<Option<Arc<Buffer>>> {
    let source = source.filter(|_| parameter.encoded_source().is_some());
    let Some(source) = source else { return Ok(None) };
    check_header(parameter, source)?;
    let bytes = parameter.layout.span_bytes() as usize;
    let values = host_memory(device, bytes)?;
    in_memory::decode(source.span, 0, values.data().part(0, bytes), true, 0)
        .map_err(|error| of_parameter(parameter, &error))?;
    Ok(Some(values))
}

fn check_info(parameter: &Parameter, layout: &Layout, found: &Info, available: u64) -> Result<()> {
    let coded = CodedType::of(layout.dtype())?;
    let Info { decoded_bytes, encoded_bytes, .. } = *found;
    if found.coded != coded || decoded_bytes != layout.span_bytes() || encoded_bytes != available {
        fail!(
            WB_ERR_DAMAGED,
            "the compressed source of parameter {:?} has {decoded_bytes} bytes of {} in {encoded_bytes}; the \
             parameter has {} of {}, and encoded_bytes says {available}",
            parameter.name,
            found.coded.name(),
            layout.span_bytes(),
            coded.name()
        );
    }
    Ok(())
}

/// Decodes to host memory or to device memory, with `threads` threads, or by the device out of those
/// of `buffers` that it reads in place.
pub fn decode_all(
    plan: &DevicePlan,
    jobs: &[DecodeJob],
    buffers: &[Arc<Buffer>],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let device = &plan.device;
    let total = jobs.iter().map(|job| job.to.bytes()).sum();
    let is_kernel = device.capabilities().cuda && !plan.plan.options.fixed_addresses;
    let (mut by_device, mut by_host) = (Vec::new(), Vec::new());
    for job in jobs {
        let seen = seen_by_device(job.from, buffers);
        match seen.filter(|_| is_kernel && job.memory.is_some()) {
            Some(seen) => by_device.push((job, seen)),
            None => by_host.push(job),
        }
    }
    decode_by_device(plan, &by_device)?;
    let mut done = by_device.iter().map(|(job, _)| job.to.bytes()).sum::<usize>();
    report(progress, Phase::Read, done, total)?;
    let to_device = by_host.iter().filter(|job| job.memory.is_some()).map(|job| job.to.bytes());
    let most = to_device.max().unwrap_or(0).min(STAGED_BYTES as usize);
    // Pinned where the policy has it so: what is decoded is copied from there.
    let staging = Buffer::alloc(device, most, &BufferOptions::default(), &mut None)
        .or_else(|_| host_memory(device, most))?;
    for job in by_host {
        let decode = |offset: usize, to: Span| {
            let decoded = in_memory::decode(job.from, offset as u64, to, true, threads);
            let parameter = &plan.plan.parameters[job.parameter].parameter;
            decoded.map_err(|error| of_parameter(parameter, &error))
        };
        let Some(memory) = &job.memory else {
            decode(0, job.to)?;
            done += job.to.bytes();
            report(progress, Phase::Read, done, total)?;
            continue;
        };
        for offset in (0..job.to.bytes()).step_by(STAGED_BYTES as usize) {
            let to = job.to.part(offset, STAGED_BYTES as usize);
            let decoded = staging.data().part(0, to.bytes());
            decode(offset, decoded)?;
            let copy = CopyJob { to, from: Location::host(decoded) };
            bulk_copy::into_device(device, memory.span(), &[copy], threads, &mut None)?;
            done += to.bytes();
            report(progress, Phase::Read, done, total)?;
        }
    }
    Ok(())
}

/// Host memory in one of the buffers as the device reads it, if it does.
fn seen_by_device(span: Span, buffers: &[Arc<Buffer>]) -> Option<Span> {
    let seen = buffers.iter().find(|buffer| buffer.holds(span))?.device_part(span)?;
    (seen.start() as u64).is_multiple_of(UNIT).then_some(seen)
}

/// Decodes sources, which the device reads in place at the addresses beside them, to device memory, and compares
/// checksums.
fn decode_by_device(plan: &DevicePlan, jobs: &[(&DecodeJob, Span)]) -> Result<()> {
    let DevicePlan { device, plan } = plan;
    // Of wrong tiles, one for each job.
    let count_bytes = jobs.len() * COUNT_BYTES;
    let Some(wrong) = DeviceMemory::alloc(device, count_bytes)? else { return Ok(()) };
    let counted = host_memory(device, count_bytes)?;
    let counts = counted.data().part(0, count_bytes);
    bytes::fill(counts, 0);
    bulk_copy::write_device(device, CopyJob { to: wrong.span(), from: Location::host(counts) })?;
    let stream = OwnedStream::new(device)?;
    for (at, &(job, span)) in jobs.iter().enumerate() {
        let header = bytes::read(job.from.part(0, HEADER as usize));
        let coded = read_header(&header, job.from.bytes() as u64)?.coded;
        let encoded = Encoded { span, decoded_bytes: job.to.bytes() as u64 };
        let wrong = wrong.span().part(at * COUNT_BYTES, COUNT_BYTES);
        queue::decode(device, coded, encoded, 0, job.to, stream.get())?;
        queue::verify(device, encoded, 0, job.to, wrong, stream.get())?;
    }
    device.copy(counts, wrong.span(), stream.get())?;
    device.backend().synchronize(stream.get())?;
    for (at, (job, _)) in jobs.iter().enumerate() {
        let tiles = bytes::read_u64(counts.part(at * COUNT_BYTES, COUNT_BYTES));
        if tiles > 0 {
            let message = format!(
                "the checksums of {tiles} of {} tiles, which the device has decoded, are wrong: the compressed bytes \
                 are damaged",
                tiles_of(job.to.bytes() as u64)
            );
            let parameter = &plan.parameters[job.parameter].parameter;
            return Err(of_parameter(parameter, &Error::new(WB_ERR_DAMAGED, message)));
        }
    }
    Ok(())
}
