//! Releases that have failed: what they were to release is kept, counts as held, and is released by a
//! later call.

use std::sync::atomic::Ordering;

use crate::device::backend::{Backend, PhysicalHandle};
use crate::device::stats::DeviceCounters;
use crate::error::{Result, catch_panic};
use crate::os::span::Span;
use crate::os::sync::Mutex;
use crate::os::{log, sync};

/// Handles that are released together, in this order, from the end of each list on.
#[derive(Default)]
pub struct Release {
    /// Mappings, whose last use has passed.
    pub mappings: Vec<Span>,
    /// The range of addresses that they were in.
    pub addresses: Option<Span>,
    /// Physical memory, and its bytes of the device's.
    pub memory: Vec<(PhysicalHandle, u64)>,
    /// Allocated device memory, and its bytes.
    pub allocation: Option<(u64, u64)>,
}

impl Release {
    /// Releases what is left. What fails, and all after it, is still there then.
    fn run(&mut self, backend: &dyn Backend, counters: &DeviceCounters) -> Result<()> {
        while let Some(mapping) = self.mappings.last() {
            backend.unmap(*mapping)?;
            self.mappings.pop();
        }
        if let Some(addresses) = self.addresses {
            backend.free_reserved(addresses)?;
            self.addresses = None;
        }
        while let Some((memory, device_bytes)) = self.memory.last() {
            backend.release_physical(*memory)?;
            counters.device_bytes.fetch_sub(*device_bytes, Ordering::AcqRel);
            self.memory.pop();
        }
        if let Some((address, bytes)) = self.allocation {
            backend.free(address)?;
            counters.device_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.allocation = None;
        }
        Ok(())
    }
}

/// The releases of a device that have failed.
#[derive(Default)]
pub struct Unreleased(Mutex<Vec<Release>>);

impl Unreleased {
    /// Releases, or logs the error and keeps what is left.
    pub fn release(&self, mut release: Release, backend: &dyn Backend, counters: &DeviceCounters) {
        if !log::best_effort(|| release.run(backend, counters)) {
            sync::lock(&self.0).push(release);
        }
    }

    /// Releases what earlier calls could not. Returns the first error; the rest is kept.
    pub fn retry(&self, backend: &dyn Backend, counters: &DeviceCounters) -> Result<()> {
        // Locked throughout: what another thread is releasing is not released yet.
        let mut kept = sync::lock(&self.0);
        let mut result = Ok(());
        kept.retain_mut(|release| {
            let done = catch_panic(|| release.run(backend, counters));
            let failed = done.is_err();
            if result.is_ok() {
                result = done;
            }
            failed
        });
        result
    }
}
