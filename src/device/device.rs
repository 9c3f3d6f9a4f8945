//! [`Device`]: what all kinds of device share, over the [`Backend`] of one kind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::backend::{Backend, Capabilities, Event, Location, Stream};
use crate::device::cuda::device::CudaDevice;
use crate::device::host::device::HostDevice;
use crate::device::policy::{Policy, Tristate};
use crate::device::stats::DeviceCounters;
use crate::device::unreleased::{Release, Unreleased};
use crate::error::{Result, catch_panic, fail};
use crate::os::span::Span;
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::os::{environment, log, sync};
use crate::status::{WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT, WB_ERR_NO_DEVICE};

/// The owner of device memory, which alone may free it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The caller of `wb_device_alloc`.
    Caller,
    /// An object of the library. Callers know its address, too, but must not free it.
    Library,
}

/// Options of a device.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceOptions {
    /// Whether to pin host memory.
    pub pin: Tristate,
    /// Whether the device reads host memory in place.
    pub views: Tristate,
    /// Bytes of the host device's memory; 0 means unlimited.
    pub capacity_bytes: u64,
    /// The caller's `CUcontext`; 0 means the primary context.
    pub context: usize,
}

/// An open device.
pub struct Device {
    backend: Box<dyn Backend>,
    policy: Policy,
    counters: DeviceCounters,
    /// What could not be released yet.
    unreleased: Unreleased,
    /// Bytes of every live allocation of device memory, by address and owner.
    allocations: Mutex<HashMap<(u64, Owner), usize>>,
    /// The measured bytes per second of the link, as the bits of an `f64`; 0 if not measured.
    link: AtomicU64,
}

impl Device {
    /// Opens `"host"` or `"cuda:N"`.
    pub fn open(name: &str, options: DeviceOptions) -> Result<Arc<Self>> {
        let backend: Box<dyn Backend> = match (name, name.strip_prefix("cuda:")) {
            ("host", _) if options.context != 0 => {
                fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "the host device has no CUDA context: leave the option out"
                )
            }
            ("host", _) => Box::new(HostDevice::open(options.capacity_bytes)),
            (_, Some(ordinal)) if options.capacity_bytes == 0 => {
                let Ok(ordinal) = ordinal.parse::<u16>() else {
                    fail!(WB_ERR_NO_DEVICE, "{name:?}: the part after \"cuda:\" is not an ordinal")
                };
                Box::new(CudaDevice::open(i32::from(ordinal), options.context)?)
            }
            (_, Some(_)) => {
                fail!(WB_ERR_INVALID_ARGUMENT, "a capacity can be set for the host device only")
            }
            _ => fail!(WB_ERR_NO_DEVICE, "there is no device {name:?}: use \"host\" or \"cuda:0\""),
        };
        Self::with_backend(backend, options.pin, options.views)
    }

    /// A device over an open backend.
    pub fn with_backend(
        backend: Box<dyn Backend>,
        pin: Tristate,
        views: Tristate,
    ) -> Result<Arc<Self>> {
        let policy = Policy::decide(pin, views, backend.capabilities(), &environment::variable)?;
        Ok(Arc::new(Self {
            backend,
            policy,
            counters: DeviceCounters::default(),
            unreleased: Unreleased::default(),
            allocations: Mutex::default(),
            link: AtomicU64::default(),
        }))
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.backend.capabilities()
    }

    /// Whether to pin, and whether to use views.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The counters of this device.
    pub fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    /// Records an event on a stream, after which memory is freed. Fails with `WB_ERR_CAPTURING` in
    /// a capture.
    pub fn record_event(&self, stream: Stream) -> Result<Box<dyn Event>> {
        if self.backend.capture(stream)?.is_some() {
            fail!(
                WB_ERR_CAPTURING,
                "asked to release memory after a stream that is being captured; a graph may be \
                 replayed at any time: keep the reference until the graph is destroyed"
            );
        }
        let event = self.backend.new_event(false)?;
        event.record(stream)?;
        Ok(event)
    }

    /// Queues a host function that runs once. A graph would run it at every replay.
    pub fn call(&self, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()> {
        if self.backend.capture(stream)?.is_some() {
            fail!(
                WB_ERR_CAPTURING,
                "asked to call a host function once, on a stream that is being captured; a graph may \
                 be replayed any number of times: call it on another stream"
            );
        }
        self.backend.call(stream, work)
    }

    fn allocations(&self) -> MutexGuard<'_, HashMap<(u64, Owner), usize>> {
        sync::lock(&self.allocations)
    }

    /// Allocates device memory.
    pub fn alloc(&self, bytes: usize, owner: Owner) -> Result<Span> {
        if bytes == 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "asked for 0 bytes of device memory");
        }
        let memory = self.backend.alloc(bytes)?;
        self.allocations().insert((memory.start() as u64, owner), bytes);
        self.counters.device_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        Ok(memory)
    }

    /// Frees device memory of [`Device::alloc`] with the same owner.
    pub fn free(&self, address: u64, owner: Owner) -> Result<()> {
        self.backend.check_process()?;
        let Some(bytes) = self.allocations().remove(&(address, owner)) else {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "{address:#x} was not returned by wb_device_alloc on this device, or was freed"
            );
        };
        catch_panic(|| self.backend.free(address)).inspect_err(|_| {
            self.allocations().insert((address, owner), bytes);
        })?;
        self.counters.device_bytes.fetch_sub(bytes as u64, Ordering::AcqRel);
        Ok(())
    }

    /// Frees memory of [`Device::alloc`] that the library owns, now or later: see [`Device::release`].
    pub fn free_owned(&self, address: u64) {
        log::best_effort(|| {
            if let Some(bytes) = self.allocations().remove(&(address, Owner::Library)) {
                let allocation = Some((address, bytes as u64));
                self.release(Release { allocation, ..Release::default() });
            }
            Ok(())
        });
    }

    /// Releases addresses and physical memory. What cannot be released now is kept for
    /// [`Device::retry_releases`], and the error is logged.
    pub fn release(&self, release: Release) {
        self.unreleased.release(release, self.backend(), &self.counters);
    }

    /// Releases what [`Device::release`] has kept. Returns an error if something is still kept.
    pub fn retry_releases(&self) -> Result<()> {
        self.unreleased.retry(self.backend(), &self.counters)
    }

    /// Finds out which kind of memory contains a caller's bytes.
    pub fn locate(&self, span: Span) -> Result<Location> {
        let on_device = span.bytes() > 0 && self.backend.is_device_memory(span.start() as u64)?;
        Ok(Location { span, on_device })
    }

    /// The measured bytes per second of the link; 0 if it was not measured.
    pub fn link_bytes_per_second(&self) -> f64 {
        f64::from_bits(self.link.load(Ordering::Relaxed))
    }

    /// Stores a measurement.
    pub fn set_link_bytes_per_second(&self, bytes_per_second: f64) {
        self.link.store(bytes_per_second.to_bits(), Ordering::Relaxed);
    }

    /// Queues a copy. It is split where a registration begins or ends, because CUDA refuses a copy
    /// across two.
    pub fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        if to.bytes() != from.bytes() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to copy {} bytes to {} bytes: the lengths must be equal",
                from.bytes(),
                to.bytes()
            );
        }
        self.backend.check_process()?;
        let registry = self.backend.registry();
        let mut offset = 0;
        while offset < to.bytes() {
            let (to, from) = (to.part(offset, usize::MAX), from.part(offset, usize::MAX));
            let bytes = registry.leading_part(to).min(registry.leading_part(from));
            self.backend.copy(to.part(0, bytes), from.part(0, bytes), stream)?;
            offset += bytes;
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.backend.check_process().is_err() {
            return;
        }
        log::best_effort(|| self.retry_releases());
        let left: Vec<_> = self.allocations().keys().copied().collect();
        for (address, _) in left {
            log::best_effort(|| self.backend.free(address));
        }
    }
}
