//! How a unit's bytes get from host memory into its slot: in one copy, or, from pageable memory, by
//! way of a small pinned buffer, since a copy engine takes pageable memory only by blocking its caller.

use crate::device::backend::{HostWork, Stream};
use crate::device::device::Device;
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// The way of one unit.
pub struct UnitCopy {
    host: Span,
    slot: Span,
    /// One piece of host work for each piece of the unit; empty where the memory is pinned.
    staged: Vec<Arc<HostWork>>,
    staging: Option<Span>,
}

impl UnitCopy {
    /// From `host` to `slot`, of the same length.
    pub fn new(host: Span, slot: Span, staging: Option<&Staging>) -> Self {
        let staging = staging.map(Staging::span);
        let staged = staging.map_or(Vec::new(), |staging| {
            (0..host.bytes())
                .step_by(staging.bytes())
                .map(|offset| {
                    let from = host.part(offset, staging.bytes());
                    Arc::new(HostWork(Box::new(move || bytes::copy(staging, from))))
                })
                .collect()
        });
        Self { host, slot, staged, staging }
    }

    /// Queues it. The stream, and every graph that captures it, is done with it before it goes.
    pub fn queue(&self, device: &Device, stream: Stream) -> Result<()> {
        let Some(staging) = self.staging else {
            return device.copy(self.slot, self.host, stream);
        };
        for (index, work) in self.staged.iter().enumerate() {
            device.backend().call_kept(stream, work)?;
            let to = self.slot.part(index * staging.bytes(), staging.bytes());
            device.copy(to, staging.part(0, to.bytes()), stream)?;
        }
        Ok(())
    }
}
