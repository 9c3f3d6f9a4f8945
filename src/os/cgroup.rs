//! The limits that pinning and allocating meet: locked memory and the control group.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Result, fail, human};
use crate::os::span::Span;
use crate::os::{mapping, proc_maps};
use crate::status::WB_ERR_CGROUP;

/// Bytes that are given between two looks at the control group. A look takes a dozen files of the
/// kernel, many times what a small buffer costs; this much any program may need at any time.
const BETWEEN_LOOKS: usize = 1 << 20;

/// Whether bytes are to be looked at, those of `unseen` that were not among them.
fn is_due(unseen: &AtomicUsize, bytes: usize) -> bool {
    let due = unseen.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) >= BETWEEN_LOOKS;
    if due {
        unseen.store(0, Ordering::Relaxed);
    }
    due
}

/// Refuses what the control group would answer with the end of the process: the kernel does not
/// fail a page fault that goes past the limit, it kills.
pub fn check_control_group(bytes: usize) -> Result<()> {
    static UNSEEN: AtomicUsize = AtomicUsize::new(0);
    if !is_due(&UNSEEN, bytes) {
        return Ok(());
    }
    let Some((limit, used, path)) = tightest_control_group() else { return Ok(()) };
    let room = limit.saturating_sub(used);
    if bytes as u64 > room {
        fail!(
            WB_ERR_CGROUP,
            "asked {} of host memory; the control group {} leaves {} of its {}: raise its memory \
             limit or ask for less",
            human(bytes as u64),
            path.display(),
            human(room),
            human(limit)
        );
    }
    Ok(())
}

/// The same for memory that is mapped already: of it, what is still to come is looked at.
pub fn check_control_group_for(span: Span) -> Result<()> {
    check_control_group(span.bytes())
        .or_else(|refused| check_control_group(absent(span).map_err(|_| refused)?))
}

/// Bytes of a span's pages that are not there, without those of huge pages that were set aside for the
/// whole machine: no limit of memory counts them.
fn absent(span: Span) -> Result<usize> {
    let known = mapping::resident_bytes(span)?.saturating_add(proc_maps::count(span)?.set_aside);
    Ok((span.pages().bytes() as u64).saturating_sub(known) as usize)
}

/// Limit and use in bytes of the group that leaves the least room, of all that this process is in.
fn tightest_control_group() -> Option<(u64, u64, PathBuf)> {
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
                .filter_map(|folder| room_of(folder, limit, used))
                .min_by_key(|(limit, used, _)| limit.saturating_sub(*used))
        })
        .min_by_key(|(limit, used, _)| limit.saturating_sub(*used))
}

/// Limit and use of one group. Page cache counts as used though the kernel gives it back under
/// pressure, so what can be reclaimed is taken off.
fn room_of(folder: &Path, limit: &str, used: &str) -> Option<(u64, u64, PathBuf)> {
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
    Some((limit, used.saturating_sub(reclaimable), folder.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::{bytes, page};

    #[test]
    fn the_group_is_looked_at_for_much_and_for_many() {
        let unseen = AtomicUsize::new(0);
        assert!(is_due(&unseen, BETWEEN_LOOKS));
        assert!(!is_due(&unseen, BETWEEN_LOOKS - 1));
        assert!(is_due(&unseen, 1));
        assert!(!is_due(&unseen, 1));
        assert!(is_due(&unseen, usize::MAX), "nothing wraps");
    }

    #[test]
    fn only_pages_that_are_not_there_ask_for_room() {
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
    fn a_group_leaves_its_limit_less_what_cannot_be_reclaimed() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        let room = || room_of(group.path(), "memory.max", "memory.current");
        assert!(room().is_none());
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert!(room().is_none(), "\"max\" is no limit");
        write("memory.max", "1000\n");
        write("memory.stat", "anon 500\nactive_file 30\ninactive_file 60\nslab_reclaimable 10\n");
        assert_eq!(room().map(|(limit, used, _)| (limit, used)), Some((1000, 600)));
    }
}
