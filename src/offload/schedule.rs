//! Which unit is in its slot, and when it is copied there: the machine behind acquire and release.
//!
//! Groups with units that are copied ahead form a ring in the order of a step. A group's release lets
//! the copies begin that need its slot; the ring's last slot is filled by the step that uses it, not
//! by the one before: so every step begins and ends with the first groups in their slots, a captured
//! step can be replayed after any other, and the link still has work across the boundary.
//!
//! A group that is acquired out of order is copied when it is asked for: that costs time and nothing
//! else.

use std::sync::{Arc, Mutex, MutexGuard};

use super::mark::{Capture, Mark};
use super::transfer::{Staging, Transfer};
use super::waits::Waits;
use crate::device::{Device, OwnedStream, Stream};
use crate::error::{Result, fail};
use crate::log;
use crate::memory::pages::Span;
use crate::status::{WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT};

/// A stretch of host memory that moves as one.
#[derive(Debug, Clone)]
pub struct Moving {
    /// Where it lies.
    pub host: Span,
    /// Where it goes; `None` where the device reads it in place.
    pub slot: Option<Span>,
    /// Copied before it is asked for.
    pub ahead: bool,
    /// Groups that use it.
    pub groups: Vec<usize>,
}

/// What the machine works on.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// All units.
    pub units: Vec<Moving>,
    /// Names of the groups, for messages.
    pub groups: Vec<String>,
    /// Groups in the order of a step, those with a unit that is copied ahead.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at a time.
    pub depth: usize,
}

/// What was carried so far. Replays of graphs are not seen by the library and not counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    /// Bytes copied into slots.
    pub moved_bytes: u64,
    /// Units copied into slots.
    pub copies: u64,
    /// Units that were not in their slot when they were asked for, those on demand excepted.
    pub late: u64,
    /// Seconds that engines' streams have waited for copies.
    pub waited_seconds: f64,
    /// Groups acquired.
    pub acquires: u64,
}

/// The machine. Any thread.
pub struct Schedule {
    device: Arc<Device>,
    inner: Mutex<Inner>,
}

/// A stream for copies.
struct Lane {
    stream: OwnedStream,
    /// The capture that it was last drawn into.
    capture: Capture,
    end: Mark,
}

/// Streams whose marks a unit keeps from one load to the next.
const MOST_STREAMS: usize = 4;

const AHEAD: usize = 0;
const DEMAND: usize = 1;

struct Unit {
    moving: Moving,
    transfer: Option<Transfer>,
    /// Units whose slots share bytes with this one's.
    overlaps: Vec<usize>,
    loaded: bool,
    held: u32,
    ready: Mark,
    /// The last use on each stream since it was loaded.
    uses: Vec<(Stream, Mark)>,
}

struct Group {
    name: String,
    units: Vec<usize>,
    position: Option<usize>,
    held: u32,
}

struct Inner {
    lanes: Vec<Lane>,
    units: Vec<Unit>,
    groups: Vec<Group>,
    ring: Vec<usize>,
    depth: usize,
    fork: Mark,
    capture: Capture,
    /// What was in its slot when the capture began.
    loaded_before: Vec<bool>,
    /// A graph exists that may run at any time.
    captured: bool,
    carried: Carried,
    waits: Waits,
    staging: Option<Staging>,
}

impl Schedule {
    /// The machine for a layout. With `staging`, host memory is pageable.
    pub fn new(device: &Arc<Device>, layout: &Layout, staging: Option<Staging>) -> Result<Self> {
        // One stream where the staging buffer is shared: it orders its uses.
        let lanes = if staging.is_some() { 1 } else { 2 };
        let lanes = (0..lanes)
            .map(|_| {
                let stream = OwnedStream::new(device)?;
                Ok(Lane { stream, capture: None, end: Mark::new(device)? })
            })
            .collect::<Result<_>>()?;
        let mut inner = Inner {
            lanes,
            units: Vec::new(),
            groups: Vec::new(),
            ring: Vec::new(),
            depth: 1,
            fork: Mark::new(device)?,
            capture: None,
            loaded_before: Vec::new(),
            captured: false,
            carried: Carried::default(),
            waits: Waits::default(),
            staging,
        };
        inner.lay_out(device, layout)?;
        Ok(Self { device: device.clone(), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the stream wait until the group's units are in their slots, and holds them there.
    pub fn acquire(&self, group: usize, stream: Stream) -> Result<()> {
        let capture = self.device.backend().capture(stream)?;
        self.inner().acquire(&self.device, group, stream, capture)
    }

    /// What was queued on the stream is the last use of the group.
    pub fn release(&self, group: usize, stream: Stream) -> Result<()> {
        let capture = self.device.backend().capture(stream)?;
        self.inner().release(&self.device, group, stream, capture)
    }

    /// Makes the stream wait for every copy that was queued: before a capture of a part of a step ends.
    pub fn join(&self, stream: Stream) -> Result<()> {
        let capture = self.device.backend().capture(stream)?;
        let mut inner = self.inner();
        inner.enter(capture);
        inner.join(&self.device, stream, capture)
    }

    /// Ends a step that was abandoned: nothing is held, and the first groups are in their slots.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        if self.device.backend().capture(stream)?.is_some() {
            fail!(
                WB_ERR_CAPTURING,
                "asked to reset a step on a stream that is being captured: end the capture first"
            );
        }
        self.inner().reset(&self.device, stream)
    }

    /// Waits until no copy is under way and no use is left, what is queued on the stream included.
    pub fn quiesce(&self, stream: Stream) -> Result<()> {
        if self.device.backend().capture(stream)?.is_some() {
            fail!(
                WB_ERR_CAPTURING,
                "asked to change parameters on a stream that is being captured: end the capture \
                 first"
            );
        }
        self.inner().quiesce(&self.device, stream)
    }

    /// Starts over with another layout. Nothing is held, and [`Schedule::quiesce`] came before.
    pub fn lay_out(&self, layout: &Layout) -> Result<()> {
        self.inner().lay_out(&self.device, layout)
    }

    /// The unit's host memory was written: what is in its slot is old.
    pub fn touch(&self, unit: usize) {
        self.inner().units[unit].loaded = false;
    }

    /// `WB_ERR_BUSY` while the group is held.
    pub fn check_free(&self, group: usize) -> Result<()> {
        let inner = self.inner();
        let group = &inner.groups[group];
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

    /// What was carried so far.
    pub fn carried(&self) -> Result<Carried> {
        let mut inner = self.inner();
        let waited_seconds = inner.waits.seconds()?;
        Ok(Carried { waited_seconds, ..inner.carried })
    }
}

impl Drop for Schedule {
    /// What is queued reads the host memory and the slots: it runs before those go.
    fn drop(&mut self) {
        let inner = self.inner();
        if self.device.backend().check_process().is_err() {
            return;
        }
        let marks = inner.units.iter().flat_map(|unit| {
            let uses = unit.uses.iter().map(|(_, used)| used);
            uses.chain([&unit.ready])
        });
        for error in marks.filter_map(|mark| mark.synchronize().err()) {
            log::record(&error);
        }
    }
}

impl Inner {
    fn lay_out(&mut self, device: &Device, layout: &Layout) -> Result<()> {
        let mut units = Vec::with_capacity(layout.units.len());
        for (moving, overlaps) in layout.units.iter().zip(overlaps(&layout.units)) {
            units.push(Unit {
                transfer: moving
                    .slot
                    .map(|slot| Transfer::new(moving.host, slot, self.staging.as_ref())),
                overlaps,
                moving: moving.clone(),
                loaded: false,
                held: 0,
                ready: Mark::new(device)?,
                uses: Vec::new(),
            });
        }
        let mut groups: Vec<_> = layout.groups.iter().map(|name| Group::new(name)).collect();
        for (index, unit) in units.iter().enumerate() {
            unit.moving.groups.iter().for_each(|group| groups[*group].units.push(index));
        }
        for (position, group) in layout.ring.iter().enumerate() {
            groups[*group].position = Some(position);
        }
        self.groups = groups;
        self.units = units;
        self.ring = layout.ring.clone();
        self.depth = layout.depth.max(1);
        self.loaded_before.clear();
        Ok(())
    }

    /// Notices that a capture begins or has ended.
    fn enter(&mut self, capture: Capture) {
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

    fn acquire(
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
                self.carried.late += u64::from(self.units[unit].moving.ahead);
                self.load(device, unit, DEMAND, stream, capture)?;
            }
        }
        let late = capture.is_none() && !self.all_passed(&units)?;
        let timed = if late { self.waits.begin(device, stream)? } else { None };
        for &unit in &units {
            self.units[unit].ready.hold(stream, capture)?;
        }
        if let Some(timed) = timed {
            self.waits.end(timed, stream)?;
        }
        for &unit in &self.groups[group].units {
            self.units[unit].held += 1;
        }
        self.groups[group].held += 1;
        self.carried.acquires += 1;
        self.look_ahead(device, group, self.depth - 1, stream, capture)
    }

    fn release(
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
            self.units[unit].mark_use(device, stream, capture)?;
        }
        for &unit in &self.groups[group].units {
            self.units[unit].held -= 1;
        }
        self.groups[group].held -= 1;
        self.look_ahead(device, group, self.depth, stream, capture)?;
        if capture.is_some() && self.ring.last() == Some(&group) {
            self.join(device, stream, capture)?;
        }
        Ok(())
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
            self.fork.hold(copies, capture)?;
            self.lanes[lane].capture = capture;
        }
        for at in 0..=self.units[unit].overlaps.len() {
            let other = self.units[unit].overlaps.get(at).copied().unwrap_or(unit);
            self.units[other].ready.hold(copies, capture)?;
            for (_, used) in &self.units[other].uses {
                used.hold(copies, capture)?;
            }
        }
        for at in 0..self.units[unit].overlaps.len() {
            let other = self.units[unit].overlaps[at];
            self.units[other].loaded = false;
        }
        let this = &mut self.units[unit];
        this.loaded = false;
        let Some(transfer) = &this.transfer else { return Ok(()) };
        transfer.queue(device, copies)?;
        this.ready.record(device, copies, capture)?;
        this.loaded = true;
        this.uses.truncate(MOST_STREAMS);
        this.uses.iter_mut().for_each(|(_, used)| used.clear());
        self.carried.moved_bytes += this.moving.host.bytes() as u64;
        self.carried.copies += 1;
        Ok(())
    }

    fn join(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        for lane in &mut self.lanes {
            // A lane that this capture has not drawn in has nothing of it.
            if capture.is_none() || lane.capture == capture {
                lane.end.record(device, lane.stream.get(), capture)?;
                lane.end.hold(stream, capture)?;
            }
        }
        Ok(())
    }

    fn reset(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(None);
        for unit in &mut self.units {
            if unit.held > 0 {
                unit.mark_use(device, stream, None)?;
                unit.held = 0;
            }
        }
        for group in &mut self.groups {
            group.held = 0;
        }
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

    fn quiesce(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(None);
        // Marks of captures cannot be waited for: their graphs ran on the engine's stream.
        self.fork.record(device, stream, None)?;
        self.fork.synchronize()?;
        for unit in &self.units {
            unit.ready.synchronize()?;
            for (_, used) in &unit.uses {
                used.synchronize()?;
            }
        }
        Ok(())
    }
}

impl Unit {
    fn mark_use(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        let found = self.uses.iter().position(|(used_on, _)| *used_on == stream);
        let index = match found {
            Some(index) => index,
            None => {
                self.uses.push((stream, Mark::new(device)?));
                self.uses.len() - 1
            }
        };
        self.uses[index].1.record(device, stream, capture)
    }
}

impl Group {
    fn new(name: &str) -> Self {
        Self { name: name.into(), units: Vec::new(), position: None, held: 0 }
    }
}

/// For each unit those whose slots share bytes with its own: by one sweep over the slots.
fn overlaps(units: &[Moving]) -> Vec<Vec<usize>> {
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

#[cfg(test)]
mod tests;
