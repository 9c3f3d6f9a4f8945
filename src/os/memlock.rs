//! How much memory this process may lock.

use std::fs;
use std::os::unix::fs::MetadataExt;

const CAP_IPC_LOCK: u32 = 14;

/// The inode of the initial user namespace. Source: the kernel, `PROC_USER_INIT_INO`.
const INITIAL_USER_NAMESPACE: u64 = 0xeffffffd;

/// Bytes that this process may lock; `None` where there is no limit for it.
pub fn memlock() -> Option<u64> {
    let capable = fs::read_to_string("/proc/thread-self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
    });
    if capable && is_in_initial_namespace() { None } else { memlock_limit() }
}

/// Whether capabilities count for mlock, which asks for them in the initial user namespace: in one of a
/// container's own the same capability locks nothing.
fn is_in_initial_namespace() -> bool {
    match fs::metadata("/proc/thread-self/ns/user") {
        Ok(namespace) => namespace.ino() == INITIAL_USER_NAMESPACE,
        Err(_) => {
            fs::read_to_string("/proc/thread-self/uid_map").is_ok_and(|map| is_identity(&map))
        }
    }
}

/// Whether a uid_map gives every user its own number.
fn is_identity(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// RLIMIT_MEMLOCK in bytes; `None` where it does not bind this process.
pub fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    let answer = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_user_namespace_maps_every_user_to_itself() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity("0 0 65536\n65536 65536 4294901759\n") && !is_identity(""));
    }
}
