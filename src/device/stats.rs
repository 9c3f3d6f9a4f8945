//! Counters of the live objects and memory of a device. All are 0 when everything was released.

use std::sync::atomic::Ordering;

use crate::os::sync::AtomicU64;

/// The counters. An object adds itself when it is made and subtracts itself when it is freed.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Live buffers.
    pub buffers: AtomicU64,
    /// Live views.
    pub views: AtomicU64,
    /// References that wait for a stream or for the reclaimer's thread.
    pub deferred: AtomicU64,
    /// Bytes asked for by the live buffers.
    pub asked: AtomicU64,
    /// Bytes of address space mapped for them.
    pub mapped: AtomicU64,
    /// Bytes pinned for them.
    pub pinned: AtomicU64,
    /// Bytes of device memory allocated here.
    pub device_bytes: AtomicU64,
}

/// The counters at one moment, named as in [`DeviceCounters`].
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
    /// Reads the counters.
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
