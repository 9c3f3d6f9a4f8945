//! [`Staging`]: the pinned buffer between pageable memory and a device.

use crate::device::device::Device;
use crate::device::policy::Tristate;
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::span::Span;
use crate::os::sync::Arc;

/// Bytes of a staging buffer for the copies of a step.
pub const STAGING_BYTES: usize = 8 << 20;

/// A staging buffer, which one stream at a time uses.
pub struct Staging(Arc<Buffer>);

impl Staging {
    /// Allocates bytes. They are pinned even if the policy is not to pin, because they are few.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let options = BufferOptions { pin: Tristate::On, ..BufferOptions::default() };
        Ok(Self(Buffer::alloc(device, bytes, &options, &mut None)?))
    }

    /// The bytes.
    pub fn span(&self) -> Span {
        self.0.data()
    }
}
