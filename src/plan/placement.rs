//! A candidate set of offloaded storages, with the transfer modes, units and slots that follow from
//! it.

use crate::error::{Result, fail};
use crate::plan::input::PlanInput;
use crate::plan::parameter::{AccessPattern, TransferMode};
use crate::plan::plan::PlannedUnit;
use crate::plan::reason::Reason;
use crate::plan::slot_ring::{SlotRing, UnitSize};
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_SLOTS_BUDGET};

/// Where an offloaded storage is placed.
#[derive(Debug, Clone)]
pub struct PlacedStorage {
    pub transfer_mode: TransferMode,
    pub reason: Reason,
    pub unit: usize,
    pub offset: u64,
}

/// A candidate set of offloaded storages.
#[derive(Debug)]
pub struct Placement {
    /// Their indexes, in the order in which they leave the device.
    pub storages: Vec<usize>,
    /// The mode of each.
    transfer_modes: Vec<TransferMode>,
    /// The unit of each.
    unit_of: Vec<usize>,
    pub units: Vec<PlannedUnit>,
    pub slots: SlotRing,
    /// Bytes of a group that may be prefetched, at most.
    prefetch_limit: Option<u64>,
}

impl Placement {
    /// Places the storages. Slots keep to the options' `slot_bytes`, and to `free_bytes` if the
    /// units can be placed so at all, which the caller checks.
    pub fn new(input: &PlanInput<'_>, storages: &[usize], free_bytes: Option<u64>) -> Result<Self> {
        let slot_bytes = input.options.slot_bytes;
        // A larger group is read in place instead. Without views it would be copied on demand, into
        // as large a slot, so `free_bytes` does not count.
        let prefetch_limit = match input.platform.views {
            true => slot_bytes.into_iter().chain(free_bytes).min(),
            false => slot_bytes,
        };
        let transfer_modes = choose_modes(input, storages, prefetch_limit)?;
        let (units, unit_of) = gather_units(input, storages, &transfer_modes);
        let mut placement = Self {
            storages: storages.to_vec(),
            transfer_modes,
            unit_of,
            units,
            slots: SlotRing::default(),
            prefetch_limit,
        };
        placement.assign_slots(input, free_bytes)?;
        Ok(placement)
    }

    fn assign_slots(&mut self, input: &PlanInput<'_>, free_bytes: Option<u64>) -> Result<()> {
        let slot_bytes = input.options.slot_bytes;
        let limit = slot_bytes.into_iter().chain(free_bytes).min();
        let sizes: Vec<_> = self
            .units
            .iter()
            .map(|unit| UnitSize {
                transfer_mode: unit.transfer_mode,
                bytes: unit.bytes,
                groups: &unit.groups,
            })
            .collect();
        let slots = SlotRing::new(&sizes, input.options.depth as usize, limit);
        if let Some(limit) = slot_bytes
            && slots.ring_bytes > limit
        {
            let group = &input.groups[slots.ring[0]];
            fail!(
                WB_ERR_SLOTS_BUDGET,
                "asked for slots of at most {limit} bytes; prefetching from group {group:?} on needs {} \
                 even one group at a time: raise slot_bytes, offload less of each group, or choose \
                 another transfer_mode",
                slots.ring_bytes
            );
        }
        for (unit, offset) in self.units.iter_mut().zip(&slots.offsets) {
            unit.slot_offset = *offset;
        }
        self.slots = SlotRing { offsets: Vec::new(), ..slots };
        Ok(())
    }

    /// Lays the units out in the arena and their storages in them. Returns the place of each of the
    /// input's storages that is offloaded.
    pub fn lay_out(&mut self, input: &PlanInput<'_>) -> Vec<Option<PlacedStorage>> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.sort_by_key(|unit| self.units[*unit].groups[0]);
        let mut new_index = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, unit)| new_index[*unit] = at);
        let mut units: Vec<PlannedUnit> =
            order.iter().map(|unit| self.units[*unit].clone()).collect();
        let mut offset = 0;
        for unit in &mut units {
            unit.arena_offset = offset;
            offset += unit.bytes;
            unit.bytes = 0;
        }
        let mut members: Vec<usize> = (0..self.storages.len()).collect();
        members.sort_unstable_by_key(|member| self.storages[*member]);
        let mut placed = vec![None; input.storages.len()];
        for member in members {
            let (storage, transfer_mode) = (self.storages[member], self.transfer_modes[member]);
            let at = new_index[self.unit_of[member]];
            let unit = &mut units[at];
            let offset = unit.bytes;
            unit.bytes += input.rounded_bytes(storage);
            unit.storages.push(storage);
            let reason = reason_of(input, storage, transfer_mode, self.prefetch_limit);
            placed[storage] = Some(PlacedStorage { transfer_mode, reason, unit: at, offset });
        }
        self.units = units;
        placed
    }

    /// Bytes copied in a step, and bytes read in place if all dense parameters are read completely.
    /// Must be called after [`Placement::lay_out`].
    pub fn link_bytes(&self, input: &PlanInput<'_>) -> (u64, u64) {
        let (mut copied, mut read) = (0, 0);
        for unit in &self.units {
            let uses = unit.groups.len() as u64;
            match unit.transfer_mode {
                TransferMode::ZeroCopy => {
                    let dense = unit.storages.iter().filter(|storage| {
                        let (first, _) = input.storages[**storage].parameters[0];
                        input.parameters[first].access_pattern == AccessPattern::Dense
                    });
                    read += dense.map(|at| input.storages[*at].bytes * uses).sum::<u64>();
                }
                // With a slot for every group each is copied once and stays.
                TransferMode::Prefetch if self.slots.ring.len() <= self.slots.depth => {}
                _ => copied += unit.bytes * uses,
            }
        }
        (copied, read)
    }
}

/// The mode that one of a storage's parameters, or else the options, request.
fn requested_mode(input: &PlanInput<'_>, storage: usize) -> TransferMode {
    input.storages[storage]
        .parameters
        .iter()
        .map(|(index, _)| input.parameters[*index].transfer_mode)
        .find(|transfer_mode| *transfer_mode != TransferMode::Auto)
        .unwrap_or(input.options.transfer_mode)
}

fn is_sparse(input: &PlanInput<'_>, storage: usize) -> bool {
    let sparse = |index: &usize| input.parameters[*index].access_pattern == AccessPattern::Sparse;
    input.storages[storage].parameters.iter().all(|(index, _)| sparse(index))
}

/// The transfer mode of each storage.
fn choose_modes(
    input: &PlanInput<'_>,
    storages: &[usize],
    prefetch_limit: Option<u64>,
) -> Result<Vec<TransferMode>> {
    let views = input.platform.views;
    let mut transfer_modes = Vec::with_capacity(storages.len());
    let mut prefetched_bytes = vec![0; input.groups.len()];
    for &storage in storages {
        let groups = &input.groups_of[storage];
        let transfer_mode = match requested_mode(input, storage) {
            TransferMode::ZeroCopy if !views => fail!(
                WB_ERR_NOT_MAPPED,
                "parameter {:?} is to be read in place (zero-copy), and views are off: {}",
                input.parameters[input.storages[storage].parameters[0].0].name,
                input.platform.views_reason
            ),
            TransferMode::Auto if views && (groups.len() > 1 || is_sparse(input, storage)) => {
                TransferMode::ZeroCopy
            }
            // Not in the ring, where a slot for several positions would leave gaps.
            TransferMode::Auto if groups.len() > 1 => TransferMode::OnDemand,
            TransferMode::Auto => TransferMode::Prefetch,
            requested => requested,
        };
        if transfer_mode == TransferMode::Prefetch {
            let bytes = input.rounded_bytes(storage);
            groups.iter().for_each(|group| prefetched_bytes[*group] += bytes);
        }
        transfer_modes.push(transfer_mode);
    }
    let Some(limit) = prefetch_limit else { return Ok(transfer_modes) };
    for (&storage, transfer_mode) in storages.iter().zip(&mut transfer_modes) {
        let bytes = input.groups_of[storage].iter().map(|group| prefetched_bytes[*group]).max();
        let too_large = bytes.is_some_and(|bytes| bytes > limit);
        if *transfer_mode == TransferMode::Prefetch
            && too_large
            && requested_mode(input, storage) == TransferMode::Auto
        {
            *transfer_mode = if views { TransferMode::ZeroCopy } else { TransferMode::OnDemand };
        }
    }
    Ok(transfer_modes)
}

/// Why a storage has its transfer mode.
fn reason_of(
    input: &PlanInput<'_>,
    storage: usize,
    transfer_mode: TransferMode,
    prefetch_limit: Option<u64>,
) -> Reason {
    let groups = &input.groups_of[storage];
    let requested = requested_mode(input, storage);
    if requested != TransferMode::Auto {
        return Reason::Requested(requested);
    }
    if groups.len() > 1 {
        let names = groups.iter().map(|group| input.groups[*group].clone()).collect();
        return Reason::TiedAcrossGroups(transfer_mode, names);
    }
    let too_large = transfer_mode == TransferMode::OnDemand && prefetch_limit.is_some();
    if is_sparse(input, storage) && !too_large {
        return Reason::Sparse(transfer_mode);
    }
    match transfer_mode {
        TransferMode::Prefetch => Reason::Dense,
        _ => Reason::TooLarge { transfer_mode, slots: prefetch_limit.unwrap_or(0) },
    }
}

/// Gathers storages into units: one for each mode that a group uses, and one for each storage that
/// several groups share. Returns the units, and the unit of each storage.
fn gather_units(
    input: &PlanInput<'_>,
    storages: &[usize],
    transfer_modes: &[TransferMode],
) -> (Vec<PlannedUnit>, Vec<usize>) {
    let mut units: Vec<PlannedUnit> = Vec::new();
    let mut unit_of_group = vec![[None; TransferMode::COUNT]; input.groups.len()];
    let mut unit_of = Vec::with_capacity(storages.len());
    for (&storage, &transfer_mode) in storages.iter().zip(transfer_modes) {
        let groups = &input.groups_of[storage];
        let next = units.len();
        let unit = match groups.len() {
            1 => *unit_of_group[groups[0]][transfer_mode as usize].get_or_insert(next),
            _ => next,
        };
        if unit == next {
            units.push(PlannedUnit {
                transfer_mode,
                groups: groups.to_vec(),
                arena_offset: 0,
                bytes: 0,
                slot_offset: None,
                storages: Vec::new(),
            });
        }
        units[unit].bytes += input.rounded_bytes(storage);
        unit_of.push(unit);
    }
    (units, unit_of)
}
