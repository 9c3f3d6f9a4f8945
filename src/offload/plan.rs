//! Which parameter goes where and why, before anything is allocated.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::draft::Draft;
use super::order::{self, Order};
use super::parameter::{Carrier, Parameter, Storage, storages};
use super::reason::Reason;
use super::selector::Selector;
use crate::device::Device;
use crate::error::{Error, Result, fail};
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_EVERYTHING_FITS, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOTHING_OFFLOADED,
    WB_ERR_SELECTOR, wb_status,
};

/// Every block in the arena and in the slots begins at a multiple of this.
pub const ALIGNMENT: u64 = 256;

/// An error that a plan may be told to take as a warning.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    /// Nothing is offloaded.
    pub nothing: bool,
    /// A selector matches no parameter.
    pub unmatched: bool,
    /// The device has room for everything.
    pub everything_fits: bool,
}

/// What a plan is made by.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The most bytes of host memory that may be taken.
    pub offload_bytes: Option<u64>,
    /// The most bytes of device memory that resident parameters and slots may take.
    pub device_bytes: Option<u64>,
    /// The most bytes of device memory for slots.
    pub slot_bytes: Option<u64>,
    /// Groups in their slots at a time; 0 for as many as serve.
    pub depth: u32,
    /// How to carry what says nothing of its own.
    pub carrier: Carrier,
    /// In which order parameters leave the device.
    pub order: Order,
    /// What may leave it; everything where there is none.
    pub select: Vec<String>,
    /// What may not.
    pub exclude: Vec<String>,
    /// What is a warning only.
    pub allowed: Allowed,
    /// What the link carries; 0 for what was measured, if it was.
    pub link_bytes_per_second: f64,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            offload_bytes: None,
            device_bytes: None,
            slot_bytes: None,
            depth: 0,
            carrier: Carrier::Auto,
            order: Order::Spread,
            select: Vec::new(),
            exclude: Vec::new(),
            allowed: Allowed::default(),
            link_bytes_per_second: 0.0,
        }
    }
}

/// What a plan must know of the platform.
#[derive(Debug, Clone)]
pub struct Platform {
    /// The device can read host memory in place.
    pub views: bool,
    /// Why, or why not.
    pub views_reason: String,
    /// Bytes of a page of host memory.
    pub page_bytes: u64,
}

/// A parameter and what becomes of it.
#[derive(Debug, Clone)]
pub struct PlannedParameter {
    /// The parameter.
    pub parameter: Parameter,
    /// Its group.
    pub group: usize,
    /// Its storage.
    pub storage: usize,
    /// Bytes from the storage's first to the parameter's lowest.
    pub offset: u64,
    /// How it is carried; `None` while it stays on the device.
    pub carrier: Option<Carrier>,
    /// Why.
    pub reason: Reason,
}

/// Bytes of one parameter, or of several that are tied.
#[derive(Debug, Clone)]
pub struct PlannedStorage {
    /// Its bytes.
    pub bytes: u64,
    /// Its unit, if it is offloaded.
    pub unit: Option<usize>,
    /// Bytes from the unit's first.
    pub offset_in_unit: u64,
    /// The parameters that share it.
    pub parameters: SmallVec<[usize; 1]>,
}

/// Storages that lie side by side and move as one.
#[derive(Debug, Clone)]
pub struct Unit {
    /// How it is carried.
    pub carrier: Carrier,
    /// The groups that use it.
    pub groups: Vec<usize>,
    /// Bytes from the arena's first.
    pub arena_offset: u64,
    /// Its bytes, each storage's rounded up.
    pub bytes: u64,
    /// Bytes from the slots' first; `None` where it is read in place.
    pub slot_offset: Option<u64>,
    /// What it consists of, in the order in which it lies.
    pub storages: Vec<usize>,
}

/// What is acquired together.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its units.
    pub units: Vec<usize>,
    /// Its turn among the groups that are copied ahead.
    pub ring: Option<usize>,
    /// Bytes of its parameters that are offloaded; what is tied counts in the first group.
    pub offloaded_bytes: u64,
    /// Bytes of its parameters that stay; what is tied counts in the first group.
    pub resident_bytes: u64,
}

/// Which parameter goes where and why.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was made by.
    pub options: PlanOptions,
    /// In the order in which they were given.
    pub parameters: Vec<PlannedParameter>,
    /// In the order of their first parameters.
    pub storages: Vec<PlannedStorage>,
    /// In the order in which they lie in the arena.
    pub units: Vec<Unit>,
    /// In the order in which they were first named.
    pub groups: Vec<Group>,
    /// The groups that are copied ahead, in the order of a step.
    pub ring: Vec<usize>,
    /// How many of them have their slots at a time.
    pub depth: usize,
    /// A step's first groups wait for its last ones: the slots do not go round.
    pub wrap_stalls: bool,
    /// Bytes of host memory, whole pages.
    pub arena_bytes: u64,
    /// Bytes of device memory for slots.
    pub slot_bytes: u64,
    /// Bytes of them for what is copied ahead.
    pub ring_bytes: u64,
    /// Bytes of device memory for what stays, each storage's rounded up.
    pub resident_bytes: u64,
    /// Bytes of all storages.
    pub payload_bytes: u64,
    /// Bytes of those that are offloaded.
    pub offloaded_payload_bytes: u64,
    /// Bytes copied in every step.
    pub step_bytes: u64,
    /// Bytes that the device reads in place in every step, if it reads all of what is dense.
    pub view_bytes: u64,
    /// Seconds that the link needs for a step.
    pub step_seconds: Option<f64>,
    /// What was allowed.
    pub warnings: Vec<String>,
}

/// A plan for a device.
pub struct DevicePlan {
    /// The device.
    pub device: Arc<Device>,
    /// The plan.
    pub plan: Plan,
}

impl DevicePlan {
    /// Plans for a device's platform.
    pub fn new(
        device: &Arc<Device>,
        parameters: Vec<Parameter>,
        mut options: PlanOptions,
    ) -> Result<Arc<Self>> {
        if options.link_bytes_per_second == 0.0 {
            options.link_bytes_per_second = device.link();
        }
        let policy = device.policy();
        let platform = Platform {
            views: policy.views_of(policy.pin),
            views_reason: policy.views_reason.clone(),
            page_bytes: crate::memory::pages::page_bytes() as u64,
        };
        let plan = Plan::new(parameters, options, &platform)?;
        Ok(Arc::new(Self { device: device.clone(), plan }))
    }
}

impl Plan {
    /// Plans.
    pub fn new(
        parameters: Vec<Parameter>,
        options: PlanOptions,
        platform: &Platform,
    ) -> Result<Self> {
        let mut planner = Planner::new(parameters, options, platform)?;
        planner.select()?;
        let draft = planner.choose()?;
        planner.check_outcome(&draft)?;
        Ok(planner.finish(draft))
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
}

/// The state of planning.
pub(super) struct Planner<'a> {
    pub options: PlanOptions,
    pub platform: &'a Platform,
    pub parameters: Vec<Parameter>,
    pub storages: Vec<Storage>,
    /// Why each storage stays, as far as that is known; `None` for what may leave.
    pub reasons: Vec<Option<Reason>>,
    pub groups: Vec<String>,
    /// The group of each parameter.
    group_of: Vec<usize>,
    /// The groups that use a storage, ascending.
    pub groups_of: Vec<SmallVec<[usize; 1]>>,
    pub warnings: Vec<String>,
}

impl<'a> Planner<'a> {
    fn new(
        parameters: Vec<Parameter>,
        options: PlanOptions,
        platform: &'a Platform,
    ) -> Result<Self> {
        if options.offload_bytes.is_some() == options.device_bytes.is_some() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "a plan has one budget: give either offload_bytes (at most so much leaves the \
                 device) or device_bytes (weights and slots fit in so much)"
            );
        }
        let storages = storages(&parameters)?;
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut groups = Vec::new();
        let mut group_of = Vec::with_capacity(parameters.len());
        for parameter in &parameters {
            let next = groups.len();
            let number = *numbers.entry(&parameter.group).or_insert(next);
            if number == next {
                groups.push(parameter.group.to_string());
            }
            group_of.push(number);
        }
        let groups_of = storages
            .iter()
            .map(|storage| {
                let mut groups: SmallVec<[usize; 1]> =
                    storage.parameters.iter().map(|(index, _)| group_of[*index]).collect();
                groups.sort_unstable();
                groups.dedup();
                groups
            })
            .collect();
        let reasons = vec![None; storages.len()];
        let warnings = Vec::new();
        Ok(Self {
            options,
            platform,
            parameters,
            storages,
            reasons,
            groups,
            group_of,
            groups_of,
            warnings,
        })
    }

    /// Settles what may not leave the device.
    fn select(&mut self) -> Result<()> {
        let parse = |texts: &[String]| -> Result<Vec<(Selector, bool)>> {
            texts.iter().map(|text| Ok((Selector::parse(text)?, false))).collect()
        };
        let (mut select, mut exclude) =
            (parse(&self.options.select)?, parse(&self.options.exclude)?);
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
        for (storage, reason) in self.storages.iter().zip(&mut self.reasons) {
            if storage.bytes == 0 {
                *reason = Some(Reason::Empty);
            }
            for (index, _) in &storage.parameters {
                let Parameter { name, carrier, .. } = &self.parameters[*index];
                let selected = first_match(&mut select, name).is_some() || select.is_empty();
                let excluded = first_match(&mut exclude, name);
                let tied = storage.parameters.len() > 1;
                let stays = match excluded {
                    _ if carrier.is_none() => Some(Reason::AskedToStay(name.as_str().into())),
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
                self.parameters.len()
            );
            let allowed = self.options.allowed.unmatched;
            Plan::complain(&mut self.warnings, allowed, WB_ERR_SELECTOR, message)?;
        }
        Ok(())
    }

    /// Bytes of a storage in the arena, and on the device when it stays.
    pub fn rounded(&self, storage: usize) -> u64 {
        self.storages[storage].bytes.next_multiple_of(ALIGNMENT)
    }

    /// Chooses what leaves the device, and how it is carried.
    fn choose(&mut self) -> Result<Draft> {
        let candidates: Vec<usize> =
            (0..self.storages.len()).filter(|at| self.reasons[*at].is_none()).collect();
        let looked_at: Vec<_> = candidates
            .iter()
            .map(|at| (self.groups_of[*at][0], self.storages[*at].bytes))
            .collect();
        let arranged: Vec<usize> = order::arrange(&looked_at, self.options.order)
            .into_iter()
            .map(|index| candidates[index])
            .collect();
        match (self.options.offload_bytes, self.options.device_bytes) {
            (Some(budget), _) => self.within_host(&arranged, budget),
            (_, budget) => self.within_device(&arranged, budget.unwrap_or(0)),
        }
    }

    /// Takes what fits into so many bytes of host memory, whole pages.
    fn within_host(&mut self, arranged: &[usize], budget: u64) -> Result<Draft> {
        let room = budget - budget % self.platform.page_bytes;
        let (mut used, mut offloaded) = (0, Vec::new());
        for &storage in arranged {
            let needs = self.rounded(storage);
            if needs <= room - used {
                used += needs;
                offloaded.push(storage);
            } else {
                self.reasons[storage] = Some(Reason::BudgetLeft { left: room - used, needs });
            }
        }
        Draft::new(self, &offloaded, None)
    }

    /// Takes the fewest, in order, that make the rest and the slots fit into so many bytes of device
    /// memory.
    fn within_device(&mut self, arranged: &[usize], budget: u64) -> Result<Draft> {
        let all: u64 = (0..self.storages.len()).map(|at| self.rounded(at)).sum();
        let mut left_by = Vec::with_capacity(arranged.len() + 1);
        left_by.push(0);
        for storage in arranged {
            left_by.push(left_by[left_by.len() - 1] + self.rounded(*storage));
        }
        // Each try is short of a number of bytes, and as many more must leave at least: the slots of
        // more are hardly ever smaller. A few tries get there.
        let fewest = |bytes: u64| left_by.partition_point(|left| *left < bytes);
        let mut count = fewest(all.saturating_sub(budget));
        let fits = loop {
            let count_tried = count.min(arranged.len());
            let stays = all - left_by[count_tried];
            let room = budget.saturating_sub(stays);
            let draft = Draft::new(self, &arranged[..count_tried], Some(room))?;
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
            let slots = Draft::new(self, arranged, Some(0))?.seats.slot_bytes;
            fail!(
                WB_ERR_BUDGET,
                "asked for {budget} bytes of device memory; what may not leave it needs {stays} and \
                 the slots for the rest {slots}: raise device_bytes, select more, or let the device \
                 read host memory in place (carrier view)"
            );
        };
        for storage in &arranged[draft.taken.len()..] {
            self.reasons[*storage] = Some(Reason::Fits);
        }
        Ok(draft)
    }

    fn check_outcome(&mut self, draft: &Draft) -> Result<()> {
        if !draft.taken.is_empty() {
            return Ok(());
        }
        let fits = self.options.device_bytes.is_some();
        let (allowed, status, message) = match self.options.device_bytes {
            Some(budget) => (
                self.options.allowed.everything_fits,
                WB_ERR_EVERYTHING_FITS,
                format!(
                    "all parameters fit into the {budget} bytes of device memory: nothing is to be \
                         offloaded"
                ),
            ),
            None => (self.options.allowed.nothing, WB_ERR_NOTHING_OFFLOADED, self.why_nothing()),
        };
        let allowed = allowed || (fits && self.options.allowed.nothing);
        Plan::complain(&mut self.warnings, allowed, status, message)
    }

    /// Why an offload budget takes nothing.
    fn why_nothing(&self) -> String {
        let budget = self.options.offload_bytes.unwrap_or(0);
        let smallest = (0..self.storages.len())
            .filter(|at| matches!(self.reasons[*at], Some(Reason::BudgetLeft { .. })))
            .min_by_key(|at| self.storages[*at].bytes);
        match smallest {
            Some(at) => format!(
                "{budget} bytes offload nothing: the smallest selected parameter, {:?}, needs {} bytes \
                 of host memory in whole pages",
                self.parameters[self.storages[at].parameters[0].0].name,
                self.rounded(at).next_multiple_of(self.platform.page_bytes)
            ),
            None => "nothing is offloaded: no parameter is selected that has any bytes".into(),
        }
    }

    /// A plan that is legal and helps nobody.
    fn warn_of_slots(&mut self, draft: &Draft) {
        let carried = draft.units.iter().filter(|unit| unit.carrier != Carrier::View);
        let (carried, slots): (u64, _) =
            (carried.map(|unit| unit.bytes).sum(), draft.seats.slot_bytes);
        if slots > 0 && slots >= carried {
            self.warnings.push(format!(
                "the slots take {slots} bytes of device memory, as many as the {carried} that they \
                 carry: offload more groups, ask for less depth, or let the device read in place"
            ));
        }
    }

    fn finish(mut self, mut draft: Draft) -> Plan {
        self.warn_of_slots(&draft);
        let offloaded = draft.lay_out(&self);
        let (step_bytes, view_bytes) = draft.link_bytes(&self);
        let mut storage_of = vec![(0, 0); self.parameters.len()];
        for (at, storage) in self.storages.iter().enumerate() {
            for (index, offset) in &storage.parameters {
                storage_of[*index] = (at, *offset);
            }
        }
        let mut groups: Vec<Group> =
            self.groups.into_iter().map(|name| Group { name, ..Group::default() }).collect();
        for (at, unit) in draft.units.iter().enumerate() {
            unit.groups.iter().for_each(|group| groups[*group].units.push(at));
        }
        for (turn, group) in draft.seats.ring.iter().enumerate() {
            groups[*group].ring = Some(turn);
        }
        let (mut resident_bytes, mut payload_bytes, mut offloaded_payload_bytes) = (0, 0, 0);
        let mut storages = Vec::with_capacity(self.storages.len());
        for (at, storage) in self.storages.into_iter().enumerate() {
            let first = &mut groups[self.groups_of[at][0]];
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
            .parameters
            .into_iter()
            .zip(self.group_of)
            .zip(storage_of)
            .map(|((parameter, group), (storage, offset))| {
                let (carrier, reason) = match &offloaded[storage] {
                    Some(offloaded) => (Some(offloaded.carrier), offloaded.reason.clone()),
                    None => (None, self.reasons[storage].clone().unwrap_or(Reason::Fits)),
                };
                PlannedParameter { parameter, group, storage, offset, carrier, reason }
            })
            .collect();
        let link = self.options.link_bytes_per_second;
        let moved = (step_bytes + view_bytes) as f64;
        let payload: u64 = draft.units.iter().map(|unit| unit.bytes).sum();
        Plan {
            parameters,
            storages,
            groups,
            ring: draft.seats.ring,
            depth: draft.seats.depth,
            wrap_stalls: draft.seats.wrap_stalls,
            arena_bytes: payload.next_multiple_of(self.platform.page_bytes),
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
            options: self.options,
        }
    }
}

#[cfg(test)]
mod tests;
