//! Planning: what may leave the device, what of it does, and the plan that comes of it.

use crate::error::{Error, Result, fail};
use crate::plan::input::PlanInput;
use crate::plan::order;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::placement::Placement;
use crate::plan::plan::{
    ALIGNMENT, Budget, Plan, PlanOptions, PlannedGroup, PlannedParameter, PlannedStorage, Platform,
};
use crate::plan::reason::Reason;
use crate::plan::selector::Selector;
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_EVERYTHING_FITS, WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR, wb_status,
};

/// Plans which of the parameters leave the device under the options' budget, and how each is transferred.
pub fn plan(parameters: Vec<Parameter>, options: PlanOptions, platform: &Platform) -> Result<Plan> {
    let input = PlanInput::new(parameters, options, platform)?;
    let reasons = vec![None; input.storages.len()];
    Planner { input, reasons, warnings: Vec::new() }.plan()
}

/// The state of planning.
struct Planner<'a> {
    input: PlanInput<'a>,
    /// Why each storage stays, as far as that is known; `None` for what may leave.
    reasons: Vec<Option<Reason>>,
    warnings: Vec<String>,
}

impl Planner<'_> {
    /// All of it, in turn.
    pub fn plan(mut self) -> Result<Plan> {
        self.select()?;
        let draft = self.choose()?;
        self.check_outcome(&draft)?;
        Ok(self.finish(draft))
    }

    /// Settles what may not leave the device.
    fn select(&mut self) -> Result<()> {
        let parse = |texts: &[String]| -> Result<Vec<(Selector, bool)>> {
            texts.iter().map(|text| Ok((Selector::parse(text)?, false))).collect()
        };
        let (mut select, mut exclude) =
            (parse(&self.input.options.select)?, parse(&self.input.options.exclude)?);
        let first_match = |selectors: &mut [(Selector, bool)], name: &str| -> Option<usize> {
            let mut first = None;
            for (index, (selector, used)) in selectors.iter_mut().enumerate() {
                if selector.matches(name) {
                    *used = true;
                    first = first.or(Some(index));
                }
            }
            first
        };
        for (storage, reason) in self.input.storages.iter().zip(&mut self.reasons) {
            if storage.bytes == 0 {
                *reason = Some(Reason::Empty);
            }
            for (index, _) in &storage.parameters {
                let Parameter { name, resident, .. } = &self.input.parameters[*index];
                let selected = first_match(&mut select, name).is_some() || select.is_empty();
                let excluded = first_match(&mut exclude, name);
                let tied = storage.parameters.len() > 1;
                let stays = match excluded {
                    _ if *resident => Some(Reason::AskedToStay(name.as_str().into())),
                    Some(by) => Some(Reason::Excluded(exclude[by].0.text().into())),
                    None if !selected && tied => {
                        Some(Reason::TiedToUnselected(name.as_str().into()))
                    }
                    None if !selected => Some(Reason::NotSelected),
                    None => None,
                };
                if reason.is_none() {
                    *reason = stays;
                }
            }
        }
        for (selector, _) in select.iter().chain(&exclude).filter(|(_, used)| !used) {
            let message = format!(
                "the selector {:?} matches none of the {} parameters",
                selector.text(),
                self.input.parameters.len()
            );
            let allowed = self.input.options.allowed.unmatched_selector;
            complain(&mut self.warnings, allowed, WB_ERR_SELECTOR, message)?;
        }
        Ok(())
    }

    /// Chooses what leaves the device, and how it is carried.
    fn choose(&mut self) -> Result<Placement> {
        let candidates: Vec<usize> =
            (0..self.input.storages.len()).filter(|at| self.reasons[*at].is_none()).collect();
        let looked_at: Vec<_> = candidates
            .iter()
            .map(|at| (self.input.groups_of[*at][0], self.input.storages[*at].bytes))
            .collect();
        let arranged: Vec<usize> = order::arrange(&looked_at, self.input.options.order)
            .into_iter()
            .map(|index| candidates[index])
            .collect();
        match self.input.options.budget {
            Budget::OffloadBytes(budget) => self.within_host(&arranged, budget),
            Budget::DeviceBytes(budget) => self.within_device(&arranged, budget),
        }
    }

    /// Takes what fits into so many bytes of host memory, whole pages.
    fn within_host(&mut self, arranged: &[usize], budget: u64) -> Result<Placement> {
        let room = budget - budget % self.input.platform.page_bytes;
        let (mut used, mut offloaded) = (0, Vec::new());
        for &storage in arranged {
            let needs = self.input.rounded(storage);
            if needs <= room - used {
                used += needs;
                offloaded.push(storage);
            } else {
                self.reasons[storage] = Some(Reason::BudgetLeft { left: room - used, needs });
            }
        }
        Placement::new(&self.input, &offloaded, None)
    }

    /// Takes the fewest, in order, that make the rest and the slots fit into so many bytes of device
    /// memory.
    fn within_device(&mut self, arranged: &[usize], budget: u64) -> Result<Placement> {
        let all: u64 = (0..self.input.storages.len()).map(|at| self.input.rounded(at)).sum();
        let mut left_by = Vec::with_capacity(arranged.len() + 1);
        left_by.push(0);
        for storage in arranged {
            left_by.push(left_by[left_by.len() - 1] + self.input.rounded(*storage));
        }
        // Each try is short of a number of bytes, and as many more must leave at least: the slots of
        // more are hardly ever smaller. A few tries get there.
        let fewest = |bytes: u64| left_by.partition_point(|left| *left < bytes);
        let mut count = fewest(all.saturating_sub(budget));
        let fits = loop {
            let count_tried = count.min(arranged.len());
            let stays = all - left_by[count_tried];
            let room = budget.saturating_sub(stays);
            let draft = Placement::new(&self.input, &arranged[..count_tried], Some(room))?;
            let short = (stays + draft.seats.slot_bytes).saturating_sub(budget);
            if short == 0 {
                break Some(draft);
            }
            if count_tried == arranged.len() {
                break None;
            }
            count = fewest(left_by[count_tried] + short).max(count_tried + 1);
        };
        let Some(draft) = fits else {
            let stays = all - left_by[arranged.len()];
            let slots = Placement::new(&self.input, arranged, Some(0))?.seats.slot_bytes;
            fail!(
                WB_ERR_BUDGET,
                "asked for {budget} bytes of device memory; what may not leave it needs {stays} and \
                 the slots for the rest {slots}: raise device_bytes, select more, or let the device \
                 read host memory in place (transfer_mode view)"
            );
        };
        for storage in &arranged[draft.taken.len()..] {
            self.reasons[*storage] = Some(Reason::Fits);
        }
        Ok(draft)
    }

    fn check_outcome(&mut self, draft: &Placement) -> Result<()> {
        if !draft.taken.is_empty() {
            return Ok(());
        }
        let allow = self.input.options.allowed;
        let (allowed, status, message) = match self.input.options.budget {
            Budget::DeviceBytes(budget) => (
                allow.everything_fits || allow.nothing_offloaded,
                WB_ERR_EVERYTHING_FITS,
                format!(
                    "all parameters fit into the {budget} bytes of device memory: nothing is to be \
                         offloaded"
                ),
            ),
            Budget::OffloadBytes(budget) => {
                (allow.nothing_offloaded, WB_ERR_NOTHING_OFFLOADED, self.why_nothing(budget))
            }
        };
        complain(&mut self.warnings, allowed, status, message)
    }

    /// Why an offload budget takes nothing.
    fn why_nothing(&self, budget: u64) -> String {
        let smallest = (0..self.input.storages.len())
            .filter(|at| matches!(self.reasons[*at], Some(Reason::BudgetLeft { .. })))
            .min_by_key(|at| self.input.storages[*at].bytes);
        match smallest {
            Some(at) => format!(
                "{budget} bytes offload nothing: the smallest selected parameter, {:?}, needs {} bytes \
                 of host memory in whole pages",
                self.input.parameters[self.input.storages[at].parameters[0].0].name,
                self.input.rounded(at).next_multiple_of(self.input.platform.page_bytes)
            ),
            None => "nothing is offloaded: no parameter is selected that has any bytes".into(),
        }
    }

    /// A plan that is legal and helps nobody.
    fn warn_of_slots(&mut self, draft: &Placement) {
        let carried =
            draft.units.iter().filter(|unit| unit.transfer_mode != TransferMode::ZeroCopy);
        let (carried, slots): (u64, _) =
            (carried.map(|unit| unit.bytes).sum(), draft.seats.slot_bytes);
        if slots > 0 && slots >= carried {
            self.warnings.push(format!(
                "the slots take {slots} bytes of device memory, as many as the {carried} that they \
                 carry: offload more groups, ask for less depth, or let the device read in place"
            ));
        }
    }

    fn finish(mut self, mut draft: Placement) -> Plan {
        self.warn_of_slots(&draft);
        let offloaded = draft.lay_out(&self.input);
        let (step_bytes, view_bytes) = draft.link_bytes(&self.input);
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
        for (at, unit) in draft.units.iter().enumerate() {
            unit.groups.iter().for_each(|group| groups[*group].units.push(at));
        }
        for (turn, group) in draft.seats.ring.iter().enumerate() {
            groups[*group].ring_position = Some(turn);
        }
        let (mut resident_bytes, mut payload_bytes, mut offloaded_payload_bytes) = (0, 0, 0);
        let mut storages = Vec::with_capacity(self.input.storages.len());
        for (at, storage) in self.input.storages.into_iter().enumerate() {
            let first = &mut groups[self.input.groups_of[at][0]];
            payload_bytes += storage.bytes;
            match offloaded[at] {
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
                unit: offloaded[at].as_ref().map(|offloaded| offloaded.unit),
                offset_in_unit: offloaded[at].as_ref().map_or(0, |offloaded| offloaded.offset),
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
                let (transfer_mode, reason) = match &offloaded[storage] {
                    Some(offloaded) => (Some(offloaded.transfer_mode), offloaded.reason.clone()),
                    None => (None, self.reasons[storage].clone().unwrap_or(Reason::Fits)),
                };
                PlannedParameter { parameter, group, storage, offset, transfer_mode, reason }
            })
            .collect();
        let link = self.input.options.link_bytes_per_second;
        let moved = (step_bytes + view_bytes) as f64;
        let payload: u64 = draft.units.iter().map(|unit| unit.bytes).sum();
        Plan {
            parameters,
            storages,
            groups,
            ring: draft.seats.ring,
            depth: draft.seats.depth,
            wrap_stalls: draft.seats.wrap_stalls,
            arena_bytes: payload.next_multiple_of(self.input.platform.page_bytes),
            slot_bytes: draft.seats.slot_bytes,
            ring_bytes: draft.seats.ring_bytes,
            resident_bytes,
            payload_bytes,
            offloaded_payload_bytes,
            step_bytes,
            view_bytes,
            step_seconds: (link > 0.0).then(|| moved / link),
            units: draft.units,
            warnings: self.warnings,
            options: self.input.options,
        }
    }
}

/// The error or warning for what is allowed or not.
fn complain(
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
