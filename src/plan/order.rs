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
pub fn sort(candidates: &[Candidate], order: Order) -> Vec<u32> {
    match order {
        Order::Declared => indexes(candidates).collect(),
        Order::Largest => {
            sorted(candidates, |index| (u64::MAX - candidates[index as usize].1, index as usize))
        }
        Order::Spread => {
            let (before, totals) = sums_in_groups(candidates, indexes(candidates));
            // By the fraction of the group that comes before, as a number of 63 bits.
            sorted(candidates, |index| {
                let (at, group) = (index as usize, candidates[index as usize].0);
                let total = u128::from(totals[group].max(1));
                (((u128::from(before[at]) << 63) / total) as u64, group)
            })
        }
    }
}

/// The candidates' indexes by the bytes of their group up to and including them. Within a group
/// they keep their order, or the largest is first.
pub fn sort_by_bytes_of_group(candidates: &[Candidate], largest_first: bool) -> Vec<u32> {
    let in_groups = match largest_first {
        true => sort(candidates, Order::Largest),
        false => indexes(candidates).collect(),
    };
    let (before, _) = sums_in_groups(candidates, in_groups.into_iter());
    sorted(candidates, |index| {
        let (group, bytes) = candidates[index as usize];
        (before[index as usize] + bytes, group)
    })
}

/// Indexes of candidates have 32 bits: a model has fewer parameters.
fn indexes(candidates: &[Candidate]) -> impl Iterator<Item = u32> {
    0..candidates.len() as u32
}

/// The bytes of each candidate's group that come before it in an order, and of each group.
fn sums_in_groups(
    candidates: &[Candidate],
    order: impl Iterator<Item = u32>,
) -> (Vec<u64>, Vec<u64>) {
    let groups = candidates.iter().map(|(group, _)| group + 1).max().unwrap_or(0);
    let (mut before, mut totals) = (vec![0; candidates.len()], vec![0u64; groups]);
    for index in order {
        let (group, bytes) = candidates[index as usize];
        before[index as usize] = totals[group];
        totals[group] += bytes;
    }
    (before, totals)
}

/// The candidates' indexes by two keys, of which the second has 32 bits, then by index. One number
/// holds all three, since numbers are sorted several times faster than what a key is looked up for.
fn sorted(candidates: &[Candidate], keys: impl Fn(u32) -> (u64, usize)) -> Vec<u32> {
    let packed = |index: u32| {
        let (first, second) = keys(index);
        u128::from(first) << 64 | (second as u128) << 32 | u128::from(index)
    };
    let mut all: Vec<u128> = indexes(candidates).map(packed).collect();
    all.sort_unstable();
    all.into_iter().map(|key| key as u32).collect()
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
                let (group, bytes) = candidates[index as usize];
                let part = taken[group] as f64 / total(group) as f64;
                prop_assert!(part >= last - 1e-12, "{part} after {last}");
                last = part;
                taken[group] += bytes;
            }
        }
    }
}
