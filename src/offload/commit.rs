//! The memory layout of a plan that is committed, and the copies that fill it.

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::offload::backing::{Backing, Block, HostUnit, ParameterState, c_name};
use crate::offload::bulk_copy::CopyJob;
use crate::offload::device_plan::DevicePlan;
use crate::os::sync::Arc;
use crate::plan::parameter::Origin;
use crate::plan::plan::{ALIGNMENT, Plan};

/// The backing of each parameter, and the copies that fill it.
#[derive(Default)]
pub struct CommitLayout {
    pub parameters: Vec<ParameterState>,
    pub blocks: Vec<Block>,
    pub to_host: Vec<CopyJob>,
    pub to_device: Vec<CopyJob>,
    /// The memory of the targets of `to_device`.
    pub resident: Option<Arc<DeviceMemory>>,
}

/// Lays out the parameters of a plan in its units, and in new device memory those resident ones
/// whose bytes are not in device memory yet. `sources` has one entry for each parameter.
pub fn lay_out(
    device_plan: &DevicePlan,
    sources: &[Option<Location>],
    units: &[HostUnit],
) -> Result<CommitLayout> {
    let plan = &device_plan.plan;
    let mut layout = CommitLayout::default();
    let (memory, resident) = alloc_resident(device_plan, sources)?;
    layout.resident = memory;
    // The backing of each storage.
    let mut backings = Vec::with_capacity(plan.storages.len());
    for (at, (storage, resident)) in plan.storages.iter().zip(resident).enumerate() {
        let in_place = storage.unit.is_some_and(|unit| units[unit].in_source);
        let pieces = if in_place { Vec::new() } else { pieces_of(plan, at, sources) };
        let (backing, to, jobs) = match (storage.unit, resident) {
            (Some(unit), _) => {
                let capacity = storage.bytes.next_multiple_of(ALIGNMENT);
                let offset = storage.offset_in_unit;
                layout.blocks.push(Block {
                    unit,
                    offset,
                    bytes: storage.bytes,
                    capacity,
                    filled: in_place || !pieces.is_empty(),
                    parameters: storage.parameters.to_vec(),
                });
                let to = units[unit].region.part(offset as usize, capacity as usize);
                let backing = Backing::Block { block: layout.blocks.len() - 1, offset: 0 };
                (backing, to, &mut layout.to_host)
            }
            (None, Some((memory, offset))) => {
                let to = memory.span().part(offset as usize, storage.bytes as usize);
                (Backing::Owned { memory, offset }, to, &mut layout.to_device)
            }
            (None, None) => {
                backings.push(Backing::Missing);
                continue;
            }
        };
        jobs.extend(pieces.into_iter().map(|(offset, from)| CopyJob {
            to: to.part(offset as usize, from.span.bytes()),
            from,
        }));
        backings.push(backing);
    }
    for (planned, source) in plan.parameters.iter().zip(sources) {
        let backing = match (&backings[planned.storage], source) {
            (Backing::Block { block, .. }, _) => {
                Backing::Block { block: *block, offset: planned.offset }
            }
            (Backing::Owned { memory, offset }, _) => {
                Backing::Owned { memory: memory.clone(), offset: offset + planned.offset }
            }
            (_, Some(source)) => Backing::Borrowed(source.span),
            (_, None) => Backing::Missing,
        };
        let quantized = match &planned.parameter.origin {
            Origin::Quantized(quantized) => Some(quantized.clone()),
            Origin::Given | Origin::Scales => None,
        };
        layout.parameters.push(ParameterState {
            name: c_name(&planned.parameter.name),
            group: planned.group,
            layout: planned.parameter.layout.clone(),
            backing,
            storage: Some(planned.storage),
            quantized,
        });
    }
    Ok(layout)
}

/// The sources of a storage's bytes, each byte once, with their offsets in the storage, ascending.
fn pieces_of(plan: &Plan, storage: usize, sources: &[Option<Location>]) -> Vec<(u64, Location)> {
    let mut order: Vec<(u64, u64)> = plan.storages[storage]
        .parameters
        .iter()
        .filter(|at| matches!(plan.parameters[**at].parameter.origin, Origin::Given))
        .map(|at| (plan.parameters[*at].offset, *at as u64))
        .collect();
    order.sort_unstable();
    let piece = |(offset, at): (u64, u64)| Some((offset, sources[at as usize]?));
    let mut pieces: Vec<(u64, Location)> = order.into_iter().filter_map(piece).collect();
    let mut covered_to = 0;
    pieces.retain_mut(|(offset, source)| {
        let end = *offset + source.span.bytes() as u64;
        let skip = covered_to.max(*offset) - *offset;
        *offset += skip;
        source.span = source.span.part(skip as usize, usize::MAX);
        covered_to = covered_to.max(end);
        source.span.bytes() > 0
    });
    pieces
}

/// Device memory, and for each storage that is in it the memory again with its offset there.
type ResidentMemory = (Option<Arc<DeviceMemory>>, Vec<Option<(Arc<DeviceMemory>, u64)>>);

/// Allocates device memory, at once, for all resident storages that have a source in host memory or
/// are quantized.
fn alloc_resident(
    device_plan: &DevicePlan,
    sources: &[Option<Location>],
) -> Result<ResidentMemory> {
    let plan = &device_plan.plan;
    let mut offsets = vec![None; plan.storages.len()];
    let mut bytes = 0;
    for (offset, storage) in offsets.iter_mut().zip(&plan.storages) {
        let needs_memory = |at: &usize| match plan.parameters[*at].parameter.origin {
            Origin::Given => sources[*at].is_some_and(|source| !source.on_device),
            Origin::Quantized(_) | Origin::Scales => storage.bytes > 0,
        };
        if storage.unit.is_none() && storage.parameters.iter().any(needs_memory) {
            *offset = Some(bytes as u64);
            bytes += storage.bytes.next_multiple_of(ALIGNMENT) as usize;
        }
    }
    let memory = DeviceMemory::alloc(&device_plan.device, bytes)?.map(Arc::new);
    let storages = offsets.into_iter().map(|offset| memory.clone().zip(offset)).collect();
    Ok((memory, storages))
}
