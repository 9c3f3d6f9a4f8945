//! Sources that are compressed already, as tensors of a file that `python -m weighbridge compress` wrote: checking
//! them, and decoding those that are not carried so.

use crate::codec::format::{Info, read_header};
use crate::codec::in_memory;
use crate::device::backend::Location;
use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Error, Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::bulk_copy::{self, CopyJob};
use crate::offload::encoded::host_memory;
use crate::os::bytes;
use crate::os::parallel::{Phase, Progress, report};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{Origin, Parameter};
use crate::plan::plan::Plan;
use crate::status::{WB_ERR_DAMAGED, WB_ERR_NOT_SUPPORTED};
use crate::tensor::coded::{CodedType, HEADER, TILE};
use crate::tensor::layout::Layout;

/// Bytes that are decoded at a time before they are copied to the device.
const STAGED_BYTES: u64 = 4096 * TILE;

/// Values that are decoded to where they are kept.
pub struct DecodeJob {
    /// Their place.
    pub to: Span,
    /// What it is in, if that is device memory.
    pub memory: Option<Arc<DeviceMemory>>,
    /// The compressed bytes.
    pub from: Span,
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

fn of_parameter(parameter: &Parameter, error: &Error) -> Error {
    let message =
        format!("the compressed source of parameter {:?}: {}", parameter.name, error.message);
    Error::new(error.status, message)
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

/// Decodes to host memory or to device memory, with `threads` threads.
pub fn decode_all(
    device: &Arc<Device>,
    jobs: &[DecodeJob],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let total = jobs.iter().map(|job| job.to.bytes()).sum();
    let to_device = jobs.iter().filter(|job| job.memory.is_some()).map(|job| job.to.bytes());
    let most = to_device.max().unwrap_or(0).min(STAGED_BYTES as usize);
    // Pinned where the policy has it so: what is decoded is copied from there.
    let staging = Buffer::alloc(device, most, &BufferOptions::default(), &mut None)
        .or_else(|_| host_memory(device, most))?;
    let mut done = 0;
    for job in jobs {
        let Some(memory) = &job.memory else {
            in_memory::decode(job.from, 0, job.to, true, threads)?;
            done += job.to.bytes();
            report(progress, Phase::Read, done, total)?;
            continue;
        };
        for offset in (0..job.to.bytes()).step_by(STAGED_BYTES as usize) {
            let to = job.to.part(offset, STAGED_BYTES as usize);
            let decoded = staging.data().part(0, to.bytes());
            in_memory::decode(job.from, offset as u64, decoded, true, threads)?;
            let copy = CopyJob { to, from: Location::host(decoded) };
            bulk_copy::into_device(device, memory.span(), &[copy], threads, &mut None)?;
            done += to.bytes();
            report(progress, Phase::Read, done, total)?;
        }
    }
    Ok(())
}
