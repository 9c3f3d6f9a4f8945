//! The memory layout of a plan that is committed, and the copies that fill it.

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::offload::addresses::Addresses;
use crate::offload::backing::{
    Apart, ApartKind, Backing, Block, Encoding, HostUnit, ParameterState, c_name,
};
use crate::offload::bulk_copy::CopyJob;
use crate::offload::device_encode::EncodeTask;
use crate::offload::device_plan::DevicePlan;
use crate::offload::encoded_source::DecodeJob;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::Origin;
use crate::plan::plan::{ALIGNMENT, Plan};
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// The backing of each parameter, and the copies that fill it.
#[derive(Default)]
pub struct CommitLayout {
    pub parameters: Vec<ParameterState>,
    pub blocks: Vec<Block>,
    pub to_host: Vec<CopyJob>,
    /// Blocks that are to be compressed, with the copies that fill them.
    pub to_encode: Vec<EncodeTask>,
    /// Device memory, and the copies into it.
    pub to_device: Vec<(Arc<DeviceMemory>, Vec<CopyJob>)>,
    /// What is decoded to either.
    pub to_decode: Vec<DecodeJob>,
}

/// Lays out the parameters of a plan in its units, and in new device memory those resident ones
/// whose bytes are not in device memory yet. `sources` has one entry for each parameter, `aparts` one for each
/// storage.
pub fn lay_out(
    device_plan: &DevicePlan,
    sources: &[Option<Location>],
    units: &[HostUnit],
    mut aparts: Vec<Option<Apart>>,
    addresses: Option<&mut Addresses>,
) -> Result<CommitLayout> {
    let plan = &device_plan.plan;
    let mut layout = CommitLayout::default();
    let resident = match addresses {
        Some(addresses) => {
            let mut resident = reserve_resident(plan, sources, units.len(), addresses)?;
            reserve_pieces(plan, units.len(), addresses, &mut resident)?;
            resident
        }
        None => alloc_resident(device_plan, sources)?,
    };
    let mut filled: Vec<(Arc<DeviceMemory>, Vec<CopyJob>)> = Vec::new();
    // The backing of each storage.
    let mut backings = Vec::with_capacity(plan.storages.len());
    for (at, (storage, resident)) in plan.storages.iter().zip(resident).enumerate() {
        let apart = aparts[at].take();
        let in_place = match &apart {
            Some(apart) => apart.kind == ApartKind::Source,
            None => storage.unit.is_some_and(|unit| units[unit].in_source),
        };
        let pieces = if in_place { Vec::new() } else { pieces_of(plan, at, sources) };
        let encoded = encoded_of(plan, at, sources).filter(|_| !in_place);
        let (backing, to, jobs) = match (storage.unit, resident) {
            (Some(unit), _) => {
                let coded = storage.coding.as_ref().ok().map(|coding| coding.coded);
                let capacity = storage.carried_bytes();
                let offset = storage.offset_in_unit;
                let mut encoding = Encoding::of_new(coded, storage.bytes);
                if let Some(encoding) = &mut encoding {
                    let apart = apart.as_ref().map(|apart| apart.span);
                    let taken = encoded.filter(|_| plan.takes_source(storage));
                    let source = apart.or(taken).map_or(0, |source| source.bytes() as u64);
                    encoding.encoded_bytes = source;
                }
                let region = || units[unit].region.part(offset as usize, capacity as usize);
                let to = apart.as_ref().map_or_else(region, |apart| apart.span);
                let is_taken = encoding.is_some_and(|encoding| encoding.encoded_bytes > 0);
                layout.blocks.push(Block {
                    unit,
                    offset,
                    bytes: storage.bytes,
                    capacity,
                    encoding,
                    apart,
                    kept: None,
                    filled: in_place || encoded.is_some() || !pieces.is_empty(),
                    parameters: storage.parameters.to_vec(),
                });
                let backing = Backing::Block { block: layout.blocks.len() - 1, offset: 0 };
                match encoded {
                    Some(from) if is_taken => {
                        let to = to.part(0, from.bytes());
                        layout.to_host.push(CopyJob { to, from: Location::host(from) });
                    }
                    Some(from) => {
                        let to = to.part(0, storage.bytes as usize);
                        let parameter = storage.parameters[0];
                        layout.to_decode.push(DecodeJob { to, memory: None, from, parameter });
                    }
                    None => {}
                }
                if encoding.is_some_and(|encoding| encoding.encoded_bytes == 0) {
                    layout.to_encode.push(EncodeTask {
                        block: layout.blocks.len() - 1,
                        name: plan.parameters[storage.parameters[0]].parameter.name.clone(),
                        decoded_bytes: storage.bytes,
                        capacity,
                        jobs: Vec::new(),
                    });
                    let last = layout.to_encode.len() - 1;
                    (backing, to, &mut layout.to_encode[last].jobs)
                } else {
                    (backing, to, &mut layout.to_host)
                }
            }
            (None, Some((memory, offset))) => {
                let to = memory.span().part(offset as usize, storage.bytes as usize);
                if let Some(from) = encoded {
                    let memory = Some(memory.clone());
                    let parameter = storage.parameters[0];
                    layout.to_decode.push(DecodeJob { to, memory, from, parameter });
                }
                let known = filled.iter().rposition(|(other, _)| Arc::ptr_eq(other, &memory));
                let known = known.unwrap_or_else(|| {
                    filled.push((memory.clone(), Vec::new()));
                    filled.len() - 1
                });
                (Backing::Owned { memory, offset }, to, &mut filled[known].1)
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
    layout.to_device = filled;
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
            Origin::Given | Origin::Encoded(_) | Origin::Scales => None,
        };
        let storage = &plan.storages[planned.storage];
        let is_given = |at: &usize| {
            let origin = &plan.parameters[*at].parameter.origin;
            !matches!(origin, Origin::Given | Origin::Encoded(_)) || sources[*at].is_some()
        };
        layout.parameters.push(ParameterState {
            name: c_name(&planned.parameter.name),
            group: planned.group,
            layout: planned.parameter.layout.clone(),
            backing,
            incomplete: storage.pieces.is_some() && !storage.parameters.iter().any(is_given),
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

/// The compressed bytes that a storage's source has, if it has such.
fn encoded_of(plan: &Plan, storage: usize, sources: &[Option<Location>]) -> Option<Span> {
    let first = plan.storages[storage].parameters[0];
    let is_encoded = matches!(plan.parameters[first].parameter.origin, Origin::Encoded(_));
    sources[first].filter(|_| is_encoded).map(|source| source.span)
}

/// For each storage that is in device memory of the offloader, the memory and its offset there.
type ResidentMemory = Vec<Option<(Arc<DeviceMemory>, u64)>>;

/// Reserves a range for the resident storages of each group, with memory behind it. `first` is the
/// index of the first of them in the schedule.
fn reserve_resident(
    plan: &Plan,
    sources: &[Option<Location>],
    first: usize,
    addresses: &mut Addresses,
) -> Result<ResidentMemory> {
    let mut storages = vec![None; plan.storages.len()];
    for (at, unit) in plan.resident_units().into_iter().enumerate() {
        let bytes = unit.bytes.next_multiple_of(plan.granularity.unwrap_or(ALIGNMENT));
        let memory = addresses.add_resident(first + at, bytes as usize)?;
        for (storage, offset) in unit.storages {
            for parameter in &plan.storages[storage].parameters {
                let described = &plan.parameters[*parameter].parameter;
                let is_given = matches!(described.origin, Origin::Given | Origin::Encoded(_));
                if is_given && sources[*parameter].is_none() {
                    fail!(
                        WB_ERR_INVALID_ARGUMENT,
                        "parameter {:?} is resident and has no source; with fixed_addresses each needs \
                         one at the commit, since its address cannot come later",
                        described.name
                    );
                }
            }
            storages[storage] = Some((memory.clone(), offset));
        }
    }
    Ok(storages)
}

/// Reserves a range for each unit in pieces, with memory behind each piece.
fn reserve_pieces(
    plan: &Plan,
    first: usize,
    addresses: &mut Addresses,
    storages: &mut ResidentMemory,
) -> Result<()> {
    let Some(piece_bytes) = plan.granularity else { return Ok(()) };
    let first = first + plan.resident_units().len();
    for (at, unit) in plan.pieces.iter().enumerate() {
        let heat = plan.first_heat(unit, piece_bytes);
        let memory =
            addresses.add_pieces(first + at, piece_bytes as usize, &unit.resident, heat)?;
        for (storage, offset) in &unit.storages {
            storages[*storage] = Some((memory.clone(), *offset));
        }
    }
    Ok(())
}

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
            Origin::Given | Origin::Encoded(_) => {
                sources[*at].is_some_and(|source| !source.on_device)
            }
            Origin::Quantized(_) | Origin::Scales => storage.bytes > 0,
        };
        if storage.unit.is_none() && storage.parameters.iter().any(needs_memory) {
            *offset = Some(bytes as u64);
            bytes += storage.bytes.next_multiple_of(ALIGNMENT) as usize;
        }
    }
    let memory = DeviceMemory::alloc(&device_plan.device, bytes)?.map(Arc::new);
    Ok(offsets.into_iter().map(|offset| memory.clone().zip(offset)).collect())
}
