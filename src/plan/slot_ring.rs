//! The slots of all units: a ring for prefetched units, as deep as fits, and behind it the slots of
//! on-demand units.

use crate::plan::parameter::TransferMode;
use crate::plan::slot_packing::{SlotPacking, SlotRequest, pack, stack};

/// Deeper rings have never been faster: the link is busy before that.
pub const MOST_DEPTH: usize = 8;

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

/// How many groups are in their slots at a time, and whether that holds from one step to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingShape {
    /// The number of groups; a shorter ring has all of its groups in their slots.
    pub depth: usize,
    /// Whether the last groups of a step are followed by the first ones of the next.
    pub wraps: bool,
}

impl SlotRing {
    /// Makes the ring as deep as `limit` bytes allow if `depth` is 0, otherwise `depth` groups deep.
    /// If the limit does not allow that, `ring_bytes` is over it.
    pub fn new(units: &[UnitSize<'_>], depth: usize, limit: Option<u64>) -> Self {
        Self::build(units, |requests, ring_len| deepest(requests, ring_len, depth, limit))
    }

    /// Makes the ring in a given shape.
    pub fn with_shape(units: &[UnitSize<'_>], shape: RingShape) -> Self {
        Self::build(units, |requests, ring_len| pack_shape(requests, ring_len, shape))
    }

    fn build(
        units: &[UnitSize<'_>],
        pack_ring: impl FnOnce(&[SlotRequest], usize) -> PackedRing,
    ) -> Self {
        let mut slots = Self { offsets: vec![None; units.len()], depth: 1, ..Self::default() };
        let prefetched = with_mode(units, TransferMode::Prefetch);
        if !prefetched.is_empty() {
            let (ring, requests) = requests(units, &prefetched);
            let packed = pack_ring(&requests, ring.len());
            for (at, offset) in prefetched.iter().zip(&packed.packing.offsets) {
                slots.offsets[*at] = Some(*offset);
            }
            slots.ring = ring;
            slots.depth = packed.shape.depth;
            slots.wrap_stalls = !packed.shape.wraps;
            slots.ring_bytes = packed.packing.bytes;
        }
        let on_demand = with_mode(units, TransferMode::OnDemand);
        let (groups, requests) = requests(units, &on_demand);
        let mut packing = pack(&requests, groups.len(), 1, false);
        if requests.iter().any(|request| request.positions.len() > 1) {
            packing = smaller(packing, stack(&requests, groups.len(), 1));
        }
        for (at, offset) in on_demand.iter().zip(&packing.offsets) {
            slots.offsets[*at] = Some(slots.ring_bytes + offset);
        }
        slots.slot_bytes = slots.ring_bytes + packing.bytes;
        slots
    }

    /// The shape of the ring.
    pub fn shape(&self) -> RingShape {
        RingShape { depth: self.depth, wraps: !self.wrap_stalls }
    }

    /// Whether units are copied in every step. With a slot for every group each is copied once.
    pub fn streams(&self) -> bool {
        self.ring.len() > self.depth
    }
}

fn with_mode(units: &[UnitSize<'_>], transfer_mode: TransferMode) -> Vec<usize> {
    (0..units.len()).filter(|at| units[*at].transfer_mode == transfer_mode).collect()
}

/// The groups that use some of the units, ascending, and a request for each of those units, whose
/// positions count these groups.
fn requests(units: &[UnitSize<'_>], some: &[usize]) -> (Vec<usize>, Vec<SlotRequest>) {
    let used = || some.iter().flat_map(|at| units[*at].groups);
    // By group: whether it is used, then the number of those before it.
    let mut positions = vec![0; used().max().map_or(0, |last| last + 1)];
    used().for_each(|group| positions[*group] = 1);
    let groups: Vec<usize> = (0..positions.len()).filter(|at| positions[*at] > 0).collect();
    groups.iter().enumerate().for_each(|(position, group)| positions[*group] = position);
    let request = |at: &usize| SlotRequest {
        bytes: units[*at].bytes,
        positions: units[*at].groups.iter().map(|group| positions[*group]).collect(),
    };
    let requests = some.iter().map(request).collect();
    (groups, requests)
}

/// The slots of prefetched units.
struct PackedRing {
    shape: RingShape,
    packing: SlotPacking,
}

fn pack_shape(requests: &[SlotRequest], ring_len: usize, shape: RingShape) -> PackedRing {
    let shape = RingShape { depth: shape.depth.clamp(1, ring_len), ..shape };
    PackedRing { shape, packing: pack(requests, ring_len, shape.depth, shape.wraps) }
}

/// The shapes that a ring may have, the best first; `asked` is 0 if any will do.
pub fn shapes(asked: usize) -> Vec<RingShape> {
    let wrapping = |depth: usize| RingShape { depth, wraps: true };
    let stalling = |depth: usize| RingShape { depth, wraps: false };
    match asked {
        0 => (2..=MOST_DEPTH).rev().map(wrapping).chain([stalling(2), wrapping(1)]).collect(),
        1 => vec![wrapping(1)],
        _ => vec![wrapping(asked), stalling(asked)],
    }
}

fn smaller(one: SlotPacking, other: SlotPacking) -> SlotPacking {
    if other.bytes < one.bytes { other } else { one }
}

/// The ring of the best shape within the limit; one of the last shape if none is.
fn deepest(
    requests: &[SlotRequest],
    ring_len: usize,
    asked: usize,
    limit: Option<u64>,
) -> PackedRing {
    let limit = match (limit, asked) {
        (Some(limit), _) => limit,
        // Neither is given: the bytes that two groups at a time need.
        (None, 0) => {
            let two = RingShape { depth: 2, wraps: true };
            pack_shape(requests, ring_len, two).packing.bytes
        }
        (None, _) => u64::MAX,
    };
    let mut shapes = shapes(asked);
    // All depths of a short ring are the same.
    shapes.iter_mut().for_each(|shape| shape.depth = shape.depth.min(ring_len));
    shapes.dedup();
    let mut tried = shapes.into_iter().map(|shape| pack_shape(requests, ring_len, shape));
    let mut ring = tried.next().expect("there is a shape");
    while ring.packing.bytes > limit
        && let Some(next) = tried.next()
    {
        ring = next;
    }
    if ring.packing.bytes > limit {
        ring.packing = smaller(ring.packing, stack(requests, ring_len, ring.shape.depth));
    }
    ring
}
