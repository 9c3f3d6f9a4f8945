//! Counters of what lives on a device. They go up when something is made and down when it is given
//! back, so that they are 0 when everything was released.

use std::sync::atomic::Ordering;

use crate::os::sync::AtomicU64;

/// The counters.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Buffers alive.
    pub buffers: AtomicU64,
    /// Views alive.
    pub views: AtomicU64,
    /// References waiting for a stream, or for the thread that gives memory back.
    pub deferred: AtomicU64,
    /// Bytes asked for by the buffers alive.
    pub asked: AtomicU64,
    /// Bytes of address space mapped for them.
    pub mapped: AtomicU64,
    /// Bytes pinned for them.
    pub pinned: AtomicU64,
    /// Bytes of device memory allocated here.
    pub device_bytes: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct DeviceStats {
    pub buffers: u64,
    pub views: u64,
    pub deferred: u64,
    pub asked: u64,
    pub mapped: u64,
    pub pinned: u64,
    pub device_bytes: u64,
}

impl DeviceCounters {
    /// Reads all of them.
    pub fn snapshot(&self) -> DeviceStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        DeviceStats {
            buffers: read(&self.buffers),
            views: read(&self.views),
            deferred: read(&self.deferred),
            asked: read(&self.asked),
            mapped: read(&self.mapped),
            pinned: read(&self.pinned),
            device_bytes: read(&self.device_bytes),
        }
    }
}
