//! Options of a buffer.

use std::ffi::c_void;

use crate::capi::arguments::Input;
use crate::capi::enumeration::{Enumeration, c_enum, one_of};
use crate::capi::progress::{Reporter, wb_progress};
use crate::capi::structs::{c_struct, read_struct};
use crate::capi::tristate::wb_tristate;
use crate::device::policy::Tristate;
use crate::error::Result;
use crate::memory::buffer::{BufferOptions, FileMode, NumaPolicy};
use crate::os::mapping::HugePages;
use crate::os::parallel::Progress;

/// Whether memory uses huge pages.
pub type wb_huge_pages = i32;
/// Where the kernel provides them; the default.
pub const WB_HUGE_PAGES_TRY: wb_huge_pages = 0;
/// Small pages only.
pub const WB_HUGE_PAGES_OFF: wb_huge_pages = 1;
/// Every whole huge page of the range is one. Fails with WB_ERR_HUGE_PAGES otherwise, or if a
/// driver allocates, and with WB_ERR_NOT_SUPPORTED for existing memory; files are read, not mapped.
pub const WB_HUGE_PAGES_REQUIRE: wb_huge_pages = 2;

/// The NUMA node of memory.
pub type wb_numa_policy = i32;
/// The node nearest to the device; the default.
pub const WB_NUMA_DEVICE: wb_numa_policy = 0;
/// Any node.
pub const WB_NUMA_ANY: wb_numa_policy = 1;
/// The node in `numa_node`. Fails with WB_ERR_NOT_SUPPORTED if a driver allocates, and for existing
/// memory; files are read, not mapped.
pub const WB_NUMA_NODE: wb_numa_policy = 2;

/// How a file is loaded.
pub type wb_file_mode = i32;
/// Mapped if the platform can register a mapping, otherwise read; the default.
pub const WB_FILE_MODE_AUTO: wb_file_mode = 0;
/// Mapped, or an error.
pub const WB_FILE_MODE_MAP: wb_file_mode = 1;
/// Read into memory of the exact size.
pub const WB_FILE_MODE_READ: wb_file_mode = 2;
/// As WB_FILE_MODE_AUTO, and never pinned: for a file that is only copied from, such as the sources
/// of an offloader, which would otherwise be pinned beside their copies. Fails with
/// WB_ERR_INVALID_ARGUMENT if `pin` is WB_TRISTATE_ON.
pub const WB_FILE_MODE_SOURCE: wb_file_mode = 3;

c_enum!(HugePages {
    WB_HUGE_PAGES_TRY => Try,
    WB_HUGE_PAGES_OFF => Off,
    WB_HUGE_PAGES_REQUIRE => Require,
});
c_enum!(FileMode {
    WB_FILE_MODE_AUTO => Auto,
    WB_FILE_MODE_MAP => Map,
    WB_FILE_MODE_READ => Read,
    WB_FILE_MODE_SOURCE => Source,
});

/// Options of a buffer.
#[repr(C)]
pub struct wb_buffer_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// Whether to use huge pages.
    pub huge_pages: wb_huge_pages,
    /// Threads that fault, read and copy; 0 to choose.
    pub threads: u32,
    /// The NUMA node.
    pub numa_policy: wb_numa_policy,
    /// The node for WB_NUMA_NODE; otherwise not read.
    pub numa_node: u32,
    /// Whether to pin; WB_TRISTATE_AUTO follows the device's policy.
    pub pin: wb_tristate,
    /// WB_TRISTATE_ON bypasses the processor's cache: fast to write, very slow to read for the
    /// host. Fails with WB_ERR_NOT_SUPPORTED for existing memory and files.
    pub write_combined: wb_tristate,
    /// Whether the memory is pinned for every context of the process; WB_TRISTATE_AUTO is on.
    pub portable: wb_tristate,
    /// How a file is loaded.
    pub file_mode: wb_file_mode,
    /// Must be zero.
    pub reserved0: u32,
    /// Bytes registered at a time; 0 for all at once. Between chunks others can use the device, and
    /// progress is reported.
    pub chunk_bytes: u64,
    /// Receives progress, and may cancel; may be NULL.
    pub progress: wb_progress,
    /// Argument of `progress`.
    pub progress_user: *mut c_void,
    /// Must be zero.
    pub reserved: [u64; 4],
}

c_struct!(wb_buffer_options, reserved0, reserved);

/// A caller's options, and whom to report progress to.
pub(in crate::capi) struct BufferRequest {
    pub options: BufferOptions,
    reporter: Reporter,
}

impl BufferRequest {
    /// Runs a body with the options, which reports progress to the caller.
    pub fn run<R>(
        &self,
        body: impl FnOnce(&BufferOptions, &mut Progress<'_>) -> Result<R>,
    ) -> Result<R> {
        self.reporter.run(|progress| body(&self.options, progress))
    }
}

impl Input<BufferRequest> for *const wb_buffer_options {
    unsafe fn convert(self, _: &str) -> Result<BufferRequest> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self) }?;
        let field = |name: &str| format!("wb_buffer_options.{name}");
        let numa_policies = [
            (WB_NUMA_DEVICE, NumaPolicy::Device),
            (WB_NUMA_ANY, NumaPolicy::Any),
            (WB_NUMA_NODE, NumaPolicy::Node(given.numa_node)),
        ];
        let write_combined = Tristate::read(given.write_combined, &field("write_combined"))?;
        let portable = Tristate::read(given.portable, &field("portable"))?;
        let options = BufferOptions {
            huge_pages: HugePages::read(given.huge_pages, &field("huge_pages"))?,
            threads: given.threads as usize,
            numa: one_of(given.numa_policy, &field("numa_policy"), &numa_policies)?,
            pin: Tristate::read(given.pin, &field("pin"))?,
            write_combined: write_combined == Tristate::On,
            portable: portable != Tristate::Off,
            file_mode: FileMode::read(given.file_mode, &field("file_mode"))?,
            chunk_bytes: usize::try_from(given.chunk_bytes).unwrap_or(usize::MAX).min(1 << 62),
            read_only: false,
        };
        // SAFETY: the contract of mod.rs.
        let reporter = unsafe { Reporter::new(given.progress, given.progress_user) };
        Ok(BufferRequest { options, reporter })
    }
}
