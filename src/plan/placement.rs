//! What a set of storages would be carried by: units, slots and depth.

use crate::error::{Result, fail};
use crate::plan::input::PlanInput;
use crate::plan::parameter::{AccessPattern, TransferMode};
use crate::plan::plan::PlannedUnit;
use crate::plan::reason::Reason;
use crate::plan::slot_ring::{SlotRing, UnitSize};
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_SLOTS_BUDGET};

/// What becomes of a storage that leaves the device.
#[derive(Debug, Clone)]
pub struct PlacedStorage {
    pub transfer_mode: TransferMode,
    pub reason: Reason,
    pub unit: usize,
    pub offset: u64,
}

/// A set of storages with all that follows from it.
#[derive(Debug)]
pub struct Placement {
    /// The storages, in the order in which they were taken.
    pub taken: Vec<usize>,
    transfer_modes: Vec<TransferMode>,
    unit_of: Vec<usize>,
    pub units: Vec<PlannedUnit>,
    pub seats: SlotRing,
    /// The most bytes that a group may have to be copied ahead.
    limit: Option<u64>,
}

impl Placement {
    /// Carries the storages within the options' bytes for slots, and `room` where that is given: as
    /// well as they go, which the caller checks.
    pub fn new(input: &PlanInput<'_>, taken: &[usize], room: Option<u64>) -> Result<Self> {
        let option = input.options.slot_bytes;
        // Reading in place is the way out for what is too big; on demand it needs as much room.
        let limit = match input.platform.views {
            true => option.into_iter().chain(room).min(),
            false => option,
        };
        let transfer_modes = carry(input, taken, limit)?;
        let (units, unit_of) = gather(input, taken, &transfer_modes);
        let mut draft = Self {
            taken: taken.to_vec(),
            transfer_modes,
            unit_of,
            units,
            seats: SlotRing::default(),
            limit,
        };
        draft.seat(input, room)?;
        Ok(draft)
    }

    /// Gives every unit its place in the slots.
    fn seat(&mut self, input: &PlanInput<'_>, room: Option<u64>) -> Result<()> {
        let option = input.options.slot_bytes;
        let limit = option.into_iter().chain(room).min();
        let sizes: Vec<_> = self
            .units
            .iter()
            .map(|unit| UnitSize {
                transfer_mode: unit.transfer_mode,
                bytes: unit.bytes,
                groups: &unit.groups,
            })
            .collect();
        let seats = SlotRing::new(&sizes, input.options.depth as usize, limit);
        if let Some(limit) = option
            && seats.ring_bytes > limit
        {
            let group = &input.groups[seats.ring[0]];
            fail!(
                WB_ERR_SLOTS_BUDGET,
                "asked for slots of at most {limit} bytes; copying ahead from group {group:?} on needs \
                 {} even one group at a time: raise slot_bytes, offload less of each group, or choose \
                 another transfer_mode",
                seats.ring_bytes
            );
        }
        for (unit, offset) in self.units.iter_mut().zip(&seats.offsets) {
            unit.slot_offset = *offset;
        }
        self.seats = SlotRing { offsets: Vec::new(), ..seats };
        Ok(())
    }

    /// Lays the units side by side and their storages into them, and says of each of the input's
    /// storages, if it is offloaded, where it lies and why it goes as it does.
    pub fn lay_out(&mut self, input: &PlanInput<'_>) -> Vec<Option<PlacedStorage>> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.sort_by_key(|unit| self.units[*unit].groups[0]);
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, unit)| place[*unit] = at);
        let mut units: Vec<PlannedUnit> =
            order.iter().map(|unit| self.units[*unit].clone()).collect();
        let mut offset = 0;
        for unit in &mut units {
            unit.arena_offset = offset;
            offset += unit.bytes;
            unit.bytes = 0;
        }
        let mut members: Vec<usize> = (0..self.taken.len()).collect();
        members.sort_unstable_by_key(|member| self.taken[*member]);
        let mut offloaded = vec![None; input.storages.len()];
        for member in members {
            let (storage, transfer_mode) = (self.taken[member], self.transfer_modes[member]);
            let at = place[self.unit_of[member]];
            let unit = &mut units[at];
            let offset = unit.bytes;
            unit.bytes += input.rounded(storage);
            unit.storages.push(storage);
            let reason = reason(input, storage, transfer_mode, self.limit);
            offloaded[storage] = Some(PlacedStorage { transfer_mode, reason, unit: at, offset });
        }
        self.units = units;
        offloaded
    }

    /// Bytes copied in a step, and bytes read in place if all of what is dense is read. The units are
    /// laid out.
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
                // With a place for every group each is copied once and stays.
                TransferMode::Prefetch if self.seats.ring.len() <= self.seats.depth => {}
                _ => copied += unit.bytes * uses,
            }
        }
        (copied, read)
    }
}

/// What a storage's own parameters, or else the options, ask for.
fn wish(input: &PlanInput<'_>, storage: usize) -> TransferMode {
    input.storages[storage]
        .parameters
        .iter()
        .map(|(index, _)| input.parameters[*index].transfer_mode)
        .find(|transfer_mode| *transfer_mode != TransferMode::Auto)
        .unwrap_or(input.options.transfer_mode)
}

fn is_sparse(input: &PlanInput<'_>, storage: usize) -> bool {
    let parameters = &input.storages[storage].parameters;
    parameters
        .iter()
        .all(|(index, _)| input.parameters[*index].access_pattern == AccessPattern::Sparse)
}

/// The transfer_mode of each storage.
fn carry(input: &PlanInput<'_>, taken: &[usize], limit: Option<u64>) -> Result<Vec<TransferMode>> {
    let views = input.platform.views;
    let mut transfer_modes = Vec::with_capacity(taken.len());
    let mut ahead = vec![0; input.groups.len()];
    for &storage in taken {
        let groups = &input.groups_of[storage];
        let transfer_mode = match wish(input, storage) {
            TransferMode::ZeroCopy if !views => fail!(
                WB_ERR_NOT_MAPPED,
                "parameter {:?} is to be read in place, and views are off: {}",
                input.parameters[input.storages[storage].parameters[0].0].name,
                input.platform.views_reason
            ),
            TransferMode::Auto if views && (groups.len() > 1 || is_sparse(input, storage)) => {
                TransferMode::ZeroCopy
            }
            // Not in the ring, where a place for several turns would leave gaps.
            TransferMode::Auto if groups.len() > 1 => TransferMode::OnDemand,
            TransferMode::Auto => TransferMode::Prefetch,
            asked => asked,
        };
        if transfer_mode == TransferMode::Prefetch {
            groups.iter().for_each(|group| ahead[*group] += input.rounded(storage));
        }
        transfer_modes.push(transfer_mode);
    }
    let Some(slots) = limit else { return Ok(transfer_modes) };
    for (&storage, transfer_mode) in taken.iter().zip(&mut transfer_modes) {
        let bytes = input.groups_of[storage].iter().map(|group| ahead[*group]).max();
        let too_big = bytes.is_some_and(|bytes| bytes > slots);
        if *transfer_mode == TransferMode::Prefetch
            && too_big
            && wish(input, storage) == TransferMode::Auto
        {
            *transfer_mode = if views { TransferMode::ZeroCopy } else { TransferMode::OnDemand };
        }
    }
    Ok(transfer_modes)
}

/// Why a storage is carried as it is.
fn reason(
    input: &PlanInput<'_>,
    storage: usize,
    transfer_mode: TransferMode,
    limit: Option<u64>,
) -> Reason {
    let groups = &input.groups_of[storage];
    match wish(input, storage) {
        TransferMode::Auto if groups.len() > 1 => {
            let names = groups.iter().map(|group| input.groups[*group].clone()).collect();
            Reason::TiedAcross(transfer_mode, names)
        }
        TransferMode::Auto if is_sparse(input, storage) && limit.is_none() => {
            Reason::Sparse(transfer_mode)
        }
        TransferMode::Auto
            if is_sparse(input, storage) && transfer_mode != TransferMode::OnDemand =>
        {
            Reason::Sparse(transfer_mode)
        }
        TransferMode::Auto if transfer_mode == TransferMode::Prefetch => Reason::Dense,
        TransferMode::Auto => Reason::TooBig { transfer_mode, slots: limit.unwrap_or(0) },
        asked => Reason::Asked(asked),
    }
}

/// Gathers storages into units: one for each transfer_mode that a group uses, and one for each storage that
/// several groups share. The units, and which each storage is in.
fn gather(
    input: &PlanInput<'_>,
    taken: &[usize],
    transfer_modes: &[TransferMode],
) -> (Vec<PlannedUnit>, Vec<usize>) {
    let mut units: Vec<PlannedUnit> = Vec::new();
    let mut private = vec![[None; TransferMode::KINDS]; input.groups.len()];
    let mut unit_of = Vec::with_capacity(taken.len());
    for (&storage, &transfer_mode) in taken.iter().zip(transfer_modes) {
        let groups = &input.groups_of[storage];
        let next = units.len();
        let unit = match groups.len() {
            1 => *private[groups[0]][transfer_mode as usize].get_or_insert(next),
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
        units[unit].bytes += input.rounded(storage);
        unit_of.push(unit);
    }
    (units, unit_of)
}
