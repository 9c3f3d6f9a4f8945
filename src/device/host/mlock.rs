//! Pinning by mlock. The kernel's locks do not nest, but one page can contain the end of a range
//! and the start of another. So the ranges that end in each page are counted.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::os::page::page_bytes;
use crate::os::process::PerProcess;
use crate::os::span::Span;
use crate::os::sync::{Mutex, MutexGuard};
use crate::os::{mapping, sync};

/// The number of ranges that begin or end in each page.
type Ends = BTreeMap<usize, usize>;

/// Those of the process, as its locks are.
fn ends() -> MutexGuard<'static, Ends> {
    static ENDS: PerProcess<Mutex<Ends>> = PerProcess::new();
    sync::lock(ENDS.get(|_| Mutex::default()))
}

/// The first and the last page of a range, once if they are the same.
fn ends_of(pages: Span) -> impl Iterator<Item = usize> {
    let (first, last) = (pages.start(), pages.end() - page_bytes());
    [first].into_iter().chain((last != first).then_some(last))
}

/// Locks the range's pages.
pub fn lock(span: Span) -> Result<()> {
    let pages = span.pages();
    // Held to the end: another thread unlocks a neighbouring range before this, or keeps the shared
    // page.
    let mut ends = ends();
    mapping::lock(pages)?;
    ends_of(pages).for_each(|page| *ends.entry(page).or_insert(0) += 1);
    Ok(())
}

/// Unlocks the range's pages, except those that another range needs.
pub fn unlock(span: Span) -> Result<()> {
    let pages = span.pages();
    // Held to the end: another thread locks a neighbouring range after this.
    let mut ends = ends();
    let shared = |page: usize| usize::from(ends.get(&page).is_some_and(|ranges| *ranges > 1));
    let (before, after) = (shared(pages.start()), shared(pages.end() - page_bytes()));
    let free = pages.bytes().saturating_sub((before + after) * page_bytes());
    if free > 0 {
        mapping::unlock(pages.part(before * page_bytes(), free))?;
    }
    for page in ends_of(pages) {
        if let Some(ranges) = ends.get_mut(&page) {
            *ranges -= 1;
            if *ranges == 0 {
                ends.remove(&page);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::backend::{Backend, PinOptions};
    use crate::device::host::device::HostDevice;
    use crate::os::mapping::Mapping;
    use crate::os::proc_maps;

    #[test]
    fn a_shared_page_stays_locked_until_its_last_range_is_unpinned() {
        let (device, page) = (HostDevice::open(0), page_bytes());
        let options =
            PinOptions { read_only: false, portable: true, write_combined: false, mapped: true };
        let mapping = Mapping::anonymous(3 * page).unwrap();
        let memory = mapping.span();
        let locked = || proc_maps::count(memory).unwrap().locked as usize;
        // Two ranges that meet in the middle of the second page, and a third within it.
        let ranges = [(0, 3 * page / 2), (3 * page / 2, page), (5 * page / 4, 8)];
        let ranges = ranges.map(|(at, bytes)| memory.part(at, bytes));
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            for range in ranges {
                device.pin(range, options).unwrap();
            }
            assert_eq!(locked(), 3 * page);
            device.unpin(ranges[order[0]]).unwrap();
            device.unpin(ranges[order[1]]).unwrap();
            assert!(locked() >= page, "{order:?}: the page of {:?} is not", order[2]);
            device.unpin(ranges[order[2]]).unwrap();
            assert_eq!(locked(), 0, "{order:?}");
        }
        assert!(ends().range(memory.start()..memory.end()).next().is_none());
    }
}
