//! The limit of locked memory.

use std::fs;
use std::os::unix::fs::MetadataExt;

const CAP_IPC_LOCK: u32 = 14;

/// The inode of the initial user namespace. Source: the kernel, `PROC_USER_INIT_INO`.
const INITIAL_USER_NAMESPACE: u64 = 0xeffffffd;

/// Bytes that this process may lock; `None` if it may lock all memory.
pub fn lockable_bytes() -> Option<u64> {
    if may_exceed_limit() { None } else { rlimit() }
}

/// RLIMIT_MEMLOCK in bytes; `None` if it is unlimited.
pub fn rlimit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Whether this process has CAP_IPC_LOCK in the initial user namespace, where mlock looks for it:
/// in the namespace of a container the capability has no effect.
fn may_exceed_limit() -> bool {
    let capable = fs::read_to_string("/proc/thread-self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
    });
    capable && is_in_initial_namespace()
}

fn is_in_initial_namespace() -> bool {
    match fs::metadata("/proc/thread-self/ns/user") {
        Ok(namespace) => namespace.ino() == INITIAL_USER_NAMESPACE,
        Err(_) => {
            fs::read_to_string("/proc/thread-self/uid_map").is_ok_and(|map| is_identity(&map))
        }
    }
}

/// Whether a uid_map maps every user to itself.
fn is_identity(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_identity_uid_map_is_of_the_initial_namespace() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity("0 0 65536\n65536 65536 4294901759\n") && !is_identity(""));
    }
}
