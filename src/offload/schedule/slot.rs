//! The state of a unit's slot.

use crate::device::device::Device;
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::offload::intervals::Intervals;
use crate::offload::schedule::arrangement::CarriedUnit;
use crate::offload::schedule::fence::{Capture, Fence};
use crate::offload::schedule::last_use::LastUses;
use crate::offload::schedule::steps::Loaded;
use crate::offload::schedule::unit_copy::UnitCopy;

/// Whether a unit is in its slot, and what orders copies into it.
pub(super) struct SlotState {
    /// `None` for a zero-copy unit, of which only `acquired` and `uses` are used.
    pub copy: Option<UnitCopy>,
    /// When the copy was queued after which the slot holds the unit.
    pub loaded: Loaded,
    /// How often its groups are acquired: outside of captures, and in them.
    acquired: [u32; 2],
    /// Recorded after the copy.
    pub ready: Fence,
    /// Last uses since the copy.
    pub uses: LastUses,
    /// Whether `ready` or `uses` were recorded since the host last waited for all.
    pub unsettled: bool,
}

impl SlotState {
    /// The states of units that are in no slot yet. With `staging`, host memory is pageable.
    pub fn new_all(
        device: &Device,
        units: &[CarriedUnit],
        staging: Option<&Staging>,
    ) -> Result<Vec<Self>> {
        let states = units.iter().map(|unit| {
            Ok(Self {
                copy: unit.slot.map(|slot| UnitCopy::new(unit.host, slot, staging)),
                loaded: Loaded::default(),
                acquired: [0; 2],
                ready: Fence::new(device)?,
                uses: LastUses::default(),
                unsettled: false,
            })
        });
        states.collect()
    }

    /// Whether one of the unit's groups is acquired.
    pub fn is_acquired(&self) -> bool {
        self.acquired != [0; 2]
    }

    /// How often the unit's groups are acquired, by eager calls or by captured ones.
    pub fn acquired(&self, capture: Capture) -> u32 {
        self.acquired[usize::from(capture.is_some())]
    }

    /// Counts acquires of the unit's groups.
    pub fn count_acquired(&mut self, capture: Capture, change: i32) {
        let count = &mut self.acquired[usize::from(capture.is_some())];
        *count = count.strict_add_signed(change);
    }

    /// Whether its copy and its uses have ended, outside of captures.
    pub fn is_complete(&self) -> Result<bool> {
        for fence in self.uses.fences().chain([&self.ready]) {
            if !fence.is_complete()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Which units share bytes of slots, in memory of an entry for each, however many share them.
#[derive(Default)]
pub(super) struct SlotMap {
    /// The slots, by unit.
    slots: Vec<Option<(u64, u64)>>,
    /// All units.
    all: Intervals,
    /// Those that a copy into the same bytes has to see: that are loaded or acquired, or that have
    /// a copy or a use which neither has ended nor precedes a later copy into all of their bytes.
    busy: Intervals,
    /// Whether each is among the busy ones.
    is_busy: Vec<bool>,
}

impl SlotMap {
    pub fn new(units: &[CarriedUnit]) -> Self {
        let range =
            |unit: &CarriedUnit| unit.slot.map(|slot| (slot.start() as u64, slot.end() as u64));
        let slots: Vec<_> = units.iter().map(range).collect();
        let mut all = Intervals::default();
        for (unit, slot) in slots.iter().enumerate() {
            slot.iter().for_each(|slot| all.insert(*slot, unit));
        }
        Self { is_busy: vec![false; slots.len()], slots, all, busy: Intervals::default() }
    }

    /// The other units whose slots share bytes with that of a unit, and that may be busy when a
    /// copy runs that is queued now: a captured one runs at any time, so these are all.
    pub fn sharing(&self, unit: usize, capture: Capture) -> Vec<usize> {
        let among = if capture.is_some() { &self.all } else { &self.busy };
        let Some(slot) = self.slots[unit] else { return Vec::new() };
        let mut found = among.overlapping(slot);
        found.retain(|other| *other != unit);
        found
    }

    /// Whether all bytes of a unit's slot are in that of another.
    pub fn is_within(&self, unit: usize, other: usize) -> bool {
        let pair = self.slots[unit].zip(self.slots[other]);
        pair.is_some_and(|((start, end), (from, to))| from <= start && end <= to)
    }

    /// Notes whether a unit is busy.
    pub fn set_busy(&mut self, unit: usize, busy: bool) {
        let Some(slot) = self.slots[unit] else { return };
        if std::mem::replace(&mut self.is_busy[unit], busy) == busy {
            return;
        }
        match busy {
            true => self.busy.insert(slot, unit),
            false => self.busy.remove(slot, unit),
        }
    }
}
