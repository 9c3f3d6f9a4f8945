//! Parameters that an engine replaces after a plan was committed. Where a parameter is kept follows from
//! the plan, never from where its new bytes lie.

use crate::device::backend::{Location, Stream};
use crate::device::owned::DeviceMemory;
use crate::error::{Error, Result, fail};
use crate::memory::buffer::Buffer;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::host_space::HostSpace;
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::state::{Backing, OffloadState};
use crate::offload::{bulk_copy, quantize};
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{QuantizedParameter, TransferMode};
use crate::plan::plan::ALIGNMENT;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::fp8::SourceType;
use crate::tensor::layout::Layout;

impl Offloader {
    /// Gives a parameter new bytes, and another layout. Where it is kept stays. The bytes that it has may
    /// be given as well, in another layout.
    pub fn replace(
        &self,
        name: &str,
        layout: Layout,
        source: Location,
        stream: Stream,
    ) -> Result<()> {
        self.take_over(name, layout, Some(source), stream)
    }

    /// The same; without a source the parameter's bytes are those that it has.
    pub(super) fn take_over(
        &self,
        name: &str,
        layout: Layout,
        source: Option<Location>,
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
            && SourceType::of(layout.dtype()).is_ok()
        {
            return self.quantize_again(state, &mut change, at, &quantized, &layout, source);
        }
        match state.kept[at].place.clone() {
            Backing::Block(block, offset) => {
                self.replace_block(state, &mut change, at, (block, offset), layout, source)
            }
            Backing::Unbacked(groups, transfer_mode) => {
                change.check_all_released()?;
                self.find_other_room(
                    state,
                    &mut change,
                    at,
                    (groups, transfer_mode),
                    layout,
                    source,
                )
            }
            _ => self.replace_resident(state, &mut change, at, layout, source),
        }
    }

    /// The bytes are where they belong: they are looked at in another layout, and copied again.
    fn relabel(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        layout: Layout,
    ) -> Result<()> {
        state.generation += u64::from(layout != state.kept[at].layout);
        state.kept[at].layout = layout;
        match state.kept[at].place {
            Backing::Block(block, _) if change.is_laid_out() => {
                change.mark_dirty(state.blocks[block].unit)
            }
            Backing::Block(..) => self.rearrange(state, change),
            _ => Ok(()),
        }
    }

    /// New numbers for what is kept in 8 bits: they and their scales go where the old ones are.
    fn quantize_again(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        quantized: &QuantizedParameter,
        layout: &Layout,
        source: Location,
    ) -> Result<()> {
        let Some(rule) = &self.plan().plan.options.quantize else { return Ok(()) };
        if layout.shape() != quantized.layout.shape() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to replace parameter {:?}, which is kept in 8 bits in the shape {:?}, by one \
                 of the shape {:?}: remove it, and add the new one in 8 bits",
                state.kept[at].name(),
                quantized.layout.shape(),
                layout.shape()
            );
        }
        let quantizer = quantize::quantizer(self.device())?;
        let both = [at, state.find(&quantized.scales)?];
        // What is refused is known when it is written.
        let saved = if rule.reject_nonfinite { self.save(state, &both)? } else { Vec::new() };
        let filled = quantize::fill(rule, &quantizer, state, at, layout, source, &mut None);
        if filled.is_err() {
            self.restore(&saved)?;
        }
        for (one, layout) in both.into_iter().zip(&quantized.output) {
            let layout = if filled.is_ok() { layout } else { &state.kept[one].layout };
            self.relabel(state, change, one, layout.clone())?;
        }
        filled
    }

    /// Copies of parameters' bytes, and where they are from.
    fn save(&self, state: &OffloadState, some: &[usize]) -> Result<Vec<(Location, Arc<Buffer>)>> {
        let save = |place: Location| {
            let Location { span, on_device } = place;
            Ok((place, self.copy_of(Location { span, on_device })?))
        };
        some.iter().filter_map(|at| state.place_of(*at)).map(save).collect()
    }

    /// Puts the copies back where they are from.
    fn restore(&self, saved: &[(Location, Arc<Buffer>)]) -> Result<()> {
        for (place, copy) in saved {
            let job = CopyJob { to: place.span, from: Location::host(copy.data()) };
            match place.on_device {
                true => bulk_copy::into_device(self.device(), &[job], &mut None)?,
                false => bytes::copy(job.to, job.from.span),
            }
        }
        Ok(())
    }

    fn replace_block(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        (block, offset): (usize, u64),
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let tied = state.blocks[block].parameters.len() > 1;
        let same = bytes == state.kept[at].layout.span_bytes();
        let fits = !tied && bytes <= state.blocks[block].room;
        if !same {
            // Others move when the size changes; asked before anything is written.
            change.check_all_released()?;
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
            state.kept[at].place = Backing::Block(block, 0);
            state.blocks[block].bytes = bytes;
            state.blocks[block].room = bytes.next_multiple_of(ALIGNMENT);
            state.generation += 1;
            return self.rearrange(state, change);
        }
        let unit = &state.units[state.blocks[block].unit];
        let groups = if tied { vec![state.kept[at].group] } else { unit.groups.clone() };
        let carried = (groups, unit.transfer_mode);
        self.find_other_room(state, change, at, carried, layout, source)
    }

    /// Takes other room for what has none, or not enough.
    fn find_other_room(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        (groups, transfer_mode): (Vec<usize>, TransferMode),
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let given_up = match state.kept[at].place {
            Backing::Block(block, _) if state.blocks[block].parameters.len() == 1 => Some(block),
            _ => None,
        };
        let room = self.find_room(state, &groups, transfer_mode, bytes, given_up)?;
        // Given up first: two copies are never held.
        change.invalidate();
        state.leave_block(at);
        state.kept[at].place = Backing::Unbacked(groups.clone(), transfer_mode);
        state.kept[at].layout = layout;
        if matches!(room, HostSpace::Own) {
            state.drop_empty_units();
        }
        let block = match self.take_room(state, room, groups, transfer_mode, at, bytes) {
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
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        block: usize,
        error: Error,
    ) -> Result<()> {
        let unit = &state.units[state.blocks[block].unit];
        let outside = Backing::Unbacked(unit.groups.clone(), unit.transfer_mode);
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
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let tied = state.resident_ties(at);
        let before = state.resident_span(at).map(|(start, end)| end - start);
        let same = before == Some(bytes);
        let place = state.kept[at].place.clone();
        if let (Backing::Owned(memory, offset), false) = (&place, source.on_device)
            && (same || (tied.is_empty() && before > Some(bytes)))
        {
            let to = memory.span().part(*offset as usize, bytes as usize);
            let job = CopyJob { to, from: source };
            if let Err(error) = bulk_copy::into_device(self.device(), &[job], &mut None) {
                // Partly written, maybe: who lies there has no bytes until it is replaced again.
                for at in tied.into_iter().chain([at]) {
                    state.kept[at].place = Backing::Missing;
                }
                return Err(error);
            }
            return self.relabel(state, change, at, layout);
        }
        self.check_resident(state, state.device_bytes(&[at]) + bytes)?;
        state.generation += 1;
        if tied.is_empty() && matches!(place, Backing::Owned(..)) {
            // Given up first, as on the host.
            state.kept[at].place = Backing::Missing;
        }
        drop(place);
        state.kept[at].place = match source.on_device {
            true => Backing::Borrowed(source.span),
            false => self.upload(source.span)?,
        };
        state.kept[at].layout = layout;
        Ok(())
    }

    /// Device memory of ours with these bytes of the host.
    pub(super) fn upload(&self, from: Span) -> Result<Backing> {
        let Some(memory) = DeviceMemory::alloc(self.device(), from.bytes())? else {
            return Ok(Backing::Missing);
        };
        let job = CopyJob { to: memory.span(), from: Location::host(from) };
        bulk_copy::into_device(self.device(), &[job], &mut None)?;
        Ok(Backing::Owned(Arc::new(memory), 0))
    }

    /// Writes a parameter's bytes into its block.
    pub(super) fn write(
        &self,
        state: &OffloadState,
        block: usize,
        offset: u64,
        source: Location,
    ) -> Result<()> {
        let block = &state.blocks[block];
        let unit = &state.units[block.unit];
        let to = unit.region.part((block.offset + offset) as usize, source.span.bytes());
        let job = CopyJob { to, from: source };
        bulk_copy::into_host(self.device(), &unit.buffer, &[job], 0, &mut None)
    }
}
