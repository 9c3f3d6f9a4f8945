//! The status numbers of the C interface: the one table of what can go wrong.

/// The outcome of a call: `WB_OK` or one of `WB_ERR_*`.
#[allow(non_camel_case_types)]
pub type wb_status = i32;

/// The call did what was asked.
pub const WB_OK: wb_status = 0;
/// The library broke its own rules (a panic was caught): please report it.
pub const WB_ERR_INTERNAL: wb_status = 1;
/// A pointer is NULL where NULL is not allowed.
pub const WB_ERR_NULL: wb_status = 2;
/// A handle is not alive: released too often, or never made (found by debug builds only).
pub const WB_ERR_HANDLE: wb_status = 3;
/// A `struct_size` is too small to be valid, or larger than this library knows.
pub const WB_ERR_STRUCT_SIZE: wb_status = 4;
/// A reserved field is not 0.
pub const WB_ERR_RESERVED: wb_status = 5;
/// A value is none of the named constants of its kind.
pub const WB_ERR_ENUM: wb_status = 6;
/// An argument is wrong in another way; the message says which and how.
pub const WB_ERR_INVALID_ARGUMENT: wb_status = 7;
/// Shape × strides × element size does not fit in 64 bits.
pub const WB_ERR_OVERFLOW: wb_status = 8;
/// A range lies outside of what it should lie in.
pub const WB_ERR_OUT_OF_RANGE: wb_status = 9;
/// Zero bytes where there is nothing to do with zero bytes.
pub const WB_ERR_ZERO_BYTES: wb_status = 10;
/// The device cannot see this memory; a copy has its own name.
pub const WB_ERR_NOT_MAPPED: wb_status = 11;
/// The address does not suit the alignment that was asked for.
pub const WB_ERR_UNALIGNED: wb_status = 12;
/// A part of the range is registered already.
pub const WB_ERR_ALREADY_REGISTERED: wb_status = 13;
/// A part of the range is not mapped in this process, or not readable.
pub const WB_ERR_UNMAPPED_RANGE: wb_status = 14;
/// Registering this memory would silently copy every page of it.
pub const WB_ERR_WOULD_COPY: wb_status = 15;
/// There is no such device.
pub const WB_ERR_NO_DEVICE: wb_status = 16;
/// There is no NVIDIA driver on this machine.
pub const WB_ERR_NO_DRIVER: wb_status = 17;
/// The driver lacks a function that is needed; the message names it.
pub const WB_ERR_DRIVER_TOO_OLD: wb_status = 18;
/// The driver refused; `driver_code` is its code.
pub const WB_ERR_DRIVER: wb_status = 19;
/// The platform, or this kind of device, cannot do it.
pub const WB_ERR_NOT_SUPPORTED: wb_status = 20;
/// Pinning was asked for and RLIMIT_MEMLOCK does not allow it.
pub const WB_ERR_MEMLOCK: wb_status = 21;
/// The memory limit of the control group leaves no room.
pub const WB_ERR_CGROUP: wb_status = 22;
/// There is not enough host memory.
pub const WB_ERR_OUT_OF_MEMORY: wb_status = 23;
/// There is not enough device memory.
pub const WB_ERR_DEVICE_MEMORY: wb_status = 24;
/// Huge pages were required and are not to be had.
pub const WB_ERR_HUGE_PAGES: wb_status = 25;
/// The file does not exist.
pub const WB_ERR_FILE_MISSING: wb_status = 26;
/// The file may not be read, or is not a regular file.
pub const WB_ERR_FILE_ACCESS: wb_status = 27;
/// The file is empty.
pub const WB_ERR_FILE_EMPTY: wb_status = 28;
/// The file is shorter than it was when it was mapped, or than it says it is.
pub const WB_ERR_FILE_TRUNCATED: wb_status = 29;
/// Reading the file failed.
pub const WB_ERR_FILE_IO: wb_status = 30;
/// The file is not a well-formed safetensors file.
pub const WB_ERR_FORMAT: wb_status = 31;
/// There is nothing of that name.
pub const WB_ERR_NOT_FOUND: wb_status = 32;
/// The progress callback asked to stop.
pub const WB_ERR_CANCELLED: wb_status = 33;
/// The wait ended before the work did.
pub const WB_ERR_TIMEOUT: wb_status = 34;
/// The stream is being captured into a graph, where this cannot be done.
pub const WB_ERR_CAPTURING: wb_status = 35;
/// The process was forked since the device was opened: its child cannot use it.
pub const WB_ERR_FORKED: wb_status = 36;
/// The DLPack tensor is of a version, device or type that is not taken here.
pub const WB_ERR_DLPACK: wb_status = 37;
/// Nothing would be offloaded.
pub const WB_ERR_NOTHING_OFFLOADED: wb_status = 38;
/// A selector is malformed, or matches no parameter.
pub const WB_ERR_SELECTOR: wb_status = 39;
/// Everything fits on the device.
pub const WB_ERR_EVERYTHING_FITS: wb_status = 40;
/// The budget cannot be met.
pub const WB_ERR_BUDGET: wb_status = 41;
/// The bytes allowed for slots do not hold one group.
pub const WB_ERR_SLOTS_BUDGET: wb_status = 42;
/// Something else holds what was asked for; release it first.
pub const WB_ERR_BUSY: wb_status = 43;

/// The staging memory allowed does not hold one row.
pub const WB_ERR_STAGING: wb_status = 44;
/// There are NaN or infinities, and they were to be an error.
pub const WB_ERR_NOT_FINITE: wb_status = 45;

/// Matches a status with the name of its constant, so that a name is written once.
macro_rules! names {
    ($status:expr; $($name:ident)*) => {
        match $status { $($name => Some(concat!(stringify!($name), "\0")),)* _ => None }
    };
}

/// The name of a status with its terminating NUL, such as `"WB_ERR_NULL\0"`.
pub(crate) fn name(status: wb_status) -> Option<&'static str> {
    names!(status;
        WB_OK WB_ERR_INTERNAL WB_ERR_NULL WB_ERR_HANDLE WB_ERR_STRUCT_SIZE WB_ERR_RESERVED
        WB_ERR_ENUM WB_ERR_INVALID_ARGUMENT WB_ERR_OVERFLOW WB_ERR_OUT_OF_RANGE WB_ERR_ZERO_BYTES
        WB_ERR_NOT_MAPPED WB_ERR_UNALIGNED WB_ERR_ALREADY_REGISTERED WB_ERR_UNMAPPED_RANGE
        WB_ERR_WOULD_COPY WB_ERR_NO_DEVICE WB_ERR_NO_DRIVER WB_ERR_DRIVER_TOO_OLD WB_ERR_DRIVER
        WB_ERR_NOT_SUPPORTED WB_ERR_MEMLOCK WB_ERR_CGROUP WB_ERR_OUT_OF_MEMORY
        WB_ERR_DEVICE_MEMORY WB_ERR_HUGE_PAGES WB_ERR_FILE_MISSING WB_ERR_FILE_ACCESS
        WB_ERR_FILE_EMPTY WB_ERR_FILE_TRUNCATED WB_ERR_FILE_IO WB_ERR_FORMAT WB_ERR_NOT_FOUND
        WB_ERR_CANCELLED WB_ERR_TIMEOUT WB_ERR_CAPTURING WB_ERR_FORKED WB_ERR_DLPACK
        WB_ERR_NOTHING_OFFLOADED WB_ERR_SELECTOR WB_ERR_EVERYTHING_FITS WB_ERR_BUDGET
        WB_ERR_SLOTS_BUDGET WB_ERR_BUSY WB_ERR_STAGING WB_ERR_NOT_FINITE)
}
