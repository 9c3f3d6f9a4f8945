//! [`Backend`]: what every kind of device can do, and the types that it uses.

use std::any::Any;

use crate::device::kernel::Kernel;
use crate::device::registry::Registry;
use crate::error::{Error, Result};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::WB_ERR_NOT_SUPPORTED;

/// A stream's handle: a `CUstream`, or the number of a host stream. 0 is the default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);

/// What a device and its platform can do.
#[derive(Debug, Clone, Default)]
pub struct Capabilities {
    /// Name of the device.
    pub name: String,
    /// Whether it is a CUDA device.
    pub cuda: bool,
    /// Ordinal among the devices of its kind.
    pub ordinal: i32,
    /// CUDA version of the driver (13000 for 13.0); 0 for the host.
    pub driver_version: i32,
    /// Compute capability times ten; 0 for the host.
    pub compute_capability: i32,
    /// Host and device share one address space.
    pub unified_addressing: bool,
    /// Existing memory can be registered.
    pub host_register: bool,
    /// The driver's attribute for registering read-only memory, which is not reliable.
    pub read_only_register_attribute: bool,
    /// Whether registering a read-only page succeeded.
    pub read_only_register: bool,
    /// The device can read pageable memory.
    pub pageable_access: bool,
    /// The device's memory is the host's.
    pub integrated: bool,
    /// The NUMA node that the device is attached to, if known.
    pub numa_node: Option<u32>,
    /// Bytes that this process may lock; `None` if it may lock all memory.
    pub memlock_limit: Option<u64>,
    /// What address ranges and physical memory are multiples of, in bytes, or why there are none.
    pub address_granularity: Granularity,
}

/// Bytes of which the length of every address range and of all physical memory is a multiple.
#[derive(Debug, Clone)]
pub enum Granularity {
    /// The device has address ranges.
    Bytes(u64),
    /// It has none, for this reason.
    Unavailable(String),
}

impl Default for Granularity {
    fn default() -> Self {
        Self::Unavailable("this kind of device has no address ranges".into())
    }
}

/// Where physical memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhysicalKind {
    /// On the device.
    Device,
    /// In host memory, which the device reads and writes in place.
    Host,
}

/// Physical memory of [`Backend::create_physical`], which has no address before it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PhysicalHandle(pub u64);

/// How host memory is pinned.
#[derive(Debug, Clone, Copy)]
pub struct PinOptions {
    /// The pages cannot be written.
    pub read_only: bool,
    /// Pinned for every context of the process.
    pub portable: bool,
    /// Bypasses the processor's cache; only for memory that the driver allocates.
    pub write_combined: bool,
    /// Maps the memory for the device.
    pub mapped: bool,
}

/// Pinned host memory, as the driver or the kernel reports it.
#[derive(Debug, Clone, Copy)]
pub struct Pinned {
    /// Its address on the device, if it is mapped.
    pub device_address: Option<u64>,
    /// Bytes pinned.
    pub bytes: u64,
}

/// Bytes and the kind of memory that contains them.
#[derive(Debug, Clone, Copy)]
pub struct Location {
    /// The bytes.
    pub span: Span,
    /// Whether they are in device memory; otherwise they are in host memory.
    pub on_device: bool,
}

impl Location {
    /// Bytes in host memory.
    pub fn host(span: Span) -> Self {
        Self { span, on_device: false }
    }

    /// Bytes in device memory.
    pub fn device(span: Span) -> Self {
        Self { span, on_device: true }
    }
}

/// A point in a stream. It can be recorded again and again.
pub trait Event: Send + Sync {
    /// Moves it to the end of the work queued on the stream.
    fn record(&self, stream: Stream) -> Result<()>;
    /// Makes the stream wait for the point recorded last.
    fn wait(&self, stream: Stream, scope: WaitScope) -> Result<()>;
    /// Whether the work before the point is done.
    fn is_complete(&self) -> Result<bool>;
    /// Blocks until the work before the point is done.
    fn synchronize(&self) -> Result<()>;
    /// Seconds from `earlier` to this event, both timed; `None` until both have passed.
    fn seconds_since(&self, earlier: &dyn Event) -> Result<Option<f64>>;
    /// Lets [`Event::seconds_since`] check the kind of the other event.
    fn as_any(&self) -> &dyn Any;
}

/// Which recording a wait on a captured stream refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitScope {
    /// The one in the same capture; outside of a capture, the last one.
    Capture,
    /// The last one outside of the capture, at the time of each replay.
    External,
}

/// A host function that can run many times, also when graphs are replayed.
pub struct HostWork(pub Box<dyn Fn() + Send + Sync>);

/// What every kind of device implements. Addresses are the device's.
pub trait Backend: Send + Sync {
    /// What the device can do.
    fn capabilities(&self) -> &Capabilities;
    /// The ranges registered with this kind of device in this process.
    fn registry(&self) -> &'static Registry;
    /// Fails with `WB_ERR_FORKED` in a forked child of the process that opened the device.
    fn check_process(&self) -> Result<()>;
    /// Whether the device is lost: its context was destroyed or the driver has shut down. Then
    /// there is nothing to wait for and nothing to free.
    fn is_lost(&self) -> bool {
        false
    }
    /// Runs `work` with the device's context current, so that several calls in it cost less. `work`
    /// must not call a caller's code. Fails in a forked child before `work`, which may take locks.
    fn with_context(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.check_process()?;
        work()
    }
    /// Waits for queued work that uses a span, before memory is freed that the device can access
    /// without a registration: on the host device, any memory. A device that does not know what its
    /// streams use waits for all their work; the host device does not know what host functions and
    /// kernels use, and waits for them if `by_host_functions`. Not on a stream's thread.
    fn wait_unused(&self, span: Span, by_host_functions: bool) -> Result<()>;
    /// Whether freeing host memory waits for nothing; false if that is not known.
    fn is_idle(&self) -> bool {
        false
    }
    /// Whether this thread runs the work of a stream, and so must not wait for streams.
    fn is_stream_thread(&self) -> bool {
        false
    }
    /// Free and total bytes of device memory.
    fn memory(&self) -> Result<(u64, u64)>;

    /// Pins existing memory.
    fn pin(&self, span: Span, options: PinOptions) -> Result<()>;
    /// Reports on memory that [`Backend::pin`] pinned with the same options.
    fn pinned(&self, span: Span, options: PinOptions) -> Result<Pinned>;
    /// Unpins a span of [`Backend::pin`].
    fn unpin(&self, span: Span) -> Result<()>;
    /// Allocates pinned memory from the driver.
    fn alloc_pinned(&self, bytes: usize, options: PinOptions) -> Result<(Span, Pinned)>;
    /// Frees memory of [`Backend::alloc_pinned`].
    fn free_pinned(&self, span: Span) -> Result<()>;

    /// Allocates device memory.
    fn alloc(&self, bytes: usize) -> Result<Span>;
    /// Frees memory of [`Backend::alloc`].
    fn free(&self, address: u64) -> Result<()>;
    /// Reserves addresses without memory behind them. `bytes` is a multiple of the granularity. This
    /// and the next five fail with `WB_ERR_NOT_SUPPORTED` where there are no address ranges.
    fn reserve(&self, _bytes: usize) -> Result<Span> {
        Err(self.no_address_ranges())
    }
    /// Releases addresses of [`Backend::reserve`], to which nothing is mapped.
    fn free_reserved(&self, _range: Span) -> Result<()> {
        Err(self.no_address_ranges())
    }
    /// Creates physical memory. `bytes` is a multiple of the granularity.
    fn create_physical(&self, _bytes: usize, _kind: PhysicalKind) -> Result<PhysicalHandle> {
        Err(self.no_address_ranges())
    }
    /// Frees physical memory that is not mapped.
    fn release_physical(&self, _memory: PhysicalHandle) -> Result<()> {
        Err(self.no_address_ranges())
    }
    /// Puts physical memory, all of it, behind a part of a reserved range, which the device may then
    /// read and write. Is not ordered with streams and waits for none.
    fn map(&self, _at: Span, _memory: PhysicalHandle) -> Result<()> {
        Err(self.no_address_ranges())
    }
    /// Takes the memory of one [`Backend::map`] from its addresses, which then fault. Is not ordered
    /// with streams: the caller knows that the last use has passed.
    fn unmap(&self, _at: Span) -> Result<()> {
        Err(self.no_address_ranges())
    }
    /// The error of a device without address ranges.
    fn no_address_ranges(&self) -> Error {
        let reason = match &self.capabilities().address_granularity {
            Granularity::Unavailable(reason) => reason.as_str(),
            Granularity::Bytes(_) => "it does not implement them",
        };
        let message = format!("asked for addresses that stay fixed; the device has none: {reason}");
        Error::new(WB_ERR_NOT_SUPPORTED, message)
    }

    /// Queues a copy between spans of the same length, neither of which straddles two
    /// registrations.
    fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()>;

    /// Queues a kernel. All of its memory must be accessible to the device.
    fn launch(&self, kernel: Kernel, stream: Stream) -> Result<()>;

    /// Creates a stream, which does not synchronize with the default stream.
    fn new_stream(&self) -> Result<Stream>;
    /// Releases a stream of [`Backend::new_stream`]. Work queued on it still runs.
    fn release_stream(&self, stream: Stream) -> Result<()>;
    /// Blocks until the work queued on the stream is done.
    fn synchronize(&self, stream: Stream) -> Result<()>;
    /// Queues a host function, which must not call the device.
    fn call(&self, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()>;
    /// Queues a host function that its owner keeps until no stream and no graph can run it any
    /// more.
    fn call_shared(&self, stream: Stream, work: &Arc<HostWork>) -> Result<()>;
    /// Creates an event. [`Event::seconds_since`] needs `timed` events.
    fn new_event(&self, timed: bool) -> Result<Box<dyn Event>>;
    /// The number of a stream that is not in a capture. No other stream of the device has it or had it,
    /// while a handle may be that of a stream which was released.
    fn stream_id(&self, stream: Stream) -> Result<u64>;
    /// The id of the capture that the stream is in, if any.
    fn capture(&self, stream: Stream) -> Result<Option<u64>>;
    /// Whether host memory is pinned, so that copies need no staging.
    fn is_pinned(&self, span: Span) -> Result<bool>;
    /// Whether an address is in device memory; on the host device, in memory of [`Backend::alloc`].
    fn is_device_memory(&self, address: u64) -> Result<bool>;
}
