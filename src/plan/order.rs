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
        Order::Largest => sorted(candidates.len(), |at| (u64::MAX - candidates[at].1, at)),
        Order::Spread => {
            let (before, totals) = sums_in_groups(candidates, indexes(candidates));
            let wholes: Vec<Whole> = totals.into_iter().map(Whole::new).collect();
            sorted(candidates.len(), |at| {
                let group = candidates[at].0;
                (wholes[group].fraction(before[at]), group)
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
    sorted(candidates.len(), |at| {
        let (group, bytes) = candidates[at];
        (before[at] + bytes, group)
    })
}

/// A number of bytes, at most 2^63, of which others are fractions.
struct Whole {
    bytes: u128,
    /// 2^127 over it, rounded down: a division for each fraction would take as long as their sorting.
    inverse: u128,
}

impl Whole {
    fn new(bytes: u64) -> Self {
        let bytes = u128::from(bytes.max(1));
        Self { bytes, inverse: (1 << 127) / bytes }
    }

    /// A part over the whole, as a number of 63 bits, rounded down.
    fn fraction(&self, part: u64) -> u64 {
        let part = u128::from(part);
        // As much, or one less.
        let near = (part * self.inverse) >> 64;
        let is_less = (near + 1) * self.bytes <= part << 63;
        (near + u128::from(is_less)) as u64
    }
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

/// The indexes below `count` by two keys, of which the second has 32 bits, then by index.
pub fn sorted(count: usize, keys: impl Fn(usize) -> (u64, usize)) -> Vec<u32> {
    let keyed = |index: usize| {
        let (first, second) = keys(index);
        (first, second as u32, index as u32)
    };
    let mut all: Vec<Keyed> = (0..count).map(keyed).collect();
    match all.len() {
        ..FEW => all.sort_unstable(),
        _ => sort_by_digits(&mut all),
    }
    all.into_iter().map(|(.., index)| index).collect()
}

/// Two keys of a candidate, and its index.
type Keyed = (u64, u32, u32);

/// Fewer than these are sorted faster by comparisons.
const FEW: usize = 4096;

/// Sorts by the first key, then by the second; equal ones keep their order. Each pass sorts by a byte
/// of a key, the lowest first, and a byte that all have in common needs none: several times faster
/// than comparisons.
fn sort_by_digits(all: &mut Vec<Keyed>) {
    let mut other = vec![(0, 0, 0); all.len()];
    // The bits in which the keys differ.
    let (mut firsts, mut seconds) = (0, 0);
    for pair in all.windows(2) {
        firsts |= pair[0].0 ^ pair[1].0;
        seconds |= pair[0].1 ^ pair[1].1;
    }
    if !all.is_sorted_by_key(|(_, second, _)| *second) {
        for byte in (0..size_of::<u32>()).filter(|byte| seconds.to_le_bytes()[*byte] > 0) {
            sort_by_digit(all, &mut other, |(_, second, _)| second.to_le_bytes()[byte]);
        }
    }
    for byte in (0..size_of::<u64>()).filter(|byte| firsts.to_le_bytes()[*byte] > 0) {
        sort_by_digit(all, &mut other, |(first, ..)| first.to_le_bytes()[byte]);
    }
}

/// Sorts by a number below 256; equal ones keep their order. Overwrites `other`, which is as long.
fn sort_by_digit(all: &mut Vec<Keyed>, other: &mut Vec<Keyed>, digit: impl Fn(&Keyed) -> u8) {
    let mut places = [0; 256];
    all.iter().for_each(|one| places[digit(one) as usize] += 1);
    let mut start = 0;
    for place in &mut places {
        (*place, start) = (start, start + *place);
    }
    for one in &*all {
        let place = &mut places[digit(one) as usize];
        other[*place] = *one;
        *place += 1;
    }
    std::mem::swap(all, other);
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
        #[test]
        fn fractions_are_those_of_a_division(
            one in 0u64..=1 << 63, other in 0u64..=1 << 63, bits in 0u32..63, less in 0u64..3,
        ) {
            let whole = ((one >> bits).max(other >> bits)).max(1);
            for part in [(one >> bits).min(other >> bits), whole.saturating_sub(less)] {
                let divided = ((u128::from(part) << 63) / u128::from(whole)) as u64;
                prop_assert_eq!(Whole::new(whole).fraction(part), divided, "{} of {}", part, whole);
            }
        }

        #[test]
        fn digits_sort_as_comparisons_do(
            keys in prop::collection::vec((any::<u64>(), any::<u32>()), 1..200),
            first in prop_oneof![Just(0), Just(0x0100_0000_0000_0081), any::<u64>()],
            second in prop_oneof![Just(0), Just(0x0181), any::<u32>()],
        ) {
            // Of few bits, so that some are equal.
            let keyed = |(index, (one, other)): (usize, &(u64, u32))| {
                (one & first, other & second, index as u32)
            };
            let mut all: Vec<Keyed> = keys.iter().enumerate().map(keyed).collect();
            let mut expected = all.clone();
            expected.sort();
            sort_by_digits(&mut all);
            prop_assert_eq!(all, expected);
        }

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
