//! Device memory and streams that are released with their owner.

use crate::device::backend::Stream;
use crate::device::device::{Device, Owner};
use crate::error::Result;
use crate::os::log;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// Owned device memory.
pub struct DeviceMemory {
    device: Arc<Device>,
    span: Span,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes; `None` for 0.
    pub fn alloc(device: &Arc<Device>, bytes: usize) -> Result<Option<Self>> {
        if bytes == 0 {
            return Ok(None);
        }
        Ok(Some(Self { device: device.clone(), span: device.alloc(bytes, Owner::Library)? }))
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
        if self.device.backend().check_process().is_ok() {
            log::best_effort(|| self.device.free(self.span.start() as u64, Owner::Library));
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
