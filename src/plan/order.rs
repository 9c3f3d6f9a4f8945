//! The order in which parameters leave the device, as far as the budget allows.

/// An order of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In the order in which they were declared.
    Declared,
    /// Evenly over the groups, so that copies overlap best with kernels.
    Spread,
    /// The largest first.
    Largest,
}

impl Order {
    /// The name in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Spread => "spread",
            Self::Largest => "largest",
        }
    }
}

/// The group and the bytes of a storage.
pub type Candidate = (usize, u64);

/// The candidates' indexes in the given order. Ties are broken by group, then by index.
pub fn sort(candidates: &[Candidate], order: Order) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..candidates.len()).collect();
    match order {
        Order::Declared => {}
        Order::Largest => sorted.sort_by_key(|index| std::cmp::Reverse(candidates[*index].1)),
        Order::Spread => {
            let groups = candidates.iter().map(|(group, _)| group + 1).max().unwrap_or(0);
            let mut totals = vec![0u64; groups];
            let mut before = Vec::with_capacity(candidates.len());
            for (group, bytes) in candidates {
                before.push(totals[*group]);
                totals[*group] += bytes;
            }
            // By the fraction of the group that comes before, as a number of 63 bits.
            let part = |index: usize| {
                let total = u128::from(totals[candidates[index].0].max(1));
                ((u128::from(before[index]) << 63) / total) as u64
            };
            let mut keys: Vec<(u64, usize, usize)> =
                sorted.iter().map(|index| (part(*index), candidates[*index].0, *index)).collect();
            keys.sort_unstable();
            sorted = keys.into_iter().map(|(_, _, index)| index).collect();
        }
    }
    sorted
}

/// The candidates' indexes by the bytes of their group up to and including them. Within a group
/// they keep their order, or the largest is first.
pub fn sort_by_bytes_of_group(candidates: &[Candidate], largest_first: bool) -> Vec<usize> {
    let groups = candidates.iter().map(|(group, _)| group + 1).max().unwrap_or(0);
    let mut sorted = match largest_first {
        true => sort(candidates, Order::Largest),
        false => (0..candidates.len()).collect(),
    };
    let mut totals = vec![0u64; groups];
    let mut up_to = vec![0; candidates.len()];
    for index in &sorted {
        let (group, bytes) = candidates[*index];
        totals[group] += bytes;
        up_to[*index] = totals[group];
    }
    sorted.sort_by_key(|index| (up_to[*index], candidates[*index].0));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spread_takes_the_same_part_of_every_group() {
        let candidates = [(0, 10), (0, 30), (1, 10), (1, 30), (2, 20), (2, 20)];
        assert_eq!(sort(&candidates, Order::Spread), [0, 2, 4, 1, 3, 5]);
        assert_eq!(sort(&candidates, Order::Declared), [0, 1, 2, 3, 4, 5]);
        assert_eq!(sort(&candidates, Order::Largest), [1, 3, 4, 5, 0, 2]);
    }

    #[test]
    fn groups_lose_as_many_bytes_as_one_another() {
        let candidates = [(0, 10), (0, 30), (1, 90), (1, 10), (2, 20), (2, 20)];
        assert_eq!(sort_by_bytes_of_group(&candidates, false), [0, 4, 1, 5, 2, 3]);
        assert_eq!(sort_by_bytes_of_group(&candidates, true), [4, 1, 0, 5, 2, 3]);
    }

    proptest! {
        /// The fraction of a group that precedes its next candidate never decreases along the
        /// order.
        #[test]
        fn spread_is_even(candidates in prop::collection::vec((0usize..5, 1u64..100), 1..60)) {
            let sorted = sort(&candidates, Order::Spread);
            let total = |group| -> u64 {
                candidates.iter().filter(|(of, _)| *of == group).map(|(_, bytes)| bytes).sum()
            };
            let mut taken = [0u64; 5];
            let mut last = 0.0;
            for index in sorted {
                let (group, bytes) = candidates[index];
                let part = taken[group] as f64 / total(group) as f64;
                prop_assert!(part >= last - 1e-12, "{part} after {last}");
                last = part;
                taken[group] += bytes;
            }
        }
    }
}
