//! Packs units into the slots: each has a fixed offset, which units that are never there at the
//! same time may share.

use std::cmp::Reverse;

use crate::plan::plan::ALIGNMENT;

/// A unit that needs a slot.
#[derive(Debug, Clone)]
pub struct SlotRequest {
    /// Number of bytes.
    pub bytes: u64,
    /// The ring positions of the groups that use it.
    pub positions: Vec<usize>,
}

/// The offsets of the requests, and the bytes of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPacking {
    /// One for each request.
    pub offsets: Vec<u64>,
    /// Number of bytes.
    pub bytes: u64,
}

/// Places the requests so that any `depth` consecutive positions of a ring of `ring_len` have their
/// units in slots at the same time; with `wraps`, positions also follow one another from a step's
/// end to the next one's start.
///
/// First fit, the largest first.
pub fn pack(requests: &[SlotRequest], ring_len: usize, depth: usize, wraps: bool) -> SlotPacking {
    let rounded = |request: usize| requests[request].bytes.next_multiple_of(ALIGNMENT);
    let mut by_position: Vec<Vec<usize>> = vec![Vec::new(); ring_len];
    for (index, request) in requests.iter().enumerate() {
        request.positions.iter().for_each(|position| by_position[*position].push(index));
    }
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|index| (Reverse(rounded(*index)), requests[*index].positions.clone()));
    let mut offsets: Vec<Option<u64>> = vec![None; requests.len()];
    let mut bytes = 0;
    for index in order {
        let mut taken: Vec<(u64, u64)> =
            concurrent(&requests[index].positions, ring_len, depth, wraps)
                .flat_map(|position| &by_position[position])
                .filter_map(|other| Some((offsets[*other]?, offsets[*other]? + rounded(*other))))
                .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset + rounded(index) {
                break;
            }
            offset = offset.max(end);
        }
        offsets[index] = Some(offset);
        bytes = bytes.max(offset + rounded(index));
    }
    SlotPacking { offsets: offsets.into_iter().map(Option::unwrap_or_default).collect(), bytes }
}

/// The positions whose units are in slots at the same time as those of the given positions.
fn concurrent(
    positions: &[usize],
    ring_len: usize,
    depth: usize,
    wraps: bool,
) -> impl Iterator<Item = usize> {
    positions.iter().flat_map(move |&position| {
        let reach = depth.min(ring_len) as isize - 1;
        (-reach..=reach).filter_map(move |distance| {
            let other = position as isize + distance;
            let inside = (0..ring_len as isize).contains(&other);
            (inside || wraps).then(|| other.rem_euclid(ring_len as isize) as usize)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests(sizes: &[u64]) -> Vec<SlotRequest> {
        let request = |(position, bytes): (usize, &u64)| SlotRequest {
            bytes: *bytes,
            positions: vec![position],
        };
        sizes.iter().enumerate().map(request).collect()
    }

    #[test]
    fn equal_units_need_as_many_slots_as_the_depth() {
        for (ring_len, depth) in [(4, 2), (6, 2), (6, 3), (12, 4), (5, 5), (1, 1), (3, 1)] {
            let packing = pack(&requests(&vec![4096; ring_len]), ring_len, depth, true);
            assert_eq!(packing.bytes, depth as u64 * 4096, "{ring_len} positions, depth {depth}");
        }
        // Of three positions in a ring any two are adjacent, so they need three slots; without
        // wrapping, two.
        assert_eq!(pack(&requests(&[4096; 3]), 3, 2, true).bytes, 3 * 4096);
        assert_eq!(pack(&requests(&[4096; 3]), 3, 2, false).bytes, 2 * 4096);
    }

    proptest! {
        #[test]
        fn concurrent_units_never_overlap(
            sizes in prop::collection::vec(1u64..5000, 1..14),
            depth in 1usize..6,
            wraps in any::<bool>(),
            shared in prop::option::of((1u64..5000, 0usize..14, 0usize..14)),
        ) {
            let ring_len = sizes.len();
            let mut requests = requests(&sizes);
            if let Some((bytes, one, other)) = shared {
                requests.push(SlotRequest { bytes, positions: vec![one % ring_len, other % ring_len] });
            }
            let packing = pack(&requests, ring_len, depth, wraps);
            for (one, first) in requests.iter().enumerate() {
                prop_assert_eq!(packing.offsets[one] % ALIGNMENT, 0);
                prop_assert!(packing.offsets[one] + first.bytes <= packing.bytes);
                for (other, second) in requests.iter().enumerate().skip(one + 1) {
                    let concurrent = first.positions.iter().any(|a| second.positions.iter().any(|b| {
                        let apart = a.abs_diff(*b);
                        apart < depth || (wraps && ring_len - apart < depth)
                    }));
                    let disjoint = packing.offsets[one] + first.bytes <= packing.offsets[other]
                        || packing.offsets[other] + second.bytes <= packing.offsets[one];
                    prop_assert!(!concurrent || disjoint, "{} and {} of {:?}", one, other, packing);
                }
            }
        }
    }
}
