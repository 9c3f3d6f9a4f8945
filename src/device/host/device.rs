//! [`HostDevice`]: the host as a device. Its memory is the process's, a stream is a thread that
//! runs its work in order, an event is a point in that work, and pinning is mlock.

use std::collections::BTreeMap;
use std::fs;

use crate::device::backend::{
    Backend, Capabilities, Event, Granularity, HostWork, PhysicalHandle, PhysicalKind, PinOptions,
    Pinned, Stream,
};
use crate::device::host::addresses::{Addresses, GRANULARITY};
use crate::device::host::event::HostEvent;
use crate::device::host::stream::{Streams, Uses};
use crate::device::host::{kernels, mlock, stream};
use crate::device::kernel::Kernel;
use crate::device::registry::Registry;
use crate::error::{Error, Result, fail, format_bytes};
use crate::os::mapping::Mapping;
use crate::os::process::{PerProcess, Process};
use crate::os::span::Span;
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::os::{bytes, memlock, sync};
use crate::status::{WB_ERR_DEVICE_MEMORY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED};

static REGISTRY: PerProcess<Registry> = PerProcess::new();

/// The host as a device.
pub struct HostDevice {
    capabilities: Capabilities,
    process: Process,
    registry: &'static Registry,
    capacity: u64,
    streams: Arc<Streams>,
    state: Mutex<Allocations>,
}

#[derive(Default)]
struct Allocations {
    allocations: BTreeMap<u64, Mapping>,
    allocated: u64,
    addresses: Addresses,
}

impl HostDevice {
    /// Opens the host with `capacity` bytes of device memory; 0 means unlimited.
    pub fn open(capacity: u64) -> Self {
        let capabilities = Capabilities {
            name: processor_name(),
            unified_addressing: true,
            host_register: true,
            read_only_register_attribute: true,
            read_only_register: true,
            pageable_access: true,
            integrated: true,
            memlock_limit: memlock::lockable_bytes(),
            address_granularity: Granularity::Bytes(GRANULARITY),
            ..Capabilities::default()
        };
        let process = Process::current();
        let streams = Arc::new(Streams::new(process));
        let registry = REGISTRY.get(|_| Registry::new());
        Self { capabilities, process, registry, capacity, streams, state: Mutex::default() }
    }

    fn state(&self) -> Result<MutexGuard<'_, Allocations>> {
        self.process.check()?;
        Ok(sync::lock(&self.state))
    }

    /// Fails if device memory has less than `mapped` bytes left, for the `bytes` that were asked for.
    fn check_free(&self, state: &Allocations, bytes: usize, mapped: u64) -> Result<()> {
        let free = self.capacity.saturating_sub(state.allocated);
        if self.capacity > 0 && mapped > free {
            fail!(
                WB_ERR_DEVICE_MEMORY,
                "asked {} of device memory, {} in whole pages; {} of {} are free",
                format_bytes(bytes as u64),
                format_bytes(mapped),
                format_bytes(free),
                format_bytes(self.capacity)
            );
        }
        Ok(())
    }
}

impl Backend for HostDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn registry(&self) -> &'static Registry {
        self.registry
    }

    fn check_process(&self) -> Result<()> {
        self.process.check()
    }

    fn wait_unused(&self, span: Span, by_host_functions: bool) -> Result<()> {
        stream::wait_unused(span, by_host_functions);
        Ok(())
    }

    fn is_idle(&self) -> bool {
        stream::is_idle()
    }

    fn is_stream_thread(&self) -> bool {
        stream::is_stream_thread()
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let allocated = self.state()?.allocated;
        if self.capacity > 0 {
            return Ok((self.capacity - allocated, self.capacity));
        }
        Ok((meminfo("MemAvailable:"), meminfo("MemTotal:")))
    }

    fn pin(&self, span: Span, _: PinOptions) -> Result<()> {
        mlock::lock(span)
    }

    fn pinned(&self, span: Span, _: PinOptions) -> Result<Pinned> {
        let bytes = span.pages().bytes() as u64;
        Ok(Pinned { device_address: Some(span.start() as u64), bytes })
    }

    fn unpin(&self, span: Span) -> Result<()> {
        mlock::unlock(span)
    }

    fn alloc_pinned(&self, _: usize, options: PinOptions) -> Result<(Span, Pinned)> {
        let what = if options.write_combined { "write-combined" } else { "driver" };
        fail!(WB_ERR_NOT_SUPPORTED, "the host device has no {what} memory: leave the option out")
    }

    fn free_pinned(&self, _: Span) -> Result<()> {
        fail!(WB_ERR_NOT_SUPPORTED, "the host device has no driver memory")
    }

    fn alloc(&self, bytes: usize) -> Result<Span> {
        let mut state = self.state()?;
        let mapping = Mapping::anonymous(bytes)
            .map_err(|error| Error { status: WB_ERR_DEVICE_MEMORY, ..error })?;
        let mapped = mapping.span().bytes() as u64;
        self.check_free(&state, bytes, mapped)?;
        let memory = mapping.span().part(0, bytes);
        state.allocated += mapped;
        state.allocations.insert(memory.start() as u64, mapping);
        Ok(memory)
    }

    /// Waits for all streams first, as cuMemFree does: nothing is freed in flight.
    fn free(&self, address: u64) -> Result<()> {
        self.check_process()?;
        if stream::is_stream_thread() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to free device memory in a host function, whose stream it would wait for: \
                 free it on another thread"
            );
        }
        stream::wait_idle();
        let mut state = self.state()?;
        let Some(mapping) = state.allocations.remove(&address) else {
            fail!(WB_ERR_INVALID_ARGUMENT, "{address:#x} was not allocated on this device")
        };
        state.allocated -= mapping.span().bytes() as u64;
        Ok(())
    }

    fn reserve(&self, bytes: usize) -> Result<Span> {
        self.state()?.addresses.reserve(bytes)
    }

    fn free_reserved(&self, range: Span) -> Result<()> {
        self.state()?.addresses.free(range)
    }

    fn create_physical(&self, bytes: usize, kind: PhysicalKind) -> Result<PhysicalHandle> {
        let mut state = self.state()?;
        let on_device = if kind == PhysicalKind::Device { bytes as u64 } else { 0 };
        self.check_free(&state, bytes, on_device)?;
        let memory = state.addresses.create(bytes, kind)?;
        state.allocated += on_device;
        Ok(memory)
    }

    fn release_physical(&self, memory: PhysicalHandle) -> Result<()> {
        let mut state = self.state()?;
        let (bytes, kind) = state.addresses.release(memory)?;
        state.allocated -= if kind == PhysicalKind::Device { bytes as u64 } else { 0 };
        Ok(())
    }

    fn map(&self, at: Span, memory: PhysicalHandle) -> Result<()> {
        self.state()?.addresses.map(at, memory)
    }

    fn unmap(&self, at: Span) -> Result<()> {
        self.state()?.addresses.unmap(at)
    }

    fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        self.streams
            .find(stream)?
            .push(Uses::Copy(to, from), Box::new(move || bytes::copy(to, from)));
        Ok(())
    }

    fn launch(&self, kernel: Kernel, stream: Stream) -> Result<()> {
        self.streams.find(stream)?.push(Uses::Unknown, Box::new(move || kernels::run(kernel)));
        Ok(())
    }

    fn new_stream(&self) -> Result<Stream> {
        self.streams.add()
    }

    fn release_stream(&self, stream: Stream) -> Result<()> {
        self.streams.remove(stream)
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.streams.find(stream)?.synchronize()
    }

    fn call(&self, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.streams.find(stream)?.push(Uses::Unknown, work);
        Ok(())
    }

    fn call_shared(&self, stream: Stream, work: &Arc<HostWork>) -> Result<()> {
        let work = work.clone();
        self.streams.find(stream)?.push(Uses::Unknown, Box::new(move || (work.0)()));
        Ok(())
    }

    fn new_event(&self, _: bool) -> Result<Box<dyn Event>> {
        self.check_process()?;
        Ok(Box::new(HostEvent::new(&self.streams)))
    }

    /// Its handle, which is not used again.
    fn stream_id(&self, stream: Stream) -> Result<u64> {
        Ok(stream.0 as u64)
    }

    fn capture(&self, stream: Stream) -> Result<Option<u64>> {
        self.streams.find(stream).map(|_| None)
    }

    fn is_pinned(&self, _: Span) -> Result<bool> {
        Ok(true)
    }

    fn is_device_memory(&self, address: u64) -> Result<bool> {
        let state = self.state()?;
        if let Some(kind) = state.addresses.kind(address as usize) {
            return Ok(kind == PhysicalKind::Device);
        }
        let before = state.allocations.range(..=address).next_back();
        Ok(before.is_some_and(|(_, mapping)| address < mapping.span().end() as u64))
    }
}

fn processor_name() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name))
        .unwrap_or("host")
        .to_owned()
}

fn meminfo(key: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.lines().find_map(|line| {
        line.strip_prefix(key)?.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    kib.unwrap_or(0) << 10
}
