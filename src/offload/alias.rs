//! Sources in memory of the offloader: an engine passes addresses that it got from it, for another
//! parameter, in another layout or in another order. A source that a change may overwrite or free
//! before it is read is copied to other memory first; bytes that are in place already are not
//! moved.

use crate::device::backend::Location;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::offload::backing::Backing;
use crate::offload::bulk_copy;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::encoded;
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::fp8::SourceType;
use crate::tensor::layout::Layout;

/// A source in memory of the offloader.
pub enum Own {
    /// Readable memory.
    Memory(Location),
    /// Bytes of a unit with compressed blocks, as they are in its slot.
    InUnit { unit: usize, offset: u64, bytes: usize },
}

/// A source that no change of the offloader overwrites or frees.
pub struct Snapshot {
    pub source: Location,
    /// Owns the memory of `source` if that is a copy.
    _copy: Option<Arc<Buffer>>,
}

impl Snapshot {
    /// A source without bytes.
    pub fn empty() -> Self {
        Self { source: Location::host(Span::EMPTY), _copy: None }
    }
}

impl OffloadState {
    /// Whether a source is the memory that holds the parameter's bytes already. The layout may
    /// differ. A full-precision source of an FP8 parameter never is.
    pub fn is_in_place(&self, at: usize, source: Location, layout: &Layout) -> bool {
        let parameter = &self.parameters[at];
        let start = Some(source.span.start() as u64);
        let (host, device) = self.byte_addresses(parameter);
        let quantizes = parameter.quantized.is_some() && SourceType::of(layout.dtype()).is_ok();
        !quantizes
            && parameter.layout.span_bytes() == layout.span_bytes()
            && (host == start || device == start)
    }

    /// Whether a source has the compressed bytes that the parameter is carried as.
    pub fn is_encoded_at(&self, at: usize, source: Location) -> bool {
        let Backing::Block { block, .. } = self.parameters[at].backing else { return false };
        let apart = self.host.blocks()[block].apart.as_ref();
        apart.is_some_and(|apart| apart.span == source.span)
    }

    /// Where a source in memory of the offloader is; `None` for any other source.
    /// An address in a slot, which units of several groups share, refers to the unit of `group`, in
    /// host memory.
    pub fn resolve_alias(&self, group: Option<usize>, source: Location) -> Result<Option<Own>> {
        let span = source.span;
        let overlaps = |own: Span| span.start() < own.end() && own.start() < span.end();
        let mut ranges = self.addresses.iter().flat_map(|addresses| &addresses.homes);
        let within = |range: Span| range.start() <= span.start() && span.end() <= range.end();
        if let Some(home) = ranges.find(|home| within(home.used()))
            && (home.carried.is_some() || home.buffer().is_some())
        {
            // What is behind the address may be memory that others share, or nothing.
            let (offset, bytes) = (span.start() - home.used().start(), span.bytes());
            let memory = |host: Span| Own::Memory(Location::host(host.part(offset, bytes)));
            return Ok(Some(match (&home.carried, home.buffer()) {
                (Some(_), _) if self.host.is_encoded(home.unit) => {
                    Own::InUnit { unit: home.unit, offset: offset as u64, bytes }
                }
                (Some((host, _)), _) => memory(*host),
                (None, Some(buffer)) => memory(buffer.data()),
                (None, None) => Own::Memory(source),
            }));
        }
        let in_slots = self.slots.as_ref().is_some_and(|slots| overlaps(slots.span()));
        let group = group.filter(|_| in_slots || self.host.buffers().overlap_on_device(span));
        let in_units = group.into_iter().flat_map(|group| self.host.units_of_group(group));
        for at in in_units {
            let extent = self.host.extent(at, None);
            let unit = &self.host.units()[at];
            let offset = self
                .device_address(unit)
                .and_then(|start| (span.start() as u64).checked_sub(start))
                .filter(|offset| offset.saturating_add(span.bytes() as u64) <= extent);
            if let Some(offset) = offset {
                return Ok(Some(match self.host.is_encoded(at) {
                    true => Own::InUnit { unit: at, offset, bytes: span.bytes() },
                    false => {
                        Own::Memory(Location::host(unit.region.part(offset as usize, span.bytes())))
                    }
                }));
            }
        }
        if in_slots {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "the {} bytes at {:#x} are in slots, which hold parameters of another group or of several \
                 groups: give the address in the host's memory",
                span.bytes(),
                span.start()
            );
        }
        let own = self.parameters.owns(span) || self.host.buffers().overlap(span);
        Ok(own.then_some(Own::Memory(source)))
    }
}

impl Offloader {
    /// The source, copied to other host memory if it is in memory of the offloader.
    pub(super) fn snapshot(
        &self,
        state: &OffloadState,
        group: Option<usize>,
        source: Location,
    ) -> Result<Snapshot> {
        let Some(own) = state.resolve_alias(group, source)? else {
            return Ok(Snapshot { source, _copy: None });
        };
        let copy = match own {
            Own::Memory(location) => self.copy_to_host(location)?,
            Own::InUnit { unit, offset, bytes } => {
                let copy = encoded::host_memory(self.device(), bytes)?;
                state.read_unit(unit, offset, copy.data())?;
                copy
            }
        };
        Ok(Snapshot { source: Location::host(copy.data()), _copy: Some(copy) })
    }

    /// A copy in new pageable host memory.
    pub(super) fn copy_to_host(&self, source: Location) -> Result<Arc<Buffer>> {
        let copy = encoded::host_memory(self.device(), source.span.bytes())?;
        let job = CopyJob { to: copy.data(), from: source };
        bulk_copy::into_host(self.device(), &copy, &[job], 0, &mut None)?;
        Ok(copy)
    }
}
