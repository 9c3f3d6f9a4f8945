//! Ranges of addresses that may overlap, and a search for those that overlap another.

use std::collections::{BTreeMap, BTreeSet};

/// Ranges, each with a number. They are kept by the power of two that their length reaches: those
/// of one length class that overlap a range begin in it, or at most two lengths before it. So a
/// search takes the time of a look-up in each class, and of what it finds, however many there are.
#[derive(Debug, Clone, Default)]
pub struct Intervals(BTreeMap<u32, BTreeSet<(u64, u64, usize)>>);

impl Intervals {
    /// Adds a range. One without bytes overlaps nothing.
    pub fn insert(&mut self, (start, end): (u64, u64), number: usize) {
        if let Some(class) = class_of(start, end) {
            self.0.entry(class).or_default().insert((start, end, number));
        }
    }

    /// Removes a range that was added with this number.
    pub fn remove(&mut self, (start, end): (u64, u64), number: usize) {
        let Some(class) = class_of(start, end) else { return };
        if let Some(ranges) = self.0.get_mut(&class) {
            ranges.remove(&(start, end, number));
            if ranges.is_empty() {
                self.0.remove(&class);
            }
        }
    }

    /// The numbers of the ranges that share a byte with another.
    pub fn overlapping(&self, (start, end): (u64, u64)) -> impl Iterator<Item = usize> {
        let end = if start < end { end } else { 0 };
        self.0.iter().flat_map(move |(class, ranges)| {
            let longest = u64::MAX >> (63 - class);
            let first = (start.saturating_sub(longest), 0, 0);
            let last = (end, 0, 0);
            ranges
                .range(first.min(last)..last)
                .filter(move |(from, to, _)| start < *to && *from < end)
                .map(|(_, _, number)| *number)
        })
    }
}

/// The largest power of two that a range's length reaches; `None` if it has no bytes.
fn class_of(start: u64, end: u64) -> Option<u32> {
    end.checked_sub(start).and_then(u64::checked_ilog2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let lengths = prop_oneof![0u64..5, 0u64..300, Just(256u64)];
        prop::collection::vec((0u64..600, lengths).prop_map(|(at, len)| (at, at + len)), 0..40)
    }

    proptest! {
        #[test]
        fn a_search_finds_what_comparing_all_finds(all in ranges(), removed in 0usize..40, asked in ranges()) {
            let mut intervals = Intervals::default();
            all.iter().enumerate().for_each(|(number, range)| intervals.insert(*range, number));
            let kept = |number: &usize| *number >= removed;
            for number in (0..all.len()).filter(|number| !kept(number)) {
                intervals.remove(all[number], number);
            }
            for (start, end) in asked {
                let shares = |number: &usize| {
                    let (from, to) = all[*number];
                    (from.max(start)..to.min(end)).next().is_some()
                };
                let expected: Vec<_> = (0..all.len()).filter(kept).filter(shares).collect();
                let mut found: Vec<_> = intervals.overlapping((start, end)).collect();
                found.sort_unstable();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn ranges_reach_to_the_last_address() {
        let mut intervals = Intervals::default();
        intervals.insert((1, u64::MAX), 1);
        intervals.insert((u64::MAX - 1, u64::MAX), 2);
        assert_eq!(intervals.overlapping((0, 1)).count(), 0);
        assert_eq!(intervals.overlapping((1, 2)).collect::<Vec<_>>(), [1]);
        assert_eq!(intervals.overlapping((u64::MAX - 1, u64::MAX)).count(), 2);
    }
}
