//! What a quantizer keeps from task to task.

use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::Result;
use crate::memory::buffer::Buffer;
use crate::os::sync::Arc;

/// What is kept from task to task.
pub struct Workspace {
    /// One for each lane.
    pub streams: Vec<OwnedStream>,
    /// As much as a task has needed.
    pub staging: Option<DeviceMemory>,
    /// A pinned page for what the host is told.
    pub told: Arc<Buffer>,
    /// Counts what is not finite in one task.
    pub nonfinite: DeviceMemory,
    /// Pinned memory for each lane, for what cannot be copied as it lies.
    pub bounce: Vec<Arc<Buffer>>,
}

impl Workspace {
    /// Staging memory of at least so many bytes; the old goes first.
    pub fn make_room(&mut self, device: &Arc<Device>, bytes: u64) -> Result<()> {
        let have = self.staging.as_ref().map_or(0, |memory| memory.span().bytes() as u64);
        if bytes > have {
            self.staging = None;
            self.staging = DeviceMemory::alloc(device, bytes as usize)?;
        }
        Ok(())
    }
}
