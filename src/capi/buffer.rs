//! `wb_buffer`: a range of host memory.

mod options;

use std::ffi::{c_char, c_void};

pub use options::*;

use crate::capi::arguments::{Sized32, check_output, write_struct};
use crate::capi::device::wb_device;
use crate::capi::error::{guard, guard_void, wb_error, write_text};
use crate::capi::handle::Handle;
use crate::capi::{arguments, handle};
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Result, fail, human};
use crate::memory::buffer::{Buffer, Origin, Owner, Pinning};
use crate::memory::deferred;
use crate::os::span::Span;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OUT_OF_MEMORY, WB_ERR_OVERFLOW, wb_status};

/// A range of host memory: allocated, registered, or mapped from a file.
pub struct wb_buffer {
    _opaque: [u8; 0],
}

impl Handle for Buffer {
    type Opaque = wb_buffer;
    const NAME: &'static str = "wb_buffer";
}

/// How a buffer came about.
pub type wb_origin = i32;
/// Allocated by wb_buffer_alloc.
pub const WB_ORIGIN_ALLOCATED: wb_origin = 1;
/// The caller's memory, registered.
pub const WB_ORIGIN_REGISTERED: wb_origin = 2;
/// A mapping of a file.
pub const WB_ORIGIN_FILE_MAPPED: wb_origin = 3;
/// A file that was read into memory.
pub const WB_ORIGIN_FILE_READ: wb_origin = 4;

/// How a buffer is pinned.
pub type wb_pinning = i32;
/// Not at all.
pub const WB_PINNING_NONE: wb_pinning = 0;
/// Its pages are registered with the device (on the host device: locked).
pub const WB_PINNING_REGISTERED: wb_pinning = 1;
/// The driver allocated it pinned.
pub const WB_PINNING_DRIVER: wb_pinning = 2;

/// Called once when nothing uses the caller's memory any more, on any thread.
pub type wb_deleter = Option<unsafe extern "C" fn(owner: *mut c_void)>;

/// What a buffer is. Begin with WB_BUFFER_INFO_INIT.
#[repr(C)]
pub struct wb_buffer_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// A wb_origin.
    pub origin: wb_origin,
    /// A wb_pinning.
    pub pinning: wb_pinning,
    /// 1 when its bytes must not be written.
    pub read_only: i32,
    /// The first byte; NULL in a buffer of no bytes.
    pub data: *mut c_void,
    /// Where the device sees the first byte; NULL where it does not.
    pub device_address: *mut c_void,
    /// Bytes asked for.
    pub asked_bytes: u64,
    /// Bytes of address space mapped for it; 0 for the caller's memory.
    pub mapped_bytes: u64,
    /// Bytes pinned, as the driver or the kernel counts them.
    pub pinned_bytes: u64,
    /// Registrations that pin it.
    pub chunks: u64,
    /// Reason for the fallback that was taken; empty if there is none.
    pub fallback_reason: [c_char; 256],
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_buffer_info {
    const NAME: &'static str = "wb_buffer_info";
}

/// What the kernel counts for a buffer's pages now. Begin with WB_BUFFER_STATS_INIT.
#[repr(C)]
pub struct wb_buffer_stats {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// 0.
    pub reserved0: u32,
    /// Bytes in memory (mincore).
    pub resident_bytes: u64,
    /// Bytes in huge pages (smaps of the mappings that it touches).
    pub huge_bytes: u64,
    /// Bytes in private anonymous pages (smaps): of a mapped file, what was silently copied.
    pub anonymous_bytes: u64,
    /// Bytes locked by mlock (smaps).
    pub locked_bytes: u64,
}

// SAFETY: repr(C), begins with its size, numbers only.
unsafe impl Sized32 for wb_buffer_stats {
    const NAME: &'static str = "wb_buffer_stats";
}

/// An owner's deleter as the library holds it.
///
/// # Safety
/// `deleter` may be called once with `owner`, on any thread.
pub(super) unsafe fn owner(deleter: wb_deleter, owner: *mut c_void) -> Option<Owner> {
    let owner = owner as usize;
    // SAFETY: the caller's promise.
    deleter.map(|deleter| -> Owner { Box::new(move || unsafe { deleter(owner as *mut c_void) }) })
}

/// Allocates exactly `bytes` bytes of zeroed host memory, pinned by the device's policy: mapped,
/// faulted in by many threads, registered once. Pinned bytes are the asked ones rounded up to pages.
/// 0 bytes give a buffer with no address. `options` may be NULL.
///
/// Ownership: one reference; the buffer holds the device. Any thread; registering may block the
/// device, so keep it off the hot path.
/// Errors: WB_ERR_OUT_OF_MEMORY, WB_ERR_CGROUP, WB_ERR_MEMLOCK, WB_ERR_HUGE_PAGES,
/// WB_ERR_CANCELLED, WB_ERR_NOT_SUPPORTED, WB_ERR_INVALID_ARGUMENT, WB_ERR_FORKED, WB_ERR_DRIVER.
///
/// # Safety
/// Pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_alloc(
    device: *const wb_device,
    bytes: u64,
    options: *const wb_buffer_options,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(buffer, "buffer")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        let Ok(bytes) = usize::try_from(bytes) else {
            fail!(WB_ERR_OUT_OF_MEMORY, "asked {bytes} bytes")
        };
        // SAFETY: the caller's promise.
        let made = unsafe {
            with_options(options, |options, progress| {
                Buffer::alloc(&device, bytes, options, progress)
            })
        }?;
        // SAFETY: not NULL.
        unsafe { *buffer = handle::give(made) };
        Ok(())
    })
}

/// Registers memory that exists already, where it lies. What would be copied silently (a private
/// file mapping) is refused with WB_ERR_WOULD_COPY. `options` and `deleter` may be NULL.
///
/// Ownership: the memory stays the caller's until `deleter(owner)` is called, once, with nothing left
/// that uses it; on failure it is never called. Any thread; a driver may wait for what is queued on
/// the device.
/// Errors: WB_ERR_INVALID_ARGUMENT, WB_ERR_UNMAPPED_RANGE, WB_ERR_WOULD_COPY, WB_ERR_ALREADY_REGISTERED
/// (with the range that it overlaps), WB_ERR_NOT_SUPPORTED, WB_ERR_MEMLOCK, WB_ERR_CGROUP,
/// WB_ERR_CANCELLED, WB_ERR_OVERFLOW, WB_ERR_FORKED, WB_ERR_DRIVER.
///
/// # Safety
/// The memory stays mapped until the deleter is called, or without one until the last reference is
/// gone; the deleter may be called on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_register(
    device: *const wb_device,
    data: *mut c_void,
    bytes: u64,
    options: *const wb_buffer_options,
    deleter: wb_deleter,
    owner: *mut c_void,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(buffer, "buffer")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        // SAFETY: the caller's promise.
        let span = unsafe { span_of(data, bytes) }?;
        // SAFETY: the caller's promise.
        let mut owner = unsafe { self::owner(deleter, owner) };
        // SAFETY: the caller's promise.
        let made = unsafe {
            with_options(options, |options, progress| {
                Buffer::register(&device, span, options, &mut owner, progress)
            })
        }?;
        // SAFETY: not NULL.
        unsafe { *buffer = handle::give(made) };
        Ok(())
    })
}

/// A caller's range.
///
/// # Safety
/// The range stays mapped as long as the span is used.
unsafe fn span_of(data: *mut c_void, bytes: u64) -> Result<Span> {
    if data.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "data is NULL");
    }
    // SAFETY: the caller's promise.
    match unsafe { Span::checked(data as u64, bytes) } {
        Some(span) => Ok(span),
        None => fail!(WB_ERR_OVERFLOW, "{} from {data:p} go past the last address", human(bytes)),
    }
}

/// Maps `bytes` bytes of a file from `offset`, read-only and shared; 0 bytes mean all that follow.
/// Registered without a copy where the platform can, else read in parallel into exact pinned memory:
/// wb_buffer_info.origin says which, and its fallback_reason why. `options` may be NULL.
///
/// Ownership: one reference; the file stays open in it. Any thread; a driver may wait for what is
/// queued on the device.
/// Errors: WB_ERR_FILE_MISSING, WB_ERR_FILE_ACCESS, WB_ERR_FILE_EMPTY, WB_ERR_FILE_TRUNCATED,
/// WB_ERR_FILE_IO, WB_ERR_OUT_OF_RANGE, WB_ERR_MEMLOCK, WB_ERR_CGROUP, WB_ERR_CANCELLED,
/// WB_ERR_NOT_SUPPORTED, WB_ERR_FORKED, WB_ERR_DRIVER.
///
/// # Safety
/// Pointers are NULL or valid; `path` ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_map_file(
    device: *const wb_device,
    path: *const c_char,
    offset: u64,
    bytes: u64,
    options: *const wb_buffer_options,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(buffer, "buffer")?;
        // SAFETY: the caller's promise.
        let (device, path) = unsafe { (handle::share::<Device>(device)?, arguments::path(path)?) };
        // SAFETY: the caller's promise.
        let made = unsafe {
            with_options(options, |options, progress| {
                Buffer::map_file(&device, path, offset, bytes, options, progress)
            })
        }?;
        // SAFETY: not NULL.
        unsafe { *buffer = handle::give(made) };
        Ok(())
    })
}

/// Adds a reference. Any thread.
///
/// # Safety
/// `buffer` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_retain(buffer: *const wb_buffer) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<Buffer>(buffer) });
}

/// Drops a reference; with the last one (views hold one each) the memory goes back, at once and on
/// this thread. Any thread; a driver may wait for what is queued on the device. What a stream may still
/// use goes with wb_buffer_release_after.
///
/// # Safety
/// `buffer` is NULL or alive, and this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_release(buffer: *mut wb_buffer) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<Buffer>(buffer) }.map(drop));
}

/// Drops a reference once what is queued on `stream` now has run; nobody waits for it. On failure
/// the reference is still the caller's.
///
/// Stream order: behind what is queued. Any thread. Errors: WB_ERR_CAPTURING, WB_ERR_FORKED,
/// WB_ERR_DRIVER, WB_ERR_INVALID_ARGUMENT for a stream of the host device that is none.
///
/// # Safety
/// `buffer` is NULL or alive, and after success this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_release_after(
    buffer: *mut wb_buffer,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<Buffer>(buffer) }?.device().clone();
        let event = device.mark(Stream(stream as usize))?;
        deferred::start()?;
        // SAFETY: the caller's promise.
        let reference = unsafe { handle::take::<Buffer>(buffer) }?;
        deferred::drop_after(Some(event), Box::new(reference), &device);
        Ok(())
    })
}

/// Answers what a buffer is. Any thread.
///
/// # Safety
/// `buffer` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_get_info(
    buffer: *const wb_buffer,
    info: *mut wb_buffer_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { handle::borrow::<Buffer>(buffer) }?;
        let mut described = wb_buffer_info {
            struct_size: size_of::<wb_buffer_info>() as u32,
            origin: match buffer.origin() {
                Origin::Allocated => WB_ORIGIN_ALLOCATED,
                Origin::Registered => WB_ORIGIN_REGISTERED,
                Origin::FileMapped => WB_ORIGIN_FILE_MAPPED,
                Origin::FileRead => WB_ORIGIN_FILE_READ,
            },
            pinning: match buffer.pinning() {
                Pinning::Pageable => WB_PINNING_NONE,
                Pinning::Registered => WB_PINNING_REGISTERED,
                Pinning::Driver => WB_PINNING_DRIVER,
            },
            read_only: buffer.is_read_only().into(),
            data: buffer.data().start() as *mut c_void,
            device_address: buffer.device_address().unwrap_or(0) as *mut c_void,
            asked_bytes: buffer.data().bytes() as u64,
            mapped_bytes: buffer.mapped_bytes(),
            pinned_bytes: buffer.pinned_bytes(),
            chunks: buffer.chunks() as u64,
            fallback_reason: [0; 256],
        };
        // SAFETY: the array is as long as is said; the caller's promise for `info`.
        unsafe {
            let reason = &mut described.fallback_reason;
            write_text(reason.as_mut_ptr(), reason.len(), buffer.note());
            write_struct(info, &described)
        }
    })
}

/// Asks the kernel what it counts for a buffer's pages; slower than wb_buffer_get_info. Any thread.
///
/// # Safety
/// `buffer` is NULL or alive; `usage` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_get_stats(
    buffer: *const wb_buffer,
    usage: *mut wb_buffer_stats,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(usage, "usage")?;
        // SAFETY: the caller's promise.
        let measured = unsafe { handle::borrow::<Buffer>(buffer) }?.measure()?;
        let measured = wb_buffer_stats {
            struct_size: size_of::<wb_buffer_stats>() as u32,
            reserved0: 0,
            resident_bytes: measured.resident,
            huge_bytes: measured.huge,
            anonymous_bytes: measured.anonymous,
            locked_bytes: measured.locked,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(usage, &measured) }
    })
}
