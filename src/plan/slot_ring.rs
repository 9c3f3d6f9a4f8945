//! The slots of all units: a ring for what is copied ahead, as deep as it fits, and behind it a place
//! for what is copied on demand.

use crate::plan::parameter::TransferMode;
use crate::plan::slot_packing::{SlotPacking, SlotRequest, pack};

/// More groups ahead than this never helped: the link is busy long before.
const MOST_DEPTH: usize = 8;

/// What is to be known of a unit.
#[derive(Debug, Clone, Copy)]
pub struct UnitSize<'a> {
    /// How it is transferred.
    pub transfer_mode: TransferMode,
    /// Its bytes.
    pub bytes: u64,
    /// The groups that use it.
    pub groups: &'a [usize],
}

/// Where every unit goes.
#[derive(Debug, Clone, Default)]
pub struct SlotRing {
    /// One for each unit; `None` for what is read in place.
    pub offsets: Vec<Option<u64>>,
    /// The groups that are copied ahead, ascending.
    pub ring: Vec<usize>,
    /// How many of them have their slots at a time.
    pub depth: usize,
    /// The first groups of a step wait for the last ones of the step before.
    pub wrap_stalls: bool,
    /// Bytes for what is copied ahead.
    pub ring_bytes: u64,
    /// Bytes in all.
    pub slot_bytes: u64,
}

/// How the ring's units are seated.
struct Seated {
    depth: usize,
    around: bool,
    seating: SlotPacking,
}

impl SlotRing {
    /// SlotRing the units: the ring as deep as asked for (0: as serves) and as `limit` bytes allow, one
    /// group at a time where they allow no more, however many bytes that takes.
    pub fn new(units: &[UnitSize<'_>], depth: usize, limit: Option<u64>) -> Self {
        let mut seats = Self { offsets: vec![None; units.len()], depth: 1, ..Self::default() };
        let ahead = of_carrier(units, TransferMode::Prefetch);
        if !ahead.is_empty() {
            let (ring, guests) = guests(units, &ahead);
            let seated = deepest(&guests, ring.len(), depth, limit);
            for (at, offset) in ahead.iter().zip(&seated.seating.offsets) {
                seats.offsets[*at] = Some(*offset);
            }
            seats.ring = ring;
            seats.depth = seated.depth;
            seats.wrap_stalls = !seated.around;
            seats.ring_bytes = seated.seating.bytes;
        }
        let on_demand = of_carrier(units, TransferMode::OnDemand);
        let (groups, guests) = guests(units, &on_demand);
        let seating = pack(&guests, groups.len(), 1, false);
        for (at, offset) in on_demand.iter().zip(&seating.offsets) {
            seats.offsets[*at] = Some(seats.ring_bytes + offset);
        }
        seats.slot_bytes = seats.ring_bytes + seating.bytes;
        seats
    }
}

fn of_carrier(units: &[UnitSize<'_>], transfer_mode: TransferMode) -> Vec<usize> {
    (0..units.len()).filter(|at| units[*at].transfer_mode == transfer_mode).collect()
}

/// The groups that use some of the units, ascending, and those as guests with turns among the groups.
fn guests(units: &[UnitSize<'_>], some: &[usize]) -> (Vec<usize>, Vec<SlotRequest>) {
    let mut groups: Vec<usize> =
        some.iter().flat_map(|at| units[*at].groups.iter().copied()).collect();
    groups.sort_unstable();
    groups.dedup();
    let turn = |group: &usize| groups.partition_point(|other| other < group);
    let guest = |at: &usize| SlotRequest {
        bytes: units[*at].bytes,
        positions: units[*at].groups.iter().map(turn).collect(),
    };
    let guests = some.iter().map(guest).collect();
    (groups, guests)
}

/// The deepest seating that fits; the shallowest there is where none does.
fn deepest(guests: &[SlotRequest], turns: usize, asked: usize, limit: Option<u64>) -> Seated {
    let seated = |depth: usize, around: bool| Seated {
        depth,
        around,
        seating: pack(guests, turns, depth, around),
    };
    let limit = match (limit, asked) {
        (Some(limit), _) => limit,
        // Unlimited, as deep as asked for; without a wish, what two groups at a time need.
        (None, 0) => seated(2.min(turns), true).seating.bytes,
        (None, _) => u64::MAX,
    };
    let most = if asked == 0 { MOST_DEPTH } else { asked }.clamp(1, turns);
    for depth in (2..=most).rev() {
        let seated = seated(depth, true);
        if seated.seating.bytes <= limit {
            return seated;
        }
    }
    if most >= 2 {
        let seated = seated(2, false);
        if seated.seating.bytes <= limit {
            return seated;
        }
    }
    seated(1, true)
}
