//! Places to compute. [`Device`] is the noun of the C interface and holds what all kinds share
//! (policy, counters, the rule for copies); [`Backend`] is what a kind must be able to do, and
//! [`cuda`] and [`host`] are the two there are.

pub mod cuda;
pub mod host;
pub mod kernel;
mod owned;
pub mod policy;
pub mod registry;
mod usage;

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Result, catch, fail};
use crate::log;
use crate::memory::pages::{self, Span};
use crate::status::{
    WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT, WB_ERR_NO_DEVICE, WB_ERR_ZERO_BYTES,
};
use crate::sync::{self, Arc, Mutex, MutexGuard};
use kernel::Kernel;
pub use owned::{DeviceMemory, OwnedStream};
use policy::{Choice, Policy};
use registry::Registry;
pub use usage::{Usage, UsageSnapshot};

/// A stream by its handle: a CUDA stream's, or a host stream's number. 0 is the default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);

/// What a platform is, as its driver and kernel tell it.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The device's own name.
    pub name: String,
    /// Whether it is a CUDA device.
    pub cuda: bool,
    /// Ordinal among its kind.
    pub ordinal: i32,
    /// CUDA's version of the driver (13000 for 13.0); 0 for the host.
    pub driver_version: i32,
    /// Compute capability times ten; 0 for the host.
    pub compute_capability: i32,
    /// Host and device share one address space.
    pub unified_addressing: bool,
    /// Existing memory can be registered.
    pub host_register: bool,
    /// What the driver says of read-only registration.
    pub read_only_register_attribute: bool,
    /// What registering a read-only page showed.
    pub read_only_register: bool,
    /// Any pointer of the process is a device pointer.
    pub pageable_access: bool,
    /// Shares the host's memory.
    pub integrated: bool,
    /// The NUMA node that it hangs on.
    pub numa_node: Option<u32>,
    /// Bytes that this process may lock; `None` without a limit.
    pub memlock_limit: Option<u64>,
}

/// Who gives device memory back, and nobody else may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Who called `wb_device_alloc`.
    Caller,
    /// [`DeviceMemory`], whose addresses callers see too.
    Library,
}

/// How memory is made visible to a device.
#[derive(Debug, Clone, Copy)]
pub struct PinOptions {
    /// The pages may not be written.
    pub read_only: bool,
    /// For every context of the process.
    pub portable: bool,
    /// The processor's cache is bypassed (memory of the driver only).
    pub write_combined: bool,
    /// The device gets an address for it.
    pub mapped: bool,
}

/// Memory that a device pinned.
#[derive(Debug, Clone, Copy)]
pub struct Pinned {
    /// Where the device sees it, if it does.
    pub device_address: Option<u64>,
    /// Bytes pinned, as the driver or the kernel counts them.
    pub bytes: u64,
}

/// A point in a stream, which can be set again and again.
pub trait Event: Send + Sync {
    /// Sets it behind what is queued on the stream.
    fn record(&self, stream: Stream) -> Result<()>;
    /// Lets the stream wait for the point that it was last set to.
    fn hold(&self, stream: Stream, waiting: Waiting) -> Result<()>;
    /// Whether everything queued before it has run.
    fn is_complete(&self) -> Result<bool>;
    /// Waits until everything queued before it has run.
    fn synchronize(&self) -> Result<()>;
    /// Seconds from `earlier` to this; `None` until both have passed. Both are timed.
    fn seconds_since(&self, earlier: &dyn Event) -> Result<Option<f64>>;
    /// For [`Event::seconds_since`] of the same kind.
    fn as_any(&self) -> &dyn Any;
}

/// What a wait means on a stream that is being captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// For the point set in the same capture, or without any capture.
    Within,
    /// For the point set last outside of the capture, looked up anew at every replay.
    FromOutside,
}

/// Work of the host that may be queued many times, also by replays of a graph.
pub struct HostWork(pub Box<dyn Fn() + Send + Sync>);

/// What a kind of device must be able to do. Addresses are the device's own.
pub trait Backend: Send + Sync {
    /// What the platform is.
    fn facts(&self) -> &Facts;
    /// Registered ranges of this kind, process-wide.
    fn registry(&self) -> &'static Registry;
    /// `WB_ERR_FORKED` in a child of the process that opened the device.
    fn check_process(&self) -> Result<()>;
    /// Whether the device is not to be had any more (its context was destroyed, the driver has shut
    /// down), so that there is nothing to wait for or to give back.
    fn is_gone(&self) -> bool {
        false
    }
    /// Does several things at the cost of getting ready for one. `work` calls no code of a caller.
    fn within(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        work()
    }
    /// Waits for what is queued on any stream, before memory goes that the device sees without a
    /// registration. The host device's streams are their user's to wait for.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
    /// Free and total bytes of device memory, now.
    fn memory(&self) -> Result<(u64, u64)>;

    /// Pins memory that exists.
    fn pin(&self, span: Span, options: PinOptions) -> Result<()>;
    /// What became of memory that [`Backend::pin`] pinned with the same options.
    fn pinned(&self, span: Span, options: PinOptions) -> Result<Pinned>;
    /// Undoes [`Backend::pin`] of the same span.
    fn unpin(&self, span: Span) -> Result<()>;
    /// Pinned memory of the driver's own.
    fn alloc_pinned(&self, bytes: usize, options: PinOptions) -> Result<(Span, Pinned)>;
    /// Undoes [`Backend::alloc_pinned`].
    fn free_pinned(&self, span: Span) -> Result<()>;

    /// Device memory.
    fn alloc(&self, bytes: usize) -> Result<Span>;
    /// Undoes [`Backend::alloc`].
    fn free(&self, address: u64) -> Result<()>;
    /// Queues a copy of spans of one length, neither of which straddles two registrations.
    fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()>;

    /// Queues a kernel, all of whose memory is the device's.
    fn launch(&self, kernel: Kernel, stream: Stream) -> Result<()>;

    /// A new stream, ordered in itself only.
    fn new_stream(&self) -> Result<Stream>;
    /// Gives a stream of [`Backend::new_stream`] back; work queued on it still runs.
    fn release_stream(&self, stream: Stream) -> Result<()>;
    /// Waits for what is queued on the stream.
    fn synchronize(&self, stream: Stream) -> Result<()>;
    /// Queues a function of the host on the stream; it must not call the device.
    fn call(&self, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()>;
    /// Queues work that its owner keeps until no stream and no graph can run it any more.
    fn call_kept(&self, stream: Stream, work: &Arc<HostWork>) -> Result<()>;
    /// An event that was not set yet; `timed` ones tell the seconds between them.
    fn new_event(&self, timed: bool) -> Result<Box<dyn Event>>;
    /// The number of the capture that the stream is in, if it is in one.
    fn capture(&self, stream: Stream) -> Result<Option<u64>>;
    /// Whether copies take this memory of the host as it lies: it is pinned.
    fn is_pinned(&self, span: Span) -> Result<bool>;
    /// Whether an address lies in device memory; on the host device, in memory of
    /// [`Backend::alloc`].
    fn is_device_memory(&self, address: u64) -> Result<bool>;
}

/// What a caller asks of a device when opening it.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceOptions {
    /// Pin host memory?
    pub pin: Choice,
    /// Let the device read host memory?
    pub views: Choice,
    /// The host device's memory in bytes; 0 for as much as there is.
    pub capacity_bytes: u64,
    /// The caller's own `CUcontext`, or 0 for the primary context.
    pub context: usize,
}

/// A device with what all kinds share.
pub struct Device {
    backend: Box<dyn Backend>,
    policy: Policy,
    usage: Usage,
    /// Bytes of every live allocation of device memory by its address.
    allocations: Mutex<HashMap<(u64, Holder), usize>>,
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
            ("host", _) => Box::new(host::HostDevice::open(options.capacity_bytes)),
            (_, Some(ordinal)) if options.capacity_bytes == 0 => {
                let Ok(ordinal) = ordinal.parse::<u16>() else {
                    fail!(WB_ERR_NO_DEVICE, "{name:?}: the part behind \"cuda:\" is no ordinal")
                };
                Box::new(cuda::CudaDevice::open(i32::from(ordinal), options.context)?)
            }
            (_, Some(_)) => {
                fail!(WB_ERR_INVALID_ARGUMENT, "a capacity can be set for the host device only")
            }
            _ => fail!(WB_ERR_NO_DEVICE, "there is no device {name:?}: use \"host\" or \"cuda:0\""),
        };
        let policy = Policy::decide(options.pin, options.views, backend.facts(), &pages::variable)?;
        Ok(Arc::new(Self {
            backend,
            policy,
            usage: Usage::default(),
            allocations: Mutex::default(),
            link: AtomicU64::default(),
        }))
    }

    /// What the kind can do.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What the platform is.
    pub fn facts(&self) -> &Facts {
        self.backend.facts()
    }

    /// Whether to pin and whether to use views.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Counters of what lives on this device.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Marks the point that a stream has reached, for giving memory back behind it.
    pub fn mark(&self, stream: Stream) -> Result<Box<dyn Event>> {
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

    fn allocations(&self) -> MutexGuard<'_, HashMap<(u64, Holder), usize>> {
        sync::lock(&self.allocations)
    }

    /// Device memory.
    pub fn alloc(&self, bytes: usize, holder: Holder) -> Result<Span> {
        if bytes == 0 {
            fail!(WB_ERR_ZERO_BYTES, "asked for 0 bytes of device memory");
        }
        let memory = self.backend.alloc(bytes)?;
        self.allocations().insert((memory.start() as u64, holder), bytes);
        self.usage.device_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        Ok(memory)
    }

    /// Gives device memory of [`Device::alloc`] back, for the same holder.
    pub fn free(&self, address: u64, holder: Holder) -> Result<()> {
        self.backend.check_process()?;
        let Some(bytes) = self.allocations().remove(&(address, holder)) else {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "{address:#x} is no device memory of wb_device_alloc on this device, or was freed"
            );
        };
        catch(|| self.backend.free(address)).inspect_err(|_| {
            self.allocations().insert((address, holder), bytes);
        })?;
        self.usage.device_bytes.fetch_sub(bytes as u64, Ordering::AcqRel);
        Ok(())
    }

    /// Bytes a second that the link was measured to carry; 0 while it was not.
    pub fn link(&self) -> f64 {
        f64::from_bits(self.link.load(Ordering::Relaxed))
    }

    /// Keeps what was measured.
    pub fn set_link(&self, bytes_per_second: f64) {
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
            log::settle(|| self.backend.free(address));
        }
    }
}
