//! Parameters that an engine replaces, adds or removes after a plan was committed. Where a parameter is
//! kept follows from the plan, never from where its new bytes lie.

use std::collections::HashSet;
use std::sync::Arc;

use super::fill::{self, Job};
use super::offloader::{Block, Kept, Offloader, Place, Source, State, Unit};
use super::parameter::{Carrier, Parameter};
use super::plan::ALIGNMENT;
use super::schedule::Change;
use super::seats::{Seats, Size};
use super::selector::Selector;
use crate::device::{DeviceMemory, Stream};
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::pages::{self, Span};
use crate::status::{WB_ERR_BUDGET, WB_ERR_INVALID_ARGUMENT};
use crate::tensor::Layout;

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

/// Room for a block.
enum Room {
    /// In a unit that is there, at an offset.
    In(usize, u64),
    /// In a buffer of its own.
    Own,
}

impl Offloader {
    /// Gives a parameter new bytes, and another layout. Where it is kept stays.
    pub fn replace(
        &self,
        name: &str,
        layout: Layout,
        source: Source,
        stream: Stream,
    ) -> Result<()> {
        let mut state = self.state();
        let at = state.find(name)?;
        let mut change = self.schedule().change(&state.groups_beside(at), stream)?;
        match state.kept[at].place.clone() {
            Place::Block(block, offset) => {
                self.replace_block(&mut state, &mut change, at, (block, offset), layout, source)
            }
            _ => self.replace_resident(&mut state, at, layout, source),
        }
    }

    fn replace_block(
        &self,
        state: &mut State,
        change: &mut Change<'_>,
        at: usize,
        (block, offset): (usize, u64),
        layout: Layout,
        source: Source,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let tied = state.blocks[block].parameters.len() > 1;
        let same = bytes == state.kept[at].layout.span_bytes();
        let fits = !tied && bytes <= state.blocks[block].room;
        if same || fits {
            self.write(state, block, offset, source)?;
            change.touch(state.blocks[block].unit);
            let moves = layout != state.kept[at].layout;
            state.kept[at].layout = layout;
            state.generation += u64::from(moves);
            if same {
                return Ok(());
            }
            state.blocks[block].bytes = bytes;
            state.blocks[block].room = bytes.next_multiple_of(ALIGNMENT);
            return self.rearrange(state, change);
        }
        change.check_all_free()?;
        let (groups, carrier) = {
            let unit = &state.units[state.blocks[block].unit];
            let groups = if tied { vec![state.kept[at].group] } else { unit.groups.clone() };
            (groups, unit.carrier)
        };
        let room = self.find_room(state, &groups, carrier, bytes, (!tied).then_some(block))?;
        // Given up first: two copies are never held.
        state.leave_block(at);
        state.kept[at].place = Place::Nowhere;
        state.kept[at].layout = layout;
        if matches!(room, Room::Own) {
            state.drop_empty_units();
        }
        let made = self.take_room(state, room, groups, carrier, at, bytes);
        let made = made.and_then(|block| self.write(state, block, 0, source));
        made.and(self.rearrange(state, change))
    }

    fn replace_resident(
        &self,
        state: &mut State,
        at: usize,
        layout: Layout,
        source: Source,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let before = state.kept[at].layout.span_bytes();
        self.check_device_bytes(state, bytes.saturating_sub(before), None)?;
        state.kept[at].place = if source.on_device {
            Place::Theirs(source.span)
        } else {
            state.kept[at].place = Place::Nowhere;
            self.upload(source.span)?
        };
        state.kept[at].layout = layout;
        state.generation += 1;
        Ok(())
    }

    /// Device memory of ours with these bytes of the host.
    fn upload(&self, from: Span) -> Result<Place> {
        let Some(memory) = DeviceMemory::alloc(self.device(), from.bytes())? else {
            return Ok(Place::Nowhere);
        };
        let job = Job { to: memory.span(), from, from_device: false };
        fill::into_device(self.device(), &[job], &mut None)?;
        Ok(Place::Ours(Arc::new(memory), 0))
    }

    /// Adds a parameter: offloaded beside what is offloaded of its group, if it is selected and the
    /// budget has room; resident otherwise.
    pub fn add(&self, parameter: Parameter, source: Option<Source>, stream: Stream) -> Result<()> {
        let mut state = self.state();
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
                    return Err(error);
                }
                state.names.insert(parameter.name.clone(), at);
                self.rearrange(&mut state, &mut change)
            }
            (None, source) => {
                self.check_device_bytes(&state, bytes, None)?;
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
        let ahead = carriers.contains(&Carrier::Prefetch).then_some(Carrier::Prefetch);
        Ok(carriers.first().copied().and_then(|first| wished.or(ahead).or(Some(first))))
    }

    /// Removes a parameter.
    pub fn remove(&self, name: &str, stream: Stream) -> Result<()> {
        let mut state = self.state();
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
            let state = self.state();
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
        let mut state = self.state();
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

    /// Where `bytes` bytes of the groups can go, within the budget, once `given_up` is gone.
    fn find_room(
        &self,
        state: &State,
        groups: &[usize],
        carrier: Carrier,
        bytes: u64,
        given_up: Option<usize>,
    ) -> Result<Room> {
        let needs = bytes.next_multiple_of(ALIGNMENT);
        for (at, unit) in state.units.iter().enumerate() {
            if unit.groups == groups && unit.carrier == carrier {
                let mut end = 0;
                let region = unit.region.bytes() as u64;
                let blocks =
                    state.blocks_in(at).into_iter().filter(|block| Some(*block) != given_up);
                for block in blocks {
                    if state.blocks[block].offset - end >= needs {
                        return Ok(Room::In(at, end));
                    }
                    end = state.blocks[block].offset + state.blocks[block].room;
                }
                if region.saturating_sub(end) >= needs {
                    return Ok(Room::In(at, end));
                }
            }
        }
        if let Some(budget) = self.plan().plan.options.offload_bytes {
            let page = pages::page_bytes() as u64;
            let freed = given_up.and_then(|block| {
                let unit = state.blocks[block].unit;
                let own = !Arc::ptr_eq(&state.units[unit].buffer, &state.arena);
                (own && state.blocks_in(unit) == [block]).then(|| {
                    (state.units[unit].buffer.data().bytes() as u64).next_multiple_of(page)
                })
            });
            let held: u64 = state
                .buffers()
                .map(|buffer| (buffer.data().bytes() as u64).next_multiple_of(page))
                .sum();
            let would = held - freed.unwrap_or(0) + needs.next_multiple_of(page);
            if would > budget {
                fail!(
                    WB_ERR_BUDGET,
                    "{needs} more bytes of host memory for parameters would make {would}, over the \
                     budget of {budget} bytes: nothing was changed"
                );
            }
        }
        let extra = Size { carrier, bytes: needs, groups };
        self.check_device_bytes(state, 0, Some(extra))?;
        Ok(Room::Own)
    }

    /// `WB_ERR_BUDGET` where so many more resident bytes, or the slots with one more unit, go over a
    /// budget of device bytes.
    fn check_device_bytes(&self, state: &State, more: u64, extra: Option<Size<'_>>) -> Result<()> {
        let Some(budget) = self.plan().plan.options.device_bytes else { return Ok(()) };
        let slots = match extra {
            Some(extra) => self.seats(state, Some(extra)).slot_bytes,
            None => state.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64),
        };
        let would = state.resident_bytes() + more + slots;
        if would > budget {
            fail!(
                WB_ERR_BUDGET,
                "what stays on the device and the slots would need {would} bytes, over the budget of \
                 {budget}: nothing was changed"
            );
        }
        Ok(())
    }

    /// Puts a parameter into the room that was found.
    fn take_room(
        &self,
        state: &mut State,
        room: Room,
        groups: Vec<usize>,
        carrier: Carrier,
        at: usize,
        bytes: u64,
    ) -> Result<usize> {
        let rounded = bytes.next_multiple_of(ALIGNMENT);
        let (unit, offset) = match room {
            Room::In(unit, offset) => (unit, offset),
            Room::Own => {
                let options = BufferOptions { pin: state.pinning(), ..BufferOptions::default() };
                let buffer = Buffer::alloc(self.device(), rounded as usize, &options, &mut None)?;
                let region = buffer.data();
                // Its slot is found when everything is arranged again.
                state.units.push(Unit { buffer, region, carrier, groups, slot: None });
                state.note_peak();
                (state.units.len() - 1, 0)
            }
        };
        state.blocks.push(Block { unit, offset, bytes, room: rounded, parameters: vec![at] });
        state.kept[at].place = Place::Block(state.blocks.len() - 1, 0);
        Ok(state.blocks.len() - 1)
    }

    /// Writes a parameter's bytes into its block.
    fn write(&self, state: &State, block: usize, offset: u64, source: Source) -> Result<()> {
        let block = &state.blocks[block];
        let unit = &state.units[block.unit];
        let to = unit.region.part((block.offset + offset) as usize, source.span.bytes());
        let job = Job { to, from: source.span, from_device: source.on_device };
        fill::into_host(self.device(), &unit.buffer, &[job], 0, &mut None)
    }

    fn seats(&self, state: &State, extra: Option<Size<'_>>) -> Seats {
        let options = &self.plan().plan.options;
        let extents = state.extents();
        let mut sizes: Vec<Size<'_>> = state
            .units
            .iter()
            .zip(extents)
            .map(|(unit, bytes)| Size { carrier: unit.carrier, bytes, groups: &unit.groups })
            .collect();
        sizes.extend(extra);
        let room = options.device_bytes.map(|bytes| bytes.saturating_sub(state.resident_bytes()));
        let limit = options.slot_bytes.into_iter().chain(room).min();
        Seats::new(&sizes, options.depth as usize, limit)
    }

    /// Gives every unit its slot again and goes on: addresses have changed.
    fn rearrange(&self, state: &mut State, change: &mut Change<'_>) -> Result<()> {
        change.check_all_free()?;
        state.drop_empty_units();
        let seats = self.seats(state, None);
        let have = state.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64);
        if seats.slot_bytes > have {
            state.slots = None;
            state.slots =
                DeviceMemory::alloc(self.device(), seats.slot_bytes as usize)?.map(Arc::new);
        }
        state.note_peak();
        for (unit, offset) in state.units.iter_mut().zip(&seats.offsets) {
            unit.slot = *offset;
        }
        state.ring = seats.ring;
        state.depth = seats.depth;
        state.generation += 1;
        change.lay_out(&state.arrangement())
    }
}

impl State {
    /// The groups that a parameter's bytes are carried with.
    fn groups_beside(&self, at: usize) -> Vec<usize> {
        match self.kept[at].place {
            Place::Block(block, _) => self.units[self.blocks[block].unit].groups.clone(),
            _ => vec![self.kept[at].group],
        }
    }

    /// The unit's blocks in the order in which they lie.
    fn blocks_in(&self, unit: usize) -> Vec<usize> {
        let mut blocks: Vec<usize> = (0..self.blocks.len())
            .filter(|at| self.blocks[*at].unit == unit && !self.blocks[*at].parameters.is_empty())
            .collect();
        blocks.sort_by_key(|at| self.blocks[*at].offset);
        blocks
    }

    /// The parameter has no part in its block any more.
    fn leave_block(&mut self, at: usize) {
        if let Place::Block(block, _) = self.kept[at].place {
            let block = &mut self.blocks[block];
            block.parameters.retain(|member| *member != at);
            if block.parameters.is_empty() {
                block.bytes = 0;
            }
        }
    }

    /// Takes a parameter out of all lists; the last one gets its number.
    fn forget(&mut self, at: usize) {
        let last = self.kept.len() - 1;
        let gone = self.kept.swap_remove(at);
        self.names.remove(&gone.name);
        if at == last {
            return;
        }
        let moved = &self.kept[at];
        self.names.insert(moved.name.clone(), at);
        if let Place::Block(block, _) = moved.place {
            let members = self.blocks[block].parameters.iter_mut();
            members.filter(|member| **member == last).for_each(|member| *member = at);
        }
    }

    /// Gives buffers back that nothing is in any more.
    fn drop_empty_units(&mut self) {
        for unit in (0..self.units.len()).rev() {
            let own = !Arc::ptr_eq(&self.units[unit].buffer, &self.arena);
            if own && self.blocks_in(unit).is_empty() {
                self.units.remove(unit);
                self.blocks.iter_mut().filter(|block| block.unit > unit).for_each(|block| {
                    block.unit -= 1;
                });
            }
        }
        self.blocks.iter_mut().filter(|block| block.parameters.is_empty()).for_each(|block| {
            block.unit = 0;
        });
    }

    /// Whether the parameter's bytes are at the source, in the same layout.
    fn is_at(&self, at: usize, source: Source, layout: &Layout) -> bool {
        let kept = &self.kept[at];
        let first = source.span.start() as u64 + layout.bytes_before();
        let (host, device) = self.addresses(kept);
        kept.layout == *layout && (host == Some(first) || device == Some(first))
    }

    /// Pinned if the arena is.
    fn pinning(&self) -> crate::device::policy::Choice {
        use crate::device::policy::Choice;
        match self.arena.data().bytes() {
            0 => Choice::Auto,
            _ if self.arena.pinned_bytes() > 0 => Choice::On,
            _ => Choice::Off,
        }
    }
}
