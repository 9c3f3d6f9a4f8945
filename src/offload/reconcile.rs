//! Parameters that are added and removed after a plan was committed, and lists of all that there are now.

use std::collections::HashSet;

use super::keeping::Source;
use super::offloader::Offloader;
use super::parameter::{Carrier, Parameter};
use super::selector::Selector;
use super::state::{Block, Kept, Place, State};
use crate::device::Stream;
use crate::error::{Result, fail};
use crate::memory::pages;
use crate::status::{WB_ERR_BUDGET, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED};

/// What [`Offloader::reconcile`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Parameters whose bytes lay elsewhere and were taken over.
    pub replaced: u64,
    /// Parameters of new names.
    pub added: u64,
    /// Names that are gone.
    pub removed: u64,
    /// Parameters that are where they were.
    pub kept: u64,
}

impl Offloader {
    /// Adds a parameter: offloaded beside what is offloaded of its group, if it is selected and the
    /// budget has room; resident otherwise.
    pub fn add(&self, parameter: Parameter, source: Option<Source>, stream: Stream) -> Result<()> {
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
        let mut change = self.schedule().change(&[group], stream)?;
        let at = state.kept.len();
        let bytes = parameter.layout.span_bytes();
        let carrier = self.carrier_of_added(&state, &parameter, group)?;
        let room = match carrier {
            Some(carrier) => match self.find_room(&state, &[group], carrier, bytes, None) {
                Ok(room) => Some((carrier, room)),
                Err(error) if error.status == WB_ERR_BUDGET => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let kept = |place| Kept {
            name: parameter.name.clone(),
            group,
            layout: parameter.layout.clone(),
            place,
            storage: None,
            quantized: None,
        };
        match (room, source) {
            (Some((carrier, room)), source) => {
                change.check_all_free()?;
                state.kept.push(kept(Place::Nowhere));
                let made = self.take_room(&mut state, room, vec![group], carrier, at, bytes);
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
                self.check_device_bytes(&state, state.device_bytes(&[]) + bytes, None)?;
                let place = match source {
                    None => Place::Nowhere,
                    Some(source) if source.on_device => Place::Theirs(source.span),
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
        state: &State,
        parameter: &Parameter,
        group: usize,
    ) -> Result<Option<Carrier>> {
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
            || parameter.carrier.is_none()
            || !selected
            || meant(&options.exclude)?
        {
            return Ok(None);
        }
        let beside = state.units.iter().filter(|unit| unit.groups == [group]);
        let carriers: Vec<Carrier> = beside.map(|unit| unit.carrier).collect();
        let wished = parameter.carrier.filter(|carrier| *carrier != Carrier::Auto);
        // Where nothing of the group is offloaded it stays on the device, whatever the wish.
        let in_place = wished == Some(Carrier::View) && !carriers.is_empty();
        if in_place && state.arena.device_address().is_none() {
            let policy = self.device().policy();
            let why = if policy.views { state.arena.note() } else { &policy.views_reason };
            fail!(
                WB_ERR_NOT_MAPPED,
                "asked to add parameter {:?} to be read in place; there are no views here: {why}",
                parameter.name
            );
        }
        let ahead = carriers.contains(&Carrier::Prefetch).then_some(Carrier::Prefetch);
        Ok(carriers.first().copied().and_then(|first| wished.or(ahead).or(Some(first))))
    }

    /// Removes a parameter.
    pub fn remove(&self, name: &str, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        let at = state.find(name)?;
        let mut change = self.schedule().change(&state.groups_beside(at), stream)?;
        let offloaded = matches!(state.kept[at].place, Place::Block(..));
        if offloaded {
            change.check_all_free()?;
            state.leave_block(at);
        }
        state.forget(at);
        if offloaded { self.rearrange(&mut state, &mut change) } else { Ok(()) }
    }

    /// Makes this hold what the engine's parameters are now: what lies elsewhere is replaced, new names
    /// are added, names that are gone removed.
    pub fn reconcile(
        &self,
        now: Vec<(Parameter, Option<Source>)>,
        stream: Stream,
    ) -> Result<Reconciled> {
        let mut done = Reconciled::default();
        // Judged before anything is changed, which moves what the addresses name.
        let (gone, judged) = {
            let state = self.state()?;
            let names: HashSet<&str> =
                now.iter().map(|(parameter, _)| parameter.name.as_str()).collect();
            let gone: Vec<String> =
                state.names.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
            let judge = |(parameter, source): &(Parameter, Option<Source>)| {
                let at = *state.names.get(&parameter.name)?;
                Some(source.is_none_or(|source| state.is_at(at, source, &parameter.layout)))
            };
            (gone, now.iter().map(judge).collect::<Vec<Option<bool>>>())
        };
        for name in gone {
            self.remove(&name, stream)?;
            done.removed += 1;
        }
        for ((parameter, source), is_where_it_was) in now.into_iter().zip(judged) {
            match (is_where_it_was, source) {
                (Some(false), Some(source)) => {
                    self.replace(&parameter.name, parameter.layout, source, stream)?;
                    done.replaced += 1;
                }
                (Some(_), _) => done.kept += 1,
                (None, source) => {
                    self.add(parameter, source, stream)?;
                    done.added += 1;
                }
            }
        }
        if done.replaced + done.removed > 0 {
            self.compact(stream)?;
        }
        Ok(done)
    }

    /// Closes up the room between blocks.
    pub fn compact(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        let mut change = self.schedule().change(&[], stream)?;
        change.check_all_free()?;
        for unit in 0..state.units.len() {
            let mut end = 0;
            for block in state.blocks_in(unit) {
                let Block { offset, bytes, room, .. } = state.blocks[block];
                let region = state.units[unit].region;
                if end < offset {
                    let part = |at: u64| region.part(at as usize, bytes as usize);
                    pages::copy(part(end), part(offset));
                    state.blocks[block].offset = end;
                }
                end += room;
            }
        }
        self.rearrange(&mut state, &mut change)
    }
}
