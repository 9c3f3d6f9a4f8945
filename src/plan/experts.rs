//! The experts that a plan offloads, and the hit rate that it predicts of their caches.

use std::collections::HashMap;

use crate::plan::parameter::AccessPattern;
use crate::plan::plan::{Plan, PlannedStorage};
use crate::plan::reason::Reason;

/// Experts that are offloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlannedExperts {
    /// Experts of all groups.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PlannedExperts {
    /// How many have slots in caches of these bytes, about: with fixed addresses the state of a cache takes
    /// a whole piece.
    fn slots_in(&self, plan: &Plan) -> u64 {
        let bytes = plan.expert_bytes.saturating_sub(plan.granularity.unwrap_or(0));
        let each = self.bytes.checked_div(self.count).unwrap_or(0).max(1);
        (bytes / each).min(self.count)
    }
}

/// The part of the experts' uses that `slots` slots are predicted to serve. It is that of a router which
/// picks all experts equally often, whatever it picked before: then no policy finds more or fewer. Real
/// routers repeat themselves, so a cache finds more.
pub fn predicted_hit_rate(slots: u64, experts: u64) -> f64 {
    if experts == 0 { 0.0 } else { slots.min(experts) as f64 / experts as f64 }
}

impl Plan {
    /// Whether a storage is offloaded, and all of its parameters are experts.
    fn has_experts(&self, storage: &PlannedStorage) -> bool {
        let is_expert =
            |at: &usize| self.parameters[*at].parameter.access_pattern == AccessPattern::Experts;
        storage.unit.is_some() && storage.parameters.iter().all(is_expert)
    }

    /// Whether experts are in pieces, of which some are not on the device. They stay as a whole, or leave to
    /// be carried by caches.
    pub fn splits_experts(&self) -> bool {
        let is_split = |at: usize| {
            let planned = &self.parameters[at].parameter;
            planned.access_pattern == AccessPattern::Experts
                && self.storages[self.parameters[at].storage].pieces.is_some()
                && self.resident_bytes_of(at) < planned.layout.span_bytes()
        };
        (0..self.parameters.len()).any(is_split)
    }

    /// The experts that are offloaded.
    pub fn experts(&self) -> PlannedExperts {
        let (mut bytes, mut experts_of) = (0, HashMap::new());
        for storage in self.storages.iter().filter(|storage| self.has_experts(storage)) {
            let parameters = || storage.parameters.iter().map(|at| &self.parameters[*at]);
            let shape = parameters().next().map(|one| one.parameter.layout.shape());
            let experts = shape.and_then(|shape| shape.first()).map_or(1, |count| *count as u64);
            bytes += storage.bytes;
            let group = parameters().map(|one| one.group).min();
            let of_group = experts_of.entry(group).or_insert(0);
            *of_group = experts.max(*of_group);
        }
        PlannedExperts { count: experts_of.values().sum(), bytes }
    }

    /// The predicted hit rate of the caches; `None` without experts, or if no budget limits the caches.
    pub fn expert_hit_rate(&self) -> Option<f64> {
        let experts = self.experts();
        let is_known = experts.count > 0 && self.expert_bytes > 0;
        is_known.then(|| predicted_hit_rate(experts.slots_in(self), experts.count))
    }

    /// Says why experts are where they are.
    pub fn say_experts(&mut self) {
        let experts = self.experts();
        let slots = experts.slots_in(self);
        let reason = Reason::Experts { bytes: self.expert_bytes, slots, experts: experts.count };
        for at in 0..self.parameters.len() {
            if self.has_experts(&self.storages[self.parameters[at].storage]) {
                self.parameters[at].reason = reason.clone();
            }
        }
    }
}
