//! The memory limit of the control group. The kernel does not fail a page fault that exceeds it: it
//! kills the process. So allocations are checked first.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Result, fail, format_bytes};
use crate::os::span::Span;
use crate::os::{mapping, proc_maps};
use crate::status::WB_ERR_CGROUP;

/// Bytes that may be allocated between two checks. A check reads a dozen files of the kernel, which
/// costs many times what a small buffer does; a program can allocate this much elsewhere at any
/// time.
const BETWEEN_CHECKS: usize = 1 << 20;

/// Adds `bytes` to those that were not checked. Returns whether a check is due.
fn is_due(unchecked: &AtomicUsize, bytes: usize) -> bool {
    let due = unchecked.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) >= BETWEEN_CHECKS;
    if due {
        unchecked.store(0, Ordering::Relaxed);
    }
    due
}

/// Fails with `WB_ERR_CGROUP` if an allocation of `bytes` bytes would exceed the limit.
pub fn check_limit(bytes: usize) -> Result<()> {
    static UNCHECKED: AtomicUsize = AtomicUsize::new(0);
    if !is_due(&UNCHECKED, bytes) {
        return Ok(());
    }
    let Some(group) = tightest_group() else { return Ok(()) };
    if bytes as u64 > group.available() {
        fail!(
            WB_ERR_CGROUP,
            "asked {} of host memory; the control group {} leaves {} of its {}: raise its memory \
             limit or ask for less",
            format_bytes(bytes as u64),
            group.path.display(),
            format_bytes(group.available()),
            format_bytes(group.limit)
        );
    }
    Ok(())
}

/// The same for mapped memory, of which only the absent pages count.
pub fn check_limit_for(span: Span) -> Result<()> {
    check_limit(span.bytes()).or_else(|refused| check_limit(absent(span).map_err(|_| refused)?))
}

/// Bytes of the span's pages that are not present. Pages of hugetlb do not count: they are reserved
/// for the whole machine and no memory limit includes them.
fn absent(span: Span) -> Result<usize> {
    let known = mapping::resident_bytes(span)?.saturating_add(proc_maps::count(span)?.hugetlb);
    Ok((span.pages().bytes() as u64).saturating_sub(known) as usize)
}

/// A control group's limit and use.
struct Group {
    limit: u64,
    used: u64,
    path: PathBuf,
}

impl Group {
    fn available(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// Of all groups that this process is in, the one with the least memory available.
fn tightest_group() -> Option<Group> {
    let groups = fs::read_to_string("/proc/thread-self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, limit, used) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
                "memory" => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
                }
                _ => return None,
            };
            let group = Path::new(root).join(path.trim_start_matches('/'));
            group
                .ancestors()
                .take_while(|folder| folder.starts_with(root))
                .filter_map(|folder| read_group(folder, limit, used))
                .min_by_key(Group::available)
        })
        .min_by_key(Group::available)
}

/// Reads one group; `None` if it has no limit. The kernel counts page cache as used but reclaims it
/// under pressure, so what is reclaimable is subtracted.
fn read_group(folder: &Path, limit: &str, used: &str) -> Option<Group> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok();
    let (limit, used): (u64, u64) = (number(limit)?, number(used)?);
    let reclaimable: u64 = fs::read_to_string(folder.join("memory.stat"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            let counts = matches!(key, "active_file" | "inactive_file" | "slab_reclaimable");
            counts.then(|| value.parse::<u64>().unwrap_or(0))
        })
        .sum();
    Some(Group { limit, used: used.saturating_sub(reclaimable), path: folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::{bytes, page};

    #[test]
    fn one_large_and_many_small_allocations_are_checked() {
        let unchecked = AtomicUsize::new(0);
        assert!(is_due(&unchecked, BETWEEN_CHECKS));
        assert!(!is_due(&unchecked, BETWEEN_CHECKS - 1));
        assert!(is_due(&unchecked, 1));
        assert!(!is_due(&unchecked, 1));
        assert!(is_due(&unchecked, usize::MAX), "nothing wraps");
    }

    #[test]
    fn only_absent_pages_count_against_the_limit() {
        let page = page::page_bytes();
        let memory = mapping::Mapping::anonymous(8 * page).unwrap();
        let (whole, inside) = (memory.span(), memory.span().part(page / 2, 2 * page));
        let missing = |span| absent(span).unwrap();
        assert_eq!((missing(whole), missing(inside)), (8 * page, 3 * page));
        bytes::fault_in(whole.part(page, 3 * page), true).unwrap();
        assert_eq!((missing(whole), missing(inside)), (5 * page, page));
        bytes::fault_in(whole, true).unwrap();
        assert_eq!((missing(whole), missing(inside)), (0, 0));
    }

    #[test]
    fn reclaimable_memory_does_not_count_as_used() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        let read = || read_group(group.path(), "memory.max", "memory.current");
        assert!(read().is_none());
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert!(read().is_none(), "\"max\" means unlimited");
        write("memory.max", "1000\n");
        write("memory.stat", "anon 500\nactive_file 30\ninactive_file 60\nslab_reclaimable 10\n");
        assert_eq!(read().map(|group| (group.limit, group.used)), Some((1000, 600)));
    }
}
