//! One try of a search: a set of storages that leave, a ring for them, and what they take and cost.

use crate::plan::group_bytes::GroupBytes;
use crate::plan::input::PlanInput;
use crate::plan::leaving::{Candidate, Step};
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

impl Key {
    /// Of a plan in which nothing leaves.
    pub const NOTHING: Self = Self { cost: 0.0, stalls: false, offloaded_bytes: 0, slot_bytes: 0 };
}

/// What every try of a search needs.
pub struct Trials<'a> {
    input: &'a PlanInput<'a>,
    budget: u64,
    /// Bytes of all storages on the device.
    pub all_bytes: u64,
    /// Of each group, the bytes in the ring of storages that are kept compressed unless they leave.
    kept_carried: GroupBytes,
    /// Bytes that these are decoded to.
    kept: GroupBytes,
    /// 0, 1, 2, ...: a slice of it names one group.
    group_ids: Vec<usize>,
}

impl<'a> Trials<'a> {
    /// Tries against a budget of device memory.
    pub fn new(input: &'a PlanInput<'a>, budget: u64) -> Self {
        let all_bytes = (0..input.storages.len()).map(|at| input.rounded_bytes(at)).sum();
        let (kept_carried, kept) = (GroupBytes::default(), GroupBytes::default());
        let group_ids = (0..input.groups.len()).collect();
        Self { input, budget, all_bytes, kept_carried, kept, group_ids }
    }

    /// Has those of the storages kept compressed that can be, unless they are taken.
    pub fn keep_all(&mut self, storages: &[usize]) {
        for &storage in storages {
            let Some(kept) = self.input.kept_bytes(storage) else { continue };
            let group = self.input.groups_of[storage][0];
            let carried = self.input.carried_bytes(storage, TransferMode::Prefetch);
            self.all_bytes -= self.input.rounded_bytes(storage) - kept;
            *self.kept_carried.of(group) += carried;
            *self.kept.of(group) += self.input.storages[storage].bytes;
        }
    }

    /// The groups with storages that are kept in any case.
    pub fn kept_groups(&self) -> impl Iterator<Item = u32> {
        self.kept_carried.used().map(|(group, _)| group as u32)
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
        let (units, load) = self.units(taken, variant.prefetch_limit);
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

    /// The units of candidates that are copied, and what a step moves of all of them.
    fn units<'b>(
        &self,
        taken: impl Iterator<Item = &'b Candidate> + Clone,
        prefetch_limit: Option<u64>,
    ) -> (Vec<UnitSize<'_>>, StepLoad) {
        let input = self.input;
        let groups = input.groups.len();
        let mut load = StepLoad::new(groups);
        load.kept.clone_from(&self.kept);
        let (mut prefetched, mut on_demand) = (GroupBytes::new(groups), GroupBytes::new(groups));
        // A unit of its own, since it does not wait for the link.
        let mut kept = self.kept_carried.clone();
        let mut units: Vec<UnitSize<'_>> = Vec::new();
        let mut limits = prefetch_limit.map(|limit| {
            let mut limits = PrefetchLimits::new(groups, limit);
            for (group, carried) in self.kept_carried.used() {
                limits.require(&[group], carried);
            }
            let fixed = |one: &&Candidate| {
                one.mode == TransferMode::Prefetch && !one.free && one.step != Step::KeptLeaves
            };
            for one in taken.clone().filter(fixed) {
                limits.require(&input.groups_of[one.storage as usize], one.carried(input));
            }
            limits
        });
        for candidate in taken {
            let (storage, group) = (candidate.storage as usize, candidate.group as usize);
            let mut mode = candidate.mode;
            match candidate.step {
                Step::Leaves => {}
                Step::IsKept => {
                    *load.kept.of(group) += input.storages[storage].bytes;
                    *kept.of(group) += candidate.carried(input);
                    continue;
                }
                Step::KeptLeaves => {
                    *load.kept.of(group) -= input.storages[storage].bytes;
                    *kept.of(group) -= candidate.carried(input);
                }
            }
            if let Some(limits) = &mut limits
                && mode == TransferMode::Prefetch
                && candidate.free
                && !limits.admit(group, candidate.carried(input))
            {
                mode = too_large_mode(input.platform.views);
            }
            let (copied, own) = match mode {
                TransferMode::ZeroCopy => {
                    if candidate.dense {
                        let bytes = input.storages[storage].bytes;
                        let dense = input.dense_groups(storage);
                        dense.iter().for_each(|group| *load.read.of(*group) += bytes);
                    }
                    continue;
                }
                TransferMode::Prefetch => (&mut load.prefetched, &mut prefetched),
                _ => (&mut load.on_demand, &mut on_demand),
            };
            if candidate.shared {
                let groups = &input.groups_of[storage];
                groups.iter().for_each(|group| *copied.of(*group) += candidate.link(input));
                let bytes = candidate.carried(input);
                units.push(UnitSize { transfer_mode: mode, bytes, groups });
            } else {
                // Without a look at the input, which is not in the order of leaving.
                *copied.of(group) += candidate.link(input);
                *own.of(group) += candidate.carried(input);
            }
        }
        for (transfer_mode, bytes) in [
            (TransferMode::Prefetch, &prefetched),
            (TransferMode::Prefetch, &kept),
            (TransferMode::OnDemand, &on_demand),
        ] {
            units.extend(bytes.used().map(|(group, bytes)| UnitSize {
                transfer_mode,
                bytes,
                groups: &self.group_ids[group..=group],
            }));
        }
        (units, load)
    }
}
