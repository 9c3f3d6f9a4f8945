//! Planning: which storages may leave the device, which of them do, and the resulting plan.

use crate::error::{Error, Result, fail};
use crate::plan::compression::{ALL_WINDOWS, RawReason, windows_fit};
use crate::plan::device_budget::{self, Choice, Outcome};
use crate::plan::input::{PlanInput, coding_of};
use crate::plan::leaving::{Leaving, Stays};
use crate::plan::parameter::{Parameter, Storage, TransferMode};
use crate::plan::placement::{PlacedStorage, Placement};
use crate::plan::plan::{
    ALIGNMENT, Budget, HostStore, Plan, PlanOptions, PlannedGroup, PlannedParameter,
    PlannedStorage, Platform,
};
use crate::plan::reason::Reason;
use crate::plan::selector::SelectorList;
use crate::plan::slot_ring::RingShape;
use crate::plan::step_model::{StepLoad, StepModel, StepRing};
use crate::plan::warnings;
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_EVERYTHING_FITS, WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR,
    WB_ERR_SLOTS_BUDGET, wb_status,
};

/// Plans which of the parameters are offloaded under the options' budget, and how each is
/// transferred.
// Several callers: once is enough.
#[inline(never)]
pub fn plan(parameters: Vec<Parameter>, options: PlanOptions, platform: &Platform) -> Result<Plan> {
    plan_with_load(parameters, options, platform).map(|(plan, _)| plan)
}

/// As [`plan`], with what a step moves, for a prediction of other loads.
pub fn plan_with_load(
    parameters: Vec<Parameter>,
    options: PlanOptions,
    platform: &Platform,
) -> Result<(Plan, Prediction)> {
    let input = PlanInput::new(parameters, options, platform)?;
    let reasons = vec![None; input.storages.len()];
    Planner { input, reasons, expert_bytes: 0, warnings: Vec::new() }.plan()
}

/// What the times of a plan are predicted with, and of.
pub struct Prediction {
    model: StepModel,
    load: StepLoad,
}

impl Prediction {
    /// Predicts the times of a plan of which each group reads `read` bytes in place.
    pub fn with_read(mut self, plan: &mut Plan, read: Vec<u64>) {
        self.load.read = read.into();
        let shape = RingShape { depth: plan.depth, wraps: !plan.wrap_stalls };
        let ring = StepRing { groups: &plan.ring, shape };
        plan.step_seconds = self.model.step_seconds(&self.load, ring);
        plan.link_seconds = self.model.link_seconds(&self.load, ring);
    }
}

/// The state of planning.
struct Planner<'a> {
    input: PlanInput<'a>,
    /// Why each storage is resident, as far as it is known; `None` for those that may be offloaded.
    reasons: Vec<Option<Reason>>,
    /// Device memory for expert caches.
    expert_bytes: u64,
    warnings: Vec<String>,
}

impl Planner<'_> {
    fn plan(mut self) -> Result<(Plan, Prediction)> {
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
        let compress = self.input.unmatched_compress.iter().map(String::as_str);
        for text in select.unmatched().chain(exclude.unmatched()).chain(compress) {
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
        self.input.window_bytes = self.window_bytes(candidates.iter().copied());
        match self.input.options.budget {
            Budget::OffloadBytes(budget) => {
                let placement = self.fit_into_host(&candidates, budget)?;
                if placement.storages.iter().any(|at| self.input.is_experts(*at)) {
                    self.expert_bytes = self.input.options.expert_bytes;
                }
                Ok(placement)
            }
            Budget::DeviceBytes(budget) if self.all_bytes() <= budget => {
                self.fit_into_device(&candidates, Vec::new(), budget)
            }
            Budget::DeviceBytes(budget) => {
                let is_experts = |at: &mut usize| self.input.is_experts(*at);
                let mut others = candidates;
                let experts: Vec<usize> = others.extract_if(.., is_experts).collect();
                if self.input.window_bytes > 0 {
                    let left = budget - self.input.window_bytes;
                    if let Ok(placement) = self.fit_beside_experts(&others, experts.clone(), left)
                        && self.window_bytes(placement.copied_storages()) > 0
                    {
                        return Ok(placement);
                    }
                    self.input.window_bytes = 0;
                }
                self.fit_beside_experts(&others, experts, budget)
            }
        }
    }

    fn fit_beside_experts(
        &mut self,
        others: &[usize],
        experts: Vec<usize>,
        budget: u64,
    ) -> Result<Placement> {
        self.expert_bytes = self.bytes_for_experts(&experts, budget)?;
        self.fit_into_device(others, experts, budget - self.expert_bytes)
    }

    /// Device memory for windows, if one of these storages may pass through them.
    fn window_bytes(&self, mut storages: impl Iterator<Item = usize>) -> u64 {
        let options = &self.input.options;
        let fits = options.slot_bytes.is_none() && windows_fit(options.budget.device_bytes());
        let passes = |at: usize| match self.input.codings.get(at) {
            Some(Ok(coding)) => coding.is_windowed(),
            _ => false,
        };
        if fits && storages.any(passes) { ALL_WINDOWS } else { 0 }
    }

    /// The part of a budget of device memory that caches of these experts get. All experts leave, since
    /// slots that serve all layers hold more of those that are used than residents would; and what
    /// else the model has goes before the slots, since every step uses it.
    fn bytes_for_experts(&self, experts: &[usize], budget: u64) -> Result<u64> {
        if experts.is_empty() {
            return Ok(0);
        }
        let asked = self.input.options.expert_bytes;
        if asked > budget {
            fail!(
                WB_ERR_BUDGET,
                "asked for {asked} bytes of expert caches in a budget of {budget} bytes of device memory"
            );
        }
        let others = self.all_bytes() - self.bytes_of(experts);
        let left = budget.saturating_sub(others);
        if asked == 0 && left == 0 {
            fail!(
                WB_ERR_BUDGET,
                "asked for {budget} bytes of device memory; all parameters but the experts take {others}, \
                 which leaves none for caches of these: raise device_bytes, or set expert_bytes, so that \
                 others leave the device"
            );
        }
        Ok(if asked == 0 { left } else { asked })
    }

    /// Offloads the storages that fit into `budget` bytes of host memory, in whole pages.
    fn fit_into_host(&mut self, candidates: &[usize], budget: u64) -> Result<Placement> {
        let leaving = Leaving::new(&self.input, candidates)?;
        let whole_pages = budget - budget % self.input.platform.page_bytes;
        let reasons = &mut self.reasons;
        let taken = leaving.take(whole_pages);
        leaving.others_stay(whole_pages, &taken, |candidate, stays| {
            reasons[candidate.storage as usize] = Some(match stays {
                Stays::TooLarge { left } => Reason::BudgetLeft { left, needs: candidate.bytes },
                Stays::Tiny => Reason::Tiny,
            });
        });
        let storage = |position: &u32| leaving.candidates[*position as usize].storage as usize;
        let storages = taken.positions.iter().map(storage).collect();
        self.place_within_slots(storages)
    }

    /// Places the storages within the options' slots. Where these are too small for the depth that
    /// is asked for, less of each group is prefetched, as far as modes are free.
    fn place_within_slots(&self, storages: Vec<usize>) -> Result<Placement> {
        let PlanOptions { depth, slot_bytes, .. } = self.input.options;
        let place = |limit| Placement::new(&self.input, storages.clone(), limit, None, Vec::new());
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

    /// Offloads `leaving`, and of the candidates the storages with which a step is fastest, while the
    /// others and the slots fit into `budget` bytes of device memory.
    fn fit_into_device(
        &mut self,
        candidates: &[usize],
        mut leaving: Vec<usize>,
        budget: u64,
    ) -> Result<Placement> {
        let leave = self.bytes_of(&leaving);
        let choice = match device_budget::choose(&self.input, candidates, leave, budget)? {
            Outcome::Fits(choice) => choice,
            Outcome::TooSmall { slots } => {
                let resident = self.all_bytes() - leave - self.bytes_of(candidates);
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
        let Choice { storages, kept, prefetch_limit, shape, .. } = choice;
        leaving.extend(storages);
        Placement::new(&self.input, leaving, prefetch_limit, Some(shape), kept)
    }

    /// Bytes of all storages on the device.
    fn all_bytes(&self) -> u64 {
        (0..self.input.storages.len()).map(|at| self.input.rounded_bytes(at)).sum()
    }

    /// Bytes of some of them.
    fn bytes_of(&self, storages: &[usize]) -> u64 {
        storages.iter().map(|at| self.input.rounded_bytes(*at)).sum()
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

    /// Whether a storage is read in place, or would be if it left, from memory of the offloader: not by
    /// an expert cache, which is on the device in its place.
    fn is_in_place(&self, storage: usize, placed: Option<PlacedStorage>) -> bool {
        let may_leave = || match &self.reasons[storage] {
            None | Some(Reason::Fits | Reason::BudgetLeft { .. }) => {
                self.input.preferred_mode(storage).ok()
            }
            Some(_) => None,
        };
        if placed.is_some() && self.input.is_experts(storage) {
            return false;
        }
        let mode = placed.map_or_else(may_leave, |placed| Some(placed.transfer_mode));
        mode == Some(TransferMode::ZeroCopy) && self.input.options.host_store != HostStore::Source
    }

    fn finish(mut self, mut placement: Placement) -> (Plan, Prediction) {
        let window_bytes = match self.input.window_bytes {
            0 => 0,
            _ => self.window_bytes(placement.copied_storages()),
        };
        let placed = placement.lay_out(&self.input);
        warnings::of_slots(&self.input, &placement, &mut self.warnings);
        for (at, placed) in placed.iter().enumerate() {
            if let Some(PlacedStorage { transfer_mode, .. }) = placed {
                self.reasons[at] = Some(placement.reason(&self.input, at, *transfer_mode));
            }
        }
        warnings::of_modes(&self.input, &self.reasons, &mut self.warnings);
        let load = placement.load(&self.input);
        let step_bytes = placement.step_bytes(&self.input);
        let ring = StepRing { groups: &placement.slots.ring, shape: placement.slots.shape() };
        let model = &self.input.model;
        let step_seconds = model.step_seconds(&load, ring);
        let link_seconds = model.link_seconds(&load, ring);
        let kernel_seconds = model.kernel_seconds();
        let decode_seconds = model.decode_seconds(step_bytes.decoded);
        #[cfg(test)]
        let cost = model.cost(&load, ring);
        let has_experts = (0..placed.len()).any(|at| self.input.is_experts(at));
        let mut storage_of = vec![(0, 0); self.input.parameters.len()];
        for (at, storage) in self.input.storages.iter().enumerate() {
            for (index, offset) in &storage.parameters {
                storage_of[*index] = (at, *offset);
            }
        }
        let in_place: Vec<_> =
            (0..placed.len()).map(|at| self.is_in_place(at, placed[at])).collect();
        let mut kept_bytes_of = vec![0; self.input.storages.len()];
        for at in placement.units.iter().filter(|unit| unit.kept).flat_map(|unit| &unit.storages) {
            kept_bytes_of[*at] = self.input.kept_bytes(*at).unwrap_or(0);
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
        let (mut decoded_bytes, mut encoded_bytes, mut kept_decoded_bytes) = (0, 0, 0);
        let mut storages = Vec::with_capacity(self.input.storages.len());
        for (at, storage) in self.input.storages.into_iter().enumerate() {
            let coding = match placed[at] {
                Some(placed) => coding_of(&self.input.codings, at, placed.transfer_mode),
                None => Err(RawReason::NotAsked),
            };
            if let Ok(coding) = &coding {
                decoded_bytes += storage.bytes;
                encoded_bytes += coding.encoded_bytes;
            }
            kept_decoded_bytes += if kept_bytes_of[at] > 0 { storage.bytes } else { 0 };
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
                coding,
                in_place: in_place[at],
                pieces: None,
                kept_bytes: kept_bytes_of[at],
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
        let arena_payload: u64 = placement.units.iter().map(|unit| unit.host_bytes).sum();
        let view_bytes = load.read_bytes();
        let prediction = Prediction { model: self.input.model, load };
        let mut plan = Plan {
            parameters,
            storages,
            groups,
            ring: placement.slots.ring,
            depth: placement.slots.depth,
            wrap_stalls: placement.slots.wrap_stalls,
            arena_bytes: arena_payload.next_multiple_of(self.input.platform.page_bytes),
            slot_bytes: placement.slots.slot_bytes,
            window_bytes,
            ring_bytes: placement.slots.ring_bytes,
            resident_bytes,
            pieces: Vec::new(),
            kept_bytes: kept_bytes_of.iter().sum(),
            kept_decoded_bytes,
            expert_bytes: self.expert_bytes,
            granularity: None,
            padding_bytes: 0,
            payload_bytes,
            offloaded_payload_bytes,
            step_bytes: step_bytes.sum(),
            decoded_bytes,
            encoded_bytes,
            decode_seconds,
            view_bytes,
            step_seconds,
            link_seconds,
            kernel_seconds,
            #[cfg(test)]
            cost,
            units: placement.units,
            warnings: self.warnings,
            options: self.input.options,
        };
        if has_experts {
            plan.say_experts();
        }
        (plan, prediction)
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
