//! A small pinned buffer between pageable memory and a device.

use crate::device::device::Device;
use crate::device::policy::Tristate;
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::span::Span;
use crate::os::sync::Arc;

/// Bytes of the pinned buffer that pageable memory is staged through.
pub const STAGING_BYTES: usize = 8 << 20;

/// The pinned buffer between pageable memory and the device. One stream at a time uses it.
pub struct Staging(Arc<Buffer>);

impl Staging {
    /// Allocates it for pieces of at most so many bytes: pinned even where the policy is not to pin, as
    /// it is small.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let options = BufferOptions { pin: Tristate::On, ..BufferOptions::default() };
        Ok(Self(Buffer::alloc(device, bytes.min(STAGING_BYTES), &options, &mut None)?))
    }

    /// Its bytes.
    pub fn span(&self) -> Span {
        self.0.data()
    }
}
