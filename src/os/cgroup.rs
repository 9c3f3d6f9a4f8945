//! The memory limit of the control group. The kernel does not fail a page fault that exceeds it: it
//! kills the process. So allocations are reserved first, and checked again for each piece of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result, format_bytes};
use crate::os::process::PerProcess;
use crate::os::span::Span;
use crate::os::sync::{AtomicU64, Condvar, Mutex};
use crate::os::{mapping, proc_maps, sync};
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

/// Memory that is about to be made present, which the kernel does not count yet. Other threads of the
/// process leave space for it. What was not made present is released when it is dropped.
pub struct Reservation {
    ledger: &'static Ledger,
    limits: Limits,
    /// Bytes that no piece has taken.
    left: AtomicU64,
}

/// Reserves `bytes` bytes. Fails with `WB_ERR_CGROUP` if they exceed what the control group leaves
/// beside other reservations.
pub fn reserve(bytes: usize) -> Result<Reservation> {
    reserve_at_most(bytes, &|| Ok(bytes))
}

/// The same for mapped memory, of which only the absent pages count.
pub fn reserve_for(span: Span) -> Result<Reservation> {
    reserve_at_most(span.bytes(), &|| absent(span))
}

/// Reserves `most` bytes, or `least` where those do not fit.
fn reserve_at_most(most: usize, least: &dyn Fn() -> Result<usize>) -> Result<Reservation> {
    static UNCHECKED: AtomicUsize = AtomicUsize::new(0);
    static LEDGER: PerProcess<Ledger> = PerProcess::new();
    let ledger = LEDGER.get(|_| Ledger::default());
    // Loom's locks live as long as one order of events, and this ledger longer.
    if cfg!(loom) || !is_due(&UNCHECKED, most) {
        return ledger.reserve(Limits::default(), 0);
    }
    let limits = Limits::of_process();
    ledger.reserve(limits.clone(), most as u64).or_else(|refused| match least() {
        Ok(least) if least < most => ledger.reserve(limits, least as u64),
        _ => Err(refused),
    })
}

impl Reservation {
    /// Makes a piece present by `work`. The limit is checked again, because other processes of the
    /// group can have used it up.
    pub fn fault(&self, piece: Span, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.limits.0.is_empty() {
            return work();
        }
        let whole = piece.bytes() as u64;
        let _taken = match self.take(whole) {
            Err(refused) => match absent(piece) {
                Ok(least) if (least as u64) < whole => self.take(least as u64)?,
                _ => return Err(refused),
            },
            taken => taken?,
        };
        work()
    }

    /// Takes a piece's bytes from the reservation, until the result is dropped.
    fn take(&self, bytes: u64) -> Result<Taken> {
        let mut state = sync::lock(&self.ledger.state);
        loop {
            let group = self.limits.tightest(state.faulting + bytes);
            if group.available >= state.faulting + bytes {
                break;
            }
            // Pieces that are being made present are counted twice. Alone, none is.
            if state.faulting == 0 {
                return Err(refusal(bytes, &group, 0));
            }
            state = sync::wait(&self.ledger.changed, state);
        }
        let own = bytes.min(self.left.load(Ordering::Relaxed));
        self.left.fetch_sub(own, Ordering::Relaxed);
        state.reserved -= own;
        state.faulting += bytes;
        Ok(Taken { ledger: self.ledger, bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            sync::lock(&self.ledger.state).reserved -= left;
            self.ledger.changed.notify_all();
        }
    }
}

/// A piece that is being made present.
struct Taken {
    ledger: &'static Ledger,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        sync::lock(&self.ledger.state).faulting -= self.bytes;
        self.ledger.changed.notify_all();
    }
}

/// What the threads of a process have reserved.
#[derive(Default)]
struct Ledger {
    state: Mutex<LedgerState>,
    /// Signals that a piece is present or that a reservation has ended.
    changed: Condvar,
}

#[derive(Default)]
struct LedgerState {
    /// Bytes of reservations that no piece has taken: the kernel does not count them.
    reserved: u64,
    /// Bytes of pieces that are being made present: the kernel counts any part of them.
    faulting: u64,
}

impl Ledger {
    fn reserve(&'static self, limits: Limits, bytes: u64) -> Result<Reservation> {
        let mut left = 0;
        if !limits.0.is_empty() && bytes > 0 {
            let mut state = sync::lock(&self.state);
            loop {
                let (certain, most) = (state.reserved, state.reserved + state.faulting);
                let group = limits.tightest(most.saturating_add(bytes));
                if group.available >= most.saturating_add(bytes) {
                    break;
                }
                if state.faulting == 0 || group.available < certain.saturating_add(bytes) {
                    return Err(refusal(bytes, &group, certain));
                }
                state = sync::wait(&self.changed, state);
            }
            state.reserved += bytes;
            left = bytes;
        }
        Ok(Reservation { ledger: self, limits, left: AtomicU64::new(left) })
    }
}

fn refusal(bytes: u64, group: &Available, reserved: u64) -> Error {
    let others = match reserved {
        0 => String::new(),
        bytes => format!(", of which other threads have reserved {}", format_bytes(bytes)),
    };
    let message = format!(
        "asked {} of host memory; the control group {} leaves {} of its {}{others}: raise its memory \
         limit or ask for less",
        format_bytes(bytes),
        group.path.display(),
        format_bytes(group.available),
        format_bytes(group.limit)
    );
    Error::new(WB_ERR_CGROUP, message)
}

/// Bytes of the span's pages that are not present. Pages of hugetlb do not count: they are reserved
/// for the whole machine and no memory limit includes them.
fn absent(span: Span) -> Result<usize> {
    let known = mapping::resident_bytes(span)?.saturating_add(proc_maps::count(span)?.hugetlb);
    Ok((span.pages().bytes() as u64).saturating_sub(known) as usize)
}

/// A control group with a limit.
#[derive(Debug, Clone)]
struct Group {
    path: PathBuf,
    limit: u64,
    /// The file that has its use.
    used: &'static str,
}

/// What a group leaves.
struct Available {
    path: PathBuf,
    limit: u64,
    available: u64,
}

/// The groups with a limit that a process is in.
#[derive(Debug, Clone, Default)]
struct Limits(Vec<Group>);

impl Limits {
    fn of_process() -> Self {
        let groups = fs::read_to_string("/proc/thread-self/cgroup").unwrap_or_default();
        let mut limits = Vec::new();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let (root, limit, used) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
                "memory" => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
                }
                _ => continue,
            };
            let group = Path::new(root).join(path.trim_start_matches('/'));
            let ancestors = group.ancestors().take_while(|folder| folder.starts_with(root));
            limits.extend(ancestors.filter_map(|folder| Group::read(folder, limit, used)));
        }
        Self(limits)
    }

    /// Of all groups the one that leaves least. `asked` are the bytes of interest: page cache counts
    /// as free only where they do not fit without, because that costs another file to read.
    fn tightest(&self, asked: u64) -> Available {
        let available = |group: &Group| Available {
            path: group.path.clone(),
            limit: group.limit,
            available: group.available(asked).unwrap_or(u64::MAX),
        };
        let unlimited = Available { path: PathBuf::new(), limit: u64::MAX, available: u64::MAX };
        self.0.iter().map(available).min_by_key(|group| group.available).unwrap_or(unlimited)
    }
}

impl Group {
    /// Reads a group; `None` if it has no limit.
    fn read(folder: &Path, limit: &str, used: &'static str) -> Option<Self> {
        let limit = number(&folder.join(limit))?;
        number(&folder.join(used))?;
        Some(Self { path: folder.to_owned(), limit, used })
    }

    /// The bytes that it leaves; `None` if it is gone. The kernel counts page cache as used but
    /// reclaims it under pressure, so what is reclaimable counts as free.
    fn available(&self, asked: u64) -> Option<u64> {
        let used = number(&self.path.join(self.used))?;
        let free = self.limit.saturating_sub(used);
        if free >= asked {
            return Some(free);
        }
        let reclaimable: u64 = fs::read_to_string(self.path.join("memory.stat"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let (key, value) = line.split_once(' ')?;
                let counts = matches!(key, "active_file" | "inactive_file" | "slab_reclaimable");
                counts.then(|| value.parse::<u64>().unwrap_or(0))
            })
            .sum();
        Some(self.limit.saturating_sub(used.saturating_sub(reclaimable)))
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
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

    const MIB: u64 = 1 << 20;

    /// A control group of files.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(limit: u64, used: u64) -> Self {
            let group = Self(tempfile::tempdir().unwrap());
            group.write("memory.max", limit);
            group.write("memory.current", used);
            group
        }

        fn write(&self, name: &str, value: impl std::fmt::Display) {
            fs::write(self.0.path().join(name), format!("{value}\n")).unwrap();
        }

        fn limits(&self) -> Limits {
            let group = Group::read(self.0.path(), "memory.max", "memory.current");
            Limits(group.into_iter().collect())
        }
    }

    fn ledger() -> &'static Ledger {
        Box::leak(Box::default())
    }

    #[test]
    fn reclaimable_memory_does_not_count_as_used() {
        let group = Fake::new(1000, 700);
        group.write(
            "memory.stat",
            "anon 500\nactive_file 30\ninactive_file 60\nslab_reclaimable 10",
        );
        let available = |asked| group.limits().tightest(asked).available;
        assert_eq!((available(300), available(301)), (300, 400));
        group.write("memory.max", "max");
        assert!(group.limits().0.is_empty(), "\"max\" means unlimited");
    }

    #[test]
    fn what_other_threads_have_reserved_is_not_available() {
        let (group, ledger) = (Fake::new(300 * MIB, 10 * MIB), ledger());
        let first = ledger.reserve(group.limits(), 180 * MIB).unwrap();
        let refused = ledger.reserve(group.limits(), 180 * MIB).map(drop).unwrap_err();
        assert_eq!(refused.status, WB_ERR_CGROUP);
        for part in ["asked 180.0 MiB", "leaves 290.0 MiB", "other threads have reserved 180.0 MiB"]
        {
            assert!(refused.message.contains(part), "{part}: {}", refused.message);
        }
        let second = ledger.reserve(group.limits(), 110 * MIB).unwrap();
        assert!(ledger.reserve(group.limits(), 1).is_err());
        drop((first, second));
        ledger.reserve(group.limits(), 290 * MIB).unwrap();
    }

    #[test]
    fn bytes_that_are_present_are_counted_once() {
        let (group, ledger) = (Fake::new(300 * MIB, 0), ledger());
        let first = ledger.reserve(group.limits(), 200 * MIB).unwrap();
        let piece = first.take(150 * MIB).unwrap();
        group.write("memory.current", 150 * MIB);
        drop(piece);
        let second = ledger.reserve(group.limits(), 100 * MIB).unwrap();
        assert!(ledger.reserve(group.limits(), 1).is_err());
        drop(first);
        ledger.reserve(group.limits(), 50 * MIB).map(drop).unwrap();
        drop(second);
    }

    #[test]
    fn the_limit_is_checked_again_for_each_piece() {
        let (group, ledger) = (Fake::new(300 * MIB, 0), ledger());
        let reservation = ledger.reserve(group.limits(), 200 * MIB).unwrap();
        drop(reservation.take(100 * MIB).unwrap());
        // Another process.
        group.write("memory.current", 260 * MIB);
        assert_eq!(reservation.take(100 * MIB).map(drop).unwrap_err().status, WB_ERR_CGROUP);
        drop(reservation.take(40 * MIB).unwrap());
    }

    #[test]
    fn a_piece_waits_for_those_that_may_be_counted_already() {
        let (group, ledger) = (Fake::new(300 * MIB, 0), ledger());
        let reservation = ledger.reserve(group.limits(), 300 * MIB).unwrap();
        let first = reservation.take(200 * MIB).unwrap();
        // Half of the first piece is present: with the whole of it, the second one does not fit.
        group.write("memory.current", 100 * MIB);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| reservation.take(100 * MIB).map(drop));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!second.is_finished());
            group.write("memory.current", 200 * MIB);
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
