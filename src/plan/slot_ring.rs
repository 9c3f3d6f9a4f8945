//! The slots of all units: a ring for prefetched units, as deep as fits, and behind it the slots of
//! on-demand units.

use crate::plan::parameter::TransferMode;
use crate::plan::slot_packing::{SlotPacking, SlotRequest, pack};

/// Deeper rings have never been faster: the link is busy before that.
const MOST_DEPTH: usize = 8;

/// What the slot of a unit depends on.
#[derive(Debug, Clone, Copy)]
pub struct UnitSize<'a> {
    /// How it is transferred.
    pub transfer_mode: TransferMode,
    /// Number of bytes.
    pub bytes: u64,
    /// The groups that use it.
    pub groups: &'a [usize],
}

/// The slots of all units.
#[derive(Debug, Clone, Default)]
pub struct SlotRing {
    /// The offset of each unit's slot; `None` for zero-copy units.
    pub offsets: Vec<Option<u64>>,
    /// Groups with prefetched units, ascending: the order of a step.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at the same time.
    pub depth: usize,
    /// Whether the first groups of a step wait for the last ones of the step before.
    pub wrap_stalls: bool,
    /// Bytes of the slots of prefetched units.
    pub ring_bytes: u64,
    /// Bytes of all slots.
    pub slot_bytes: u64,
}

/// The slots of prefetched units.
struct PackedRing {
    depth: usize,
    wraps: bool,
    packing: SlotPacking,
}

impl SlotRing {
    /// Makes the ring as deep as `depth` (0 to choose) and `limit` bytes allow. If they do not
    /// allow even one group at a time, `ring_bytes` is over the limit.
    pub fn new(units: &[UnitSize<'_>], depth: usize, limit: Option<u64>) -> Self {
        let mut slots = Self { offsets: vec![None; units.len()], depth: 1, ..Self::default() };
        let prefetched = with_mode(units, TransferMode::Prefetch);
        if !prefetched.is_empty() {
            let (ring, requests) = requests(units, &prefetched);
            let packed = deepest(&requests, ring.len(), depth, limit);
            for (at, offset) in prefetched.iter().zip(&packed.packing.offsets) {
                slots.offsets[*at] = Some(*offset);
            }
            slots.ring = ring;
            slots.depth = packed.depth;
            slots.wrap_stalls = !packed.wraps;
            slots.ring_bytes = packed.packing.bytes;
        }
        let on_demand = with_mode(units, TransferMode::OnDemand);
        let (groups, requests) = requests(units, &on_demand);
        let packing = pack(&requests, groups.len(), 1, false);
        for (at, offset) in on_demand.iter().zip(&packing.offsets) {
            slots.offsets[*at] = Some(slots.ring_bytes + offset);
        }
        slots.slot_bytes = slots.ring_bytes + packing.bytes;
        slots
    }
}

fn with_mode(units: &[UnitSize<'_>], transfer_mode: TransferMode) -> Vec<usize> {
    (0..units.len()).filter(|at| units[*at].transfer_mode == transfer_mode).collect()
}

/// The groups that use some of the units, ascending, and a request for each of those units, whose
/// positions count these groups.
fn requests(units: &[UnitSize<'_>], some: &[usize]) -> (Vec<usize>, Vec<SlotRequest>) {
    let mut groups: Vec<usize> =
        some.iter().flat_map(|at| units[*at].groups.iter().copied()).collect();
    groups.sort_unstable();
    groups.dedup();
    let position = |group: &usize| groups.partition_point(|other| other < group);
    let request = |at: &usize| SlotRequest {
        bytes: units[*at].bytes,
        positions: units[*at].groups.iter().map(position).collect(),
    };
    let requests = some.iter().map(request).collect();
    (groups, requests)
}

/// The deepest ring within the limit; the shallowest one if none is.
fn deepest(
    requests: &[SlotRequest],
    ring_len: usize,
    asked: usize,
    limit: Option<u64>,
) -> PackedRing {
    let packed = |depth: usize, wraps: bool| PackedRing {
        depth,
        wraps,
        packing: pack(requests, ring_len, depth, wraps),
    };
    let limit = match (limit, asked) {
        (Some(limit), _) => limit,
        // Neither is given: the bytes that two groups at a time need.
        (None, 0) => packed(2.min(ring_len), true).packing.bytes,
        (None, _) => u64::MAX,
    };
    let most = if asked == 0 { MOST_DEPTH } else { asked }.clamp(1, ring_len);
    let wrapping = (2..=most).rev().map(|depth| (depth, true));
    let stalling = (most >= 2).then_some((2, false));
    wrapping
        .chain(stalling)
        .map(|(depth, wraps)| packed(depth, wraps))
        .find(|ring| ring.packing.bytes <= limit)
        .unwrap_or_else(|| packed(1, true))
}
