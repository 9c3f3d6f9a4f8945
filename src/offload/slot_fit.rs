//! Slots for the few units that a change has moved, between those of all others, which do not move: it takes
//! the time of what changes, however many units there are.

use std::cmp::Reverse;

use crate::error::Result;
use crate::offload::edit::Edit;
use crate::offload::state::OffloadState;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::ALIGNMENT;
use crate::plan::slot_packing::{MOST_NEIGHBOURS, concurrent, first_gap};
use crate::plan::slot_ring::MOST_DEPTH;

/// Units without memory that are kept, beside a part of all, until all units get slots again.
const FEW_VACANT: usize = 64;

impl Edit<'_> {
    /// Gives units slots between those of all others, and lays these units out. Returns whether there
    /// was space; otherwise all units need slots again, of which there may be more, or deeper ones.
    pub(super) fn fit_slots(&mut self, mut units: Vec<usize>) -> Result<bool> {
        let state = &mut *self.state;
        units.extend(self.schedule.units()..state.host.units().len());
        units.sort_unstable();
        units.dedup();
        for &unit in &units {
            let in_source = state.host.units()[unit].in_source;
            let buffer = state.host.vacate_if_empty(unit);
            self.dropped.extend(buffer.filter(|_| in_source));
        }
        if state.host.vacant_units() > FEW_VACANT + state.host.units().len() / 8 {
            return Ok(false);
        }
        let depth_is_free = self.offloader.options().depth == 0;
        if state.addresses.is_some() || depth_is_free && state.has_space_for_depth() {
            return Ok(false);
        }
        let mut order = units.clone();
        order.sort_by_key(|unit| Reverse(state.host.extent(*unit, None)));
        if !order.into_iter().all(|unit| state.fit_slot(unit)) {
            return Ok(false);
        }
        let changed = units.into_iter().map(|unit| (unit, state.carried_unit(unit)));
        self.schedule.change_units(changed.collect())?;
        Ok(true)
    }
}

impl OffloadState {
    /// Whether a deeper ring fits in the slots for certain.
    fn has_space_for_depth(&self) -> bool {
        if self.depth >= MOST_DEPTH.min(self.ring.len()) {
            return false;
        }
        // A ring that wraps may need a position more than one that does not.
        let needs = self.host.slot_sums().after(self.depth + 2, &[]);
        let most = self.held_bytes().slot_bytes;
        needs.ring <= self.ring_bytes && needs.ring + needs.on_demand <= most
    }

    /// Gives a unit a slot that no unit has at the same time: its own, if that is large enough, or the
    /// first. Returns whether there is one.
    fn fit_slot(&mut self, unit: usize) -> bool {
        let carried = &self.host.units()[unit];
        let (own, mode) = (carried.slot_offset, carried.transfer_mode);
        let (from, to) = match mode {
            TransferMode::Prefetch => (0, self.ring_bytes),
            TransferMode::OnDemand => (self.ring_bytes, self.held_bytes().slot_bytes),
            _ => return true,
        };
        if self.host.is_vacant(unit) {
            self.host.set_slot(unit, None);
            return true;
        }
        let Some(near) = self.groups_near(mode, &carried.groups) else { return false };
        let extent = |unit: usize| self.host.extent(unit, None).next_multiple_of(ALIGNMENT);
        let mut taken = Vec::new();
        for other in near.into_iter().flat_map(|group| self.host.units_of_group(group)) {
            let neighbour = &self.host.units()[other];
            if other != unit && neighbour.transfer_mode == mode {
                let slot = neighbour.slot_offset.map(|start| (start, start + extent(other)));
                taken.extend(slot);
            }
            if taken.len() > MOST_NEIGHBOURS {
                return false;
            }
        }
        taken.sort_unstable();
        let needs = extent(unit);
        let is_free = |start: &u64| {
            let end = start + needs;
            end <= to && taken.iter().all(|(from, to)| end <= *from || *to <= *start)
        };
        let first = Some(first_gap(&taken, from, needs));
        let found = own.filter(is_free).or(first.filter(|start| start + needs <= to));
        if found.is_some() {
            self.host.set_slot(unit, found);
        }
        found.is_some()
    }

    /// The groups whose units are in slots at the same time as those of the given groups; `None` if
    /// one is not in the ring.
    fn groups_near(&self, mode: TransferMode, groups: &[usize]) -> Option<Vec<usize>> {
        if mode == TransferMode::OnDemand {
            return Some(groups.to_vec());
        }
        let position = |group: &usize| self.ring.binary_search(group).ok();
        let positions: Option<Vec<_>> = groups.iter().map(position).collect();
        let positions = positions?;
        let near = concurrent(&positions, self.ring.len(), self.depth, self.wraps);
        Some(near.map(|position| self.ring[position]).collect())
    }
}
