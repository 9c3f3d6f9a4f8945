//! With fixed addresses, the windows of compressed bytes: graphs have their addresses, behind which there is
//! memory while steps may run.

use crate::device::address_range::{AddressRange, PhysicalMemory};
use crate::device::backend::PhysicalKind;
use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::os::sync::Arc;
use crate::status::WB_ERR_INTERNAL;

/// The addresses of the windows, and the memory behind them; neither, if there are no windows.
#[derive(Default)]
pub struct WindowRange {
    memory: Option<Arc<DeviceMemory>>,
    behind: Option<Arc<PhysicalMemory>>,
}

impl WindowRange {
    /// Reserves the addresses of as many bytes, without memory behind them.
    pub fn reserve(device: &Arc<Device>, bytes: u64) -> Result<Self> {
        let memory = match bytes {
            0 => None,
            bytes => Some(Arc::new(DeviceMemory::reserve(device, bytes as usize)?)),
        };
        Ok(Self { memory, behind: None })
    }

    /// The addresses.
    pub fn memory(&self) -> Option<Arc<DeviceMemory>> {
        self.memory.clone()
    }

    /// Bytes that they need.
    pub fn bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.span().bytes() as u64)
    }

    /// Bytes of device memory behind them.
    pub fn held_bytes(&self) -> u64 {
        self.behind.as_ref().map_or(0, |memory| memory.bytes() as u64)
    }

    /// Puts memory there, if there is none.
    pub fn fill(&mut self) -> Result<()> {
        let (Some(memory), None) = (&self.memory, &self.behind) else { return Ok(()) };
        let bytes = memory.span().bytes();
        let behind = PhysicalMemory::create(memory.device(), bytes, PhysicalKind::Device)?;
        range(memory)?.map(std::slice::from_ref(&behind))?;
        self.behind = Some(behind);
        Ok(())
    }

    /// Frees it. Nothing may use it any more.
    pub fn clear(&mut self) -> Result<()> {
        if let Some(memory) = &self.memory {
            range(memory)?.unmap()?;
        }
        self.behind = None;
        Ok(())
    }
}

fn range(memory: &DeviceMemory) -> Result<&AddressRange> {
    match memory.range() {
        Some(range) => Ok(range),
        None => fail!(WB_ERR_INTERNAL, "windows have no address range"),
    }
}
