//! Packs units into the slots: each has a fixed offset, which units that are never there at the
//! same time may share.

use smallvec::SmallVec;

use crate::plan::order::sorted;
use crate::plan::plan::ALIGNMENT;

/// Neighbours that a request is fitted between, at most. One with more, which only storages that
/// many groups share have, is placed above all of them: the time stays near-linear.
pub const MOST_NEIGHBOURS: usize = 256;

/// A unit that needs a slot.
#[derive(Debug, Clone)]
pub struct SlotRequest {
    /// Number of bytes.
    pub bytes: u64,
    /// The ring positions of the groups that use it, ascending.
    pub positions: SmallVec<[usize; 1]>,
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
    let by_position = ByPosition::new(requests, ring_len);
    let key = |at: usize| (u64::MAX - rounded(at), requests[at].positions[0]);
    let mut order = sorted(requests.len(), key);
    // Requests of one position are in order then.
    if requests.iter().any(|request| request.positions.len() > 1) {
        let keys = |at: &u32| (key(*at as usize).0, &requests[*at as usize].positions);
        order.sort_by(|one, other| keys(one).cmp(&keys(other)));
    }
    const UNPLACED: u64 = u64::MAX;
    let mut offsets = vec![UNPLACED; requests.len()];
    // The highest end of a slot at each position.
    let mut tops = vec![0; ring_len];
    let mut bytes = 0;
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for index in order.into_iter().map(|index| index as usize) {
        let positions = &requests[index].positions;
        let near = || concurrent(positions, ring_len, depth, wraps);
        let others = near().map(|position| by_position.at(position).len()).sum::<usize>();
        let offset = if others > MOST_NEIGHBOURS {
            near().map(|position| tops[position]).max().unwrap_or(0)
        } else {
            taken.clear();
            taken.extend(near().flat_map(|position| by_position.at(position)).filter_map(
                |other| {
                    let start = offsets[*other];
                    (start != UNPLACED).then(|| (start, start + rounded(*other)))
                },
            ));
            taken.sort_unstable();
            first_gap(&taken, 0, rounded(index))
        };
        let end = offset + rounded(index);
        offsets[index] = offset;
        positions.iter().for_each(|position| tops[*position] = tops[*position].max(end));
        bytes = bytes.max(end);
    }
    SlotPacking { offsets, bytes }
}

/// Places the requests of any `depth` consecutive positions, not across the end of a step, side by
/// side: those of a position in the lane that is the position modulo `depth`, and requests of several
/// positions before all lanes. Never more bytes than those requests and the `depth` positions that
/// need most, which first fit may need.
pub fn stack(requests: &[SlotRequest], ring_len: usize, depth: usize) -> SlotPacking {
    let rounded = |request: &SlotRequest| request.bytes.next_multiple_of(ALIGNMENT);
    let mut offsets = vec![0; requests.len()];
    let mut base = 0;
    // Bytes at each position, and of its lane.
    let (mut tops, mut lanes) = (vec![0; ring_len], vec![0; depth]);
    for (request, offset) in requests.iter().zip(&mut offsets) {
        if let &[position] = &*request.positions {
            *offset = tops[position];
            tops[position] += rounded(request);
            lanes[position % depth] = tops[position].max(lanes[position % depth]);
        } else {
            *offset = base;
            base += rounded(request);
        }
    }
    let mut bytes = base;
    for lane in &mut lanes {
        (*lane, bytes) = (bytes, bytes + *lane);
    }
    for (request, offset) in requests.iter().zip(&mut offsets) {
        if let &[position] = &*request.positions {
            *offset += lanes[position % depth];
        }
    }
    SlotPacking { offsets, bytes }
}

/// The requests of each position.
struct ByPosition {
    /// Where those of a position begin in `requests`; one more at the end.
    starts: Vec<usize>,
    requests: Vec<usize>,
}

impl ByPosition {
    fn new(requests: &[SlotRequest], ring_len: usize) -> Self {
        let mut starts = vec![0; ring_len + 2];
        for request in requests {
            request.positions.iter().for_each(|position| starts[*position + 2] += 1);
        }
        for position in 2..starts.len() {
            starts[position] += starts[position - 1];
        }
        let mut all = vec![0; starts[ring_len + 1]];
        for (index, request) in requests.iter().enumerate() {
            for position in &request.positions {
                all[starts[*position + 1]] = index;
                starts[*position + 1] += 1;
            }
        }
        Self { starts, requests: all }
    }

    fn at(&self, position: usize) -> &[usize] {
        &self.requests[self.starts[position]..self.starts[position + 1]]
    }
}

/// The lowest offset from `from` on at which `bytes` bytes overlap none of the ranges, which are
/// ascending.
pub fn first_gap(taken: &[(u64, u64)], from: u64, bytes: u64) -> u64 {
    let mut offset = from;
    for (start, end) in taken {
        if *start >= offset + bytes {
            break;
        }
        offset = offset.max(*end);
    }
    offset
}

/// The positions whose units are in slots at the same time as those of the given positions.
pub fn concurrent(
    positions: &[usize],
    ring_len: usize,
    depth: usize,
    wraps: bool,
) -> impl Iterator<Item = usize> {
    positions.iter().flat_map(move |&position| {
        let ring_len = ring_len as isize;
        let reach = ring_len.min(depth as isize) - 1;
        (-reach..=reach).filter_map(move |distance| match position as isize + distance {
            other if (0..ring_len).contains(&other) => Some(other as usize),
            other if wraps => Some((other - ring_len * other.signum()) as usize),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smallvec::smallvec;

    fn requests(sizes: &[u64]) -> Vec<SlotRequest> {
        let request = |(position, bytes): (usize, &u64)| SlotRequest {
            bytes: *bytes,
            positions: smallvec![position],
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
                requests.push(SlotRequest { bytes, positions: smallvec![one % ring_len, other % ring_len] });
            }
            let first_fit = (pack(&requests, ring_len, depth, wraps), wraps);
            let stacked = (stack(&requests, ring_len, depth), false);
            for (packing, wraps) in [first_fit, stacked] {
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

    /// Requests that share all positions have as many neighbours as there are requests.
    #[test]
    fn requests_of_every_position_are_stacked() {
        let shared = |bytes| SlotRequest { bytes, positions: (0..8).collect() };
        let requests: Vec<_> = (1..=400).map(|at| shared(at * 256)).collect();
        let packing = pack(&requests, 8, 2, true);
        assert_eq!(packing.bytes, requests.iter().map(|request| request.bytes).sum::<u64>());
        let mut ends: Vec<_> =
            requests.iter().zip(&packing.offsets).map(|(one, at)| (*at, at + one.bytes)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ends:?}");
    }
}
