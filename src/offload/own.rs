//! Sources that lie in memory of the offloader itself: an engine brings addresses that it was given, under
//! another name, in another layout or in another order. What a change may overwrite or free before it is
//! read is copied aside; what lies where it belongs is not moved at all.

use super::fill::{self, Job};
use super::keeping::Source;
use super::offloader::Offloader;
use super::state::{Place, State};
use crate::device::kernel::Wide;
use crate::device::policy::Choice;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::pages::Span;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::sync::Arc;
use crate::tensor::Layout;

/// A source that no change of the offloader can touch.
pub struct Brought {
    pub source: Source,
    /// What it was copied to, if it was in the way.
    _copy: Option<Arc<Buffer>>,
}

impl Brought {
    /// No bytes.
    pub fn nothing() -> Self {
        Self { source: Source { span: Span::EMPTY, on_device: false }, _copy: None }
    }
}

impl State {
    /// Whether the parameter's bytes are those at the source. They may be looked at in another layout,
    /// but wide numbers are not what is kept in 8 bits.
    pub fn holds(&self, at: usize, source: Source, layout: &Layout) -> bool {
        let kept = &self.kept[at];
        let first = Some(source.span.start() as u64);
        let (host, device) = self.first_bytes(kept);
        let quantizes = kept.quantized.is_some() && Wide::of(layout.dtype()).is_ok();
        !quantizes
            && kept.layout.span_bytes() == layout.span_bytes()
            && (host == first || device == first)
    }

    /// The source as it can be read, if it lies in memory of ours. What a slot holds is told by the group
    /// that is meant: the bytes are read where that has them, on the host.
    pub fn own(&self, group: Option<usize>, source: Source) -> Result<Option<Source>> {
        let Source { span, .. } = source;
        for (unit, extent) in self.units.iter().zip(self.extents(None)) {
            let before = self
                .device_start(unit)
                .filter(|_| group.is_some_and(|group| unit.groups.contains(&group)))
                .and_then(|start| (span.start() as u64).checked_sub(start))
                .filter(|before| before.saturating_add(span.bytes() as u64) <= extent);
            if let Some(before) = before {
                let span = unit.region.part(before as usize, span.bytes());
                return Ok(Some(Source { span, on_device: false }));
            }
        }
        let meets = |ours: Span| span.start() < ours.end() && ours.start() < span.end();
        if self.slots.as_ref().is_some_and(|slots| meets(slots.span())) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "the {} bytes at {:#x} lie in slots, which hold parameters of another group or of several \
                 at a time: give the address in the host's memory",
                span.bytes(),
                span.start()
            );
        }
        let resident = self.kept.iter().any(|kept| match &kept.place {
            Place::Ours(memory, _) => meets(memory.span()),
            _ => false,
        });
        let ours = resident || self.buffers().any(|buffer| meets(buffer.data()));
        Ok(ours.then_some(source))
    }
}

impl Offloader {
    /// The source, copied aside where it lies in memory of ours.
    pub(super) fn bring(
        &self,
        state: &State,
        group: Option<usize>,
        source: Source,
    ) -> Result<Brought> {
        let Some(own) = state.own(group, source)? else {
            return Ok(Brought { source, _copy: None });
        };
        let copy = self.copy_of(own)?;
        let source = Source { span: copy.data(), on_device: false };
        Ok(Brought { source, _copy: Some(copy) })
    }

    /// A copy on the host.
    pub(super) fn copy_of(&self, source: Source) -> Result<Arc<Buffer>> {
        let options = BufferOptions { pin: Choice::Off, ..BufferOptions::default() };
        let copy = Buffer::alloc(self.device(), source.span.bytes(), &options, &mut None)?;
        let job = Job { to: copy.data(), from: source.span, from_device: source.on_device };
        fill::into_host(self.device(), &copy, &[job], 0, &mut None)?;
        Ok(copy)
    }
}
