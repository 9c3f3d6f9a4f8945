//! Statistics of a schedule.

/// Copies of a group's units into slots so far, and waits for them. The replays of a graph are not
/// seen by the library and not counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupStats {
    /// Bytes copied.
    pub moved_bytes: u64,
    /// Compressed ones of them.
    pub encoded_bytes: u64,
    /// Bytes that those were decoded to.
    pub decoded_bytes: u64,
    /// Units copied.
    pub copies: u64,
    /// Prefetched units whose copy had not been queued when the group was acquired.
    pub late_copies: u64,
    /// Times that an engine's stream waited for copies.
    pub waits: u64,
    /// Seconds of these waits.
    pub waited_seconds: f64,
    /// Times that it was acquired.
    pub acquires: u64,
}

impl GroupStats {
    /// Of all groups together.
    pub fn sum(groups: &[Self]) -> Self {
        groups.iter().fold(Self::default(), |sum, group| Self {
            moved_bytes: sum.moved_bytes + group.moved_bytes,
            encoded_bytes: sum.encoded_bytes + group.encoded_bytes,
            decoded_bytes: sum.decoded_bytes + group.decoded_bytes,
            copies: sum.copies + group.copies,
            late_copies: sum.late_copies + group.late_copies,
            waits: sum.waits + group.waits,
            waited_seconds: sum.waited_seconds + group.waited_seconds,
            acquires: sum.acquires + group.acquires,
        })
    }
}
