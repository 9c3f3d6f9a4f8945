//! [`Device`]: what both kinds of device share, above the [`Backend`] that differs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::backend::{Backend, Capabilities, Event, Location, Stream};
use crate::device::cuda::device::CudaDevice;
use crate::device::host::device::HostDevice;
use crate::device::policy::{Policy, Tristate};
use crate::device::stats::DeviceCounters;
use crate::error::{Result, catch_panic, fail};
use crate::os::span::Span;
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::os::{environment, log, sync};
use crate::status::{WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT, WB_ERR_NO_DEVICE};

/// Who gives device memory back, and nobody else may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Who called `wb_device_alloc`.
    Caller,
    /// [`DeviceMemory`], whose addresses callers see too.
    Library,
}

/// What a caller asks of a device when opening it.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceOptions {
    /// Pin host memory?
    pub pin: Tristate,
    /// Let the device read host memory?
    pub views: Tristate,
    /// The host device's memory in bytes; 0 for as much as there is.
    pub capacity_bytes: u64,
    /// The caller's own `CUcontext`, or 0 for the primary context.
    pub context: usize,
}

/// A device with what all kinds share.
pub struct Device {
    backend: Box<dyn Backend>,
    policy: Policy,
    counters: DeviceCounters,
    /// Bytes of every live allocation of device memory by its address.
    allocations: Mutex<HashMap<(u64, Owner), usize>>,
    /// Bytes a second over the link as measured, the bits of an `f64`; 0 while nobody has.
    link: AtomicU64,
}

impl Device {
    /// Opens `"host"` or `"cuda:N"`.
    pub fn open(name: &str, options: DeviceOptions) -> Result<Arc<Self>> {
        let backend: Box<dyn Backend> = match (name, name.strip_prefix("cuda:")) {
            ("host", _) if options.context != 0 => {
                fail!(WB_ERR_INVALID_ARGUMENT, "the host device takes no CUDA context")
            }
            ("host", _) => Box::new(HostDevice::open(options.capacity_bytes)),
            (_, Some(ordinal)) if options.capacity_bytes == 0 => {
                let Ok(ordinal) = ordinal.parse::<u16>() else {
                    fail!(WB_ERR_NO_DEVICE, "{name:?}: the part behind \"cuda:\" is no ordinal")
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

    /// A device of a kind that is already open.
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
            allocations: Mutex::default(),
            link: AtomicU64::default(),
        }))
    }

    /// What the kind can do.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What the platform is.
    pub fn capabilities(&self) -> &Capabilities {
        self.backend.capabilities()
    }

    /// Whether to pin and whether to use views.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Counters of what lives on this device.
    pub fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    /// Marks the point that a stream has reached, for giving memory back behind it.
    pub fn record_event(&self, stream: Stream) -> Result<Box<dyn Event>> {
        if self.backend.capture(stream)?.is_some() {
            fail!(
                WB_ERR_CAPTURING,
                "asked to give memory back after a stream that is being captured; a graph may be \
                 replayed at any time: keep the reference until the graph is destroyed"
            );
        }
        let event = self.backend.new_event(false)?;
        event.record(stream)?;
        Ok(event)
    }

    fn allocations(&self) -> MutexGuard<'_, HashMap<(u64, Owner), usize>> {
        sync::lock(&self.allocations)
    }

    /// Device memory.
    pub fn alloc(&self, bytes: usize, holder: Owner) -> Result<Span> {
        if bytes == 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "asked for 0 bytes of device memory");
        }
        let memory = self.backend.alloc(bytes)?;
        self.allocations().insert((memory.start() as u64, holder), bytes);
        self.counters.device_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        Ok(memory)
    }

    /// Gives device memory of [`Device::alloc`] back, for the same holder.
    pub fn free(&self, address: u64, holder: Owner) -> Result<()> {
        self.backend.check_process()?;
        let Some(bytes) = self.allocations().remove(&(address, holder)) else {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "{address:#x} is no device memory of wb_device_alloc on this device, or was freed"
            );
        };
        catch_panic(|| self.backend.free(address)).inspect_err(|_| {
            self.allocations().insert((address, holder), bytes);
        })?;
        self.counters.device_bytes.fetch_sub(bytes as u64, Ordering::AcqRel);
        Ok(())
    }

    /// The caller's bytes with the memory that they lie in.
    pub fn locate(&self, span: Span) -> Result<Location> {
        let on_device = span.bytes() > 0 && self.backend.is_device_memory(span.start() as u64)?;
        Ok(Location { span, on_device })
    }

    /// Bytes a second that the link was measured to carry; 0 while it was not.
    pub fn link_bytes_per_second(&self) -> f64 {
        f64::from_bits(self.link.load(Ordering::Relaxed))
    }

    /// Keeps what was measured.
    pub fn set_link_bytes_per_second(&self, bytes_per_second: f64) {
        self.link.store(bytes_per_second.to_bits(), Ordering::Relaxed);
    }

    /// Queues a copy; one that straddles registrations, which CUDA refuses, is split.
    pub fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        if to.bytes() != from.bytes() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to copy {} bytes onto {}: they must be as many",
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
        let left: Vec<_> = self.allocations().keys().copied().collect();
        for (address, _) in left {
            log::best_effort(|| self.backend.free(address));
        }
    }
}
