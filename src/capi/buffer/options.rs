//! How to make a buffer, and who is told how far that is.

use std::ffi::c_void;

use crate::capi::arguments::{Sized32, check_reserved, choice, one_of, read_struct};
use crate::capi::device::{WB_TRISTATE_AUTO, wb_tristate};
use crate::device::policy::Tristate;
use crate::error::Result;
use crate::memory::buffer::{BufferOptions, FileMode, Numa};
use crate::os::mapping::HugePages;
use crate::os::parallel::{Phase, Progress};

/// Whether memory lies in huge pages.
pub type wb_huge_pages = i32;
/// Where the kernel gives them; the default.
pub const WB_HUGE_PAGES_TRY: wb_huge_pages = 0;
/// Small pages only.
pub const WB_HUGE_PAGES_OFF: wb_huge_pages = 1;
/// Every whole huge page of the range is one, or WB_ERR_HUGE_PAGES: also where a driver allocates, which
/// chooses its pages. For memory that exists already WB_ERR_NOT_SUPPORTED; files are read, not mapped.
pub const WB_HUGE_PAGES_REQUIRE: wb_huge_pages = 2;

/// The NUMA node on which memory is allocated.
pub type wb_numa_policy = i32;
/// The node nearest to the device; the default.
pub const WB_NUMA_DEVICE: wb_numa_policy = 0;
/// Any node.
pub const WB_NUMA_ANY: wb_numa_policy = 1;
/// The node that `numa_node` names. Fails with WB_ERR_NOT_SUPPORTED if a driver allocates and for existing
/// memory; files are read, not mapped.
pub const WB_NUMA_NODE: wb_numa_policy = 2;

/// How a file gets into memory.
pub type wb_file_mode = i32;
/// Mapped where the platform can register a mapping, else read; the default.
pub const WB_FILE_MODE_AUTO: wb_file_mode = 0;
/// Mapped, or an error.
pub const WB_FILE_MODE_MAP: wb_file_mode = 1;
/// Read into exact memory.
pub const WB_FILE_MODE_READ: wb_file_mode = 2;

/// What long work is doing.
pub type wb_phase = i32;
/// Making pages present.
pub const WB_PHASE_FAULT: wb_phase = 1;
/// Registering pages with the device.
pub const WB_PHASE_PIN: wb_phase = 2;
/// Reading or copying.
pub const WB_PHASE_READ: wb_phase = 3;
/// Numbers are quantized.
pub const WB_PHASE_QUANTIZE: wb_phase = 4;

/// Receives the bytes done and the bytes in all of a phase; a result other than 0 cancels. Called on
/// the thread that made the call.
pub type wb_progress =
    Option<unsafe extern "C" fn(user: *mut c_void, phase: wb_phase, done: u64, total: u64) -> i32>;

/// How to make a buffer. Begin with WB_BUFFER_OPTIONS_INIT.
#[repr(C)]
pub struct wb_buffer_options {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// A wb_huge_pages.
    pub huge_pages: wb_huge_pages,
    /// Threads that fault, read and copy; 0 for as many as help.
    pub threads: u32,
    /// A wb_numa_policy.
    pub numa_policy: wb_numa_policy,
    /// The NUMA node of WB_NUMA_NODE; not read with another policy.
    pub numa_node: u32,
    /// Pin this buffer? A wb_tristate; WB_TRISTATE_AUTO is the device's policy.
    pub pin: wb_tristate,
    /// Bypass the processor's cache (WB_TRISTATE_ON): fast to write, very slow to read for the host. For memory
    /// that exists already and for files WB_ERR_NOT_SUPPORTED.
    pub write_combined: wb_tristate,
    /// Pinned for every context of the process; WB_TRISTATE_AUTO is yes.
    pub portable: wb_tristate,
    /// A wb_file_mode, for files.
    pub file_mode: wb_file_mode,
    /// 0.
    pub reserved0: u32,
    /// Bytes registered at a time; 0 for all at once. Smaller chunks let neighbours use the device
    /// in between, and progress be reported.
    pub chunk_bytes: u64,
    /// Told how far the work is; may cancel it. NULL for none.
    pub progress: wb_progress,
    /// Handed to `progress`.
    pub progress_user: *mut c_void,
    /// 0.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), begins with its size; numbers, pointers and a nullable function.
unsafe impl Sized32 for wb_buffer_options {
    const NAME: &'static str = "wb_buffer_options";
}

const DEFAULTS: wb_buffer_options = wb_buffer_options {
    struct_size: size_of::<wb_buffer_options>() as u32,
    huge_pages: WB_HUGE_PAGES_TRY,
    threads: 0,
    numa_policy: WB_NUMA_DEVICE,
    numa_node: 0,
    pin: WB_TRISTATE_AUTO,
    write_combined: WB_TRISTATE_AUTO,
    portable: WB_TRISTATE_AUTO,
    file_mode: WB_FILE_MODE_AUTO,
    reserved0: 0,
    chunk_bytes: 0,
    progress: None,
    progress_user: std::ptr::null_mut(),
    reserved: [0; 4],
};

/// Reads a caller's options and gives them, with the progress callback, to `body`.
///
/// # Safety
/// `given` is NULL or valid for the size that it begins with, and its callback good to call.
pub(in crate::capi) unsafe fn with_options<R>(
    given: *const wb_buffer_options,
    body: impl FnOnce(&BufferOptions, &mut Progress<'_>) -> Result<R>,
) -> Result<R> {
    // SAFETY: the caller's promise.
    let given = unsafe { read_struct(given, DEFAULTS) }?;
    check_reserved(&given.reserved, "wb_buffer_options")?;
    check_reserved(&[given.reserved0.into()], "wb_buffer_options")?;
    let field = |name: &str| format!("wb_buffer_options.{name}");
    let options = BufferOptions {
        huge_pages: one_of(
            given.huge_pages,
            &field("huge_pages"),
            &[
                (WB_HUGE_PAGES_TRY, HugePages::Try),
                (WB_HUGE_PAGES_OFF, HugePages::Off),
                (WB_HUGE_PAGES_REQUIRE, HugePages::Require),
            ],
        )?,
        threads: given.threads as usize,
        numa: one_of(
            given.numa_policy,
            &field("numa_policy"),
            &[
                (WB_NUMA_DEVICE, Numa::Device),
                (WB_NUMA_ANY, Numa::Any),
                (WB_NUMA_NODE, Numa::Node(given.numa_node)),
            ],
        )?,
        pin: choice(given.pin, &field("pin"))?,
        write_combined: choice(given.write_combined, &field("write_combined"))? == Tristate::On,
        portable: choice(given.portable, &field("portable"))? != Tristate::Off,
        file: one_of(
            given.file_mode,
            &field("file_mode"),
            &[
                (WB_FILE_MODE_AUTO, FileMode::Auto),
                (WB_FILE_MODE_MAP, FileMode::Map),
                (WB_FILE_MODE_READ, FileMode::Read),
            ],
        )?,
        chunk_bytes: usize::try_from(given.chunk_bytes).unwrap_or(usize::MAX).min(1 << 62),
        read_only: false,
    };
    // SAFETY: the caller's promise.
    unsafe { with_progress(given.progress, given.progress_user, |told| body(&options, told)) }
}

/// Runs a body whose progress the caller is told.
///
/// # Safety
/// `progress` may be called with `user` until the body ends.
pub(in crate::capi) unsafe fn with_progress<R>(
    progress: wb_progress,
    user: *mut c_void,
    body: impl FnOnce(&mut Progress<'_>) -> Result<R>,
) -> Result<R> {
    let Some(callback) = progress else { return body(&mut None) };
    let mut report = |phase, done, total| {
        let phase = match phase {
            Phase::Fault => WB_PHASE_FAULT,
            Phase::Pin => WB_PHASE_PIN,
            Phase::Read => WB_PHASE_READ,
            Phase::Quantize => WB_PHASE_QUANTIZE,
        };
        // SAFETY: the caller's promise.
        unsafe { callback(user, phase, done, total) == 0 }
    };
    body(&mut Some(&mut report))
}
