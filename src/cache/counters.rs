//! [`ExpertCounters`]: what a cache has done, counted on the device.

use crate::os::bytes;
use crate::os::span::Span;

/// Counts of a layer, or of all. `wb_experts_counters`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpertCounters {
    /// Experts that calls found in slots: each counts once in a call.
    pub hits: u64,
    /// Experts that calls did not find.
    pub misses: u64,
    /// Experts, of any layer, that had to leave their slots.
    pub evictions: u64,
    /// Bytes gathered.
    pub bytes: u64,
    /// Experts that hints copied into slots.
    pub prefetched: u64,
    /// Experts for which no slot could be taken.
    pub refused: u64,
    /// Ids without an expert in the layer.
    pub ignored: u64,
    /// Calls of route.
    pub calls: u64,
}

impl ExpertCounters {
    /// Reads the counters at the start of a span.
    pub fn read(span: Span) -> Self {
        let number = |index: usize| bytes::read_u64(span.part(8 * index, 8));
        Self {
            hits: number(0),
            misses: number(1),
            evictions: number(2),
            bytes: number(3),
            prefetched: number(4),
            refused: number(5),
            ignored: number(6),
            calls: number(7),
        }
    }

    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            evictions: self.evictions + other.evictions,
            bytes: self.bytes + other.bytes,
            prefetched: self.prefetched + other.prefetched,
            refused: self.refused + other.refused,
            ignored: self.ignored + other.ignored,
            calls: self.calls + other.calls,
        }
    }
}
