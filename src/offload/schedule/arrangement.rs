//! What a schedule carries, and what it has carried.

use crate::os::span::Span;

/// A stretch of host memory that moves as one.
#[derive(Debug, Clone)]
pub struct CarriedUnit {
    /// Where it lies.
    pub host: Span,
    /// Where it goes; `None` where the device reads it in place.
    pub slot: Option<Span>,
    /// Copied before it is asked for.
    pub ahead: bool,
    /// Groups that use it.
    pub groups: Vec<usize>,
}

/// What the machine works on.
#[derive(Debug, Clone, Default)]
pub struct Arrangement {
    /// All units.
    pub units: Vec<CarriedUnit>,
    /// Names of the groups, for messages.
    pub groups: Vec<String>,
    /// Groups in the order of a step, those with a unit that is copied ahead.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at a time.
    pub depth: usize,
}

/// What was carried so far. Replays of graphs are not seen by the library and not counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct TransferStats {
    /// Bytes copied into slots.
    pub moved_bytes: u64,
    /// Units copied into slots.
    pub copies: u64,
    /// Prefetched units that were not in their slot when their group was acquired.
    pub late_copies: u64,
    /// Seconds that engines' streams have waited for copies.
    pub waited_seconds: f64,
    /// Groups acquired.
    pub acquires: u64,
}
