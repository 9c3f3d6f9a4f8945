//! Sizes of the pages of host memory.

use std::fs;
use std::num::NonZeroUsize;

use once_cell::race::OnceNonZeroUsize;

/// Bytes of a page: 4 KiB on x86-64, up to 64 KiB on Arm.
pub fn page_bytes() -> usize {
    static BYTES: OnceNonZeroUsize = OnceNonZeroUsize::new();
    // SAFETY: sysconf reads a constant of the system.
    kept(&BYTES, 4096, || usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok())
}

/// Bytes of a transparent huge page.
pub fn huge_page_bytes() -> usize {
    static BYTES: OnceNonZeroUsize = OnceNonZeroUsize::new();
    let path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
    kept(&BYTES, 2 << 20, || fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// What is found when it is first asked for, `otherwise` if nothing is. Nobody waits for who is looking:
/// a forked child would for ever.
fn kept(bytes: &OnceNonZeroUsize, otherwise: usize, find: impl FnOnce() -> Option<usize>) -> usize {
    let found = || find().and_then(NonZeroUsize::new).or(NonZeroUsize::new(otherwise));
    bytes.get_or_init(|| found().unwrap_or(NonZeroUsize::MIN)).get()
}
