//! Where in the slots each unit goes: fixed offsets, shared by units that are not there at the same time.

use crate::plan::plan::ALIGNMENT;

/// A unit that is carried through the slots.
#[derive(Debug, Clone)]
pub struct SlotRequest {
    /// Its bytes.
    pub bytes: u64,
    /// When it is there: positions in the ring of a step.
    pub positions: Vec<usize>,
}

/// Offsets of units and the bytes of memory that they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPacking {
    /// One for each guest.
    pub offsets: Vec<u64>,
    /// Bytes in all.
    pub bytes: u64,
}

/// Seats the guests so that `depth` turns in a row have their units in place at the same time: the last
/// turns and the first of the next step, too, if it goes `around`.
///
/// First fit, the largest first.
pub fn pack(guests: &[SlotRequest], turns: usize, depth: usize, around: bool) -> SlotPacking {
    let rounded = |guest: usize| guests[guest].bytes.next_multiple_of(ALIGNMENT);
    let mut by_turn: Vec<Vec<usize>> = vec![Vec::new(); turns];
    for (index, guest) in guests.iter().enumerate() {
        guest.positions.iter().for_each(|position| by_turn[*position].push(index));
    }
    let mut order: Vec<usize> = (0..guests.len()).collect();
    order.sort_by_key(|guest| {
        (std::cmp::Reverse(rounded(*guest)), guests[*guest].positions.clone())
    });
    let mut offsets: Vec<Option<u64>> = vec![None; guests.len()];
    let mut bytes = 0;
    for guest in order {
        let mut taken: Vec<(u64, u64)> = neighbours(&guests[guest].positions, turns, depth, around)
            .flat_map(|turn| &by_turn[turn])
            .filter_map(|other| Some((offsets[*other]?, offsets[*other]? + rounded(*other))))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset + rounded(guest) {
                break;
            }
            offset = offset.max(end);
        }
        offsets[guest] = Some(offset);
        bytes = bytes.max(offset + rounded(guest));
    }
    SlotPacking { offsets: offsets.into_iter().map(Option::unwrap_or_default).collect(), bytes }
}

/// The turns at which somebody is in place together with a guest of these positions.
fn neighbours(
    positions: &[usize],
    turns: usize,
    depth: usize,
    around: bool,
) -> impl Iterator<Item = usize> {
    positions.iter().flat_map(move |&position| {
        let reach = depth.min(turns) as isize - 1;
        (-reach..=reach).filter_map(move |distance| {
            let turn = position as isize + distance;
            let inside = (0..turns as isize).contains(&turn);
            (inside || around).then(|| turn.rem_euclid(turns as isize) as usize)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guests(sizes: &[u64]) -> Vec<SlotRequest> {
        let guest = |(position, bytes): (usize, &u64)| SlotRequest {
            bytes: *bytes,
            positions: vec![position],
        };
        sizes.iter().enumerate().map(guest).collect()
    }

    #[test]
    fn equal_units_share_as_many_slots_as_are_deep() {
        for (turns, depth) in [(4, 2), (6, 2), (6, 3), (12, 4), (5, 5), (1, 1), (3, 1)] {
            let seating = pack(&guests(&vec![4096; turns]), turns, depth, true);
            assert_eq!(seating.bytes, depth as u64 * 4096, "{turns} turns, depth {depth}");
        }
        // Three turns of which any two are neighbours need three slots; without the wrap, two.
        assert_eq!(pack(&guests(&[4096; 3]), 3, 2, true).bytes, 3 * 4096);
        assert_eq!(pack(&guests(&[4096; 3]), 3, 2, false).bytes, 2 * 4096);
    }

    proptest! {
        #[test]
        fn nobody_sits_on_a_neighbour(
            sizes in prop::collection::vec(1u64..5000, 1..14),
            depth in 1usize..6,
            around in any::<bool>(),
            shared in prop::option::of((1u64..5000, 0usize..14, 0usize..14)),
        ) {
            let turns = sizes.len();
            let mut guests = guests(&sizes);
            if let Some((bytes, one, other)) = shared {
                guests.push(SlotRequest { bytes, positions: vec![one % turns, other % turns] });
            }
            let seating = pack(&guests, turns, depth, around);
            for (one, first) in guests.iter().enumerate() {
                prop_assert_eq!(seating.offsets[one] % ALIGNMENT, 0);
                prop_assert!(seating.offsets[one] + first.bytes <= seating.bytes);
                for (other, second) in guests.iter().enumerate().skip(one + 1) {
                    let together = first.positions.iter().any(|a| second.positions.iter().any(|b| {
                        let apart = a.abs_diff(*b);
                        apart < depth || (around && turns - apart < depth)
                    }));
                    let apart = seating.offsets[one] + first.bytes <= seating.offsets[other]
                        || seating.offsets[other] + second.bytes <= seating.offsets[one];
                    prop_assert!(!together || apart, "{} and {} of {:?}", one, other, seating);
                }
            }
        }
    }
}
