//! Statistics of a schedule.

/// Copies into slots so far. The replays of a graph are not seen by the library and not counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct TransferStats {
    /// Bytes copied.
    pub moved_bytes: u64,
    /// Units copied.
    pub copies: u64,
    /// Prefetched units whose copy had not been queued when their group was acquired.
    pub late_copies: u64,
    /// Seconds that engines' streams have waited for copies.
    pub waited_seconds: f64,
    /// Groups acquired.
    pub acquires: u64,
}
