//! Ranges of addresses that may overlap, and a search for those that overlap another.

use std::collections::BTreeSet;

/// Rows of numbers in ascending order. All indexes of the offloader are of this one type, whose
/// code is in the library once.
pub type Rows = BTreeSet<[u64; 4]>;

/// Ranges, each with a number. They are kept by the power of two that their length reaches: those
/// of one length class that overlap a range begin in it, or at most two lengths before it. So a
/// search takes the time of a look-up in each class, and of what it finds, however many there are.
#[derive(Debug, Clone, Default)]
pub struct Intervals {
    /// Class, start, end, number.
    ranges: Rows,
    /// How many ranges each class has.
    counts: Vec<usize>,
}

impl Intervals {
    /// Adds a range. One without bytes overlaps nothing.
    pub fn insert(&mut self, (start, end): (u64, u64), number: usize) {
        let Some(class) = class_of(start, end) else { return };
        if self.counts.len() <= class {
            self.counts.resize(class + 1, 0);
        }
        let is_new = self.ranges.insert([class as u64, start, end, number as u64]);
        self.counts[class] += usize::from(is_new);
    }

    /// Removes a range that was added with this number.
    pub fn remove(&mut self, (start, end): (u64, u64), number: usize) {
        let Some(class) = class_of(start, end) else { return };
        let was_there = self.ranges.remove(&[class as u64, start, end, number as u64]);
        self.counts[class] -= usize::from(was_there);
    }

    /// The numbers of the ranges that share a byte with another.
    pub fn overlapping(&self, (start, end): (u64, u64)) -> Vec<usize> {
        let mut found = Vec::new();
        if start >= end {
            return found;
        }
        for (class, _) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (longest, class) = (u64::MAX >> (63 - class), class as u64);
            let first = [class, start.saturating_sub(longest), 0, 0];
            for [_, from, to, number] in self.ranges.range(first..[class, end, 0, 0]) {
                if start < *to && *from < end {
                    found.push(*number as usize);
                }
            }
        }
        found
    }
}

/// Bytes that lie in any of the ranges.
pub fn covered_bytes(mut ranges: Vec<(u64, u64)>) -> u64 {
    ranges.sort_unstable();
    let (mut bytes, mut covered_to) = (0, 0);
    for (start, end) in ranges {
        bytes += end.saturating_sub(start.max(covered_to));
        covered_to = covered_to.max(end);
    }
    bytes
}

/// The largest power of two that a range's length reaches; `None` if it has no bytes.
fn class_of(start: u64, end: u64) -> Option<usize> {
    end.checked_sub(start).and_then(u64::checked_ilog2).map(|class| class as usize)
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
                let mut found = intervals.overlapping((start, end));
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
        assert_eq!(intervals.overlapping((0, 1)).len(), 0);
        assert_eq!(intervals.overlapping((1, 2)), [1]);
        assert_eq!(intervals.overlapping((u64::MAX - 1, u64::MAX)).len(), 2);
    }
}
