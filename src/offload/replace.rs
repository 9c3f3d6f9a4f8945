//! Parameters that an engine replaces after a plan was committed. Where a parameter is kept follows from
//! the plan, never from where its new bytes lie.

use super::fill::{self, Job};
use super::keeping::Source;
use super::offloader::Offloader;
use super::parameter::Carrier;
use super::plan::ALIGNMENT;
use super::quantize::{Quantized, Rule};
use super::room::Room;
use super::schedule::Change;
use super::state::{Place, State};
use crate::device::kernel::Wide;
use crate::device::{DeviceMemory, Stream};
use crate::error::{Error, Result, fail};
use crate::memory::buffer::Buffer;
use crate::memory::pages::{self, Span};
use crate::quant::quantizer;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::sync::Arc;
use crate::tensor::Layout;

impl Offloader {
    /// Gives a parameter new bytes, and another layout. Where it is kept stays. The bytes that it has may
    /// be given as well, in another layout.
    pub fn replace(
        &self,
        name: &str,
        layout: Layout,
        source: Source,
        stream: Stream,
    ) -> Result<()> {
        self.take_over(name, layout, Some(source), stream)
    }

    /// The same; without a source the parameter's bytes are those that it has.
    pub(super) fn take_over(
        &self,
        name: &str,
        layout: Layout,
        source: Option<Source>,
        stream: Stream,
    ) -> Result<()> {
        let mut state = self.state()?;
        let state = &mut *state;
        let at = state.find(name)?;
        state.check_sum(Some(at), layout.span_bytes())?;
        let mut change = self.schedule().change(&state.groups_beside(at), stream)?;
        let Some(source) = source.filter(|source| !state.holds(at, *source, &layout)) else {
            return self.relabel(state, &mut change, at, layout);
        };
        let brought = self.bring(state, Some(state.kept[at].group), source)?;
        let source = brought.source;
        if let Some(quantized) = state.kept[at].quantized.clone()
            && Wide::of(layout.dtype()).is_ok()
        {
            return self.quantize_again(state, &mut change, at, &quantized, &layout, source);
        }
        match state.kept[at].place.clone() {
            Place::Block(block, offset) => {
                self.replace_block(state, &mut change, at, (block, offset), layout, source)
            }
            Place::Outside(groups, carrier) => {
                change.check_all_free()?;
                self.find_other_room(state, &mut change, at, (groups, carrier), layout, source)
            }
            _ => self.replace_resident(state, &mut change, at, layout, source),
        }
    }

    /// The bytes are where they belong: they are looked at in another layout, and copied again.
    fn relabel(
        &self,
        state: &mut State,
        change: &mut Change<'_>,
        at: usize,
        layout: Layout,
    ) -> Result<()> {
        state.generation += u64::from(layout != state.kept[at].layout);
        state.kept[at].layout = layout;
        match state.kept[at].place {
            Place::Block(block, _) if change.is_seated() => change.touch(state.blocks[block].unit),
            Place::Block(..) => self.rearrange(state, change),
            _ => Ok(()),
        }
    }

    /// New numbers for what is kept in 8 bits: they and their scales go where the old ones are.
    fn quantize_again(
        &self,
        state: &mut State,
        change: &mut Change<'_>,
        at: usize,
        quantized: &Quantized,
        layout: &Layout,
        source: Source,
    ) -> Result<()> {
        let Some(rule) = &self.plan().plan.options.quantize else { return Ok(()) };
        if layout.shape() != quantized.layout.shape() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to replace parameter {:?}, which is kept in 8 bits in the shape {:?}, by one \
                 of the shape {:?}: remove it, and add the new one in 8 bits",
                state.kept[at].name,
                quantized.layout.shape(),
                layout.shape()
            );
        }
        let quantizer = Rule::quantizer(self.device())?;
        let both = [at, state.find(&quantized.scales)?];
        // What is refused is known when it is written.
        let saved = if rule.refuse_odd { self.save(state, &both)? } else { Vec::new() };
        let filled = rule.fill(&quantizer, state, at, layout, source, &mut None);
        if filled.is_err() {
            self.restore(&saved)?;
        }
        for (one, layout) in both.into_iter().zip(&quantized.filled) {
            let layout = if filled.is_ok() { layout } else { &state.kept[one].layout };
            self.relabel(state, change, one, layout.clone())?;
        }
        filled
    }

    /// Copies of parameters' bytes, and where they are from.
    fn save(&self, state: &State, some: &[usize]) -> Result<Vec<(quantizer::Place, Arc<Buffer>)>> {
        let save = |place: quantizer::Place| {
            let quantizer::Place { span, on_device } = place;
            Ok((place, self.copy_of(Source { span, on_device })?))
        };
        some.iter().filter_map(|at| state.place_of(*at)).map(save).collect()
    }

    /// Puts the copies back where they are from.
    fn restore(&self, saved: &[(quantizer::Place, Arc<Buffer>)]) -> Result<()> {
        for (place, copy) in saved {
            let job = Job { to: place.span, from: copy.data(), from_device: false };
            match place.on_device {
                true => fill::into_device(self.device(), &[job], &mut None)?,
                false => pages::copy(job.to, job.from),
            }
        }
        Ok(())
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
        if !same {
            // Others move when the size changes; asked before anything is written.
            change.check_all_free()?;
        }
        if same {
            return match self.write(state, block, offset, source) {
                Ok(()) => self.relabel(state, change, at, layout),
                Err(error) => self.lose(state, change, block, error),
            };
        }
        if fits {
            // What it was tied to may have gone: the whole room is its own.
            if let Err(error) = self.write(state, block, 0, source) {
                return self.lose(state, change, block, error);
            }
            state.kept[at].layout = layout;
            state.kept[at].place = Place::Block(block, 0);
            state.blocks[block].bytes = bytes;
            state.blocks[block].room = bytes.next_multiple_of(ALIGNMENT);
            state.generation += 1;
            return self.rearrange(state, change);
        }
        let unit = &state.units[state.blocks[block].unit];
        let groups = if tied { vec![state.kept[at].group] } else { unit.groups.clone() };
        let carried = (groups, unit.carrier);
        self.find_other_room(state, change, at, carried, layout, source)
    }

    /// Takes other room for what has none, or not enough.
    fn find_other_room(
        &self,
        state: &mut State,
        change: &mut Change<'_>,
        at: usize,
        (groups, carrier): (Vec<usize>, Carrier),
        layout: Layout,
        source: Source,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let given_up = match state.kept[at].place {
            Place::Block(block, _) if state.blocks[block].parameters.len() == 1 => Some(block),
            _ => None,
        };
        let room = self.find_room(state, &groups, carrier, bytes, given_up)?;
        // Given up first: two copies are never held.
        change.unseat();
        state.leave_block(at);
        state.kept[at].place = Place::Outside(groups.clone(), carrier);
        state.kept[at].layout = layout;
        if matches!(room, Room::Own) {
            state.drop_empty_units();
        }
        let block = match self.take_room(state, room, groups, carrier, at, bytes) {
            Ok(block) => block,
            Err(error) => {
                // Where the others have no slots then, steps say so.
                let _ = self.rearrange(state, change);
                return Err(error);
            }
        };
        match self.write(state, block, 0, source) {
            Ok(()) => self.rearrange(state, change),
            Err(error) => self.lose(state, change, block, error),
        }
    }

    /// Bytes of a block were not brought, and may be partly written: who is in it has none, and room as
    /// planned when it is replaced again.
    fn lose(
        &self,
        state: &mut State,
        change: &mut Change<'_>,
        block: usize,
        error: Error,
    ) -> Result<()> {
        let unit = &state.units[state.blocks[block].unit];
        let outside = Place::Outside(unit.groups.clone(), unit.carrier);
        for at in state.blocks[block].parameters.clone() {
            state.leave_block(at);
            state.kept[at].place = outside.clone();
        }
        let _ = self.rearrange(state, change);
        Err(error)
    }

    /// Memory of ours is written where it lies if the new bytes fit and nobody else's are there.
    fn replace_resident(
        &self,
        state: &mut State,
        change: &mut Change<'_>,
        at: usize,
        layout: Layout,
        source: Source,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let tied = state.resident_ties(at);
        let before = state.resident_span(at).map(|(start, end)| end - start);
        let same = before == Some(bytes);
        let place = state.kept[at].place.clone();
        if let (Place::Ours(memory, offset), false) = (&place, source.on_device)
            && (same || (tied.is_empty() && before > Some(bytes)))
        {
            let to = memory.span().part(*offset as usize, bytes as usize);
            let job = Job { to, from: source.span, from_device: false };
            if let Err(error) = fill::into_device(self.device(), &[job], &mut None) {
                // Partly written, maybe: who lies there has no bytes until it is replaced again.
                for at in tied.into_iter().chain([at]) {
                    state.kept[at].place = Place::Nowhere;
                }
                return Err(error);
            }
            return self.relabel(state, change, at, layout);
        }
        self.check_resident(state, state.device_bytes(&[at]) + bytes)?;
        state.generation += 1;
        if tied.is_empty() && matches!(place, Place::Ours(..)) {
            // Given up first, as on the host.
            state.kept[at].place = Place::Nowhere;
        }
        drop(place);
        state.kept[at].place = match source.on_device {
            true => Place::Theirs(source.span),
            false => self.upload(source.span)?,
        };
        state.kept[at].layout = layout;
        Ok(())
    }

    /// Device memory of ours with these bytes of the host.
    pub(super) fn upload(&self, from: Span) -> Result<Place> {
        let Some(memory) = DeviceMemory::alloc(self.device(), from.bytes())? else {
            return Ok(Place::Nowhere);
        };
        let job = Job { to: memory.span(), from, from_device: false };
        fill::into_device(self.device(), &[job], &mut None)?;
        Ok(Place::Ours(Arc::new(memory), 0))
    }

    /// Writes a parameter's bytes into its block.
    pub(super) fn write(
        &self,
        state: &State,
        block: usize,
        offset: u64,
        source: Source,
    ) -> Result<()> {
        let block = &state.blocks[block];
        let unit = &state.units[block.unit];
        let to = unit.region.part((block.offset + offset) as usize, source.span.bytes());
        let job = Job { to, from: source.span, from_device: source.on_device };
        fill::into_host(self.device(), &unit.buffer, &[job], 0, &mut None)
    }
}
