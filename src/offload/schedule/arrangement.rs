//! The input of a schedule: units, groups and the ring.

use crate::os::span::Span;

/// Host memory that is copied as one into its slot.
#[derive(Debug, Clone)]
pub struct CarriedUnit {
    /// Its bytes in host memory.
    pub host: Span,
    /// Its slot, of as many bytes; `None` for a zero-copy unit.
    pub slot: Option<Span>,
    /// Whether it is copied before its group is acquired; otherwise it is copied on demand.
    pub prefetched: bool,
    /// The groups that use it.
    pub groups: Vec<usize>,
}

/// All that a schedule works on.
#[derive(Debug, Clone, Default)]
pub struct Arrangement {
    /// All units.
    pub units: Vec<CarriedUnit>,
    /// Names of the groups, for messages.
    pub groups: Vec<String>,
    /// Groups with prefetched units, in the order of a step.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at the same time.
    pub depth: usize,
}
