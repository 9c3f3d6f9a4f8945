//! [`Buffer`]: a range of host memory, how it was made, how it is pinned, and how it is freed.
//! `allocate`, `register` and `file` make buffers.

use std::fs::File;
use std::sync::atomic::Ordering;

use crate::device::backend::{PinOptions, Pinned};
use crate::device::device::Device;
use crate::device::policy::Tristate;
use crate::error::{Error, Result, fail, format_bytes};
use crate::memory::deferred;
use crate::memory::pin::{PinRequest, Pins};
use crate::os::mapping::{HugePages, Mapping};
use crate::os::span::Span;
use crate::os::sync::{Arc, AtomicU64};
use crate::os::{log, mapping, proc_maps};
use crate::status::{WB_ERR_FILE_IO, WB_ERR_FILE_TRUNCATED};

/// The NUMA node of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumaPolicy {
    /// The device's node, if it is known.
    Device,
    /// Any node.
    Any,
    /// This node, or an error.
    Node(u32),
}

/// How a file is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// Mapped if the platform can register a mapping, else read.
    Auto,
    /// Mapped, or an error.
    Map,
    /// Read into memory.
    Read,
    /// As `Auto`, and never pinned: its bytes are only copied to other memory.
    Source,
}

/// Options of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct BufferOptions {
    /// Whether to use huge pages.
    pub huge_pages: HugePages,
    /// Threads that make pages present and read files; 0 selects a number.
    pub threads: usize,
    /// The NUMA node.
    pub numa: NumaPolicy,
    /// Whether to pin the memory; `Auto` is the device's policy.
    pub pin: Tristate,
    /// Bypasses the processor's cache: fast for the host to write, very slow to read.
    pub write_combined: bool,
    /// Pinned for every context of the process.
    pub portable: bool,
    /// How a file is loaded.
    pub file_mode: FileMode,
    /// Bytes to register at a time; 0 means as many as possible.
    pub chunk_bytes: usize,
    /// Existing memory must not be written, even if its pages are writable.
    pub read_only: bool,
}

impl Default for BufferOptions {
    fn default() -> Self {
        Self {
            huge_pages: HugePages::Try,
            threads: 0,
            numa: NumaPolicy::Device,
            pin: Tristate::Auto,
            write_combined: false,
            portable: true,
            file_mode: FileMode::Auto,
            chunk_bytes: 0,
            read_only: false,
        }
    }
}

impl BufferOptions {
    /// Whether a buffer with these options is pinned on the device.
    pub(super) fn pins(&self, device: &Device) -> bool {
        device.policy().pins(self.pin)
    }

    /// The reason why a buffer with these options is pageable.
    pub(super) fn pageable_reason(&self, device: &Device) -> String {
        match self.pin {
            Tristate::Auto => format!("pageable: {}", device.policy().pin_reason),
            _ => "pageable: asked for in the options".into(),
        }
    }

    pub(super) fn pin_options(&self, device: &Device, read_only: bool) -> PinOptions {
        PinOptions {
            read_only,
            portable: self.portable,
            write_combined: self.write_combined,
            mapped: device.policy().allows_views(true),
        }
    }

    /// How to pin memory of `owner` with these options.
    pub(super) fn pin_request(
        &self,
        device: &Device,
        read_only: bool,
        owner: &'static str,
    ) -> PinRequest {
        let options = self.pin_options(device, read_only);
        PinRequest { options, chunk_bytes: self.chunk_bytes, owner }
    }
}

/// How a buffer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Allocated by the library.
    Allocated,
    /// Registered memory of the caller.
    Registered,
    /// A mapped file.
    FileMapped,
    /// A file that was read into memory.
    FileRead,
}

/// How a buffer is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinning {
    /// Not pinned.
    Pageable,
    /// Its pages were registered.
    Registered,
    /// The driver allocated it.
    Driver,
}

/// Frees the caller's memory, or tells the caller to. Called once, when nothing uses the memory any
/// more.
pub type Deleter = Box<dyn FnOnce() + Send + Sync>;

/// What a buffer frees.
pub(super) enum Memory {
    None,
    Mapping(Mapping),
    /// Memory of the driver.
    Driver(Span, Pinned),
    /// Memory of the caller.
    Caller(Option<Deleter>),
}

/// The file that a mapping shows.
pub(super) struct MappedFile {
    pub file: File,
    /// Bytes that the file must have.
    pub end: u64,
}

/// The parts of a buffer that is being made.
pub(super) struct Parts {
    pub data: Span,
    pub memory: Memory,
    pub pins: Option<Pins>,
    /// Bytes of address space mapped for it.
    pub mapped: usize,
    pub origin: Origin,
    pub read_only: bool,
    pub file: Option<MappedFile>,
    /// See [`Buffer::fallback_reason`].
    pub fallback_reason: String,
}

impl Parts {
    /// A writable, pageable buffer without a file or a mapping.
    pub(super) fn new(data: Span, memory: Memory, origin: Origin) -> Self {
        Self {
            data,
            memory,
            pins: None,
            mapped: 0,
            origin,
            read_only: false,
            file: None,
            fallback_reason: String::new(),
        }
    }
}

const NOT_MAPPED: &str = "pinned, and the driver has no contiguous device address for it \
                          (cuMemHostGetDevicePointer_v2)";

/// Joins two reasons, each of which can be empty.
fn join(first: String, second: String) -> String {
    let filled = [first, second].into_iter().filter(|reason| !reason.is_empty());
    filled.collect::<Vec<_>>().join("; ")
}

/// A range of host memory.
pub struct Buffer {
    device: Arc<Device>,
    data: Span,
    device_address: Option<u64>,
    pins: Option<Pins>,
    memory: Memory,
    file: Option<MappedFile>,
    mapped: u64,
    pinned: u64,
    origin: Origin,
    read_only: bool,
    fallback_reason: String,
}

/// The kernel's counts of a buffer's pages, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BufferStats {
    pub resident: u64,
    pub huge: u64,
    pub anonymous: u64,
    pub locked: u64,
}

impl Buffer {
    pub(super) fn assemble(device: &Arc<Device>, parts: Parts) -> Self {
        let Parts { data, memory, pins, mapped, origin, read_only, file, mut fallback_reason } =
            parts;
        let (pinned, mapped_address) = match (&memory, &pins) {
            (Memory::Driver(_, pinned), _) => (pinned.bytes, pinned.device_address),
            (_, Some(pins)) => (pins.bytes(), pins.device_address(data)),
            _ => (0, None),
        };
        let pageable_address = device.capabilities().pageable_access.then_some(data.start() as u64);
        let views = device.policy().allows_views(pinned > 0);
        let device_address = if views { mapped_address.or(pageable_address) } else { None };
        if views && pinned > 0 && device_address.is_none() {
            fallback_reason = join(fallback_reason, NOT_MAPPED.into());
        }
        let mapped = mapped as u64;
        let counters = device.counters();
        counters.buffers.fetch_add(1, Ordering::AcqRel);
        counters.asked.fetch_add(data.bytes() as u64, Ordering::AcqRel);
        counters.mapped.fetch_add(mapped, Ordering::AcqRel);
        counters.pinned.fetch_add(pinned, Ordering::AcqRel);
        Self {
            device: device.clone(),
            data,
            device_address,
            pins,
            memory,
            file,
            mapped,
            pinned,
            origin,
            read_only,
            fallback_reason,
        }
    }

    /// Sets the origin of a buffer that a file was read into.
    pub(super) fn mark_read_from_file(&mut self, reason: String) {
        self.origin = Origin::FileRead;
        self.fallback_reason = join(reason, std::mem::take(&mut self.fallback_reason));
    }

    /// The device that it is for.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The bytes asked for.
    pub fn data(&self) -> Span {
        self.data
    }

    /// Address of the first byte on the device, if the device can access the memory.
    pub fn device_address(&self) -> Option<u64> {
        self.device_address
    }

    /// The bytes at the device's addresses, if the device can access the memory.
    pub fn device_data(&self) -> Option<Span> {
        self.device_address.map(|start| self.data.seen_from(start))
    }

    /// Whether it has all bytes of a span.
    pub fn holds(&self, span: Span) -> bool {
        self.data.start() <= span.start() && span.end() <= self.data.end()
    }

    /// A part of it at the device's addresses, if the device can access the memory.
    pub fn device_part(&self, part: Span) -> Option<Span> {
        Some(self.device_data()?.part(part.start() - self.data.start(), part.bytes()))
    }

    /// Bytes of address space mapped for it.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped
    }

    /// Bytes pinned, as the driver or the kernel counts them.
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned
    }

    /// Number of registrations that pin it.
    pub fn chunks(&self) -> usize {
        self.pins.as_ref().map_or(0, Pins::count)
    }

    /// How it was made.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// How it is pinned.
    pub fn pinning(&self) -> Pinning {
        match (&self.memory, &self.pins) {
            (Memory::Driver(..), _) => Pinning::Driver,
            (_, Some(_)) => Pinning::Registered,
            _ => Pinning::Pageable,
        }
    }

    /// Whether its bytes must not be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The reason for a fallback that was taken; empty if there was none.
    pub fn fallback_reason(&self) -> &str {
        &self.fallback_reason
    }

    /// Counts the buffer's pages.
    pub fn stats(&self) -> Result<BufferStats> {
        let counts = proc_maps::count(self.data)?;
        Ok(BufferStats {
            resident: mapping::resident_bytes(self.data)?,
            huge: counts.huge,
            anonymous: counts.anonymous,
            locked: counts.locked,
        })
    }

    /// Fails with `WB_ERR_FILE_TRUNCATED` if the mapped file has become shorter than the mapping: a
    /// read past its end would raise SIGBUS.
    pub fn check_file(&self) -> Result<()> {
        let Some(MappedFile { file, end }) = &self.file else { return Ok(()) };
        let now = file.metadata().map_err(|error| {
            Error::system(WB_ERR_FILE_IO, "the mapped file cannot be examined", "stat", &error)
        })?;
        if now.len() < *end {
            fail!(
                WB_ERR_FILE_TRUNCATED,
                "the file was truncated while it was mapped: {} are mapped and {} are left",
                format_bytes(*end),
                format_bytes(now.len())
            );
        }
        Ok(())
    }
}

/// What the end of a buffer frees.
struct Held {
    device: Arc<Device>,
    pins: Option<Pins>,
    memory: Memory,
    /// The device can access the memory without a registration.
    accessible: bool,
    data: Span,
    mapped: u64,
    pinned: u64,
}

impl Held {
    /// Waits until a device that can access the memory without a registration does not use it any
    /// more: no unregistration waits for it. Returns false if that is not known.
    fn wait_until_unused(&self) -> bool {
        let backend = self.device.backend();
        let frees_here = !matches!(self.memory, Memory::None | Memory::Driver(..));
        if !self.accessible || !frees_here || backend.check_process().is_err() {
            return true;
        }
        // The caller of a release after a stream has said where the memory is used.
        let everywhere = !deferred::is_after_event();
        log::best_effort_wait(|| backend.wait_unused(self.data, everywhere), || backend.is_lost())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let capabilities = self.device.capabilities();
        let held = Held {
            device: self.device.clone(),
            pins: self.pins.take(),
            memory: std::mem::replace(&mut self.memory, Memory::None),
            // The host device's streams use addresses, pinned or not.
            accessible: !capabilities.cuda
                || capabilities.pageable_access && self.device_address.is_some(),
            data: self.data,
            mapped: self.mapped,
            pinned: self.pinned,
        };
        if self.device.backend().is_stream_thread() {
            deferred::drop_after(None, Box::new(held), &self.device);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let unpinned = self.pins.take().is_none_or(Pins::release);
        let unused = self.wait_until_unused();
        match std::mem::replace(&mut self.memory, Memory::None) {
            // The addresses of pages that the driver holds, or the device may access, must not be
            // reused.
            Memory::Mapping(mapping) if !(unpinned && unused) => std::mem::forget(mapping),
            Memory::Mapping(mapping) => drop(mapping),
            Memory::Driver(span, _) => {
                log::best_effort(|| self.device.backend().free_pinned(span));
            }
            Memory::Caller(Some(deleter)) if unused => deleter(),
            // Without a deleter, or still accessible to the device: the deleter is never called.
            Memory::Caller(_) | Memory::None => {}
        }
        let counters = self.device.counters();
        let subtract = |counter: &AtomicU64, bytes| counter.fetch_sub(bytes, Ordering::AcqRel);
        subtract(&counters.asked, self.data.bytes() as u64);
        subtract(&counters.mapped, self.mapped);
        subtract(&counters.pinned, self.pinned);
        subtract(&counters.buffers, 1);
    }
}
