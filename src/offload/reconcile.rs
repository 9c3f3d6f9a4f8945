//! Parameters that are added and removed after a plan was committed, and lists of all that there are now.

use std::collections::HashSet;

use crate::device::backend::{Location, Stream};
use crate::error::{Result, fail};
use crate::offload::alias::Snapshot;
use crate::offload::offloader::Offloader;
use crate::offload::state::{Backing, Block, OffloadState, ParameterState, c_name};
use crate::os::bytes;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::selector::Selector;
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED, WB_ERR_SLOTS_BUDGET,
};

/// What [`Offloader::reconcile`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReconcileResult {
    /// Parameters whose bytes lay elsewhere and were taken over.
    pub replaced: u64,
    /// Parameters of new names.
    pub added: u64,
    /// Names that are gone.
    pub removed: u64,
    /// Parameters that are where they were.
    pub kept: u64,
}

/// What is to be done for a parameter.
enum Judged {
    ParameterState,
    /// It has other bytes; where none are given, the same in another layout.
    Other(Option<Snapshot>),
    New(Option<Snapshot>),
}

impl Offloader {
    /// Adds a parameter: offloaded beside what is offloaded of its group, if it is selected and the
    /// budget has room; resident otherwise.
    pub fn add(
        &self,
        parameter: Parameter,
        source: Option<Location>,
        stream: Stream,
    ) -> Result<()> {
        let mut state = self.state()?;
        if state.names.contains_key(&parameter.name) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to add parameter {:?}, which is there already: replace it",
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
        let at = state.kept.len();
        let brought = source.map(|source| self.bring(&state, Some(group), source)).transpose()?;
        let source = brought.as_ref().map(|brought| brought.source);
        let transfer_mode = self.carrier_of_added(&state, &parameter, group)?;
        let room = match transfer_mode {
            Some(transfer_mode) => {
                match self.find_room(&state, &[group], transfer_mode, bytes, None) {
                    Ok(room) => Some((transfer_mode, room)),
                    Err(error) if [WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET].contains(&error.status) => {
                        None
                    }
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        let kept = |place| ParameterState {
            name: c_name(&parameter.name),
            group,
            layout: parameter.layout.clone(),
            place,
            storage: None,
            quantized: None,
        };
        match (room, source) {
            (Some((transfer_mode, room)), source) => {
                change.check_all_released()?;
                state.kept.push(kept(Backing::Missing));
                let made = self.take_room(&mut state, room, vec![group], transfer_mode, at, bytes);
                let made = made.and_then(|block| match source {
                    Some(source) => self.write(&state, block, 0, source),
                    None => Ok(()),
                });
                if let Err(error) = made {
                    state.leave_block(at);
                    state.kept.pop();
                    state.drop_empty_units();
                    return Err(error);
                }
                state.names.insert(parameter.name.clone(), at);
                let arranged = self.rearrange(&mut state, &mut change);
                if arranged.is_err() {
                    // As it was. Where even that has no slots, steps say so.
                    state.leave_block(at);
                    state.names.remove(&parameter.name);
                    state.kept.pop();
                    let _ = self.rearrange(&mut state, &mut change);
                }
                arranged
            }
            (None, source) => {
                self.check_resident(&state, state.device_bytes(&[]) + bytes)?;
                let place = match source {
                    None => Backing::Missing,
                    Some(source) if source.on_device => Backing::Borrowed(source.span),
                    Some(source) => self.upload(source.span)?,
                };
                state.kept.push(kept(place));
                state.names.insert(parameter.name.clone(), at);
                Ok(())
            }
        }
    }

    /// How a new parameter would be carried; `None` where it is to stay on the device.
    fn carrier_of_added(
        &self,
        state: &OffloadState,
        parameter: &Parameter,
        group: usize,
    ) -> Result<Option<TransferMode>> {
        let options = &self.plan().plan.options;
        let meant = |texts: &[String]| -> Result<bool> {
            for text in texts {
                if Selector::parse(text)?.matches(&parameter.name) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let selected = options.select.is_empty() || meant(&options.select)?;
        if parameter.layout.span_bytes() == 0
            || parameter.resident
            || !selected
            || meant(&options.exclude)?
        {
            return Ok(None);
        }
        let beside = state.units.iter().filter(|unit| unit.groups == [group]);
        let transfer_modes: Vec<TransferMode> = beside.map(|unit| unit.transfer_mode).collect();
        let wished = Some(parameter.transfer_mode).filter(|asked| *asked != TransferMode::Auto);
        // Where nothing of the group is offloaded it stays on the device, whatever the wish.
        let in_place = wished == Some(TransferMode::ZeroCopy) && !transfer_modes.is_empty();
        if in_place && state.arena.device_address().is_none() {
            let policy = self.device().policy();
            let why =
                if policy.views { state.arena.fallback_reason() } else { &policy.views_reason };
            fail!(
                WB_ERR_NOT_MAPPED,
                "asked to add parameter {:?} to be read in place; there are no views here: {why}",
                parameter.name
            );
        }
        let ahead =
            transfer_modes.contains(&TransferMode::Prefetch).then_some(TransferMode::Prefetch);
        Ok(transfer_modes.first().copied().and_then(|first| wished.or(ahead).or(Some(first))))
    }

    /// Removes a parameter.
    pub fn remove(&self, name: &str, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        let at = state.find(name)?;
        let mut change = self.schedule().change(&state.groups_beside(at), stream)?;
        let offloaded = matches!(state.kept[at].place, Backing::Block(..));
        if offloaded {
            change.check_all_released()?;
            state.leave_block(at);
        }
        state.forget(at);
        if offloaded { self.rearrange(&mut state, &mut change) } else { Ok(()) }
    }

    /// Makes this hold what the engine's parameters are now: what lies elsewhere is replaced, new names
    /// are added, names that are gone removed.
    pub fn reconcile(
        &self,
        now: Vec<(Parameter, Option<Location>)>,
        stream: Stream,
    ) -> Result<ReconcileResult> {
        let mut done = ReconcileResult::default();
        let names: HashSet<&str> =
            now.iter().map(|(parameter, _)| parameter.name.as_str()).collect();
        let gone = |name: &&String| !names.contains(name.as_str());
        let gone: Vec<String> = self.state()?.names.keys().filter(gone).cloned().collect();
        let judged = self.judge(&now, stream)?;
        for name in gone {
            self.remove(&name, stream)?;
            done.removed += 1;
        }
        for ((parameter, _), judged) in now.into_iter().zip(judged) {
            let count = match judged {
                Judged::ParameterState => &mut done.kept,
                Judged::Other(brought) => {
                    let source = brought.as_ref().map(|brought| brought.source);
                    self.take_over(&parameter.name, parameter.layout, source, stream)?;
                    &mut done.replaced
                }
                Judged::New(brought) => {
                    let source = brought.as_ref().map(|brought| brought.source);
                    self.add(parameter, source, stream)?;
                    &mut done.added
                }
            };
            *count += 1;
        }
        if done.replaced + done.removed > 0 {
            self.compact(stream)?;
        }
        Ok(done)
    }

    /// What is to be done, before anything is: changes move what addresses name. Sources that they would
    /// overwrite or free are copied.
    fn judge(&self, now: &[(Parameter, Option<Location>)], stream: Stream) -> Result<Vec<Judged>> {
        let state = self.state()?;
        let mut still = None;
        let mut bring = |group: Option<usize>, source: Location| -> Result<Snapshot> {
            if still.is_none() && state.own(group, source)?.is_some() {
                still = Some(self.schedule().change(&[], stream)?);
            }
            self.bring(&state, group, source)
        };
        let mut judged = Vec::with_capacity(now.len());
        for (Parameter { name, group, layout, .. }, source) in now {
            judged.push(match (state.names.get(name).copied(), *source) {
                (Some(at), Some(source)) if state.holds(at, source, layout) => {
                    match state.kept[at].layout == *layout {
                        true => Judged::ParameterState,
                        false => Judged::Other(None),
                    }
                }
                (Some(at), Some(source)) => {
                    Judged::Other(Some(bring(Some(state.kept[at].group), source)?))
                }
                // An empty tensor has no address.
                (Some(at), None)
                    if layout.span_bytes() == 0 && state.kept[at].layout != *layout =>
                {
                    Judged::Other(Some(Snapshot::nothing()))
                }
                (Some(_), None) => Judged::ParameterState,
                (None, source) => {
                    let group = state.groups.iter().position(|known| **known == **group);
                    Judged::New(source.map(|source| bring(group, source)).transpose()?)
                }
            });
        }
        Ok(judged)
    }

    /// Closes up the room between blocks.
    pub fn compact(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        let mut change = self.schedule().change(&[], stream)?;
        change.check_all_released()?;
        for unit in 0..state.units.len() {
            let mut end = 0;
            for block in state.blocks_in(unit) {
                let Block { offset, bytes, room, .. } = state.blocks[block];
                let region = state.units[unit].region;
                if end < offset {
                    let part = |at: u64| region.part(at as usize, bytes as usize);
                    bytes::copy(part(end), part(offset));
                    state.blocks[block].offset = end;
                }
                end += room;
            }
        }
        self.rearrange(&mut state, &mut change)
    }
}
