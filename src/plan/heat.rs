//! How often the bytes of a unit in pieces are read, and so which of its pieces are hot.

use std::collections::BTreeMap;

/// The reads of a unit's bytes, and their sum in each of its pieces.
#[derive(Debug, Clone)]
pub struct Heat {
    piece_bytes: u64,
    /// Ranges without overlap by their starts: the end of each, and how often a step reads its bytes.
    ranges: BTreeMap<u64, (u64, f64)>,
    /// Bytes that a step reads of each piece.
    pieces: Vec<f64>,
}

impl Heat {
    /// Nothing is read of `bytes` bytes in pieces of `piece_bytes`.
    pub fn new(bytes: u64, piece_bytes: u64) -> Self {
        let pieces = vec![0.0; bytes.div_ceil(piece_bytes) as usize];
        Self { piece_bytes, ranges: BTreeMap::new(), pieces }
    }

    /// Sets how often a step reads the bytes of a range, instead of what was set before. Returns the
    /// pieces of which it has bytes.
    pub fn set(&mut self, start: u64, end: u64, reads: f64) -> std::ops::Range<usize> {
        let pieces = (start / self.piece_bytes) as usize..end.div_ceil(self.piece_bytes) as usize;
        self.cut(start);
        self.cut(end);
        let within: Vec<u64> = self.ranges.range(start..end).map(|(at, _)| *at).collect();
        within.iter().for_each(|at| {
            self.ranges.remove(at);
        });
        if start < end {
            self.ranges.insert(start, (end, reads));
        }
        for piece in pieces.clone() {
            self.pieces[piece] = self.sum_of(piece as u64);
        }
        pieces
    }

    /// Bytes that a step reads of each piece.
    pub fn pieces(&self) -> &[f64] {
        &self.pieces
    }

    /// Divides the range that has bytes on both sides of `at`.
    fn cut(&mut self, at: u64) {
        let Some((_, (end, reads))) = self.ranges.range_mut(..at).next_back() else { return };
        if *end > at {
            let rest = (std::mem::replace(end, at), *reads);
            self.ranges.insert(at, rest);
        }
    }

    fn sum_of(&self, piece: u64) -> f64 {
        let (from, to) = (piece * self.piece_bytes, (piece + 1) * self.piece_bytes);
        let before = self.ranges.range(..from).next_back();
        let here = before.into_iter().chain(self.ranges.range(from..to));
        here.map(|(start, (end, reads))| {
            (*end).min(to).saturating_sub((*start).max(from)) as f64 * reads
        })
        .sum()
    }
}

/// The `count` hottest pieces, in the order of [`by_heat`].
pub fn hottest(heats: &[f64], now: &[bool], count: usize) -> Vec<bool> {
    let mut chosen = vec![false; heats.len()];
    by_heat(heats, now).into_iter().take(count).for_each(|at| chosen[at] = true);
    chosen
}

/// Pieces, the hottest first. Of those that are as hot as one another, pieces that are on the device now come
/// first, and others are spread evenly, so that reads of the device and of the host overlap.
pub fn by_heat(heats: &[f64], now: &[bool]) -> Vec<usize> {
    let bits = usize::BITS - heats.len().leading_zeros();
    let spread = |at: usize| at.reverse_bits() >> (usize::BITS - bits.max(1));
    let mut order: Vec<usize> = (0..heats.len()).collect();
    order.sort_by(|a, b| {
        let by_heat = heats[*b].total_cmp(&heats[*a]);
        by_heat.then(now[*b].cmp(&now[*a])).then(spread(*a).cmp(&spread(*b)))
    });
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECE: u64 = 16;

    proptest! {
        /// Each byte has the reads that were set last, and a piece the sum of its bytes.
        #[test]
        fn a_piece_is_as_hot_as_its_bytes(
            calls in prop::collection::vec((0..100u64, 0..100u64, 0..9u8), 0..30),
        ) {
            let (mut heat, mut bytes) = (Heat::new(100, PIECE), [0.0; 112]);
            for (one, other, reads) in calls {
                let (start, end, reads) = (one.min(other), one.max(other), f64::from(reads));
                heat.set(start, end, reads);
                bytes[start as usize..end as usize].fill(reads);
            }
            let sums: Vec<f64> =
                bytes.chunks(PIECE as usize).map(|piece| piece.iter().sum()).collect();
            prop_assert_eq!(heat.pieces(), &sums);
        }
    }

    #[test]
    fn the_hottest_pieces_are_chosen_and_equal_ones_stay() {
        let now = [false, false, true, false, true];
        assert_eq!(hottest(&[1.0, 2.0, 0.0, 1.0, 1.0], &now, 2), [false, true, false, false, true]);
        assert_eq!(hottest(&[0.0; 5], &now, 2), now);
        assert_eq!(hottest(&[0.0; 5], &[false; 5], 2), [true, false, false, false, true]);
    }
}
