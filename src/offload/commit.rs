//! What goes where when a plan is committed.

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::device_plan::DevicePlan;
use crate::offload::state::{Backing, Block, HostUnit, ParameterState, c_name};
use crate::os::sync::Arc;
use crate::plan::parameter::Origin;
use crate::plan::plan::ALIGNMENT;

/// What is kept where by a plan, and what has to be copied for it.
#[derive(Default)]
pub struct CommitLayout {
    pub kept: Vec<ParameterState>,
    pub blocks: Vec<Block>,
    pub to_host: Vec<CopyJob>,
    pub to_device: Vec<CopyJob>,
}

pub fn lay_out(
    plan: &DevicePlan,
    sources: &[Option<Location>],
    units: &[HostUnit],
) -> Result<CommitLayout> {
    let drawn = &plan.plan;
    let mut keeping = CommitLayout::default();
    let ours = resident_memory(plan, sources)?;
    let mut places = Vec::with_capacity(drawn.storages.len());
    for (at, storage) in drawn.storages.iter().enumerate() {
        let pieces = pieces_of(plan, at, sources);
        let (place, to, jobs) = match (storage.unit, &ours[at]) {
            (Some(unit), _) => {
                let room = storage.bytes.next_multiple_of(ALIGNMENT);
                keeping.blocks.push(Block {
                    unit,
                    offset: storage.offset_in_unit,
                    bytes: storage.bytes,
                    room,
                    parameters: storage.parameters.to_vec(),
                });
                let to = units[unit].region.part(storage.offset_in_unit as usize, room as usize);
                (Backing::Block(keeping.blocks.len() - 1, 0), to, &mut keeping.to_host)
            }
            (None, Some((memory, offset))) => {
                let to = memory.span().part(*offset as usize, storage.bytes as usize);
                (Backing::Owned(memory.clone(), *offset), to, &mut keeping.to_device)
            }
            (None, None) => {
                places.push(Backing::Missing);
                continue;
            }
        };
        jobs.extend(pieces.into_iter().map(|(offset, source)| CopyJob {
            to: to.part(offset as usize, source.span.bytes()),
            from: source,
        }));
        places.push(place);
    }
    for (at, planned) in drawn.parameters.iter().enumerate() {
        let place = match (&places[planned.storage], sources[at]) {
            (Backing::Block(block, _), _) => Backing::Block(*block, planned.offset),
            (Backing::Owned(memory, offset), _) => {
                Backing::Owned(memory.clone(), offset + planned.offset)
            }
            (_, Some(source)) => Backing::Borrowed(source.span),
            (_, None) => Backing::Missing,
        };
        let quantized = match &planned.parameter.origin {
            Origin::Quantized(quantized) => Some(quantized.clone()),
            Origin::Given | Origin::Scales => None,
        };
        keeping.kept.push(ParameterState {
            quantized,
            name: c_name(&planned.parameter.name),
            group: planned.group,
            storage: Some(planned.storage),
            layout: planned.parameter.layout.clone(),
            place,
        });
    }
    Ok(keeping)
}

/// The bytes of a storage that its parameters bring, each byte once, in order: offsets in the
/// storage and where they come from.
fn pieces_of(
    plan: &DevicePlan,
    storage: usize,
    sources: &[Option<Location>],
) -> Vec<(u64, Location)> {
    let parameters = &plan.plan.storages[storage].parameters;
    let mut given: Vec<(u64, Location)> = parameters
        .iter()
        .filter(|at| matches!(plan.plan.parameters[**at].parameter.origin, Origin::Given))
        .filter_map(|at| Some((plan.plan.parameters[*at].offset, sources[*at]?)))
        .collect();
    given.sort_by_key(|(offset, _)| *offset);
    let mut done = 0;
    given.retain_mut(|(offset, source)| {
        let end = *offset + source.span.bytes() as u64;
        let skip = done.max(*offset) - *offset;
        *offset += skip;
        source.span = source.span.part(skip as usize, usize::MAX);
        done = done.max(end);
        source.span.bytes() > 0
    });
    given
}

/// Device memory for what is resident and comes from the host: one allocation, an offset for each
/// storage.
type Resident = Vec<Option<(Arc<DeviceMemory>, u64)>>;

fn resident_memory(plan: &DevicePlan, sources: &[Option<Location>]) -> Result<Resident> {
    let drawn = &plan.plan;
    let mut offsets = vec![None; drawn.storages.len()];
    let mut total = 0;
    for (at, storage) in drawn.storages.iter().enumerate() {
        let ours = |at: &usize| match drawn.parameters[*at].parameter.origin {
            Origin::Given => sources[*at].is_some_and(|source| !source.on_device),
            Origin::Quantized(_) | Origin::Scales => storage.bytes > 0,
        };
        if storage.unit.is_none() && storage.parameters.iter().any(ours) {
            offsets[at] = Some(total as u64);
            total += storage.bytes.next_multiple_of(ALIGNMENT) as usize;
        }
    }
    let memory = DeviceMemory::alloc(&plan.device, total)?.map(Arc::new);
    Ok(offsets.into_iter().map(|offset| memory.clone().zip(offset)).collect())
}
