//! Parameters that an engine replaces after the commit. Where a parameter is kept follows from the
//! plan, never from where its new source is.

use crate::device::backend::{Location, Stream};
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::offload::backing::{Backing, Block, HostUse};
use crate::offload::bulk_copy;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::edit::Edit;
use crate::offload::host_space::HostSpace;
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::QuantizedParameter;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::fp8::SourceType;
use crate::tensor::layout::Layout;

/// Bytes that one thread copies sooner than others have started.
const MOST_COPIED_HERE: usize = 4 << 20;

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
        let mut edit = self.edit(stream)?;
        let done = edit.update(name, layout, Some(source));
        edit.end(done)
    }
}

impl Edit<'_> {
    /// As [`Offloader::replace`], without the slots that follow. Without a source the parameter
    /// keeps its bytes, of which the layout has as many.
    pub(super) fn update(
        &mut self,
        name: &str,
        layout: Layout,
        source: Option<Location>,
    ) -> Result<()> {
        let state = &mut *self.state;
        let at = state.find(name)?;
        state.parameters.check_sum(Some(at), layout.span_bytes())?;
        self.schedule.make_idle(&state.groups_using(at))?;
        let is_given = source.is_some();
        let Some(source) = source.filter(|source| !state.is_in_place(at, *source, &layout)) else {
            if is_given {
                state.note_filled(at); // the engine wrote its own bytes there
            }
            self.set_layout(at, layout);
            return Ok(());
        };
        let snapshot = self.offloader.snapshot(state, Some(state.parameters[at].group), source)?;
        let source = snapshot.source;
        if let Some(quantized) = state.parameters[at].quantized.clone()
            && SourceType::of(layout.dtype()).is_ok()
        {
            return self.replace_quantized(at, &quantized, &layout, source);
        }
        match state.parameters[at].backing.clone() {
            Backing::Block { block, offset } => {
                if state.host.unit_of(block).in_source {
                    self.own_block(block)?;
                }
                self.replace_in_block(at, (block, offset), layout, source)
            }
            Backing::Unbacked(host_use) => {
                self.schedule.check_all_released()?;
                self.relocate(at, host_use, layout, source)
            }
            _ => self.replace_resident(at, layout, source),
        }
    }

    /// Sets the layout of a parameter whose bytes are in place, and has its slot filled again.
    fn set_layout(&mut self, at: usize, layout: Layout) {
        let state = &mut *self.state;
        let first_element_moves =
            layout.bytes_before() != state.parameters[at].layout.bytes_before();
        state.generation += u64::from(first_element_moves);
        state.parameters.set_layout(at, layout);
        if let Backing::Block { block, .. } = state.parameters[at].backing {
            let unit = state.host.blocks()[block].unit;
            match self.schedule.is_laid_out() {
                true => self.note_written(unit),
                false => self.note_moved(),
            }
        }
    }

    /// Replaces a parameter that is kept in FP8 by a full-precision source, which is quantized.
    fn replace_quantized(
        &mut self,
        at: usize,
        quantized: &QuantizedParameter,
        layout: &Layout,
        source: Location,
    ) -> Result<()> {
        let Some(rule) = &self.offloader.options().quantize else { return Ok(()) };
        let state = &mut *self.state;
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
        let done = self.offloader.requantize(rule, state, both, layout, source);
        // Also after an error: the bytes may have been written.
        for (one, output) in both.into_iter().zip(&quantized.output) {
            if done.is_ok() {
                self.state.note_filled(one);
            }
            let layout = if done.is_ok() { output } else { &self.state.parameters[one].layout };
            self.set_layout(one, layout.clone());
        }
        done
    }

    fn replace_in_block(
        &mut self,
        at: usize,
        (block, offset): (usize, u64),
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let (offloader, state) = (self.offloader, &mut *self.state);
        let bytes = layout.span_bytes();
        if bytes == state.parameters[at].layout.span_bytes() {
            if let Err(error) = offloader.write_block(state, block, offset, source) {
                self.mark_unbacked(block);
                return Err(error);
            }
            self.set_layout(at, layout);
            return Ok(());
        }
        // With another size others move too: checked before anything is written.
        self.schedule.check_all_released()?;
        let Block { unit, offset: start, capacity, ref parameters, .. } =
            state.host.blocks()[block];
        let tied = parameters.len() > 1;
        if !tied && bytes <= capacity {
            // A parameter that was tied to it may have left: all of the block is its own.
            if let Err(error) = offloader.write_block(state, block, 0, source) {
                self.mark_unbacked(block);
                return Err(error);
            }
            state.parameters.set_layout(at, layout);
            state.parameters.set_backing(at, Backing::Block { block, offset: 0 });
            state.host.move_block(block, unit, start, bytes);
            self.note_moved();
            return Ok(());
        }
        let unit = state.host.unit_of(block);
        let groups = if tied { vec![state.parameters[at].group] } else { unit.groups.clone() };
        let host_use = HostUse { groups, transfer_mode: unit.transfer_mode };
        self.relocate(at, host_use, layout, source)
    }

    /// Writes a parameter to other host memory: it has none, or not enough.
    fn relocate(
        &mut self,
        at: usize,
        host_use: HostUse,
        layout: Layout,
        source: Location,
    ) -> Result<()> {
        let (offloader, bytes) = (self.offloader, layout.span_bytes());
        let freed = match self.state.parameters[at].backing {
            Backing::Block { block, .. } => Some(block),
            _ => None,
        };
        let alone = |block: &usize| self.state.host.blocks()[*block].parameters.len() == 1;
        let freed = freed.filter(alone);
        let space = offloader.find_space(&self.state, &host_use, bytes, freed)?;
        // The old bytes are freed first, so that two copies are never held.
        self.note_moved();
        let state = &mut *self.state;
        state.remove_from_block(at);
        state.parameters.set_backing(at, Backing::Unbacked(host_use.clone()));
        state.parameters.set_layout(at, layout);
        if let (HostSpace::NewUnit, Some(block)) = (&space, freed) {
            let unit = state.host.blocks()[block].unit;
            let in_source = state.host.units()[unit].in_source;
            let buffer = state.host.vacate_if_empty(unit);
            self.dropped.extend(buffer.filter(|_| in_source));
        }
        let block = offloader.take_space(state, space, host_use, at, bytes)?;
        let written = offloader.write_block(state, block, 0, source);
        if written.is_err() {
            self.mark_unbacked(block);
        }
        written
    }

    /// Notes that a copy into a block failed and may have written a part of it: its parameters have
    /// no bytes until they are replaced again.
    fn mark_unbacked(&mut self, block: usize) {
        self.state.generation += 1;
        if self.schedule.check_all_released().is_ok() {
            self.note_moved();
        }
        let state = &mut *self.state;
        let unit = state.host.unit_of(block);
        let host_use = HostUse { groups: unit.groups.clone(), transfer_mode: unit.transfer_mode };
        for at in state.host.blocks()[block].parameters.clone() {
            state.remove_from_block(at);
            state.parameters.set_backing(at, Backing::Unbacked(host_use.clone()));
        }
    }

    /// Replaces a resident parameter: in its own memory if the new bytes fit and only its ties are
    /// there.
    fn replace_resident(&mut self, at: usize, layout: Layout, source: Location) -> Result<()> {
        let (offloader, state) = (self.offloader, &mut *self.state);
        let bytes = layout.span_bytes();
        let tied = state.parameters.resident_ties(at);
        let before = state.parameters.resident_range(at).map(|(start, end)| end - start);
        let fits = before == Some(bytes) || (tied.is_empty() && before > Some(bytes));
        let backing = state.parameters[at].backing.clone();
        if let Backing::Owned { memory, offset } = &backing
            && fits
            && !source.on_device
        {
            let to = memory.span().part(*offset as usize, bytes as usize);
            let job = CopyJob { to, from: source };
            if let Err(error) = bulk_copy::write_device(offloader.device(), job) {
                // A part may have been written.
                state.generation += 1;
                for at in tied.into_iter().chain([at]) {
                    state.parameters.set_backing(at, Backing::Missing);
                }
                return Err(error);
            }
            self.set_layout(at, layout);
            return Ok(());
        }
        offloader.check_resident(state, Some(at), bytes, self.moved)?;
        state.generation += 1;
        if tied.is_empty() && matches!(backing, Backing::Owned { .. }) {
            // Freed first, as in host memory.
            state.parameters.set_backing(at, Backing::Missing);
        }
        drop(backing);
        let backing = match source.on_device {
            true => Backing::Borrowed(source.span),
            false => offloader.upload(source.span)?,
        };
        state.parameters.set_backing(at, backing);
        state.parameters.set_layout(at, layout);
        Ok(())
    }
}

impl Offloader {
    /// Copies host memory into new device memory.
    pub(super) fn upload(&self, from: Span) -> Result<Backing> {
        let Some(memory) = DeviceMemory::alloc(self.device(), from.bytes())? else {
            return Ok(Backing::Missing);
        };
        let job = CopyJob { to: memory.span(), from: Location::host(from) };
        bulk_copy::write_device(self.device(), job)?;
        Ok(Backing::Owned { memory: Arc::new(memory), offset: 0 })
    }

    /// Copies a source to an offset in a block.
    pub(super) fn write_block(
        &self,
        state: &mut OffloadState,
        block: usize,
        offset: u64,
        source: Location,
    ) -> Result<()> {
        let unit = state.host.unit_of(block);
        let at = state.host.blocks()[block].offset + offset;
        let to = unit.region.part(at as usize, source.span.bytes());
        if !source.on_device && source.span.bytes() <= MOST_COPIED_HERE {
            bytes::copy(to, source.span);
        } else {
            let job = CopyJob { to, from: source };
            bulk_copy::into_host(self.device(), &unit.buffer, &[job], 0, &mut None)?;
        }
        state.host.note_filled(block);
        Ok(())
    }
}
