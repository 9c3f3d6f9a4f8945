//! How a unit's bytes get from host memory into its slot: in one copy, or, from pageable memory, by
//! way of a small pinned buffer, since a copy engine takes pageable memory only by blocking its caller.

use crate::device::policy::Choice;
use crate::device::{Device, HostWork, Stream};
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::pages::{self, Span};
use crate::sync::Arc;

/// Bytes of the pinned buffer that pageable memory is staged through.
pub const STAGING_BYTES: usize = 8 << 20;

/// The pinned buffer between pageable memory and the device. One stream at a time uses it.
pub struct Staging(Arc<Buffer>);

impl Staging {
    /// Allocates it for pieces of at most so many bytes: pinned even where the policy is not to pin, as
    /// it is small.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let options = BufferOptions { pin: Choice::On, ..BufferOptions::default() };
        Ok(Self(Buffer::alloc(device, bytes.min(STAGING_BYTES), &options, &mut None)?))
    }

    /// Its bytes.
    pub fn span(&self) -> Span {
        self.0.data()
    }
}

/// The way of one unit.
pub struct Transfer {
    host: Span,
    slot: Span,
    /// One piece of host work for each piece of the unit; empty where the memory is pinned.
    staged: Vec<Arc<HostWork>>,
    staging: Option<Span>,
}

impl Transfer {
    /// From `host` to `slot`, of the same length.
    pub fn new(host: Span, slot: Span, staging: Option<&Staging>) -> Self {
        let staging = staging.map(Staging::span);
        let staged = staging.map_or(Vec::new(), |staging| {
            (0..host.bytes())
                .step_by(staging.bytes())
                .map(|offset| {
                    let from = host.part(offset, staging.bytes());
                    Arc::new(HostWork(Box::new(move || pages::copy(staging, from))))
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
