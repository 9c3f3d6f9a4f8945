//! Parameters that an engine adds and removes after the commit.

use crate::device::backend::{Location, Stream};
use crate::error::{Result, fail};
use crate::offload::backing::{Backing, HostUse, ParameterState, c_name};
use crate::offload::edit::Edit;
use crate::offload::host_space::HostSpace;
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::os::bytes;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::selector::SelectorList;
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED, WB_ERR_SLOTS_BUDGET,
};

impl Offloader {
    /// Adds a parameter: offloaded, as the other offloaded parameters of its group are, if the
    /// plan's selectors and budget allow it; resident otherwise. On an error nothing is added.
    pub fn add(
        &self,
        parameter: Parameter,
        source: Option<Location>,
        stream: Stream,
    ) -> Result<()> {
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
    ) -> Result<Option<(HostUse, HostSpace)>> {
        let Some(transfer_mode) = self.mode_of_added(state, parameter, group)? else {
            return Ok(None);
        };
        let host_use = HostUse { groups: vec![group], transfer_mode };
        match self.find_space(state, &host_use, parameter.layout.span_bytes(), None) {
            Ok(space) => Ok(Some((host_use, space))),
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
        let requested = parameter.transfer_mode;
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
        let space = offloader.space_for_added(state, &parameter, group)?;
        let mut added = ParameterState {
            name: c_name(&parameter.name),
            group,
            layout: parameter.layout,
            backing: Backing::Missing,
            storage: None,
            quantized: None,
        };
        let Some((host_use, space)) = space else {
            offloader.check_resident(state, None, bytes, self.moved)?;
            added.backing = match source {
                None => Backing::Missing,
                Some(source) if source.on_device => Backing::Borrowed(source.span),
                Some(source) => offloader.upload(source.span)?,
            };
            return Ok(state.parameters.add(added));
        };
        self.schedule.check_all_released()?;
        let at = state.parameters.add(added);
        let block = match offloader.take_space(state, space, host_use, at, bytes) {
            Ok(block) => block,
            Err(error) => {
                state.remove_parameter(at);
                return Err(error);
            }
        };
        let written = match source {
            Some(source) => offloader.write_block(state, block, 0, source),
            None => {
                // Another parameter may have left its bytes there.
                state.own_location(at).into_iter().for_each(|own| bytes::fill(own.span, 0));
                Ok(())
            }
        };
        if let Err(error) = written {
            let unit = state.host.blocks()[block].unit;
            state.remove_parameter(at);
            state.host.vacate_if_empty(unit);
            return Err(error);
        }
        self.note_moved();
        Ok(at)
    }

    /// Removes the parameter that was added last.
    fn take_back(&mut self, at: usize) {
        self.note_moved();
        self.state.remove_parameter(at);
    }

    /// As [`Offloader::remove`], without the slots that follow.
    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        let at = self.state.find(name)?;
        self.schedule.make_idle(&self.state.groups_using(at))?;
        if matches!(self.state.parameters[at].backing, Backing::Block { .. }) {
            self.schedule.check_all_released()?;
            self.note_moved();
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
