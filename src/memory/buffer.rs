//! A range of host memory: where it came from, what is pinned of it, and how it goes back.
//! `allocate`, `register` and `file` make buffers; this is what they have in common.

use std::fs::File;
use std::sync::atomic::Ordering;

use crate::device::backend::PinOptions;
use crate::device::device::Device;
use crate::device::policy::Tristate;
use crate::error::{Error, Result, fail, format_bytes};
use crate::memory::pin::Pins;
use crate::os::mapping::{HugePages, Mapping};
use crate::os::span::Span;
use crate::os::sync::{Arc, AtomicU64};
use crate::os::{log, mapping, proc_maps};
use crate::status::{WB_ERR_FILE_IO, WB_ERR_FILE_TRUNCATED};

/// Which NUMA node memory should lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumaPolicy {
    /// The node that the device hangs on, if it is known.
    Device,
    /// Wherever the kernel puts it.
    Any,
    /// This node, or an error.
    Node(u32),
}

/// How a file gets into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// Mapped where the platform can register a mapping, else read.
    Auto,
    /// Mapped, or an error.
    Map,
    /// Read into exact pinned memory.
    Read,
}

/// What a caller asks of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct BufferOptions {
    /// Whether to use huge pages.
    pub huge_pages: HugePages,
    /// Threads for faulting and reading; 0 for as many as help.
    pub threads: usize,
    /// Where the memory lies.
    pub numa: NumaPolicy,
    /// Pin it? `Auto` is the device's policy.
    pub pin: Tristate,
    /// Bypass the processor's cache: fast to write for the host, very slow to read.
    pub write_combined: bool,
    /// Pinned for every context of the process.
    pub portable: bool,
    /// How a file gets into memory.
    pub file_mode: FileMode,
    /// Bytes registered at a time; 0 for all at once.
    pub chunk_bytes: usize,
    /// Existing memory must not be written, whatever the kernel allows.
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
    /// Whether this buffer is pinned on this device.
    pub(super) fn pins(&self, device: &Device) -> bool {
        device.policy().pins(self.pin)
    }

    /// Why a buffer of these options is pageable.
    pub(super) fn pageable_note(&self, device: &Device) -> String {
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
}

/// How a buffer came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Allocated here.
    Allocated,
    /// The caller's memory.
    Registered,
    /// A mapping of a file.
    FileMapped,
    /// A file that was read into memory.
    FileRead,
}

/// How a buffer is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinning {
    /// Not at all.
    Pageable,
    /// Existing pages were registered.
    Registered,
    /// The driver allocated it pinned.
    Driver,
}

/// Called once with nothing left that uses the caller's memory.
pub type Deleter = Box<dyn FnOnce() + Send + Sync>;

/// What has to be given back.
pub(super) enum Memory {
    None,
    Mapping(Mapping),
    Driver(Span),
    Caller(Option<Deleter>),
}

/// The file that a mapping shows.
pub(super) struct MappedFile {
    pub file: File,
    pub end: u64,
}

/// What a maker of buffers hands over.
pub(super) struct Parts {
    pub data: Span,
    pub memory: Memory,
    pub pins: Option<Pins>,
    /// Device address and bytes of memory that the driver pinned itself.
    pub driver_pinned: Option<crate::device::backend::Pinned>,
    pub mapped: u64,
    pub origin: Origin,
    pub read_only: bool,
    pub file: Option<MappedFile>,
    /// Why it is not as it would be at best; empty when it is.
    pub note: String,
}

const UNSEEN: &str =
    "pinned, and the driver gives no one device address for it (cuMemHostGetDevicePointer_v2)";

/// Both notes, of which one may be empty.
fn noted(one: String, other: String) -> String {
    let filled = [one, other].into_iter().filter(|note| !note.is_empty());
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
    note: String,
}

/// What the kernel counts for a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BufferStats {
    pub resident: u64,
    pub huge: u64,
    pub anonymous: u64,
    pub locked: u64,
}

impl Buffer {
    pub(super) fn assemble(device: &Arc<Device>, parts: Parts) -> Arc<Self> {
        let Parts { data, memory, pins, driver_pinned, mapped, origin, read_only, file, mut note } =
            parts;
        let by_driver = driver_pinned.and_then(|pinned| pinned.device_address);
        let by_pins = pins.as_ref().and_then(|pins| pins.device_address(data));
        let plain = device.capabilities().pageable_access.then_some(data.start() as u64);
        let pinned =
            driver_pinned.map_or(0, |pinned| pinned.bytes) + pins.as_ref().map_or(0, Pins::bytes);
        let views = device.policy().allows_views(pinned > 0);
        let device_address = if views { by_driver.or(by_pins).or(plain) } else { None };
        if views && pinned > 0 && device_address.is_none() {
            note = noted(note, UNSEEN.into());
        }
        let usage = device.counters();
        usage.buffers.fetch_add(1, Ordering::AcqRel);
        usage.asked.fetch_add(data.bytes() as u64, Ordering::AcqRel);
        usage.mapped.fetch_add(mapped, Ordering::AcqRel);
        usage.pinned.fetch_add(pinned, Ordering::AcqRel);
        Arc::new(Self {
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
            note,
        })
    }

    /// The same buffer, said to hold what was read from a file.
    pub(super) fn mark_read_from_file(mut buffer: Arc<Self>, reason: String) -> Arc<Self> {
        let own = Arc::get_mut(&mut buffer).expect("nobody else holds a buffer that is being made");
        own.origin = Origin::FileRead;
        own.note = noted(reason, std::mem::take(&mut own.note));
        buffer
    }

    /// The device that it is for.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The bytes asked for.
    pub fn data(&self) -> Span {
        self.data
    }

    /// Where the device sees the first byte, if it does.
    pub fn device_address(&self) -> Option<u64> {
        self.device_address
    }

    /// Bytes of address space taken for it.
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

    /// How it came about.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// How it is pinned.
    pub fn pinning(&self) -> Pinning {
        match (&self.memory, &self.pins) {
            (Memory::Driver(_), _) => Pinning::Driver,
            (_, Some(_)) => Pinning::Registered,
            _ => Pinning::Pageable,
        }
    }

    /// Whether its bytes must not be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Why it is not as it would be at best (a fallback that was taken); empty when it is.
    pub fn fallback_reason(&self) -> &str {
        &self.note
    }

    /// Asks the kernel what it counts for this memory.
    pub fn stats(&self) -> Result<BufferStats> {
        let counted = proc_maps::count(self.data)?;
        Ok(BufferStats {
            resident: mapping::resident_bytes(self.data)?,
            huge: counted.huge,
            anonymous: counted.anonymous,
            locked: counted.locked,
        })
    }

    /// `WB_ERR_FILE_TRUNCATED` when the mapped file has become shorter than the mapping: reading
    /// behind its end would be SIGBUS.
    pub fn check_file(&self) -> Result<()> {
        let Some(MappedFile { file, end }) = &self.file else { return Ok(()) };
        let now = file.metadata().map_err(|error| {
            Error::system(WB_ERR_FILE_IO, "the mapped file cannot be examined", "stat", &error)
        })?;
        if now.len() < *end {
            fail!(
                WB_ERR_FILE_TRUNCATED,
                "the file was cut off while it was mapped: {} are mapped and {} are left",
                format_bytes(*end),
                format_bytes(now.len())
            );
        }
        Ok(())
    }

    /// Waits for what is queued on a device that sees the memory without a registration, where no
    /// unregistering does. `false` where it cannot be known that nothing uses the memory any more.
    fn wait_until_unused(&self) -> bool {
        let (backend, capabilities) = (self.device.backend(), self.device.capabilities());
        let seen =
            capabilities.cuda && capabilities.pageable_access && self.device_address.is_some();
        let ours_to_wait = !matches!(self.memory, Memory::None | Memory::Driver(_));
        if !seen || !ours_to_wait || backend.check_process().is_err() {
            return true;
        }
        log::best_effort_wait(|| backend.wait_idle(), || backend.is_lost())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let unpinned = self.pins.take().is_none_or(Pins::release);
        let unused = self.wait_until_unused();
        match std::mem::replace(&mut self.memory, Memory::None) {
            // Pages that the driver holds or the device may read must not go to somebody else.
            Memory::Mapping(mapping) if !(unpinned && unused) => std::mem::forget(mapping),
            Memory::Mapping(mapping) => drop(mapping),
            Memory::Driver(span) => {
                log::best_effort(|| self.device.backend().free_pinned(span));
            }
            Memory::Caller(Some(owner)) if unused => owner(),
            // Nobody's to give back, or the device may read it: the caller is never told.
            Memory::Caller(_) | Memory::None => {}
        }
        let usage = self.device.counters();
        let give_back = |counter: &AtomicU64, bytes| counter.fetch_sub(bytes, Ordering::AcqRel);
        give_back(&usage.asked, self.data.bytes() as u64);
        give_back(&usage.mapped, self.mapped);
        give_back(&usage.pinned, self.pinned);
        give_back(&usage.buffers, 1);
    }
}
