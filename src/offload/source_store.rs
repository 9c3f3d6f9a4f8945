//! Units that stay in the buffer of their sources, such as a mapped file that is pinned: where the
//! bytes lie there as the unit would have them, they are not copied. Storages that are compressed
//! there, and carried so, stay each by itself.

use crate::device::backend::Location;
use crate::memory::buffer::Buffer;
use crate::offload::backing::{Apart, ApartKind, HostUnit};
use crate::offload::device_plan::DevicePlan;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{Origin, TransferMode};
use crate::plan::plan::{HostStore, Plan, PlannedStorage, PlannedUnit};
use crate::tensor::coded::UNIT;

/// The alignment of memory that the device reads in place.
const VIEW_ALIGNMENT: usize = 64;

/// The host memory of each unit, or the reason why it gets memory of the offloader.
pub type UnitStore = std::result::Result<HostUnit, String>;

/// The memory of the compressed bytes of a storage, or the reason why they are copied to the arena.
pub type EncodedStore = std::result::Result<Apart, String>;

/// Finds the units of a plan whose sources can be their host memory. `sources` has one entry for each
/// parameter, `buffers` are those that the caller has named.
pub fn find(
    plan: &DevicePlan,
    sources: &[Option<Location>],
    buffers: &[Arc<Buffer>],
) -> Vec<UnitStore> {
    let cuda = plan.device.capabilities().cuda;
    let units = plan.plan.units.iter();
    units.map(|unit| in_source(&plan.plan, unit, sources, buffers, cuda)).collect()
}

fn in_source(
    plan: &Plan,
    unit: &PlannedUnit,
    sources: &[Option<Location>],
    buffers: &[Arc<Buffer>],
    cuda: bool,
) -> UnitStore {
    let mut found: Option<(&Arc<Buffer>, usize)> = None;
    let mut end = 0;
    for &at in &unit.storages {
        let storage = &plan.storages[at];
        let name = &plan.parameters[storage.parameters[0]].parameter.name;
        match &storage.coding {
            Ok(coding) if coding.given => continue, // apart: find_encoded
            Ok(_) => return Err(format!("{name:?} is kept compressed")),
            Err(_) => {}
        }
        let start = start_of(plan, at, sources)
            .ok_or_else(|| format!("{name:?} has no source in host memory as it is kept"))?;
        let bytes = storage.bytes as usize;
        let holds = |buffer: &&Arc<Buffer>| {
            buffer.data().start() <= start && start + bytes <= buffer.data().end()
        };
        let (buffer, first) = match found {
            Some((buffer, first)) => (buffer, first),
            None => {
                let buffer = buffers.iter().find(holds);
                let buffer = buffer
                    .ok_or_else(|| format!("no buffer was given for the source of {name:?}"))?;
                *found.insert((buffer, start))
            }
        };
        if start.checked_sub(first) != Some(storage.offset_in_unit as usize) || !holds(&buffer) {
            return Err(format!(
                "{name:?} is {} bytes after the first parameter of its group in the source, and {} \
                 in a copy: its neighbours there are of other groups, or have sizes that are not \
                 multiples of 256",
                start.wrapping_sub(first) as isize,
                storage.offset_in_unit
            ));
        }
        end = start + bytes;
    }
    let (buffer, first) = found.ok_or("")?;
    if cuda && buffer.pinned_bytes() == 0 {
        return Err(format!("the source is not pinned ({})", buffer.fallback_reason()));
    }
    if unit.transfer_mode == TransferMode::ZeroCopy {
        if buffer.device_address().is_none() {
            return Err("the device cannot read the source in place".into());
        }
        if !first.is_multiple_of(VIEW_ALIGNMENT) {
            return Err(format!(
                "the source is at byte {} of its buffer, which is not aligned to {VIEW_ALIGNMENT} for \
                 the device to read it in place",
                first - buffer.data().start()
            ));
        }
    }
    Ok(HostUnit {
        region: buffer.data().part(first - buffer.data().start(), end - first),
        buffer: buffer.clone(),
        in_source: true,
        transfer_mode: unit.transfer_mode,
        groups: unit.groups.clone(),
        slot_offset: unit.slot_offset,
        range: None,
    })
}

/// Finds the storages that are carried as their sources have them compressed, and can stay there. The reason is
/// empty for all others.
pub fn find_encoded(
    plan: &DevicePlan,
    sources: &[Option<Location>],
    buffers: &[Arc<Buffer>],
) -> Vec<EncodedStore> {
    let cuda = plan.device.capabilities().cuda;
    let DevicePlan { plan, .. } = plan;
    let allowed = plan.options.host_store != HostStore::Copy;
    let apart = |storage: &PlannedStorage| {
        let source = sources[storage.parameters[0]];
        let given = storage.coding.as_ref().is_ok_and(|coding| coding.given);
        let Some(source) = source.filter(|_| allowed && given) else { return Err(String::new()) };
        let found = buffers.iter().find(|buffer| buffer.holds(source.span));
        let buffer = found.ok_or("no buffer was given for its source")?;
        if cuda && buffer.pinned_bytes() == 0 {
            return Err(format!("the source is not pinned ({})", buffer.fallback_reason()));
        }
        let (buffer, kind) = (buffer.clone(), ApartKind::Source);
        let apart = Apart { buffer, span: source.span, kind };
        match apart.on_device() {
            Some(on_device) if (on_device.start() as u64).is_multiple_of(UNIT) => Ok(apart),
            Some(_) => Err(format!("the source is not at a multiple of {UNIT} bytes")),
            None => Err("the device cannot read the source in place".into()),
        }
    };
    plan.storages.iter().map(apart).collect()
}

/// The host address of a storage's lowest byte in the source; `None` if the storage has no
/// such source, or other values.
fn start_of(plan: &Plan, storage: usize, sources: &[Option<Location>]) -> Option<usize> {
    let mut start = None;
    for &at in &plan.storages[storage].parameters {
        let planned = &plan.parameters[at];
        if !matches!(planned.parameter.origin, Origin::Given) {
            return None;
        }
        let source = sources[at].filter(|source| !source.on_device)?;
        let lowest = source.span.start().checked_sub(planned.offset as usize)?;
        if start.is_some_and(|start| start != lowest) {
            return None;
        }
        start = Some(lowest);
    }
    start
}

/// The region of a buffer that is not a part of the sources.
pub fn own_unit(buffer: Arc<Buffer>, region: Span, unit: &PlannedUnit) -> HostUnit {
    HostUnit {
        buffer,
        region,
        in_source: false,
        transfer_mode: unit.transfer_mode,
        groups: unit.groups.clone(),
        slot_offset: unit.slot_offset,
        range: None,
    }
}
