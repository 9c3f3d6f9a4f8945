//! Which units are on the device under a budget that changes.

use crate::error::{Result, fail};
use crate::plan::heat::by_heat;
use crate::status::WB_ERR_BUDGET;

/// A unit, or a piece of one, that can be on the device or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Movable {
    /// Bytes that it takes there.
    pub bytes: u64,
    /// Whether it has a slot, to which it is copied while it is not resident; otherwise the device
    /// would read it in place.
    pub has_slot: bool,
    /// Of a piece: bytes that a step reads of it.
    pub heat: Option<f64>,
    /// Whether it is to be on the device now.
    pub resident: bool,
}

impl Movable {
    /// Whether a step reads most of a piece.
    fn is_hot(&self) -> bool {
        self.heat.is_some_and(|heat| 2.0 * heat >= self.bytes as f64)
    }
}

/// What expert caches claim of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheClaim {
    /// Bytes that were asked for; 0 for what all units leave.
    pub asked_bytes: u64,
    /// Bytes of slots for every captured call.
    pub least_bytes: u64,
}

/// The part of a budget that caches get: as the planner gives it, but never less than graphs need. Units
/// leave for that. Fails if it does not fit beside the slots.
pub fn bytes_for_caches(
    units: &[Movable],
    held_bytes: u64,
    device_bytes: u64,
    claim: CacheClaim,
) -> Result<u64> {
    let CacheClaim { asked_bytes, least_bytes } = claim;
    let beside = device_bytes.saturating_sub(held_bytes);
    if beside < least_bytes {
        fail!(
            WB_ERR_BUDGET,
            "asked to resize to {device_bytes} bytes of device memory; the slots of units need {held_bytes}, and \
             those of expert caches {least_bytes} for calls that graphs have captured: ask for as much, say \
             that graphs are dropped, or ask for 0 to put the offloader to sleep"
        );
    }
    let all: u64 = units.iter().map(|unit| unit.bytes).sum();
    let wanted = match asked_bytes {
        0 => beside.saturating_sub(all),
        asked => asked.min(beside),
    };
    Ok(wanted.max(least_bytes))
}

/// Chooses which units are resident beside `least_bytes` of slots and windows in `device_bytes`. Those without a
/// slot come first, since kernels are slower in place; of either kind those that leave are spread
/// evenly, so that copies overlap. Pieces that steps read come between them, the hottest first, and other
/// pieces last. Fails if the slots do not fit.
pub fn choose(units: &[Movable], least_bytes: u64, device_bytes: u64) -> Result<Vec<bool>> {
    let Some(mut left) = device_bytes.checked_sub(least_bytes) else {
        fail!(
            WB_ERR_BUDGET,
            "asked to resize to {device_bytes} bytes of device memory; the slots need {least_bytes}: ask for \
             as much, or for 0 to put the offloader to sleep"
        )
    };
    let mut resident = vec![false; units.len()];
    for at in order(units) {
        if units[at].bytes <= left {
            left -= units[at].bytes;
            resident[at] = true;
        }
    }
    Ok(resident)
}

/// The same with at most `offload_bytes` of units that are not resident.
pub fn choose_offloaded(units: &[Movable], offload_bytes: u64) -> Vec<bool> {
    let (mut left, mut resident) = (offload_bytes, vec![true; units.len()]);
    for at in order(units).into_iter().rev() {
        if units[at].bytes <= left {
            left -= units[at].bytes;
            resident[at] = false;
        }
    }
    resident
}

/// The device memory of the resident units.
pub fn resident_bytes(units: &[Movable], resident: &[bool]) -> u64 {
    units.iter().zip(resident).filter(|(_, resident)| **resident).map(|(unit, _)| unit.bytes).sum()
}

/// The order in which units are kept.
fn order(units: &[Movable]) -> Vec<usize> {
    let mut all = Vec::with_capacity(units.len());
    let pieces = pieces(units);
    let (hot, cold): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|at| units[*at].is_hot());
    for (has_slot, pieces) in [(false, hot), (true, cold)] {
        let is_kind = |unit: &Movable| unit.heat.is_none() && unit.has_slot == has_slot;
        let kind: Vec<usize> = (0..units.len()).filter(|at| is_kind(&units[*at])).collect();
        let bits = usize::BITS - kind.len().leading_zeros();
        let spread = |position: usize| position.reverse_bits() >> (usize::BITS - bits.max(1));
        let spread = (0..1 << bits).map(spread).filter(|position| *position < kind.len());
        all.extend(spread.map(|position| kind[position]));
        all.extend(pieces);
    }
    all
}

/// The pieces among the units, the hottest first.
fn pieces(units: &[Movable]) -> Vec<usize> {
    let pieces: Vec<usize> = (0..units.len()).filter(|at| units[*at].heat.is_some()).collect();
    let heats: Vec<f64> = pieces.iter().filter_map(|at| units[*at].heat).collect();
    let now: Vec<bool> = pieces.iter().map(|at| units[*at].resident).collect();
    by_heat(&heats, &now).into_iter().map(|position| pieces[position]).collect()
}

/// Pieces that would change places, if as many as now are resident and those are the hottest: those
/// that leave, the coldest first, and as many that come, the hottest first.
pub fn exchanges(units: &[Movable]) -> Vec<(usize, usize)> {
    let pieces = pieces(units);
    let count = pieces.iter().filter(|at| units[**at].resident).count();
    let come = pieces[..count].iter().filter(|at| !units[**at].resident);
    let leave = pieces[count..].iter().rev().filter(|at| units[**at].resident);
    leave.copied().zip(come.copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(slots: usize, others: usize) -> Vec<Movable> {
        let one = |has_slot| Movable { bytes: 10, has_slot, heat: None, resident: false };
        let slots = (0..slots).map(|_| one(true));
        slots.chain((0..others).map(|_| one(false))).collect()
    }

    #[test]
    fn units_without_slots_stay_longest_and_others_leave_evenly() {
        let units = units(8, 2);
        let at = |bytes| choose(&units, 20, bytes).unwrap();
        assert_eq!(at(20), [false; 10]);
        assert_eq!(at(120), [true; 10]);
        assert_eq!(at(119).iter().filter(|one| **one).count(), 9, "never a byte too many");
        assert_eq!(at(40), [[false; 8].as_slice(), &[true; 2]].concat());
        let half: Vec<_> = at(80)[..8].to_vec();
        assert_eq!(half, [true, false, true, false, true, false, true, false]);
        assert_eq!(choose(&units, 20, 19).unwrap_err().status, WB_ERR_BUDGET);
        let left = |bytes| choose_offloaded(&units, bytes);
        assert_eq!(left(9), [true; 10]);
        assert_eq!(left(u64::MAX), [false; 10]);
        assert_eq!(left(40), at(80), "the same four leave");
        assert_eq!(resident_bytes(&units, &left(40)), 60);
    }

    fn piece(heat: f64, resident: bool) -> Movable {
        Movable { bytes: 10, has_slot: false, heat: Some(heat), resident }
    }

    #[test]
    fn hot_pieces_fill_a_budget_before_units_with_slots_and_cold_ones_after() {
        let mut units = units(2, 1);
        units.extend([piece(1.0, false), piece(5.0, false), piece(10.0, false)]);
        let at = |bytes| choose(&units, 0, bytes).unwrap();
        assert_eq!(at(19), [false, false, true, false, false, false]);
        assert_eq!(at(20), [false, false, true, false, false, true]);
        assert_eq!(at(39), [false, false, true, false, true, true]);
        assert_eq!(at(50), [true, true, true, false, true, true]);
        assert_eq!(choose_offloaded(&units, 10), at(50));
    }

    #[test]
    fn only_hotter_pieces_take_the_place_of_others() {
        let (a, b) = ([true, false, true, false, true], [4.0, 4.0, 1.0, 9.0, 3.0]);
        let units: Vec<_> = a.iter().zip(b).map(|(now, heat)| piece(heat, *now)).collect();
        assert_eq!(exchanges(&units), [(2, 3), (4, 1)]);
        let equal: Vec<_> = a.iter().map(|now| piece(2.0, *now)).collect();
        assert_eq!(exchanges(&equal), []);
    }

    #[test]
    fn caches_get_what_was_asked_or_left_and_never_less_than_graphs_need() {
        let units = units(2, 2);
        let caches = |bytes, asked_bytes, least_bytes| {
            let claim = CacheClaim { asked_bytes, least_bytes };
            bytes_for_caches(&units, 20, bytes, claim)
        };
        assert_eq!(caches(75, 0, 5).unwrap(), 15, "what 40 bytes of units and 20 of slots leave");
        assert_eq!(caches(62, 0, 5).unwrap(), 5, "units leave for what graphs need");
        assert_eq!(caches(75, 30, 5).unwrap(), 30);
        assert_eq!(caches(45, 30, 5).unwrap(), 25, "not more than there is");
        assert_eq!(caches(75, 3, 5).unwrap(), 5);
        assert_eq!(caches(25, 0, 5).unwrap(), 5);
        assert_eq!(caches(24, 0, 5).unwrap_err().status, WB_ERR_BUDGET);
    }
}
