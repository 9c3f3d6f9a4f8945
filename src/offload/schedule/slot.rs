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
    /// Whether memory of its own is behind the unit's address, and it needs no copy.
    pub resident: bool,
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
    /// The state of no unit yet.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            copy: None,
            resident: false,
            loaded: Loaded::default(),
            acquired: [0; 2],
            ready: Fence::new(device)?,
            uses: LastUses::default(),
            unsettled: false,
        })
    }

    /// Makes it the state of a unit that is in no slot yet. With `staging`, host memory is pageable.
    /// Its events are used again, so nothing that it was the state of may be in flight.
    pub fn assign(&mut self, unit: &CarriedUnit, staging: Option<&Staging>) {
        let target = unit.slot.map(|slot| unit.target.unwrap_or(slot));
        self.copy = target.map(|target| UnitCopy::new(unit, target, staging));
        self.resident = false;
        self.loaded = Loaded::default();
        self.acquired = [0; 2];
        self.ready.clear();
        self.uses.clear(None);
        self.unsettled = false;
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
    /// Whether each has no slot for the time being.
    is_out: Vec<bool>,
}

impl SlotMap {
    pub fn new(units: &[CarriedUnit]) -> Self {
        let mut map = Self::default();
        units.iter().enumerate().for_each(|(at, unit)| map.set_slot(at, unit));
        map
    }

    /// Takes the slot of a unit, which is not busy: of a known one, or of one more.
    pub fn set_slot(&mut self, unit: usize, carried: &CarriedUnit) {
        if unit == self.slots.len() {
            self.slots.push(None);
            self.is_busy.push(false);
            self.is_out.push(false);
        }
        self.set_busy(unit, false);
        if let Some(before) = self.slots[unit].filter(|_| !self.is_out[unit]) {
            self.all.remove(before, unit);
        }
        let slot = carried.slot.map(|slot| (slot.start() as u64, slot.end() as u64));
        slot.iter().for_each(|slot| self.all.insert(*slot, unit));
        (self.slots[unit], self.is_out[unit]) = (slot, false);
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

    /// Takes a unit out of its slot, which is then for others alone, or gives it the slot again.
    pub fn set_out(&mut self, unit: usize, out: bool) {
        let Some(slot) = self.slots[unit] else { return };
        self.set_busy(unit, false);
        if std::mem::replace(&mut self.is_out[unit], out) == out {
            return;
        }
        match out {
            true => self.all.remove(slot, unit),
            false => self.all.insert(slot, unit),
        }
    }

    /// Notes whether a unit is busy.
    pub fn set_busy(&mut self, unit: usize, busy: bool) {
        let Some(slot) = self.slots[unit].filter(|_| !self.is_out[unit]) else { return };
        if std::mem::replace(&mut self.is_busy[unit], busy) == busy {
            return;
        }
        match busy {
            true => self.busy.insert(slot, unit),
            false => self.busy.remove(slot, unit),
        }
    }
}
