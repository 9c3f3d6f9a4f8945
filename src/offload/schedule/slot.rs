//! The state of a unit's slot.

use crate::device::device::Device;
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::offload::schedule::arrangement::CarriedUnit;
use crate::offload::schedule::fence::Fence;
use crate::offload::schedule::last_use::LastUses;
use crate::offload::schedule::unit_copy::UnitCopy;

/// Whether a unit is in its slot, and what orders copies into it.
pub(super) struct SlotState {
    /// `None` for a zero-copy unit, of which only `acquired` and `uses` are used.
    pub copy: Option<UnitCopy>,
    /// Other units whose slots share bytes with this one.
    pub overlaps: Vec<usize>,
    /// Whether the slot holds the unit once the queued copies have run.
    pub loaded: bool,
    /// How often its groups are acquired.
    pub acquired: u32,
    /// Recorded after the copy.
    pub ready: Fence,
    /// Last uses since the copy.
    pub uses: LastUses,
}

impl SlotState {
    /// The states of units that are in no slot yet. With `staging`, host memory is pageable.
    pub fn new_all(
        device: &Device,
        units: &[CarriedUnit],
        staging: Option<&Staging>,
    ) -> Result<Vec<Self>> {
        let states = units.iter().zip(overlaps(units)).map(|(unit, overlaps)| {
            Ok(Self {
                copy: unit.slot.map(|slot| UnitCopy::new(unit.host, slot, staging)),
                overlaps,
                loaded: false,
                acquired: 0,
                ready: Fence::new(device)?,
                uses: LastUses::default(),
            })
        });
        states.collect()
    }
}

/// For each unit the others whose slots share bytes with its own, by one sweep over the slots.
fn overlaps(units: &[CarriedUnit]) -> Vec<Vec<usize>> {
    let mut found = vec![Vec::new(); units.len()];
    let slot = |unit: usize| units[unit].slot.map_or((0, 0), |slot| (slot.start(), slot.end()));
    let mut order: Vec<usize> =
        (0..units.len()).filter(|unit| units[*unit].slot.is_some()).collect();
    order.sort_by_key(|unit| slot(*unit));
    let mut open: Vec<usize> = Vec::new();
    for unit in order {
        let (start, end) = slot(unit);
        open.retain(|other| slot(*other).1 > start);
        if start < end {
            for &other in &open {
                found[unit].push(other);
                found[other].push(unit);
            }
            open.push(unit);
        }
    }
    found
}
