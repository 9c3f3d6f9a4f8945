//! One try of a search: a set of storages that leave, a ring for them, and what they take and cost.

use crate::plan::input::PlanInput;
use crate::plan::leaving::Candidate;
use crate::plan::parameter::TransferMode;
use crate::plan::placement::{PrefetchLimits, too_large_mode};
use crate::plan::slot_ring::{MOST_DEPTH, RingShape, SlotRing, UnitSize};
use crate::plan::step_model::{StepLoad, StepRing};

/// What is varied beside the storages that leave.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// Index of an order.
    pub order: usize,
    /// The shape of the ring.
    pub shape: RingShape,
    /// Bytes of a group in the ring, at most, as far as modes are free.
    pub prefetch_limit: Option<u64>,
}

/// A set of storages with a ring, and what follows from it.
#[derive(Debug)]
pub struct Trial {
    /// Bytes over the budget, of the device or of slots.
    pub short: u64,
    /// What plans are compared by; the least is the best.
    pub key: Key,
    /// The shape of the ring.
    pub shape: RingShape,
    /// Bytes of the slots of prefetched units.
    pub ring_bytes: u64,
    /// Storages and units that were inspected.
    pub work: usize,
}

/// What plans are compared by: first the cost, at last the slots.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Key {
    /// Of the step model.
    pub cost: f64,
    /// Whether copies stall at the end of a step.
    pub stalls: bool,
    /// Bytes that leave.
    pub offloaded_bytes: u64,
    /// Bytes of all slots.
    pub slot_bytes: u64,
}

/// What every try of a search needs.
pub struct Trials<'a> {
    input: &'a PlanInput<'a>,
    budget: u64,
    /// Bytes of all storages on the device.
    pub all_bytes: u64,
    /// 0, 1, 2, ...: a slice of it names one group.
    group_ids: Vec<usize>,
}

impl<'a> Trials<'a> {
    /// Tries against a budget of device memory.
    pub fn new(input: &'a PlanInput<'a>, budget: u64) -> Self {
        let all_bytes = (0..input.storages.len()).map(|at| input.rounded_bytes(at)).sum();
        Self { input, budget, all_bytes, group_ids: (0..input.groups.len()).collect() }
    }

    /// Tries the candidates at these positions, which have `bytes` bytes.
    pub fn run(
        &self,
        candidates: &[Candidate],
        positions: &[u32],
        bytes: u64,
        variant: Variant,
    ) -> Trial {
        let taken = positions.iter().map(|position| &candidates[*position as usize]);
        let (units, mut load) = self.units(taken, variant.prefetch_limit);
        for unit in &units {
            let bytes_of = match unit.transfer_mode {
                TransferMode::Prefetch => &mut load.prefetched,
                _ => &mut load.on_demand,
            };
            unit.groups.iter().for_each(|group| bytes_of[*group] += unit.bytes);
        }
        let slots = self.slots(&units, variant.shape);
        let ring = StepRing { groups: &slots.ring, shape: slots.shape() };
        let over_slots =
            slots.ring_bytes.saturating_sub(self.input.options.slot_bytes.unwrap_or(u64::MAX));
        let used = self.all_bytes - bytes + slots.slot_bytes;
        Trial {
            short: used.saturating_sub(self.budget).max(over_slots),
            key: Key {
                cost: self.input.model.cost(&load, ring),
                stalls: slots.wrap_stalls && slots.streams(),
                offloaded_bytes: bytes,
                slot_bytes: slots.slot_bytes,
            },
            shape: slots.shape(),
            ring_bytes: slots.ring_bytes,
            work: 2 * positions.len() + 8 * units.len(),
        }
    }

    /// The slots in a shape. Those of a short ring may have space for all of its groups, so that
    /// nothing is copied: of three groups each two are neighbours.
    fn slots(&self, units: &[UnitSize<'_>], shape: RingShape) -> SlotRing {
        let slots = SlotRing::with_shape(units, shape);
        let groups = slots.ring.len();
        if self.input.options.depth == 0 && slots.streams() && groups <= MOST_DEPTH {
            let all = SlotRing::with_shape(units, RingShape { depth: groups, wraps: true });
            if all.ring_bytes <= slots.ring_bytes {
                return all;
            }
        }
        slots
    }

    /// The units of candidates that are copied, and the bytes of those that are read in place.
    fn units<'b>(
        &self,
        taken: impl Iterator<Item = &'b Candidate> + Clone,
        prefetch_limit: Option<u64>,
    ) -> (Vec<UnitSize<'_>>, StepLoad) {
        let input = self.input;
        let groups = input.groups.len();
        let mut load = StepLoad::new(groups);
        let (mut prefetched, mut on_demand) = (vec![0u64; groups], vec![0u64; groups]);
        let mut units: Vec<UnitSize<'_>> = Vec::new();
        let mut limits = prefetch_limit.map(|limit| {
            let mut limits = PrefetchLimits::new(groups, limit);
            let fixed = |one: &&Candidate| one.mode == TransferMode::Prefetch && !one.free;
            for one in taken.clone().filter(fixed) {
                limits.require(&input.groups_of[one.storage as usize], one.bytes);
            }
            limits
        });
        for candidate in taken {
            let (storage, group) = (candidate.storage as usize, candidate.group as usize);
            let mut mode = candidate.mode;
            if let Some(limits) = &mut limits
                && mode == TransferMode::Prefetch
                && candidate.free
                && !limits.admit(group, candidate.bytes)
            {
                mode = too_large_mode(input.platform.views);
            }
            match mode {
                TransferMode::ZeroCopy if !candidate.dense => {}
                TransferMode::ZeroCopy => {
                    let bytes = input.storages[storage].bytes;
                    let dense = input.dense_groups(storage);
                    dense.iter().for_each(|group| load.read[*group] += bytes);
                }
                transfer_mode if candidate.shared => {
                    let groups = &input.groups_of[storage];
                    units.push(UnitSize { transfer_mode, bytes: candidate.bytes, groups });
                }
                TransferMode::Prefetch => prefetched[group] += candidate.bytes,
                _ => on_demand[group] += candidate.bytes,
            }
        }
        for (transfer_mode, bytes) in
            [(TransferMode::Prefetch, &prefetched), (TransferMode::OnDemand, &on_demand)]
        {
            let own = bytes.iter().zip(self.group_ids.chunks(1)).filter(|(bytes, _)| **bytes > 0);
            let unit =
                |(bytes, groups): (&u64, _)| UnitSize { transfer_mode, bytes: *bytes, groups };
            units.extend(own.map(unit));
        }
        (units, load)
    }
}
