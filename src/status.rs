//! The status codes of the C interface: the one table of what can fail.

/// The outcome of a call: `WB_OK` or one of `WB_ERR_*`.
#[allow(non_camel_case_types)]
pub type wb_status = i32;

/// The call succeeded.
pub const WB_OK: wb_status = 0;
/// A defect of the library (it caught a panic); please report it.
pub const WB_ERR_INTERNAL: wb_status = 1;
/// An argument is invalid: NULL where NULL is not allowed, an unknown constant, a reserved field
/// that is not zero, or another invalid value. The message names it.
pub const WB_ERR_INVALID_ARGUMENT: wb_status = 2;
/// The handle is not alive: it was released too often or never created (detected by debug builds
/// only).
pub const WB_ERR_HANDLE: wb_status = 3;
/// `struct_size` is smaller than the smallest valid size or larger than this library knows.
pub const WB_ERR_STRUCT_SIZE: wb_status = 4;
/// A product or sum of sizes does not fit in 64 bits.
pub const WB_ERR_OVERFLOW: wb_status = 5;
/// An index or a range lies outside its bounds.
pub const WB_ERR_OUT_OF_RANGE: wb_status = 6;
/// The memory is not mapped for the device; use an explicit copy.
pub const WB_ERR_NOT_MAPPED: wb_status = 7;
/// The address does not have the required alignment.
pub const WB_ERR_UNALIGNED: wb_status = 8;
/// Part of the range is already registered.
pub const WB_ERR_ALREADY_REGISTERED: wb_status = 9;
/// Part of the range is not mapped in this process or is not readable.
pub const WB_ERR_UNMAPPED_RANGE: wb_status = 10;
/// Registering this memory would silently copy its pages.
pub const WB_ERR_WOULD_COPY: wb_status = 11;
/// The device does not exist.
pub const WB_ERR_NO_DEVICE: wb_status = 12;
/// No NVIDIA driver is installed.
pub const WB_ERR_NO_DRIVER: wb_status = 13;
/// The driver lacks a required function; the message names it.
pub const WB_ERR_DRIVER_TOO_OLD: wb_status = 14;
/// The driver reported an error; `code` holds its CUresult.
pub const WB_ERR_DRIVER: wb_status = 15;
/// The platform or this kind of device does not support the operation.
pub const WB_ERR_NOT_SUPPORTED: wb_status = 16;
/// Pinning exceeds RLIMIT_MEMLOCK.
pub const WB_ERR_MEMLOCK: wb_status = 17;
/// The allocation exceeds the memory limit of the control group.
pub const WB_ERR_CGROUP: wb_status = 18;
/// Not enough host memory.
pub const WB_ERR_OUT_OF_MEMORY: wb_status = 19;
/// Not enough device memory.
pub const WB_ERR_DEVICE_MEMORY: wb_status = 20;
/// Huge pages are required and not available.
pub const WB_ERR_HUGE_PAGES: wb_status = 21;
/// The file does not exist.
pub const WB_ERR_FILE_MISSING: wb_status = 22;
/// The file is not readable or not a regular file.
pub const WB_ERR_FILE_ACCESS: wb_status = 23;
/// The file is empty.
pub const WB_ERR_FILE_EMPTY: wb_status = 24;
/// The file is shorter than its mapping or than its own header says.
pub const WB_ERR_FILE_TRUNCATED: wb_status = 25;
/// Reading the file failed.
pub const WB_ERR_FILE_IO: wb_status = 26;
/// The file is not a well-formed safetensors file.
pub const WB_ERR_FORMAT: wb_status = 27;
/// No object has this name.
pub const WB_ERR_NOT_FOUND: wb_status = 28;
/// The progress callback cancelled the call.
pub const WB_ERR_CANCELLED: wb_status = 29;
/// The timeout expired before the work completed.
pub const WB_ERR_TIMEOUT: wb_status = 30;
/// The stream is being captured into a graph, where this call is not possible.
pub const WB_ERR_CAPTURING: wb_status = 31;
/// The device was opened before a fork, and this is the child process.
pub const WB_ERR_FORKED: wb_status = 32;
/// The DLPack tensor has an unsupported version, device or type.
pub const WB_ERR_DLPACK: wb_status = 33;
/// The plan offloads nothing.
pub const WB_ERR_NOTHING_OFFLOADED: wb_status = 34;
/// A selector is malformed or matches no parameter.
pub const WB_ERR_SELECTOR: wb_status = 35;
/// All parameters fit on the device.
pub const WB_ERR_EVERYTHING_FITS: wb_status = 36;
/// The budget cannot be met.
pub const WB_ERR_BUDGET: wb_status = 37;
/// The bytes allowed for slots do not hold one group.
pub const WB_ERR_SLOTS_BUDGET: wb_status = 38;
/// The object is in use; release it first.
pub const WB_ERR_BUSY: wb_status = 39;
/// The staging memory allowed does not hold one row.
pub const WB_ERR_STAGING: wb_status = 40;
/// The tensor contains NaN or infinity, and the options reject them.
pub const WB_ERR_NOT_FINITE: wb_status = 41;
/// Compressed bytes are damaged, or of another version of the format.
pub const WB_ERR_DAMAGED: wb_status = 42;

/// Maps a status to the name of its constant, so that each name is written once.
macro_rules! names {
    ($status:expr; $($name:ident)*) => {
        match $status { $($name => Some(concat!(stringify!($name), "\0")),)* _ => None }
    };
}

/// The name of a status with its terminating NUL, such as `"WB_ERR_INVALID_ARGUMENT\0"`.
pub(crate) fn name(status: wb_status) -> Option<&'static str> {
    names!(status;
        WB_OK WB_ERR_INTERNAL WB_ERR_INVALID_ARGUMENT WB_ERR_HANDLE WB_ERR_STRUCT_SIZE
        WB_ERR_OVERFLOW WB_ERR_OUT_OF_RANGE WB_ERR_NOT_MAPPED WB_ERR_UNALIGNED
        WB_ERR_ALREADY_REGISTERED WB_ERR_UNMAPPED_RANGE WB_ERR_WOULD_COPY
        WB_ERR_NO_DEVICE WB_ERR_NO_DRIVER WB_ERR_DRIVER_TOO_OLD WB_ERR_DRIVER
        WB_ERR_NOT_SUPPORTED WB_ERR_MEMLOCK WB_ERR_CGROUP WB_ERR_OUT_OF_MEMORY
        WB_ERR_DEVICE_MEMORY WB_ERR_HUGE_PAGES WB_ERR_FILE_MISSING WB_ERR_FILE_ACCESS
        WB_ERR_FILE_EMPTY WB_ERR_FILE_TRUNCATED WB_ERR_FILE_IO WB_ERR_FORMAT
        WB_ERR_NOT_FOUND WB_ERR_CANCELLED WB_ERR_TIMEOUT WB_ERR_CAPTURING WB_ERR_FORKED
        WB_ERR_DLPACK WB_ERR_NOTHING_OFFLOADED WB_ERR_SELECTOR WB_ERR_EVERYTHING_FITS
        WB_ERR_BUDGET WB_ERR_SLOTS_BUDGET WB_ERR_BUSY WB_ERR_STAGING WB_ERR_NOT_FINITE
        WB_ERR_DAMAGED)
}
