//! In which order parameters leave the device while the budget lasts.

/// An order of candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the engine declared them.
    Declared,
    /// Evenly over the groups, so that copies and kernels overlap best.
    Spread,
    /// By their bytes, the largest first.
    Largest,
}

impl Order {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Spread => "spread",
            Self::Largest => "largest",
        }
    }
}

/// What an order looks at: its group and its bytes.
pub type Candidate = (usize, u64);

/// The candidates' indexes in the order asked for. Ties fall to the lower group, then to the one that
/// was declared first.
pub fn arrange(candidates: &[Candidate], order: Order) -> Vec<usize> {
    let mut arranged: Vec<usize> = (0..candidates.len()).collect();
    match order {
        Order::Declared => {}
        Order::Largest => arranged.sort_by_key(|index| std::cmp::Reverse(candidates[*index].1)),
        Order::Spread => {
            let groups = candidates.iter().map(|(group, _)| group + 1).max().unwrap_or(0);
            let mut totals = vec![0u64; groups];
            let mut before = Vec::with_capacity(candidates.len());
            for (group, bytes) in candidates {
                before.push(totals[*group]);
                totals[*group] += bytes;
            }
            // What of the group has left before: a / b < c / d without division.
            arranged.sort_by(|one, other| {
                let ((group, _), (their_group, _)) = (candidates[*one], candidates[*other]);
                let ours = u128::from(before[*one]) * u128::from(totals[their_group].max(1));
                let theirs = u128::from(before[*other]) * u128::from(totals[group].max(1));
                ours.cmp(&theirs).then(group.cmp(&their_group)).then(one.cmp(other))
            });
        }
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spread_takes_the_same_part_of_every_group() {
        let candidates = [(0, 10), (0, 30), (1, 10), (1, 30), (2, 20), (2, 20)];
        assert_eq!(arrange(&candidates, Order::Spread), [0, 2, 4, 1, 3, 5]);
        assert_eq!(arrange(&candidates, Order::Declared), [0, 1, 2, 3, 4, 5]);
        assert_eq!(arrange(&candidates, Order::Largest), [1, 3, 4, 5, 0, 2]);
    }

    proptest! {
        /// Every prefix of a spread has taken from no group more than a parameter's worth ahead of
        /// another's part.
        #[test]
        fn spread_is_even(candidates in prop::collection::vec((0usize..5, 1u64..100), 1..60)) {
            let arranged = arrange(&candidates, Order::Spread);
            let total = |group| -> u64 {
                candidates.iter().filter(|(of, _)| *of == group).map(|(_, bytes)| bytes).sum()
            };
            let mut taken = [0u64; 5];
            let mut last = 0.0;
            for index in arranged {
                let (group, bytes) = candidates[index];
                let part = taken[group] as f64 / total(group) as f64;
                prop_assert!(part >= last - 1e-12, "{part} after {last}");
                last = part;
                taken[group] += bytes;
            }
        }
    }
}
