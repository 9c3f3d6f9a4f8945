//! Locked pages. The kernel's locks do not nest, and the page in which one registered range ends may be
//! the one in which the next begins: the ends of ranges are counted page by page.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::os::page::page_bytes;
use crate::os::process::PerProcess;
use crate::os::span::Span;
use crate::os::sync::{Mutex, MutexGuard};
use crate::os::{mapping, sync};

/// Pages in which ranges begin or end, and how many ranges do.
type Ends = BTreeMap<usize, usize>;

/// Of the process, as its locks are.
fn ends() -> MutexGuard<'static, Ends> {
    static ENDS: PerProcess<Mutex<Ends>> = PerProcess::new();
    sync::lock(ENDS.get(|_| Mutex::default()))
}

/// The first and the last page of whole pages, once where they are the same.
fn ends_of(pages: Span) -> impl Iterator<Item = usize> {
    let (first, last) = (pages.start(), pages.end() - page_bytes());
    [first].into_iter().chain((last != first).then_some(last))
}

/// Locks the range's pages.
pub fn lock(span: Span) -> Result<()> {
    let pages = span.pages();
    // Held to the end: who unlocks a neighbour now does so before this, or leaves the page alone.
    let mut ends = ends();
    mapping::lock(pages)?;
    ends_of(pages).for_each(|page| *ends.entry(page).or_insert(0) += 1);
    Ok(())
}

/// Unlocks the range's pages but those that a neighbour needs.
pub fn unlock(span: Span) -> Result<()> {
    let pages = span.pages();
    // Held to the end: who locks a neighbour now does so behind this.
    let mut ends = ends();
    let needed =
        |page: usize| if ends.get(&page).is_some_and(|ranges| *ranges > 1) { 1 } else { 0 };
    let (before, behind) = (needed(pages.start()), needed(pages.end() - page_bytes()));
    let free = pages.bytes().saturating_sub((before + behind) * page_bytes());
    if free > 0 {
        mapping::unlock(pages.part(before * page_bytes(), free))?;
    }
    forget(&mut ends, pages);
    Ok(())
}

fn forget(ends: &mut Ends, pages: Span) {
    for page in ends_of(pages) {
        if let Some(ranges) = ends.get_mut(&page) {
            *ranges -= 1;
            if *ranges == 0 {
                ends.remove(&page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::backend::{Backend, PinOptions};
    use crate::device::host::device::HostDevice;
    use crate::os::mapping::Mapping;
    use crate::os::proc_maps;

    #[test]
    fn a_shared_page_is_locked_until_its_last_range_goes() {
        let (device, page) = (HostDevice::open(0), page_bytes());
        let options =
            PinOptions { read_only: false, portable: true, write_combined: false, mapped: true };
        let mapping = Mapping::anonymous(3 * page).unwrap();
        let memory = mapping.span();
        let locked = || proc_maps::count(memory).unwrap().locked as usize;
        // Two that meet in the middle of the second page, and a third within it.
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
