//! Device memory and streams that are released with their owner.

use crate::device::address_range::AddressRange;
use crate::device::backend::Stream;
use crate::device::device::{Device, Owner};
use crate::error::Result;
use crate::os::log;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// Device memory: an allocation, a range of addresses, behind which other memory may come, or memory
/// of a caller.
pub struct DeviceMemory {
    device: Arc<Device>,
    span: Span,
    kind: Kind,
}

/// Who releases the memory.
enum Kind {
    /// This object.
    Allocated,
    /// The range, when it is dropped.
    Reserved(AddressRange),
    /// The caller.
    Borrowed,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes; `None` for 0.
    pub fn alloc(device: &Arc<Device>, bytes: usize) -> Result<Option<Self>> {
        if bytes == 0 {
            return Ok(None);
        }
        let span = device.alloc(bytes, Owner::Library)?;
        Ok(Some(Self { device: device.clone(), span, kind: Kind::Allocated }))
    }

    /// Reserves a range of addresses; see [`AddressRange::reserve`].
    pub fn reserve(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let range = AddressRange::reserve(device, bytes)?;
        Ok(Self { device: device.clone(), span: range.span(), kind: Kind::Reserved(range) })
    }

    /// Device memory of a caller, who frees it after this object is gone.
    pub fn borrowed(device: &Arc<Device>, span: Span) -> Self {
        Self { device: device.clone(), span, kind: Kind::Borrowed }
    }

    /// The range of [`DeviceMemory::reserve`].
    pub fn range(&self) -> Option<&AddressRange> {
        match &self.kind {
            Kind::Reserved(range) => Some(range),
            Kind::Allocated | Kind::Borrowed => None,
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The bytes.
    pub fn span(&self) -> Span {
        self.span
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let owned = matches!(self.kind, Kind::Allocated);
        if owned && self.device.backend().check_process().is_ok() {
            self.device.free_owned(self.span.start() as u64);
        }
    }
}

/// An owned stream.
pub struct OwnedStream {
    device: Arc<Device>,
    stream: Stream,
}

impl OwnedStream {
    /// Creates a stream.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { device: device.clone(), stream: device.backend().new_stream()? })
    }

    /// Its handle.
    pub fn get(&self) -> Stream {
        self.stream
    }
}

impl Drop for OwnedStream {
    /// Waits for the queued work, whose memory the owner frees next.
    fn drop(&mut self) {
        let backend = self.device.backend();
        if backend.check_process().is_ok() && !backend.is_lost() {
            log::best_effort_wait(|| backend.synchronize(self.stream), || backend.is_lost());
            log::best_effort(|| backend.release_stream(self.stream));
        }
    }
}
