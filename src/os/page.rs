//! The sizes of pages.

use std::fs;
use std::num::NonZeroUsize;

use once_cell::race::OnceNonZeroUsize;

/// Bytes of a page: 4 KiB on x86-64, up to 64 KiB on Arm.
pub fn page_bytes() -> usize {
    static BYTES: OnceNonZeroUsize = OnceNonZeroUsize::new();
    // SAFETY: sysconf reads a constant of the system.
    cached(&BYTES, 4096, || usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok())
}

/// Bytes of a transparent huge page.
pub fn huge_page_bytes() -> usize {
    static BYTES: OnceNonZeroUsize = OnceNonZeroUsize::new();
    let path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
    cached(&BYTES, 2 << 20, || fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// The result of the first call of `read`, or `default` if it has none. No thread waits for
/// another's call, for which a forked child would wait for ever.
fn cached(bytes: &OnceNonZeroUsize, default: usize, read: impl FnOnce() -> Option<usize>) -> usize {
    let value = || read().and_then(NonZeroUsize::new).or(NonZeroUsize::new(default));
    bytes.get_or_init(|| value().unwrap_or(NonZeroUsize::MIN)).get()
}
