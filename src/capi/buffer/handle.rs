//! Buffers: ranges of host memory.

use std::ffi::{c_char, c_void};
use std::path::Path;

use crate::capi::address::Address;
use crate::capi::arguments::Input;
use crate::capi::buffer::options::{BufferRequest, wb_buffer_options};
use crate::capi::call::{call, release, release_after, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, Deleter};
use crate::os::sync::Arc;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OUT_OF_MEMORY, wb_status};

/// A range of host memory: allocated, registered, or mapped from a file.
pub struct wb_buffer {
    _opaque: [u8; 0],
}

opaque!(wb_buffer, Buffer);

/// Called once, on any thread, when nothing uses the caller's memory any more: in the call that
/// dropped the last reference, or on a thread of the library. It may release handles of the
/// library, and must call nothing else of it: a function that waits could wait for the thread that
/// it is on.
pub type wb_deleter = Option<unsafe extern "C" fn(owner: *mut c_void)>;

impl Input<Option<Deleter>> for (wb_deleter, *mut c_void) {
    unsafe fn convert(self, _: &str) -> Result<Option<Deleter>> {
        let (deleter, owner) = (self.0, self.1 as usize);
        // SAFETY: the contract of mod.rs.
        let call =
            |delete: unsafe extern "C" fn(_)| move || unsafe { delete(owner as *mut c_void) };
        Ok(deleter.map(|delete| -> Deleter { Box::new(call(delete)) }))
    }
}

/// Allocates exactly `bytes` bytes of zeroed host memory, pinned if the policy says so. Pinned
/// bytes are the asked ones rounded up to whole pages. 0 bytes give a buffer without an address.
///
/// Registering may block the device: keep it off the hot path. Fails with WB_ERR_OUT_OF_MEMORY,
/// WB_ERR_CGROUP, WB_ERR_MEMLOCK, WB_ERR_HUGE_PAGES, WB_ERR_NOT_SUPPORTED or WB_ERR_CANCELLED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_alloc(
    device: *const wb_device,
    bytes: u64,
    options: *const wb_buffer_options,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>, options: BufferRequest| -> buffer {
        let Ok(bytes) = usize::try_from(bytes) else {
            fail!(WB_ERR_OUT_OF_MEMORY, "asked {bytes} bytes")
        };
        options.run(|options, progress| Buffer::alloc(&device, bytes, options, progress))
    })
}

/// Registers existing memory, at least 1 byte, without moving it. The buffer is read-only if
/// its pages are.
///
/// The caller keeps ownership, and the memory must stay mapped until `deleter(owner)` is called;
/// without a deleter, which may be NULL, until the last reference is gone. After an error the
/// deleter is not called. A driver may wait for the work queued on the device. Fails with
/// WB_ERR_WOULD_COPY if registering would silently copy the pages (a private mapping of a file, or
/// private memory that may not be written), with WB_ERR_ALREADY_REGISTERED, naming the range that
/// it overlaps, and with WB_ERR_UNMAPPED_RANGE, WB_ERR_NOT_SUPPORTED, WB_ERR_MEMLOCK,
/// WB_ERR_CGROUP, WB_ERR_OVERFLOW or WB_ERR_CANCELLED.
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
    let owner = (deleter, owner);
    call!(error, |device: Arc<Device>,
                  data: Address,
                  options: BufferRequest,
                  owner: Option<Deleter>|
     -> buffer {
        if data.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "data is NULL");
        }
        let (span, mut owner) = (data.span(bytes, "data")?, owner);
        options
            .run(|options, progress| Buffer::register(&device, span, options, &mut owner, progress))
    })
}

/// Maps `bytes` bytes of a file from `offset` on, read-only and shared; 0 for all that follow. They
/// are registered without a copy if the platform can, and otherwise read in parallel into exact
/// pinned memory: `wb_buffer_info.origin` says which, and `fallback_reason` why. A mapped file
/// stays open and must not be truncated: to read a page past its end raises SIGBUS.
///
/// A driver may wait for the work queued on the device. Fails with WB_ERR_FILE_MISSING,
/// WB_ERR_FILE_ACCESS, WB_ERR_FILE_EMPTY, WB_ERR_FILE_TRUNCATED, WB_ERR_FILE_IO or
/// WB_ERR_OUT_OF_RANGE, and as wb_buffer_alloc does.
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
    call!(error, |device: Arc<Device>, path: &Path, options: BufferRequest| -> buffer {
        options.run(|options, progress| {
            Buffer::map_file(&device, path, offset, bytes, options, progress)
        })
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_retain(buffer: *const wb_buffer) {
    retain!(buffer)
}

/// Drops a reference. The last one, those of views included, frees the memory at once and on this
/// thread; a driver may wait for the work queued on the device. Use wb_buffer_release_after for
/// memory that a stream may still use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_release(buffer: *mut wb_buffer) {
    release!(buffer)
}

/// Drops a reference once the work queued on `stream` now has run, without waiting for it. After an
/// error the caller keeps the reference. Fails with WB_ERR_CAPTURING.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_release_after(
    buffer: *mut wb_buffer,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    release_after!(buffer, stream, error, Buffer::device)
}
