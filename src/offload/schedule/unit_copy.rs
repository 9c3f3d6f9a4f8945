//! The copy of a unit into its slot: one copy from pinned memory; from pageable memory, copies
//! through a pinned staging buffer, since a copy from pageable memory blocks the calling thread.

use crate::device::backend::{HostWork, Stream};
use crate::device::device::Device;
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// The copy of one unit.
pub struct UnitCopy {
    host: Span,
    slot: Span,
    /// Host work that copies each piece of the unit into the staging buffer; empty if the memory is
    /// pinned.
    stage_pieces: Vec<Arc<HostWork>>,
    staging: Option<Span>,
}

impl UnitCopy {
    /// A copy from `host` to `slot`, which have the same length. With `staging`, `host` is
    /// pageable.
    pub fn new(host: Span, slot: Span, staging: Option<&Staging>) -> Self {
        let staging = staging.map(Staging::span);
        let stage_pieces = staging.map_or(Vec::new(), |staging| {
            (0..host.bytes())
                .step_by(staging.bytes())
                .map(|offset| {
                    let piece = host.part(offset, staging.bytes());
                    Arc::new(HostWork(Box::new(move || bytes::copy(staging, piece))))
                })
                .collect()
        });
        Self { host, slot, stage_pieces, staging }
    }

    /// Queues the copy. It must not be dropped before the stream, and every graph that captures it,
    /// has run it for the last time.
    pub fn queue(&self, device: &Device, stream: Stream) -> Result<()> {
        let Some(staging) = self.staging else {
            return device.copy(self.slot, self.host, stream);
        };
        for (index, stage_piece) in self.stage_pieces.iter().enumerate() {
            device.backend().call_shared(stream, stage_piece)?;
            let to = self.slot.part(index * staging.bytes(), staging.bytes());
            device.copy(to, staging.part(0, to.bytes()), stream)?;
        }
        Ok(())
    }
}
