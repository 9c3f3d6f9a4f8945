//! What the kernel gives and allows this process, and what its environment says.

use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::num::NonZeroUsize;

use once_cell::race::OnceNonZeroUsize;

unsafe extern "C" {
    /// The C library's; the `libc` crate does not have it.
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// A variable of the environment: the only place that reads it. A program that runs with more rights
/// than who started it (set-user-ID) has none, since who started it chose the environment.
pub fn variable(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends in NUL; the engine does not change its environment meanwhile.
    let value = unsafe { secure_getenv(name.as_ptr()) };
    // SAFETY: not NULL, so a string that ends in NUL.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

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

/// RLIMIT_MEMLOCK in bytes; `None` where it does not bind this process.
pub fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    let answer = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
