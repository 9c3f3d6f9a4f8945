//! Planning: which storages may leave the device, which of them do, and the resulting plan.

use crate::error::{Error, Result, fail};
use crate::plan::device_budget::{self, Choice, Outcome};
use crate::plan::input::PlanInput;
use crate::plan::leaving::{Leaving, Stays};
use crate::plan::parameter::{Parameter, Storage};
use crate::plan::placement::{PlacedStorage, Placement};
use crate::plan::plan::{
    ALIGNMENT, Budget, Plan, PlanOptions, PlannedGroup, PlannedParameter, PlannedStorage, Platform,
};
use crate::plan::reason::Reason;
use crate::plan::selector::SelectorList;
use crate::plan::step_model::StepRing;
use crate::plan::warnings;
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_EVERYTHING_FITS, WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR,
    WB_ERR_SLOTS_BUDGET, wb_status,
};

/// Plans which of the parameters are offloaded under the options' budget, and how each is
/// transferred.
pub fn plan(parameters: Vec<Parameter>, options: PlanOptions, platform: &Platform) -> Result<Plan> {
    let input = PlanInput::new(parameters, options, platform)?;
    let reasons = vec![None; input.storages.len()];
    Planner { input, reasons, warnings: Vec::new() }.plan()
}

/// The state of planning.
struct Planner<'a> {
    input: PlanInput<'a>,
    /// Why each storage is resident, as far as it is known; `None` for those that may be offloaded.
    reasons: Vec<Option<Reason>>,
    warnings: Vec<String>,
}

impl Planner<'_> {
    fn plan(mut self) -> Result<Plan> {
        self.select()?;
        let placement = self.choose()?;
        self.check_outcome(&placement)?;
        Ok(self.finish(placement))
    }

    /// Finds the storages that must stay resident.
    fn select(&mut self) -> Result<()> {
        let mut select = SelectorList::parse(&self.input.options.select)?;
        let mut exclude = SelectorList::parse(&self.input.options.exclude)?;
        let parameters = &self.input.parameters;
        for (storage, reason) in self.input.storages.iter().zip(&mut self.reasons) {
            if storage.bytes == 0 {
                *reason = Some(Reason::Empty);
            }
            // All parameters are matched, so that every selector that matches one is noted.
            for (index, _) in &storage.parameters {
                let found = reason_to_stay(&parameters[*index], storage, &mut select, &mut exclude);
                if reason.is_none() {
                    *reason = found;
                }
            }
        }
        for text in select.unmatched().chain(exclude.unmatched()) {
            let count = parameters.len();
            let message = format!("the selector {text:?} matches none of the {count} parameters");
            let allowed = self.input.options.allowed.unmatched_selector;
            fail_or_warn(&mut self.warnings, allowed, WB_ERR_SELECTOR, message)?;
        }
        Ok(())
    }

    /// Chooses the storages that are offloaded.
    fn choose(&mut self) -> Result<Placement> {
        let candidates: Vec<usize> =
            (0..self.input.storages.len()).filter(|at| self.reasons[*at].is_none()).collect();
        match self.input.options.budget {
            Budget::OffloadBytes(budget) => self.fit_into_host(&candidates, budget),
            Budget::DeviceBytes(budget) => self.fit_into_device(&candidates, budget),
        }
    }

    /// Offloads the storages that fit into `budget` bytes of host memory, in whole pages.
    fn fit_into_host(&mut self, candidates: &[usize], budget: u64) -> Result<Placement> {
        let leaving = Leaving::new(&self.input, candidates)?;
        let whole_pages = budget - budget % self.input.platform.page_bytes;
        let reasons = &mut self.reasons;
        let taken = leaving.take(whole_pages, |candidate, stays| {
            reasons[candidate.storage as usize] = Some(match stays {
                Stays::TooLarge { left } => Reason::BudgetLeft { left, needs: candidate.bytes },
                Stays::Tiny => Reason::Tiny,
            });
        });
        let storage = |position: &u32| leaving.0[*position as usize].storage as usize;
        let storages = taken.positions.iter().map(storage).collect();
        self.place_within_slots(storages)
    }

    /// Places the storages within the options' slots. Where these are too small for the depth that
    /// is asked for, less of each group is prefetched, as far as modes are free.
    fn place_within_slots(&self, storages: Vec<usize>) -> Result<Placement> {
        let PlanOptions { depth, slot_bytes, .. } = self.input.options;
        let place = |limit| Placement::new(&self.input, storages.clone(), limit, None);
        let placed = place(slot_bytes);
        let (Some(slot_bytes), Err(error)) = (slot_bytes, &placed) else { return placed };
        if depth < 2 || error.status != WB_ERR_SLOTS_BUDGET {
            return placed;
        }
        let (mut fitting, mut too_large) = (place(Some(0))?, slot_bytes / ALIGNMENT);
        let mut fits = 0;
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            match place(Some(middle * ALIGNMENT)) {
                Ok(placement) => (fitting, fits) = (placement, middle),
                Err(_) => too_large = middle,
            }
        }
        Ok(fitting)
    }

    /// Offloads the storages with which a step is fastest, while the others and the slots fit into
    /// `budget` bytes of device memory.
    fn fit_into_device(&mut self, candidates: &[usize], budget: u64) -> Result<Placement> {
        let choice = match device_budget::choose(&self.input, candidates, budget)? {
            Outcome::Fits(choice) => choice,
            Outcome::TooSmall { slots } => {
                let candidate_bytes: u64 =
                    candidates.iter().map(|at| self.input.rounded_bytes(*at)).sum();
                let resident = self.all_bytes() - candidate_bytes;
                let depth = match self.input.options.depth {
                    0 => String::new(),
                    depth => format!(", with depth {depth},"),
                };
                fail!(
                    WB_ERR_BUDGET,
                    "asked for {budget} bytes of device memory; parameters that must stay resident need \
                     {resident} and the slots for the others{depth} {slots}: raise device_bytes, select \
                     more, ask for less depth, or let the device read host memory in place \
                     (transfer_mode zero-copy)"
                );
            }
            Outcome::AllInPlace { needs } => fail!(
                WB_ERR_BUDGET,
                "asked for {budget} bytes of device memory, which have no space for slots: all parameters \
                 would be read in place in every step. Raise device_bytes to {needs}, or ask for \
                 transfer_mode zero-copy"
            ),
        };
        for storage in candidates {
            self.reasons[*storage] = Some(Reason::Fits);
        }
        let Choice { storages, prefetch_limit, shape } = choice;
        Placement::new(&self.input, storages, prefetch_limit, Some(shape))
    }

    /// Bytes of all storages on the device.
    fn all_bytes(&self) -> u64 {
        (0..self.input.storages.len()).map(|at| self.input.rounded_bytes(at)).sum()
    }

    /// Fails if nothing is offloaded, unless that is allowed.
    fn check_outcome(&mut self, placement: &Placement) -> Result<()> {
        if !placement.storages.is_empty() {
            return Ok(());
        }
        let allow = self.input.options.allowed;
        let (allowed, status, message) = match self.input.options.budget {
            Budget::DeviceBytes(budget) => (
                allow.everything_fits || allow.nothing_offloaded,
                WB_ERR_EVERYTHING_FITS,
                format!(
                    "all parameters fit into the {budget} bytes of device memory: nothing needs to be \
                     offloaded"
                ),
            ),
            Budget::OffloadBytes(budget) => {
                (allow.nothing_offloaded, WB_ERR_NOTHING_OFFLOADED, self.why_nothing_fits(budget))
            }
        };
        fail_or_warn(&mut self.warnings, allowed, status, message)
    }

    fn why_nothing_fits(&self, budget: u64) -> String {
        let smallest = (0..self.input.storages.len())
            .filter(|at| matches!(self.reasons[*at], Some(Reason::BudgetLeft { .. })))
            .min_by_key(|at| self.input.storages[*at].bytes);
        match smallest {
            Some(at) => format!(
                "{budget} bytes offload nothing: the smallest selected parameter, {:?}, needs {} bytes \
                 of host memory in whole pages",
                self.input.parameters[self.input.storages[at].parameters[0].0].name,
                self.input.rounded_bytes(at).next_multiple_of(self.input.platform.page_bytes)
            ),
            None => "nothing is offloaded: no selected parameter has any bytes".into(),
        }
    }

    fn finish(mut self, mut placement: Placement) -> Plan {
        let placed = placement.lay_out(&self.input);
        warnings::of_slots(&self.input, &placement, &mut self.warnings);
        for (at, placed) in placed.iter().enumerate() {
            if let Some(PlacedStorage { transfer_mode, .. }) = placed {
                self.reasons[at] = Some(placement.reason(&self.input, at, *transfer_mode));
            }
        }
        warnings::of_modes(&self.input, &self.reasons, &mut self.warnings);
        let load = placement.load(&self.input);
        let step_bytes = load.copied_bytes(placement.slots.streams());
        let ring = StepRing { groups: &placement.slots.ring, shape: placement.slots.shape() };
        let model = &self.input.model;
        let step_seconds = model.step_seconds(&load, ring);
        let link_seconds = model.link_seconds(&load, ring);
        let kernel_seconds = model.kernel_seconds();
        #[cfg(test)]
        let cost = model.cost(&load, ring);
        let mut storage_of = vec![(0, 0); self.input.parameters.len()];
        for (at, storage) in self.input.storages.iter().enumerate() {
            for (index, offset) in &storage.parameters {
                storage_of[*index] = (at, *offset);
            }
        }
        let mut groups: Vec<PlannedGroup> = self
            .input
            .groups
            .into_iter()
            .map(|name| PlannedGroup { name, ..PlannedGroup::default() })
            .collect();
        for (at, unit) in placement.units.iter().enumerate() {
            unit.groups.iter().for_each(|group| groups[*group].units.push(at));
        }
        for (position, group) in placement.slots.ring.iter().enumerate() {
            groups[*group].ring_position = Some(position);
        }
        let (mut resident_bytes, mut payload_bytes, mut offloaded_payload_bytes) = (0, 0, 0);
        let mut storages = Vec::with_capacity(self.input.storages.len());
        for (at, storage) in self.input.storages.into_iter().enumerate() {
            let first = &mut groups[self.input.groups_of[at][0]];
            payload_bytes += storage.bytes;
            match placed[at] {
                Some(_) => {
                    offloaded_payload_bytes += storage.bytes;
                    first.offloaded_bytes += storage.bytes;
                }
                None => {
                    resident_bytes += storage.bytes.next_multiple_of(ALIGNMENT);
                    first.resident_bytes += storage.bytes;
                }
            }
            storages.push(PlannedStorage {
                bytes: storage.bytes,
                unit: placed[at].map(|placed| placed.unit as usize),
                offset_in_unit: placed[at].map_or(0, |placed| placed.offset),
                parameters: storage.parameters.iter().map(|(index, _)| *index).collect(),
            });
        }
        let parameters = self
            .input
            .parameters
            .into_iter()
            .zip(self.input.group_of)
            .zip(storage_of)
            .map(|((parameter, group), (storage, offset))| {
                let transfer_mode = placed[storage].map(|placed| placed.transfer_mode);
                let reason = self.reasons[storage].clone().unwrap_or(Reason::Fits);
                PlannedParameter { parameter, group, storage, offset, transfer_mode, reason }
            })
            .collect();
        let arena_payload: u64 = placement.units.iter().map(|unit| unit.bytes).sum();
        Plan {
            parameters,
            storages,
            groups,
            ring: placement.slots.ring,
            depth: placement.slots.depth,
            wrap_stalls: placement.slots.wrap_stalls,
            arena_bytes: arena_payload.next_multiple_of(self.input.platform.page_bytes),
            slot_bytes: placement.slots.slot_bytes,
            ring_bytes: placement.slots.ring_bytes,
            resident_bytes,
            payload_bytes,
            offloaded_payload_bytes,
            step_bytes,
            view_bytes: load.read_bytes(),
            step_seconds,
            link_seconds,
            kernel_seconds,
            #[cfg(test)]
            cost,
            units: placement.units,
            warnings: self.warnings,
            options: self.input.options,
        }
    }
}

/// Why a parameter keeps its storage resident; `None` if it may be offloaded.
fn reason_to_stay(
    parameter: &Parameter,
    storage: &Storage,
    select: &mut SelectorList,
    exclude: &mut SelectorList,
) -> Option<Reason> {
    let name = parameter.name.as_str();
    let selected = select.find_match(name).is_some() || select.is_empty();
    let excluded = exclude.find_match(name);
    if parameter.resident {
        return Some(Reason::RequestedResident(name.into()));
    }
    match excluded {
        Some(by) => Some(Reason::Excluded(by.into())),
        None if selected => None,
        None if storage.parameters.len() > 1 => Some(Reason::TiedToUnselected(name.into())),
        None => Some(Reason::NotSelected),
    }
}

/// Fails, or warns where the outcome is allowed.
fn fail_or_warn(
    warnings: &mut Vec<String>,
    allowed: bool,
    status: wb_status,
    message: String,
) -> Result<()> {
    if !allowed {
        return Err(Error::new(status, message));
    }
    warnings.push(message);
    Ok(())
}
