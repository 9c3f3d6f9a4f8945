//! Parameters that an engine adds and removes after the commit.

use crate::device::backend::{Location, Stream};
use crate::error::{Result, fail};
use crate::offload::host_space::HostSpace;
use crate::offload::offloader::Offloader;
use crate::offload::state::{Backing, HostUse, OffloadState, ParameterState, c_name};
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
        let mut state = self.state()?;
        let state = &mut *state;
        if state.index_of.contains_key(&parameter.name) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to add parameter {:?}, which exists already: replace it",
                parameter.name
            );
        }
        let Some(group) = state.groups.iter().position(|group| **group == *parameter.group) else {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to add parameter {:?} to group {:?}, which the plan does not have",
                parameter.name,
                parameter.group
            );
        };
        let bytes = parameter.layout.span_bytes();
        state.check_sum(None, bytes)?;
        let mut change = self.schedule().change(&[group], stream)?;
        let snapshot =
            source.map(|source| self.snapshot(state, Some(group), source)).transpose()?;
        let source = snapshot.as_ref().map(|snapshot| snapshot.source);
        let space = self.space_for_added(state, &parameter, group)?;
        let mut added = ParameterState {
            name: c_name(&parameter.name),
            group,
            layout: parameter.layout,
            backing: Backing::Missing,
            storage: None,
            quantized: None,
        };
        let Some((host_use, space)) = space else {
            self.check_resident(state, state.resident_memory_bytes(None) + bytes)?;
            added.backing = match source {
                None => Backing::Missing,
                Some(source) if source.on_device => Backing::Borrowed(source.span),
                Some(source) => self.upload(source.span)?,
            };
            state.add_parameter(added);
            return Ok(());
        };
        change.check_all_released()?;
        let at = state.add_parameter(added);
        let block = self.take_space(state, space, host_use, at, bytes);
        let written = block.and_then(|block| match source {
            Some(source) => self.write_block(state, block, 0, source),
            None => Ok(()),
        });
        if written.is_err() {
            state.remove_from_block(at);
            state.remove_parameter(at);
            state.drop_empty_units();
            return written;
        }
        let arranged = self.rearrange(state, &mut change);
        if arranged.is_err() {
            state.remove_from_block(at);
            state.remove_parameter(at);
            // If the others get no slots either, the next step fails with that error.
            let _ = self.rearrange(state, &mut change);
        }
        arranged
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
        let units = state.units.iter().filter(|unit| unit.groups == [group]);
        let modes: Vec<TransferMode> = units.map(|unit| unit.transfer_mode).collect();
        let Some(&first) = modes.first() else {
            // Nothing of the group is offloaded.
            return Ok(None);
        };
        let requested = parameter.transfer_mode;
        let policy = self.device().policy();
        let views = match state.arena.data().bytes() {
            // All units are in the buffers of their sources.
            0 => policy.allows_views(policy.pin),
            _ => state.arena.device_address().is_some(),
        };
        if requested == TransferMode::ZeroCopy && !views {
            let why =
                if policy.views { state.arena.fallback_reason() } else { &policy.views_reason };
            fail!(
                WB_ERR_NOT_MAPPED,
                "asked to add parameter {:?} to be read in place (zero-copy); there are no views on this \
                 device: {why}",
                parameter.name
            );
        }
        Ok(Some(match requested {
            TransferMode::Auto if modes.contains(&TransferMode::Prefetch) => TransferMode::Prefetch,
            TransferMode::Auto => first,
            requested => requested,
        }))
    }

    /// Removes a parameter. Its memory is free for others.
    pub fn remove(&self, name: &str, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        let at = state.find(name)?;
        let mut change = self.schedule().change(&state.groups_using(at), stream)?;
        let offloaded = matches!(state.parameters[at].backing, Backing::Block { .. });
        if offloaded {
            change.check_all_released()?;
            state.remove_from_block(at);
        }
        state.remove_parameter(at);
        if offloaded { self.rearrange(&mut state, &mut change) } else { Ok(()) }
    }
}
