//! A unit's way into its slot: one copy. Staging is a matter of the stream's own order.

use crate::device::{Device, Stream};
use crate::error::Result;
use crate::pages::Span;

/// The buffer between pageable memory and the device, which no model has.
pub struct Staging(Span);

impl Staging {
    pub fn span(&self) -> Span {
        self.0
    }
}

/// The way of one unit.
pub struct Transfer {
    host: Span,
    slot: Span,
}

impl Transfer {
    pub fn new(host: Span, slot: Span, _: Option<&Staging>) -> Self {
        Self { host, slot }
    }

    pub fn queue(&self, device: &Device, stream: Stream) -> Result<()> {
        device.copy(self.slot, self.host, stream)
    }
}
