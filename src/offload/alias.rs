//! Sources that lie in memory of the offloader itself: an engine brings addresses that it was given, under
//! another name, in another layout or in another order. What a change may overwrite or free before it is
//! read is copied aside; what lies where it belongs is not moved at all.

use crate::device::backend::Location;
use crate::device::policy::Tristate;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::bulk_copy;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::offloader::Offloader;
use crate::offload::state::{Backing, OffloadState};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::Layout;
use crate::tensor::fp8::SourceType;

/// A source that no change of the offloader can touch.
pub struct Snapshot {
    pub source: Location,
    /// What it was copied to, if it was in the way.
    _copy: Option<Arc<Buffer>>,
}

impl Snapshot {
    /// No bytes.
    pub fn nothing() -> Self {
        Self { source: Location { span: Span::EMPTY, on_device: false }, _copy: None }
    }
}

impl OffloadState {
    /// Whether the parameter's bytes are those at the source. They may be looked at in another layout,
    /// but wide numbers are not what is kept in 8 bits.
    pub fn holds(&self, at: usize, source: Location, layout: &Layout) -> bool {
        let kept = &self.kept[at];
        let first = Some(source.span.start() as u64);
        let (host, device) = self.first_bytes(kept);
        let quantizes = kept.quantized.is_some() && SourceType::of(layout.dtype()).is_ok();
        !quantizes
            && kept.layout.span_bytes() == layout.span_bytes()
            && (host == first || device == first)
    }

    /// The source as it can be read, if it lies in memory of ours. What a slot holds is told by the group
    /// that is meant: the bytes are read where that has them, on the host.
    pub fn own(&self, group: Option<usize>, source: Location) -> Result<Option<Location>> {
        let Location { span, .. } = source;
        for (unit, extent) in self.units.iter().zip(self.extents(None)) {
            let before = self
                .device_start(unit)
                .filter(|_| group.is_some_and(|group| unit.groups.contains(&group)))
                .and_then(|start| (span.start() as u64).checked_sub(start))
                .filter(|before| before.saturating_add(span.bytes() as u64) <= extent);
            if let Some(before) = before {
                let span = unit.region.part(before as usize, span.bytes());
                return Ok(Some(Location { span, on_device: false }));
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
            Backing::Owned(memory, _) => meets(memory.span()),
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
        state: &OffloadState,
        group: Option<usize>,
        source: Location,
    ) -> Result<Snapshot> {
        let Some(own) = state.own(group, source)? else {
            return Ok(Snapshot { source, _copy: None });
        };
        let copy = self.copy_of(own)?;
        let source = Location::host(copy.data());
        Ok(Snapshot { source, _copy: Some(copy) })
    }

    /// A copy on the host.
    pub(super) fn copy_of(&self, source: Location) -> Result<Arc<Buffer>> {
        let options = BufferOptions { pin: Tristate::Off, ..BufferOptions::default() };
        let copy = Buffer::alloc(self.device(), source.span.bytes(), &options, &mut None)?;
        let job = CopyJob { to: copy.data(), from: source };
        bulk_copy::into_host(self.device(), &copy, &[job], 0, &mut None)?;
        Ok(copy)
    }
}
