//! What a set of storages would be carried by: units, slots and depth.

use super::parameter::{Carrier, ParameterAccess};
use super::plan::Unit;
use super::planner::Planner;
use super::reason::Reason;
use super::seats::{Seats, Size};
use crate::error::{Result, fail};
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_SLOTS_BUDGET};

/// What becomes of a storage that leaves the device.
#[derive(Debug, Clone)]
pub struct Offloaded {
    pub carrier: Carrier,
    pub reason: Reason,
    pub unit: usize,
    pub offset: u64,
}

/// A set of storages with all that follows from it.
#[derive(Debug)]
pub struct Draft {
    /// The storages, in the order in which they were taken.
    pub taken: Vec<usize>,
    carriers: Vec<Carrier>,
    unit_of: Vec<usize>,
    pub units: Vec<Unit>,
    pub seats: Seats,
    /// The most bytes that a group may have to be copied ahead.
    limit: Option<u64>,
}

impl Draft {
    /// Carries the storages within the options' bytes for slots, and `room` where that is given: as
    /// well as they go, which the caller checks.
    pub fn new(planner: &Planner<'_>, taken: &[usize], room: Option<u64>) -> Result<Self> {
        let option = planner.options.slot_bytes;
        // Reading in place is the way out for what is too big; on demand it needs as much room.
        let limit = match planner.platform.views {
            true => option.into_iter().chain(room).min(),
            false => option,
        };
        let carriers = carry(planner, taken, limit)?;
        let (units, unit_of) = gather(planner, taken, &carriers);
        let mut draft = Self {
            taken: taken.to_vec(),
            carriers,
            unit_of,
            units,
            seats: Seats::default(),
            limit,
        };
        draft.seat(planner, room)?;
        Ok(draft)
    }

    /// Gives every unit its place in the slots.
    fn seat(&mut self, planner: &Planner<'_>, room: Option<u64>) -> Result<()> {
        let option = planner.options.slot_bytes;
        let limit = option.into_iter().chain(room).min();
        let sizes: Vec<_> = self
            .units
            .iter()
            .map(|unit| Size { carrier: unit.carrier, bytes: unit.bytes, groups: &unit.groups })
            .collect();
        let seats = Seats::new(&sizes, planner.options.depth as usize, limit);
        if let Some(limit) = option
            && seats.ring_bytes > limit
        {
            let group = &planner.groups[seats.ring[0]];
            fail!(
                WB_ERR_SLOTS_BUDGET,
                "asked for slots of at most {limit} bytes; copying ahead from group {group:?} on needs \
                 {} even one group at a time: raise slot_bytes, offload less of each group, or choose \
                 another carrier",
                seats.ring_bytes
            );
        }
        for (unit, offset) in self.units.iter_mut().zip(&seats.offsets) {
            unit.slot_offset = *offset;
        }
        self.seats = Seats { offsets: Vec::new(), ..seats };
        Ok(())
    }

    /// Lays the units side by side and their storages into them, and says of each of the planner's
    /// storages, if it is offloaded, where it lies and why it goes as it does.
    pub fn lay_out(&mut self, planner: &Planner<'_>) -> Vec<Option<Offloaded>> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.sort_by_key(|unit| self.units[*unit].groups[0]);
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, unit)| place[*unit] = at);
        let mut units: Vec<Unit> = order.iter().map(|unit| self.units[*unit].clone()).collect();
        let mut offset = 0;
        for unit in &mut units {
            unit.arena_offset = offset;
            offset += unit.bytes;
            unit.bytes = 0;
        }
        let mut members: Vec<usize> = (0..self.taken.len()).collect();
        members.sort_unstable_by_key(|member| self.taken[*member]);
        let mut offloaded = vec![None; planner.storages.len()];
        for member in members {
            let (storage, carrier) = (self.taken[member], self.carriers[member]);
            let at = place[self.unit_of[member]];
            let unit = &mut units[at];
            let offset = unit.bytes;
            unit.bytes += planner.rounded(storage);
            unit.storages.push(storage);
            let reason = reason(planner, storage, carrier, self.limit);
            offloaded[storage] = Some(Offloaded { carrier, reason, unit: at, offset });
        }
        self.units = units;
        offloaded
    }

    /// Bytes copied in a step, and bytes read in place if all of what is dense is read. The units are
    /// laid out.
    pub fn link_bytes(&self, planner: &Planner<'_>) -> (u64, u64) {
        let (mut copied, mut read) = (0, 0);
        for unit in &self.units {
            let uses = unit.groups.len() as u64;
            match unit.carrier {
                Carrier::View => {
                    let dense = unit.storages.iter().filter(|storage| {
                        let (first, _) = planner.storages[**storage].parameters[0];
                        planner.parameters[first].access == ParameterAccess::Dense
                    });
                    read += dense.map(|at| planner.storages[*at].bytes * uses).sum::<u64>();
                }
                // With a place for every group each is copied once and stays.
                Carrier::Prefetch if self.seats.ring.len() <= self.seats.depth => {}
                _ => copied += unit.bytes * uses,
            }
        }
        (copied, read)
    }
}

/// What a storage's own parameters, or else the options, ask for.
fn wish(planner: &Planner<'_>, storage: usize) -> Carrier {
    planner.storages[storage]
        .parameters
        .iter()
        .filter_map(|(index, _)| planner.parameters[*index].carrier)
        .find(|carrier| *carrier != Carrier::Auto)
        .unwrap_or(planner.options.carrier)
}

fn is_sparse(planner: &Planner<'_>, storage: usize) -> bool {
    let parameters = &planner.storages[storage].parameters;
    parameters.iter().all(|(index, _)| planner.parameters[*index].access == ParameterAccess::Sparse)
}

/// The carrier of each storage.
fn carry(planner: &Planner<'_>, taken: &[usize], limit: Option<u64>) -> Result<Vec<Carrier>> {
    let views = planner.platform.views;
    let mut carriers = Vec::with_capacity(taken.len());
    let mut ahead = vec![0; planner.groups.len()];
    for &storage in taken {
        let groups = &planner.groups_of[storage];
        let carrier = match wish(planner, storage) {
            Carrier::View if !views => fail!(
                WB_ERR_NOT_MAPPED,
                "parameter {:?} is to be read in place, and views are off: {}",
                planner.parameters[planner.storages[storage].parameters[0].0].name,
                planner.platform.views_reason
            ),
            Carrier::Auto if views && (groups.len() > 1 || is_sparse(planner, storage)) => {
                Carrier::View
            }
            // Not in the ring, where a place for several turns would leave gaps.
            Carrier::Auto if groups.len() > 1 => Carrier::OnDemand,
            Carrier::Auto => Carrier::Prefetch,
            asked => asked,
        };
        if carrier == Carrier::Prefetch {
            groups.iter().for_each(|group| ahead[*group] += planner.rounded(storage));
        }
        carriers.push(carrier);
    }
    let Some(slots) = limit else { return Ok(carriers) };
    for (&storage, carrier) in taken.iter().zip(&mut carriers) {
        let bytes = planner.groups_of[storage].iter().map(|group| ahead[*group]).max();
        let too_big = bytes.is_some_and(|bytes| bytes > slots);
        if *carrier == Carrier::Prefetch && too_big && wish(planner, storage) == Carrier::Auto {
            *carrier = if views { Carrier::View } else { Carrier::OnDemand };
        }
    }
    Ok(carriers)
}

/// Why a storage is carried as it is.
fn reason(planner: &Planner<'_>, storage: usize, carrier: Carrier, limit: Option<u64>) -> Reason {
    let groups = &planner.groups_of[storage];
    match wish(planner, storage) {
        Carrier::Auto if groups.len() > 1 => {
            let names = groups.iter().map(|group| planner.groups[*group].clone()).collect();
            Reason::TiedAcross(carrier, names)
        }
        Carrier::Auto if is_sparse(planner, storage) && limit.is_none() => Reason::Sparse(carrier),
        Carrier::Auto if is_sparse(planner, storage) && carrier != Carrier::OnDemand => {
            Reason::Sparse(carrier)
        }
        Carrier::Auto if carrier == Carrier::Prefetch => Reason::Dense,
        Carrier::Auto => Reason::TooBig { carrier, slots: limit.unwrap_or(0) },
        asked => Reason::Asked(asked),
    }
}

/// Gathers storages into units: one for each carrier that a group uses, and one for each storage that
/// several groups share. The units, and which each storage is in.
fn gather(planner: &Planner<'_>, taken: &[usize], carriers: &[Carrier]) -> (Vec<Unit>, Vec<usize>) {
    let mut units: Vec<Unit> = Vec::new();
    let mut private = vec![[None; Carrier::KINDS]; planner.groups.len()];
    let mut unit_of = Vec::with_capacity(taken.len());
    for (&storage, &carrier) in taken.iter().zip(carriers) {
        let groups = &planner.groups_of[storage];
        let next = units.len();
        let unit = match groups.len() {
            1 => *private[groups[0]][carrier as usize].get_or_insert(next),
            _ => next,
        };
        if unit == next {
            units.push(Unit {
                carrier,
                groups: groups.to_vec(),
                arena_offset: 0,
                bytes: 0,
                slot_offset: None,
                storages: Vec::new(),
            });
        }
        units[unit].bytes += planner.rounded(storage);
        unit_of.push(unit);
    }
    (units, unit_of)
}
