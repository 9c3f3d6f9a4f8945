//! What a quantizer keeps from task to task.

use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::device::policy::Tristate;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::sync::Arc;
use crate::quant::chunking::LANES;
use crate::status::WB_ERR_INTERNAL;

/// Streams and memory of a quantizer.
pub struct Workspace {
    /// One for each lane.
    pub streams: Vec<OwnedStream>,
    /// Device memory of all lanes and for scales, as much as the largest task so far has needed.
    pub staging: Option<DeviceMemory>,
    /// Pinned host memory of each lane, while a task's source or target cannot be copied directly.
    pub host_staging: Vec<Arc<Buffer>>,
    /// Counts the numbers of a task that are NaN or infinite.
    pub nonfinite: DeviceMemory,
    /// Pinned host memory into which `nonfinite` is read back.
    pub readback: Arc<Buffer>,
}

impl Workspace {
    /// A workspace without staging memory.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let streams = (0..LANES).map(|_| OwnedStream::new(device)).collect::<Result<Vec<_>>>()?;
        let readback = Buffer::alloc(device, 8, &BufferOptions::default(), &mut None)?;
        let Some(nonfinite) = DeviceMemory::alloc(device, 8)? else {
            fail!(WB_ERR_INTERNAL, "8 bytes of device memory were allocated as none")
        };
        Ok(Self { streams, staging: None, host_staging: Vec::new(), nonfinite, readback })
    }

    /// Makes the staging memory at least this large. The old one is freed first.
    pub fn reserve(&mut self, device: &Arc<Device>, bytes: u64) -> Result<()> {
        let have = self.staging.as_ref().map_or(0, |memory| memory.span().bytes() as u64);
        if bytes > have {
            self.staging = None;
            self.staging = DeviceMemory::alloc(device, bytes as usize)?;
        }
        Ok(())
    }

    /// Makes pinned host memory of at least `bytes` bytes for each of `lanes` lanes.
    pub fn reserve_host(&mut self, device: &Arc<Device>, lanes: u64, bytes: usize) -> Result<()> {
        if self.host_staging.iter().any(|buffer| buffer.data().bytes() < bytes) {
            self.host_staging.clear();
        }
        while self.host_staging.len() < lanes as usize {
            let options = BufferOptions { pin: Tristate::On, ..BufferOptions::default() };
            self.host_staging.push(Buffer::alloc(device, bytes, &options, &mut None)?);
        }
        Ok(())
    }

    /// Bytes of host and device memory that it holds.
    pub fn held_bytes(&self) -> u64 {
        let device = self.staging.iter().chain([&self.nonfinite]);
        let host = self.host_staging.iter().chain([&self.readback]);
        device.map(|memory| memory.span().bytes() as u64).sum::<u64>()
            + host.map(|buffer| buffer.mapped_bytes()).sum::<u64>()
    }
}
