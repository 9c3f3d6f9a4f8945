//! The state of all slots and what every call does to it.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::{Result, fail};
use crate::memory::staging::Staging;
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit, TransferStats};
use crate::offload::schedule::fence::{Capture, Fence};
use crate::offload::schedule::last_use::LastUses;
use crate::offload::schedule::unit_copy::UnitCopy;
use crate::offload::schedule::wait_timer::WaitTimer;
use crate::os::log;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT};

/// A stream for copies.
pub(super) struct CopyStream {
    pub(super) stream: OwnedStream,
    /// The capture that it was last drawn into.
    capture: Capture,
    end: Fence,
}

const AHEAD: usize = 0;
const DEMAND: usize = 1;

pub(super) struct SlotUnit {
    moving: CarriedUnit,
    transfer: Option<UnitCopy>,
    /// Units whose slots share bytes with this one's.
    overlaps: Vec<usize>,
    pub(super) loaded: bool,
    held: u32,
    ready: Fence,
    /// Since it was loaded.
    uses: LastUses,
}

struct SlotGroup {
    name: String,
    units: Vec<usize>,
    position: Option<usize>,
    held: u32,
    /// Of a group without units, whose weights are all resident.
    uses: LastUses,
}

/// All of it, behind one lock.
pub(super) struct Machine {
    pub(super) lanes: Vec<CopyStream>,
    pub(super) units: Vec<SlotUnit>,
    groups: Vec<SlotGroup>,
    /// The units are where the arrangement says.
    pub(super) seated: bool,
    ring: Vec<usize>,
    depth: usize,
    fork: Fence,
    capture: Capture,
    /// What was in its slot when the capture began.
    loaded_before: Vec<bool>,
    /// A graph exists that may run at any time.
    captured: bool,
    carried: TransferStats,
    waits: WaitTimer,
    staging: Option<Staging>,
    /// The last copy through the staging buffer.
    staged: Fence,
}

impl Machine {
    /// A machine with nothing to carry. With `staging`, host memory is pageable.
    pub(super) fn new(device: &Arc<Device>, staging: Option<Staging>) -> Result<Self> {
        // One stream where the staging buffer is shared: it orders its uses.
        let lanes = if staging.is_some() { 1 } else { 2 };
        let lanes = (0..lanes).map(|_| {
            let stream = OwnedStream::new(device)?;
            Ok(CopyStream { stream, capture: None, end: Fence::new(device)? })
        });
        Ok(Self {
            lanes: lanes.collect::<Result<_>>()?,
            units: Vec::new(),
            groups: Vec::new(),
            seated: false,
            ring: Vec::new(),
            depth: 1,
            fork: Fence::new(device)?,
            capture: None,
            loaded_before: Vec::new(),
            captured: false,
            carried: TransferStats::default(),
            waits: WaitTimer::default(),
            staging,
            staged: Fence::new(device)?,
        })
    }

    pub(super) fn lay_out(&mut self, device: &Device, arrangement: &Arrangement) -> Result<()> {
        let mut units = Vec::with_capacity(arrangement.units.len());
        for (moving, overlaps) in arrangement.units.iter().zip(overlaps(&arrangement.units)) {
            units.push(SlotUnit {
                transfer: moving
                    .slot
                    .map(|slot| UnitCopy::new(moving.host, slot, self.staging.as_ref())),
                overlaps,
                moving: moving.clone(),
                loaded: false,
                held: 0,
                ready: Fence::new(device)?,
                uses: LastUses::default(),
            });
        }
        let mut groups: Vec<_> =
            arrangement.groups.iter().map(|name| SlotGroup::new(name)).collect();
        for (index, unit) in units.iter().enumerate() {
            unit.moving.groups.iter().for_each(|group| groups[*group].units.push(index));
        }
        for (position, group) in arrangement.ring.iter().enumerate() {
            groups[*group].position = Some(position);
        }
        self.groups = groups;
        self.units = units;
        self.ring = arrangement.ring.clone();
        self.depth = arrangement.depth.max(1);
        self.loaded_before.clear();
        self.seated = true;
        Ok(())
    }

    /// The unit's host memory was written. What is in its slot is old, and a graph may be about to read
    /// it: it is copied again at once.
    pub(super) fn touch(&mut self, device: &Device, unit: usize, stream: Stream) -> Result<()> {
        if std::mem::take(&mut self.units[unit].loaded) && self.units[unit].moving.ahead {
            self.load(device, unit, AHEAD, stream, None)?;
        }
        Ok(())
    }

    /// `WB_ERR_BUSY` while the group is held.
    pub(super) fn check_free(&self, group: usize) -> Result<()> {
        let group = &self.groups[group];
        if group.held > 0 {
            fail!(
                WB_ERR_BUSY,
                "asked to change group {:?}, which is acquired {} times: release it first",
                group.name,
                group.held
            );
        }
        Ok(())
    }

    /// `WB_ERR_BUSY` while any group is held.
    pub(super) fn check_all_free(&self) -> Result<()> {
        (0..self.groups.len()).try_for_each(|group| self.check_free(group))
    }

    pub(super) fn carried(&mut self) -> Result<TransferStats> {
        Ok(TransferStats { waited_seconds: self.waits.seconds()?, ..self.carried })
    }

    pub(super) fn staging_bytes(&self) -> u64 {
        self.staging.as_ref().map_or(0, |staging| staging.span().bytes() as u64)
    }

    /// WaitTimer for every mark; the first error.
    pub(super) fn synchronize(&self) -> Result<()> {
        let uses = self.units.iter().map(|unit| &unit.uses);
        let uses = uses.chain(self.groups.iter().map(|group| &group.uses));
        let marks = uses.flat_map(LastUses::marks).chain(self.units.iter().map(|unit| &unit.ready));
        marks.map(Fence::synchronize).fold(Ok(()), Result::and)
    }

    /// Notices that a capture begins or has ended.
    pub(super) fn enter(&mut self, capture: Capture) {
        if capture == self.capture {
            return;
        }
        if self.capture.is_some() {
            // Whether its graph ran meanwhile is not known: trust what holds either way.
            for (unit, before) in self.units.iter_mut().zip(&self.loaded_before) {
                unit.loaded &= *before;
            }
        }
        if capture.is_some() {
            self.captured = true;
            self.loaded_before = self.units.iter().map(|unit| unit.loaded).collect();
        }
        self.capture = capture;
    }

    pub(super) fn acquire(
        &mut self,
        device: &Device,
        group: usize,
        stream: Stream,
        capture: Capture,
    ) -> Result<()> {
        self.enter(capture);
        let units = self.slotted(group);
        for unit in units.iter().filter(|unit| self.must_load(**unit)) {
            self.check_slot(*unit, group)?;
        }
        for &unit in &units {
            if self.must_load(unit) {
                self.carried.late_copies += u64::from(self.units[unit].moving.ahead);
                self.load(device, unit, DEMAND, stream, capture)?;
            }
        }
        let late = capture.is_none() && !self.all_passed(&units)?;
        let timed = if late { self.waits.begin(device, stream)? } else { None };
        for &unit in units.iter().filter(|_| late || capture.is_some()) {
            self.units[unit].ready.hold(stream, capture)?;
        }
        if let Some(timed) = timed {
            self.waits.end(timed, stream)?;
        }
        self.hold(group);
        let ahead = self.look_ahead(device, group, self.depth - 1, stream, capture);
        match ahead {
            Ok(()) => self.carried.acquires += 1,
            Err(_) => self.let_go(group),
        }
        ahead
    }

    pub(super) fn release(
        &mut self,
        device: &Device,
        group: usize,
        stream: Stream,
        capture: Capture,
    ) -> Result<()> {
        self.enter(capture);
        if self.groups[group].held == 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to release group {:?}, which is not acquired",
                self.groups[group].name
            );
        }
        for index in 0..self.groups[group].units.len() {
            let unit = self.groups[group].units[index];
            self.units[unit].uses.mark(device, stream, capture)?;
        }
        if self.groups[group].units.is_empty() {
            self.groups[group].uses.mark(device, stream, capture)?;
        }
        self.let_go(group);
        let mut done = self.look_ahead(device, group, self.depth, stream, capture);
        if done.is_ok() && capture.is_some() && self.ring.last() == Some(&group) {
            done = self.join(device, stream, capture);
        }
        if done.is_err() {
            self.hold(group);
        }
        done
    }

    fn hold(&mut self, group: usize) {
        for &unit in &self.groups[group].units {
            self.units[unit].held += 1;
        }
        self.groups[group].held += 1;
    }

    fn let_go(&mut self, group: usize) {
        for &unit in &self.groups[group].units {
            self.units[unit].held -= 1;
        }
        self.groups[group].held -= 1;
    }

    /// The group's units that have slots.
    fn slotted(&self, group: usize) -> Vec<usize> {
        let units = self.groups[group].units.iter().copied();
        units.filter(|unit| self.units[*unit].transfer.is_some()).collect()
    }

    /// What is on demand is copied for every time that it is acquired.
    fn must_load(&self, unit: usize) -> bool {
        let unit = &self.units[unit];
        !unit.loaded || (!unit.moving.ahead && unit.held == 0)
    }

    fn all_passed(&self, units: &[usize]) -> Result<bool> {
        for &unit in units {
            if !self.units[unit].ready.has_passed()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `WB_ERR_BUSY` where another group is acquired that holds the slot.
    fn check_slot(&self, unit: usize, group: usize) -> Result<()> {
        let holder = self.units[unit].overlaps.iter().find(|other| self.units[**other].held > 0);
        let Some(&holder) = holder else { return Ok(()) };
        let holders = self.units[holder].moving.groups.iter();
        let names: Vec<_> = holders.map(|holder| self.groups[*holder].name.as_str()).collect();
        fail!(
            WB_ERR_BUSY,
            "asked to acquire group {:?}; its slot is held by {names:?}, which is still acquired: \
             release it first, or plan with more slots (depth is {})",
            self.groups[group].name,
            self.depth
        )
    }

    /// Copies the units of the groups that come next, as far as their slots are free and not needed
    /// sooner by what is in them.
    fn look_ahead(
        &mut self,
        device: &Device,
        group: usize,
        count: usize,
        stream: Stream,
        capture: Capture,
    ) -> Result<()> {
        let (Some(position), turns) = (self.groups[group].position, self.ring.len()) else {
            return Ok(());
        };
        for distance in 1..=count.min(turns - 1) {
            let next = position + distance;
            if next >= turns && next - turns >= (self.depth - 1).max(1) {
                return Ok(());
            }
            let next = self.ring[next % turns];
            for index in 0..self.groups[next].units.len() {
                let unit = self.groups[next].units[index];
                if self.units[unit].loaded || !self.units[unit].moving.ahead {
                    continue;
                }
                if !self.may_evict(unit, position, distance) {
                    return Ok(());
                }
                self.load(device, unit, AHEAD, stream, capture)?;
            }
        }
        Ok(())
    }

    /// Whether nothing in the unit's slot is held, or needed within `distance` groups.
    fn may_evict(&self, unit: usize, position: usize, distance: usize) -> bool {
        let turns = self.ring.len();
        self.units[unit].overlaps.iter().all(|&other| {
            let other = &self.units[other];
            let positions =
                other.moving.groups.iter().filter_map(|group| self.groups[*group].position);
            let soonest = positions
                .map(|at| match (at + turns - position) % turns {
                    0 => turns,
                    ahead => ahead,
                })
                .min();
            other.held == 0 && (!other.loaded || soonest.is_none_or(|soonest| soonest > distance))
        })
    }

    /// Queues the copy of a unit into its slot, behind the last uses of what shares it.
    fn load(
        &mut self,
        device: &Device,
        unit: usize,
        lane: usize,
        stream: Stream,
        capture: Capture,
    ) -> Result<()> {
        let lane = lane.min(self.lanes.len() - 1);
        let copies = self.lanes[lane].stream.get();
        if capture.is_some() || self.captured {
            // A graph's own uses leave no mark outside of it: what came before on this stream may
            // be such a graph. In a capture this draws the lane into it.
            self.fork.record(device, stream, capture)?;
            self.fork.order(copies, capture)?;
            self.lanes[lane].capture = capture;
        }
        for at in 0..=self.units[unit].overlaps.len() {
            let other = self.units[unit].overlaps.get(at).copied().unwrap_or(unit);
            self.units[other].ready.order(copies, capture)?;
            for used in self.units[other].uses.marks() {
                used.order(copies, capture)?;
            }
        }
        if self.staging.is_some() {
            // A graph's copies run behind those through the same buffer that are queued when it runs.
            self.staged.order(copies, capture)?;
        }
        for at in 0..self.units[unit].overlaps.len() {
            let other = self.units[unit].overlaps[at];
            self.units[other].loaded = false;
        }
        let this = &mut self.units[unit];
        this.loaded = false;
        let Some(transfer) = &this.transfer else { return Ok(()) };
        let queued = transfer.queue(device, copies);
        let queued = queued.and_then(|()| this.ready.record(device, copies, capture));
        let queued = queued.and_then(|()| match (&self.staging, capture) {
            (Some(_), None) => self.staged.record(device, copies, None),
            _ => Ok(()),
        });
        if let Err(error) = queued {
            // What may be under way has no mark that others could wait for.
            if capture.is_none() {
                let backend = device.backend();
                log::best_effort_wait(|| backend.synchronize(copies), || backend.is_gone());
            }
            return Err(error);
        }
        this.loaded = true;
        this.uses.are_waited_for(capture);
        self.carried.moved_bytes += this.moving.host.bytes() as u64;
        self.carried.copies += 1;
        Ok(())
    }

    pub(super) fn join(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        for lane in &mut self.lanes {
            // A lane that this capture has not drawn in has nothing of it.
            if capture.is_none() || lane.capture == capture {
                lane.end.record(device, lane.stream.get(), capture)?;
                lane.end.hold(stream, capture)?;
            }
        }
        Ok(())
    }

    pub(super) fn reset(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(None);
        for unit in self.units.iter_mut().filter(|unit| unit.held > 0) {
            unit.uses.mark(device, stream, None)?;
        }
        for group in self.groups.iter_mut().filter(|group| group.held > 0) {
            if group.units.is_empty() {
                group.uses.mark(device, stream, None)?;
            }
        }
        self.units.iter_mut().for_each(|unit| unit.held = 0);
        self.groups.iter_mut().for_each(|group| group.held = 0);
        for position in 0..(self.depth - 1).max(1).min(self.ring.len()) {
            let group = self.ring[position];
            for index in 0..self.groups[group].units.len() {
                let unit = self.groups[group].units[index];
                if self.units[unit].moving.ahead && !self.units[unit].loaded {
                    self.load(device, unit, AHEAD, stream, None)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn quiesce(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(None);
        // Marks of captures cannot be waited for: their graphs ran on the engine's stream.
        self.fork.record(device, stream, None)?;
        self.fork.synchronize()?;
        self.synchronize()
    }
}

impl SlotGroup {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            units: Vec::new(),
            position: None,
            held: 0,
            uses: LastUses::default(),
        }
    }
}

/// For each unit those whose slots share bytes with its own: by one sweep over the slots.
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
