//! What every kind of device can do: the [`Backend`] trait and its types.

use std::any::Any;

use crate::device::kernel::Kernel;
use crate::device::registry::Registry;
use crate::error::Result;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// A stream by its handle: a CUDA stream's, or a host stream's number. 0 is the default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);

/// What a platform is, as its driver and kernel tell it.
#[derive(Debug, Clone, Default)]
pub struct Capabilities {
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
    fn wait(&self, stream: Stream, waiting: WaitScope) -> Result<()>;
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
pub enum WaitScope {
    /// For the point set in the same capture, or without any capture.
    Capture,
    /// For the point set last outside of the capture, looked up anew at every replay.
    External,
}

/// Work of the host that may be queued many times, also by replays of a graph.
pub struct HostWork(pub Box<dyn Fn() + Send + Sync>);

/// What a kind of device must be able to do. Addresses are the device's own.
pub trait Backend: Send + Sync {
    /// What the platform is.
    fn capabilities(&self) -> &Capabilities;
    /// Registered ranges of this kind, process-wide.
    fn registry(&self) -> &'static Registry;
    /// `WB_ERR_FORKED` in a child of the process that opened the device.
    fn check_process(&self) -> Result<()>;
    /// Whether the device is not to be had any more (its context was destroyed, the driver has shut
    /// down), so that there is nothing to wait for or to give back.
    fn is_lost(&self) -> bool {
        false
    }
    /// Does several things at the cost of getting ready for one. `work` calls no code of a caller.
    fn with_context(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        work()
    }
    /// Waits for what is queued on any stream, before memory goes that the device sees without a
    /// registration. The host device's streams are their user's to wait for.
    fn wait_idle(&self) -> Result<()> {
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
    fn call_shared(&self, stream: Stream, work: &Arc<HostWork>) -> Result<()>;
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

/// Bytes and the memory that they lie in.
#[derive(Debug, Clone, Copy)]
pub struct Location {
    /// The bytes.
    pub span: Span,
    /// Whether they lie in device memory; otherwise they lie in host memory.
    pub on_device: bool,
}

impl Location {
    /// Bytes of host memory.
    pub fn host(span: Span) -> Self {
        Self { span, on_device: false }
    }

    /// Bytes of device memory.
    pub fn device(span: Span) -> Self {
        Self { span, on_device: true }
    }
}
