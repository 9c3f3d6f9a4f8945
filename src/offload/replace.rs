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
use crate::plan::plan::capacity;
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
                let same_bytes = layout.span_bytes() == state.parameters[at].layout.span_bytes();
                let is = &state.host.blocks()[block];
                // One that is apart and gets another size has other memory in any case.
                if is.is_as_given(state.host.unit_of(block)) && (same_bytes || is.apart.is_none()) {
                    self.own_block(block)?;
                }
                self.replace_in_block(at, (block, offset), layout, source)
            }
            Backing::Unbacked(host_use) => {
                self.check_may_move()?;
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
        if let (Backing::Owned { memory, .. }, Some(addresses)) =
            (&state.parameters[at].backing, &mut state.addresses)
        {
            addresses.note_written(memory);
        }
        if let Backing::Block { block, .. } = state.parameters[at].backing {
            let unit = state.host.blocks()[block].unit;
            match self.schedule.is_laid_out() {
                true => self.note_written(unit),
                false => self.note_moved(unit),
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
            self.note_complete(at);
            self.set_layout(at, layout);
            return Ok(());
        }
        // With another size others move too: checked before anything is written.
        self.check_may_move()?;
        let state = &mut *self.state;
        let Block { unit, offset: start, capacity: has, ref parameters, ref apart, .. } =
            state.host.blocks()[block];
        let is_apart = apart.is_some();
        let tied = parameters.len() > 1;
        let mode = state.host.units()[unit].transfer_mode;
        let name = state.parameters[at].name();
        let coded = offloader.coding_of((name, &layout), mode, Some(source))?;
        let mapped = state.host.units()[unit].buffer.device_address().is_some();
        let coded = coded.filter(|_| mapped);
        if !tied && !is_apart && capacity(bytes, coded) <= has {
            // A parameter that was tied to it may have left: all of the block is its own.
            self.note_moved(unit);
            let state = &mut *self.state;
            state.host.move_block(block, (unit, start), bytes, coded);
            if let Err(error) = offloader.write_block(state, block, 0, source) {
                self.mark_unbacked(block);
                return Err(error);
            }
            state.parameters.set_layout(at, layout);
            state.parameters.set_backing(at, Backing::Block { block, offset: 0 });
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
        let name = self.state.parameters[at].name();
        let mode = host_use.transfer_mode;
        let coded = offloader.coding_of((name, &layout), mode, Some(source))?;
        let needs = capacity(bytes, coded);
        let freed = match self.state.parameters[at].backing {
            Backing::Block { block, .. } => Some(block),
            _ => None,
        };
        let alone = |block: &usize| self.state.host.blocks()[*block].parameters.len() == 1;
        let freed = freed.filter(alone);
        let space = offloader.find_space(&self.state, &host_use, needs, freed)?;
        // The old bytes are freed first, so that two copies are never held.
        if let Backing::Block { block, .. } = self.state.parameters[at].backing {
            self.note_moved(self.state.host.blocks()[block].unit);
        }
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
        let block = offloader.take_space(state, space, host_use, at, (bytes, coded))?;
        self.note_moved(self.state.host.blocks()[block].unit);
        let written = offloader.write_block(&mut self.state, block, 0, source);
        if written.is_err() {
            self.mark_unbacked(block);
        }
        written
    }

    /// Notes that a copy into a block failed and may have written a part of it: its parameters have
    /// no bytes until they are replaced again.
    fn mark_unbacked(&mut self, block: usize) {
        self.state.generation += 1;
        if self.state.addresses.is_some() {
            let state = &mut *self.state;
            state.host.note_unfilled(block);
            for at in &state.host.blocks()[block].parameters {
                state.parameters.set_incomplete(*at, true);
            }
            // Caches refuse calls until the next replacement, which they follow again.
            let unit = state.host.blocks()[block].unit;
            let _ = state.follow_experts(Some(&[unit]), self.schedule.stream());
            return;
        }
        if self.check_may_move().is_ok() {
            self.note_moved(self.state.host.blocks()[block].unit);
        }
        let state = &mut *self.state;
        let unit = state.host.unit_of(block);
        let host_use = HostUse { groups: unit.groups.clone(), transfer_mode: unit.transfer_mode };
        for at in state.host.blocks()[block].parameters.clone() {
            state.remove_from_block(at);
            state.parameters.set_backing(at, Backing::Unbacked(host_use.clone()));
        }
    }

    /// Notes that all bytes of a parameter were written, and with them those of tied ones that it
    /// covers.
    fn note_complete(&mut self, at: usize) {
        let state = &mut *self.state;
        if state.addresses.is_none() {
            return;
        }
        let range = |at: usize| match &state.parameters[at].backing {
            Backing::Block { offset, .. } | Backing::Owned { offset, .. } => {
                *offset..*offset + state.parameters[at].layout.span_bytes()
            }
            _ => 0..0,
        };
        let tied = match &state.parameters[at].backing {
            Backing::Block { block, .. } => state.host.blocks()[*block].parameters.clone(),
            _ => state.parameters.resident_ties(at),
        };
        let written = range(at);
        let covers = |one: &usize| {
            let other = range(*one);
            written.start <= other.start && other.end <= written.end
        };
        let covered: Vec<_> = tied.into_iter().filter(covers).chain([at]).collect();
        covered.into_iter().for_each(|one| state.parameters.set_incomplete(one, false));
    }

    /// Replaces a resident parameter: in its own memory if the new bytes fit and only its ties are
    /// there.
    fn replace_resident(&mut self, at: usize, layout: Layout, source: Location) -> Result<()> {
        let (offloader, state) = (self.offloader, &mut *self.state);
        let bytes = layout.span_bytes();
        if state.addresses.is_some() && bytes == 0 && state.parameters[at].layout.span_bytes() == 0
        {
            // It has no memory, and needs none.
            self.set_layout(at, layout);
            return Ok(());
        }
        let tied = state.parameters.resident_ties(at);
        let before = state.parameters.resident_range(at).map(|(start, end)| end - start);
        let smaller = tied.is_empty() && before > Some(bytes) && state.addresses.is_none();
        let fits = before == Some(bytes) || smaller;
        let backing = state.parameters[at].backing.clone();
        if let Backing::Owned { memory, offset } = &backing
            && fits
            && (!source.on_device || state.addresses.is_some())
        {
            let to = |memory: Span| memory.part(*offset as usize, bytes as usize);
            // While the offloader sleeps nothing is behind the address.
            let buffer = state.addresses.as_ref().and_then(|all| all.buffer_of(memory)).cloned();
            let device = offloader.device();
            let written = match &buffer {
                Some(buffer) => {
                    let job = CopyJob { to: to(buffer.data()), from: source };
                    bulk_copy::into_host(device, buffer, &[job], 0, &mut None)
                }
                None => {
                    let job = CopyJob { to: to(memory.span()), from: source };
                    bulk_copy::write_device(device, job)
                }
            };
            if let Err(error) = written {
                // A part may have been written.
                state.generation += 1;
                for at in tied.into_iter().chain([at]) {
                    match &mut state.addresses {
                        Some(addresses) => {
                            addresses.note_written(memory);
                            state.parameters.set_incomplete(at, true);
                        }
                        None => state.parameters.set_backing(at, Backing::Missing),
                    }
                }
                return Err(error);
            }
            self.note_complete(at);
            self.set_layout(at, layout);
            return Ok(());
        }
        self.check_fixed()?;
        let has_moved = self.has_moved();
        let (offloader, state) = (self.offloader, &mut *self.state);
        offloader.check_resident(state, Some(at), bytes, has_moved)?;
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
        if let Some(encoding) = state.host.blocks()[block].encoding {
            self.write_encoded(state, block, encoding, offset, source)?;
            state.host.note_filled(block);
            return Ok(());
        }
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
