//! Parameters that an engine adds and removes after the commit.

use crate::device::backend::{Location, Stream};
use crate::error::{Result, fail};
use crate::offload::backing::{Backing, HostUse, ParameterState, c_name};
use crate::offload::edit::Edit;
use crate::offload::encoded_source;
use crate::offload::host_space::HostSpace;
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::plan::parameter::{AccessPattern, Origin, Parameter, TransferMode};
use crate::plan::plan::capacity;
use crate::plan::selector::SelectorList;
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED, WB_ERR_SLOTS_BUDGET,
};
use crate::tensor::coded::CodedType;

impl Offloader {
    /// Adds a parameter, with the values of a compressed source. It is offloaded, as the other
    /// offloaded parameters of its group are, if the plan's selectors and budget allow it; resident
    /// otherwise. On an error nothing is added.
    pub fn add(
        &self,
        mut parameter: Parameter,
        mut source: Option<Location>,
        stream: Stream,
    ) -> Result<()> {
        let decoded = encoded_source::decoded(self.device(), &parameter, source)?;
        if let Some(values) = &decoded {
            source = Some(Location::host(values.data()));
            parameter.origin = Origin::Given;
        }
        let mut edit = self.edit(stream)?;
        let added = edit.add(parameter, source);
        let mut done = edit.arrange();
        if let (Ok(at), Err(_)) = (&added, &done) {
            edit.take_back(*at);
            // If the others get no slots either, the next step fails with that error.
            let _ = edit.arrange();
        }
        if let Err(error) = added {
            done = Err(error);
        }
        done
    }

    /// Host memory for a parameter that is added; `None` if it becomes resident.
    fn space_for_added(
        &self,
        state: &OffloadState,
        parameter: &Parameter,
        group: usize,
        source: Option<Location>,
    ) -> Result<Option<(HostUse, HostSpace, Option<CodedType>)>> {
        let Some(transfer_mode) = self.mode_of_added(state, parameter, group)? else {
            return Ok(None);
        };
        let host_use = HostUse { groups: vec![group], transfer_mode };
        let (bytes, described) =
            (parameter.layout.span_bytes(), (parameter.name.as_str(), &parameter.layout));
        let coded = self.coding_of(described, transfer_mode, source)?;
        match self.find_space(state, &host_use, capacity(bytes, coded), None) {
            Ok(space) => Ok(Some((host_use, space, coded))),
            Err(error) if [WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET].contains(&error.status) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How a parameter that is added would be transferred; `None` if it must be resident.
    fn mode_of_added(
        &self,
        state: &OffloadState,
        parameter: &Parameter,
        group: usize,
    ) -> Result<Option<TransferMode>> {
        let options = self.options();
        let matches = |texts: &[String]| -> Result<bool> {
            Ok(SelectorList::parse(texts)?.find_match(&parameter.name).is_some())
        };
        let selected = options.select.is_empty() || matches(&options.select)?;
        if parameter.resident
            || parameter.layout.span_bytes() == 0
            || !selected
            || matches(&options.exclude)?
        {
            return Ok(None);
        }
        let modes = [TransferMode::Prefetch, TransferMode::OnDemand, TransferMode::ZeroCopy];
        let unit_of = |transfer_mode| {
            let host_use = HostUse { groups: vec![group], transfer_mode };
            state.host.first_unit_of(&host_use).map(|unit| (unit, transfer_mode))
        };
        let Some((_, first)) = modes.into_iter().filter_map(unit_of).min_by_key(|(unit, _)| *unit)
        else {
            // Nothing of the group is offloaded.
            return Ok(None);
        };
        let requested = match parameter.access_pattern {
            AccessPattern::Experts => TransferMode::ZeroCopy,
            _ => parameter.transfer_mode,
        };
        let policy = self.device().policy();
        let views = match state.host.arena().data().bytes() {
            // All units are in the buffers of their sources.
            0 => policy.allows_views(policy.pin),
            _ => state.host.arena().device_address().is_some(),
        };
        if requested == TransferMode::ZeroCopy && !views {
            let why = if policy.views {
                state.host.arena().fallback_reason()
            } else {
                &policy.views_reason
            };
            fail!(
                WB_ERR_NOT_MAPPED,
                "asked to add parameter {:?} to be read in place (zero-copy); there are no views on this \
                 device: {why}",
                parameter.name
            );
        }
        Ok(Some(match requested {
            TransferMode::Auto if unit_of(TransferMode::Prefetch).is_some() => {
                TransferMode::Prefetch
            }
            TransferMode::Auto => first,
            requested => requested,
        }))
    }

    /// Removes a parameter. Its memory is free for others.
    pub fn remove(&self, name: &str, stream: Stream) -> Result<()> {
        let mut edit = self.edit(stream)?;
        let done = edit.remove(name);
        edit.end(done)
    }
}

impl Edit<'_> {
    /// As [`Offloader::add`], without the slots that follow. Returns the index.
    pub(super) fn add(&mut self, parameter: Parameter, source: Option<Location>) -> Result<usize> {
        self.check_fixed()?;
        let has_moved = self.has_moved();
        let (offloader, state) = (self.offloader, &mut *self.state);
        if state.parameters.get_index(&parameter.name).is_some() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to add parameter {:?}, which exists already: replace it",
                parameter.name
            );
        }
        let group = state.group_of_added(&parameter)?;
        let bytes = parameter.layout.span_bytes();
        state.parameters.check_sum(None, bytes)?;
        self.schedule.make_idle(&[group])?;
        let snapshot =
            source.map(|source| offloader.snapshot(state, Some(group), source)).transpose()?;
        let source = snapshot.as_ref().map(|snapshot| snapshot.source);
        let space = offloader.space_for_added(state, &parameter, group, source)?;
        let mut added = ParameterState {
            name: c_name(&parameter.name),
            group,
            layout: parameter.layout,
            backing: Backing::Missing,
            incomplete: false,
            storage: None,
            quantized: None,
        };
        let Some((host_use, space, coded)) = space else {
            offloader.check_resident(state, None, bytes, has_moved)?;
            added.backing = match source {
                None => Backing::Missing,
                Some(source) if source.on_device => Backing::Borrowed(source.span),
                Some(source) => offloader.upload(source.span)?,
            };
            return Ok(state.parameters.add(added));
        };
        self.schedule.check_all_released()?;
        let at = state.parameters.add(added);
        let block = match offloader.take_space(state, space, host_use, at, (bytes, coded)) {
            Ok(block) => block,
            Err(error) => {
                state.remove_parameter(at);
                return Err(error);
            }
        };
        let written = match source {
            Some(source) => offloader.write_block(state, block, 0, source),
            // Another parameter may have left its bytes there.
            None => offloader.clear_block(state, block),
        };
        if let Err(error) = written {
            let unit = state.host.blocks()[block].unit;
            state.remove_parameter(at);
            state.host.vacate_if_empty(unit);
            return Err(error);
        }
        let unit = state.host.blocks()[block].unit;
        self.note_moved(unit);
        Ok(at)
    }

    /// Removes the parameter that was added last.
    fn take_back(&mut self, at: usize) {
        self.note_block_moved(at);
        self.state.remove_parameter(at);
    }

    /// Notes that the unit of a parameter changes, if it is in one.
    fn note_block_moved(&mut self, at: usize) {
        if let Backing::Block { block, .. } = self.state.parameters[at].backing {
            self.note_moved(self.state.host.blocks()[block].unit);
        }
    }

    /// As [`Offloader::remove`], without the slots that follow.
    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        self.check_fixed()?;
        let at = self.state.find(name)?;
        self.schedule.make_idle(&self.state.groups_using(at))?;
        if matches!(self.state.parameters[at].backing, Backing::Block { .. }) {
            self.schedule.check_all_released()?;
            self.note_block_moved(at);
        }
        self.state.remove_parameter(at);
        // Its own address is gone.
        self.state.generation += 1;
        Ok(())
    }
}

impl OffloadState {
    /// The index of the group that a parameter is added to.
    pub(super) fn group_of_added(&self, parameter: &Parameter) -> Result<usize> {
        match self.group_of.get(&*parameter.group) {
            Some(group) => Ok(*group),
            None => fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to add parameter {:?} to group {:?}, which the plan does not have",
                parameter.name,
                parameter.group
            ),
        }
    }
}
