//! What a buffer is, and what the kernel counts for its pages.

use std::ffi::{c_char, c_void};

use crate::capi::buffer::handle::wb_buffer;
use crate::capi::call::call;
use crate::capi::enumeration::{Enumeration, c_enum};
use crate::capi::error::wb_error;
use crate::capi::structs::{CStruct, c_struct, chars};
use crate::memory::buffer::{Buffer, Origin, Pinning};
use crate::status::wb_status;

/// The origin of a buffer's memory.
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
/// Not pinned.
pub const WB_PINNING_NONE: wb_pinning = 0;
/// Its pages are registered with the device; on the host device, locked.
pub const WB_PINNING_REGISTERED: wb_pinning = 1;
/// The driver allocated pinned memory.
pub const WB_PINNING_DRIVER: wb_pinning = 2;

c_enum!(Origin {
    WB_ORIGIN_ALLOCATED => Allocated,
    WB_ORIGIN_REGISTERED => Registered,
    WB_ORIGIN_FILE_MAPPED => FileMapped,
    WB_ORIGIN_FILE_READ => FileRead,
});
c_enum!(Pinning {
    WB_PINNING_NONE => Pageable,
    WB_PINNING_REGISTERED => Registered,
    WB_PINNING_DRIVER => Driver,
});

/// Properties of a buffer.
#[repr(C)]
pub struct wb_buffer_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// The origin of the memory.
    pub origin: wb_origin,
    /// How it is pinned.
    pub pinning: wb_pinning,
    /// 1 if the bytes must not be written.
    pub read_only: i32,
    /// Host address of the first byte; NULL in a buffer of 0 bytes.
    pub data: *mut c_void,
    /// Device address of the first byte; NULL if the memory is not mapped for the device.
    pub device_address: *mut c_void,
    /// Bytes asked for.
    pub asked_bytes: u64,
    /// Bytes of address space mapped for the buffer; 0 for the caller's memory.
    pub mapped_bytes: u64,
    /// Bytes pinned, as the driver or the kernel counts them.
    pub pinned_bytes: u64,
    /// Registrations that pin it.
    pub chunks: u64,
    /// Reason for the fallback; empty if there is none.
    pub fallback_reason: [c_char; 256],
}

c_struct!(wb_buffer_info);

/// What the kernel counts for the pages of a buffer now.
#[repr(C)]
pub struct wb_buffer_stats {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Bytes in memory (mincore).
    pub resident_bytes: u64,
    /// Bytes in huge pages (smaps of the mappings that the buffer touches).
    pub huge_bytes: u64,
    /// Bytes in private anonymous pages (smaps); in a mapped file, pages that were silently copied.
    pub anonymous_bytes: u64,
    /// Bytes locked by mlock (smaps).
    pub locked_bytes: u64,
}

c_struct!(wb_buffer_stats);

/// Fills `info` with the buffer's properties.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_get_info(
    buffer: *const wb_buffer,
    info: *mut wb_buffer_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |buffer: &Buffer| -> info {
        Ok(wb_buffer_info {
            origin: buffer.origin().code(),
            pinning: buffer.pinning().code(),
            read_only: buffer.is_read_only().into(),
            data: buffer.data().start() as *mut c_void,
            device_address: buffer.device_address().unwrap_or(0) as *mut c_void,
            asked_bytes: buffer.data().bytes() as u64,
            mapped_bytes: buffer.mapped_bytes(),
            pinned_bytes: buffer.pinned_bytes(),
            chunks: buffer.chunks() as u64,
            fallback_reason: chars(buffer.fallback_reason()),
            ..CStruct::init()
        })
    })
}

/// Fills `stats` with what the kernel counts for the buffer's pages; slower than
/// wb_buffer_get_info. Fails with WB_ERR_UNMAPPED_RANGE if the caller has unmapped registered
/// memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buffer_get_stats(
    buffer: *const wb_buffer,
    stats: *mut wb_buffer_stats,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |buffer: &Buffer| -> stats {
        buffer.stats().map(|counted| wb_buffer_stats {
            resident_bytes: counted.resident,
            huge_bytes: counted.huge,
            anonymous_bytes: counted.anonymous,
            locked_bytes: counted.locked,
            ..CStruct::init()
        })
    })
}
