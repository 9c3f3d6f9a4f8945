//! Parameters that an engine replaces after the commit. Where a parameter is kept follows from the
//! plan, never from where its new source is.

use crate::device::backend::{Location, Stream};
use crate::device::owned::DeviceMemory;
use crate::error::{Error, Result, fail};
use crate::offload::bulk_copy;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::host_space::HostSpace;
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::state::{Backing, HostUse, OffloadState};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::QuantizedParameter;
use crate::plan::plan::ALIGNMENT;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::fp8::SourceType;
use crate::tensor::layout::Layout;

impl Offloader {
    /// Gives a parameter new bytes and a new layout. It stays where the plan keeps it. The source
    /// may be the parameter's own bytes, in another layout.
    pub fn replace(
        &self,
        name: &str,
        layout: Layout,
        source: Location,
        stream: Stream,
    ) -> Result<()> {
        self.update(name, layout, Some(source), stream)
    }

    /// As [`Offloader::replace`]; without a source the parameter keeps its bytes.
    pub(super) fn update(
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
        let mut change = self.schedule().change(&state.groups_using(at), stream)?;
        let Some(source) = source.filter(|source| !state.is_in_place(at, *source, &layout)) else {
            return self.set_layout(state, &mut change, at, layout);
        };
        let snapshot = self.snapshot(state, Some(state.parameters[at].group), source)?;
        let source = snapshot.source;
        if let Some(quantized) = state.parameters[at].quantized.clone()
            && SourceType::of(layout.dtype()).is_ok()
        {
            return self.replace_quantized(state, &mut change, at, &quantized, &layout, source);
        }
        match state.parameters[at].backing.clone() {
            Backing::Block { block, offset } => {
                if state.units[state.blocks[block].unit].in_source {
                    self.own_block(state, &mut change, block)?;
                }
                self.replace_in_block(state, &mut change, at, (block, offset), layout, source)
            }
            Backing::Unbacked(host_use) => {
                change.check_all_released()?;
                self.relocate(state, &mut change, at, host_use, layout, source)
            }
            _ => self.replace_resident(state, &mut change, at, layout, source),
        }
    }

    /// Sets the layout of a parameter whose bytes are in place, and fills its slot again.
    fn set_layout(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        layout: Layout,
    ) -> Result<()> {
        let parameter = &mut state.parameters[at];
        state.generation += u64::from(layout != parameter.layout);
        parameter.layout = layout;
        match parameter.backing {
            Backing::Block { block, .. } if change.is_laid_out() => {
                change.mark_dirty(state.blocks[block].unit)
            }
            Backing::Block { .. } => self.rearrange(state, change),
            _ => Ok(()),
        }
    }

    /// Replaces a parameter that is kept in FP8 by a full-precision source, which is quantized.
    fn replace_quantized(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        quantized: &QuantizedParameter,
        layout: &Layout,
        source: Location,
    ) -> Result<()> {
        let Some(rule) = &self.options().quantize else { return Ok(()) };
        if layout.shape() != quantized.layout.shape() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to replace parameter {:?}, which is kept in FP8 in the shape {:?}, by one of the \
                 shape {:?}: remove it, and add the new one in FP8",
                state.parameters[at].name(),
                quantized.layout.shape(),
                layout.shape()
            );
        }
        let both = [at, state.find(&quantized.scales)?];
        let done = self.requantize(rule, state, both, layout, source);
        // Also after an error: the bytes may have been written.
        for (one, output) in both.into_iter().zip(&quantized.output) {
            let layout = if done.is_ok() { output } else { &state.parameters[one].layout };
            self.set_layout(state, change, one, layout.clone())?;
        }
        done
    }

    fn replace_in_block(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        (block, offset): (usize, u64),
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        if bytes == state.parameters[at].layout.span_bytes() {
            return match self.write_block(state, block, offset, source) {
                Ok(()) => self.set_layout(state, change, at, layout),
                Err(error) => self.mark_unbacked(state, change, block, error),
            };
        }
        // With another size others move too: checked before anything is written.
        change.check_all_released()?;
        let tied = state.blocks[block].parameters.len() > 1;
        if !tied && bytes <= state.blocks[block].capacity {
            // A parameter that was tied to it may have left: all of the block is its own.
            if let Err(error) = self.write_block(state, block, 0, source) {
                return self.mark_unbacked(state, change, block, error);
            }
            state.parameters[at].layout = layout;
            state.parameters[at].backing = Backing::Block { block, offset: 0 };
            state.blocks[block].bytes = bytes;
            state.blocks[block].capacity = bytes.next_multiple_of(ALIGNMENT);
            state.generation += 1;
            return self.rearrange(state, change);
        }
        let unit = &state.units[state.blocks[block].unit];
        let groups = if tied { vec![state.parameters[at].group] } else { unit.groups.clone() };
        let host_use = HostUse { groups, transfer_mode: unit.transfer_mode };
        self.relocate(state, change, at, host_use, layout, source)
    }

    /// Writes a parameter to other host memory: it has none, or not enough.
    fn relocate(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        at: usize,
        host_use: HostUse,
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let bytes = layout.span_bytes();
        let freed = match state.parameters[at].backing {
            Backing::Block { block, .. } if state.blocks[block].parameters.len() == 1 => {
                Some(block)
            }
            _ => None,
        };
        let space = self.find_space(state, &host_use, bytes, freed)?;
        // The old bytes are freed first, so that two copies are never held.
        change.invalidate();
        state.remove_from_block(at);
        state.parameters[at].backing = Backing::Unbacked(host_use.clone());
        state.parameters[at].layout = layout;
        if matches!(space, HostSpace::NewBuffer) {
            state.drop_empty_units();
        }
        let block = match self.take_space(state, space, host_use, at, bytes) {
            Ok(block) => block,
            Err(error) => {
                // If the others get no slots either, the next step fails with that error.
                let _ = self.rearrange(state, change);
                return Err(error);
            }
        };
        match self.write_block(state, block, 0, source) {
            Ok(()) => self.rearrange(state, change),
            Err(error) => self.mark_unbacked(state, change, block, error),
        }
    }

    /// Notes that a copy into a block failed and may have written a part of it: its parameters have
    /// no bytes until they are replaced again. Returns the error.
    fn mark_unbacked(
        &self,
        state: &mut OffloadState,
        change: &mut ScheduleChange<'_>,
        block: usize,
        error: Error,
    ) -> Result<()> {
        let unit = &state.units[state.blocks[block].unit];
        let host_use = HostUse { groups: unit.groups.clone(), transfer_mode: unit.transfer_mode };
        for at in state.blocks[block].parameters.clone() {
            state.remove_from_block(at);
            state.parameters[at].backing = Backing::Unbacked(host_use.clone());
        }
        let _ = self.rearrange(state, change);
        Err(error)
    }

    /// Replaces a resident parameter: in its own memory if the new bytes fit and only its ties are
    /// there.
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
        let before = state.resident_range(at).map(|(start, end)| end - start);
        let fits = before == Some(bytes) || (tied.is_empty() && before > Some(bytes));
        let backing = state.parameters[at].backing.clone();
        if let Backing::Owned { memory, offset } = &backing
            && fits
            && !source.on_device
        {
            let to = memory.span().part(*offset as usize, bytes as usize);
            let job = CopyJob { to, from: source };
            if let Err(error) = bulk_copy::into_device(self.device(), &[job], &mut None) {
                // A part may have been written.
                for at in tied.into_iter().chain([at]) {
                    state.parameters[at].backing = Backing::Missing;
                }
                return Err(error);
            }
            return self.set_layout(state, change, at, layout);
        }
        self.check_resident(state, state.resident_memory_bytes(Some(at)) + bytes)?;
        state.generation += 1;
        if tied.is_empty() && matches!(backing, Backing::Owned { .. }) {
            // Freed first, as in host memory.
            state.parameters[at].backing = Backing::Missing;
        }
        drop(backing);
        state.parameters[at].backing = match source.on_device {
            true => Backing::Borrowed(source.span),
            false => self.upload(source.span)?,
        };
        state.parameters[at].layout = layout;
        Ok(())
    }

    /// Copies host memory into new device memory.
    pub(super) fn upload(&self, from: Span) -> Result<Backing> {
        let Some(memory) = DeviceMemory::alloc(self.device(), from.bytes())? else {
            return Ok(Backing::Missing);
        };
        let job = CopyJob { to: memory.span(), from: Location::host(from) };
        bulk_copy::into_device(self.device(), &[job], &mut None)?;
        Ok(Backing::Owned { memory: Arc::new(memory), offset: 0 })
    }

    /// Copies a source to an offset in a block.
    pub(super) fn write_block(
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
