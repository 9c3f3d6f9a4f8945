//! The state of the schedule, and what each call does to it.

use std::mem;
use std::sync::Arc as StdArc;

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use crate::offload::schedule::fence::{Capture, Fence};
use crate::offload::schedule::holders::{Holder, Holders};
use crate::offload::schedule::last_use::{LastUses, User};
use crate::offload::schedule::slot::{SlotMap, SlotState};
use crate::offload::schedule::stats::GroupStats;
use crate::offload::schedule::steps::{Loaded, Moment, Steps};
use crate::offload::schedule::wait_timer::WaitTimer;
use crate::offload::schedule::windows::Windows;
use crate::os::sync::Arc;

/// The engine's stream in a call, and the capture that it is in.
#[derive(Clone, Copy)]
pub(super) struct EngineStream<'a> {
    pub device: &'a Device,
    pub stream: Stream,
    pub capture: Capture,
}

/// A call of a step.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub engine: EngineStream<'a>,
    /// Copies that were queued since then are of the same step.
    pub since: Moment,
}

/// The kinds of copies. Each has a copy stream of its own, so that an acquired group waits for no
/// prefetches of others. The number is the index of the stream.
#[derive(Clone, Copy)]
pub(super) enum CopyKind {
    /// Before the unit's group is acquired.
    Prefetch = 0,
    /// When the group is acquired: of an on-demand unit, or of a prefetched one that is late.
    AtAcquire = 1,
    /// At either time, of a unit that the device keeps compressed: it waits for no copy over the link.
    Kept = 2,
}

/// A stream of the schedule for copies.
pub(super) struct CopyStream {
    pub stream: OwnedStream,
    /// The capture that it was last drawn into.
    pub capture: Capture,
    /// Recorded at its end by a join.
    end: Fence,
}

impl CopyStream {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let stream = OwnedStream::new(device)?;
        Ok(Self { stream, capture: None, end: Fence::new(device)? })
    }
}

/// The state of a group.
pub(super) struct GroupState {
    pub name: String,
    pub units: Vec<usize>,
    /// Its position in the order of a step.
    pub position: Option<usize>,
    pub holders: Holders,
    /// Last uses of a group without units, whose parameters are all resident.
    uses: LastUses,
    /// Whether `uses` were recorded since the host last waited for all.
    unsettled: bool,
}

/// The state of all units, groups and streams, behind one lock.
pub(super) struct Machine {
    pub copy_streams: Vec<CopyStream>,
    /// As arranged.
    pub units: Vec<CarriedUnit>,
    /// The slot of each unit.
    pub slots: Vec<SlotState>,
    pub slot_map: SlotMap,
    /// Units, and groups without units, of which a fence was recorded since the host last waited for
    /// all.
    unsettled: Vec<usize>,
    unsettled_groups: Vec<usize>,
    /// How many groups are acquired.
    pub(super) acquired_groups: usize,
    names: StdArc<[String]>,
    pub groups: Vec<GroupState>,
    ring: Vec<usize>,
    /// The groups of the coming steps, if the engine has said which.
    expected: Option<Vec<usize>>,
    /// The groups of the ring that a step is expected to acquire, in their order.
    pub order: Vec<usize>,
    pub depth: usize,
    /// Whether host memory and slots are where `units` says.
    pub laid_out: bool,
    /// Whether there is no memory behind addresses, so that no step may run.
    pub asleep: bool,
    pub steps: Steps,
    /// Recorded on an engine's stream, for copy streams to wait for.
    pub fork: Fence,
    /// By group; with those of earlier arrangements.
    pub group_stats: Vec<GroupStats>,
    wait_timer: WaitTimer,
    pub staging: Option<Staging>,
    /// Recorded after the last copy out of the staging buffer, outside of captures.
    pub staging_free: Fence,
    /// What compressed bytes pass through. The last copy stream decodes out of it.
    pub windows: Option<Windows>,
}

impl Machine {
    /// A machine without units. With `keeps`, the device keeps units compressed.
    pub fn new(device: &Arc<Device>, passages: Passages, keeps: bool) -> Result<Self> {
        let Passages { staging, windows } = passages;
        let windows = Windows::new(device, windows)?;
        // The one stream orders the uses of the staging buffer.
        let count = match staging {
            Some(_) => 1,
            None => 2 + usize::from(keeps) + usize::from(windows.is_some()),
        };
        let copy_streams = (0..count).map(|_| CopyStream::new(device));
        Ok(Self {
            copy_streams: copy_streams.collect::<Result<_>>()?,
            units: Vec::new(),
            slots: Vec::new(),
            slot_map: SlotMap::default(),
            unsettled: Vec::new(),
            unsettled_groups: Vec::new(),
            acquired_groups: 0,
            names: StdArc::new([]),
            groups: Vec::new(),
            ring: Vec::new(),
            expected: None,
            order: Vec::new(),
            depth: 1,
            laid_out: false,
            asleep: false,
            steps: Steps::new(),
            fork: Fence::new(device)?,
            group_stats: Vec::new(),
            wait_timer: WaitTimer::default(),
            staging,
            staging_free: Fence::new(device)?,
            windows,
        })
    }

    /// Takes an arrangement, with nothing acquired, nothing in flight and nothing in slots.
    pub fn lay_out(&mut self, device: &Device, arrangement: Arrangement) -> Result<()> {
        let Arrangement { units, groups: names, ring, depth } = arrangement;
        self.unsettled.clear();
        self.unsettled_groups.clear();
        self.slots.truncate(units.len());
        for _ in self.slots.len()..units.len() {
            self.slots.push(SlotState::new(device)?);
        }
        for (slot, unit) in self.slots.iter_mut().zip(&units) {
            slot.assign(unit, self.staging.as_ref());
        }
        if !StdArc::ptr_eq(&self.names, &names) {
            self.groups = names.iter().cloned().map(GroupState::new).collect();
            self.names = names;
        }
        self.groups.iter_mut().for_each(GroupState::clear);
        for (index, unit) in units.iter().enumerate() {
            unit.groups.iter().for_each(|group| self.groups[*group].units.push(index));
        }
        self.slot_map = SlotMap::new(&units);
        (self.units, self.ring) = (units, ring);
        self.acquired_groups = 0;
        self.depth = depth.max(1);
        self.group_stats.resize_with(self.groups.len(), GroupStats::default);
        self.set_order();
        self.steps.end();
        self.laid_out = true;
        Ok(())
    }

    /// Takes other units at these indexes, which are ascending, or after the last one. Others stay
    /// in their slots. Nothing may be acquired or in flight.
    pub fn change_units(
        &mut self,
        device: &Device,
        units: Vec<(usize, CarriedUnit)>,
    ) -> Result<()> {
        for (index, unit) in units {
            if index == self.units.len() {
                self.slots.push(SlotState::new(device)?);
                self.units.push(CarriedUnit { groups: Vec::new(), ..unit.clone() });
            }
            let before = mem::take(&mut self.units[index].groups);
            if before != unit.groups {
                for group in before {
                    self.groups[group].units.retain(|other| *other != index);
                }
                unit.groups.iter().for_each(|group| self.groups[*group].units.push(index));
            }
            self.slots[index].assign(&unit, self.staging.as_ref());
            self.slot_map.set_slot(index, &unit);
            self.units[index] = unit;
        }
        self.steps.end();
        self.laid_out = true;
        Ok(())
    }

    /// Takes the groups that the coming steps acquire, each once; `None` for those of the ring.
    pub fn expect(&mut self, groups: Option<Vec<usize>>) {
        self.expected = groups;
        self.set_order();
    }

    fn set_order(&mut self) {
        let mut in_ring = vec![false; self.groups.len()];
        self.ring.iter().for_each(|group| in_ring[*group] = true);
        self.order = self.expected.as_ref().unwrap_or(&self.ring).clone();
        self.order.retain(|group| in_ring[*group]);
        self.groups.iter_mut().for_each(|group| group.position = None);
        for (position, group) in self.order.iter().enumerate() {
            self.groups[*group].position = Some(position);
        }
    }

    /// Notes whether memory of its own is behind a unit's address. Nothing of the unit may be in
    /// flight, and none of its groups acquired.
    pub fn set_resident(&mut self, unit: usize, resident: bool) {
        self.slots[unit].resident = resident;
        self.slots[unit].loaded = Loaded::default();
        self.slot_map.set_out(unit, resident);
        self.steps.interrupt();
    }

    /// Notes that the unit's host memory was written: it is copied again before it is used.
    pub fn mark_dirty(&mut self, unit: usize) {
        self.slots[unit].loaded = Loaded::default();
    }

    /// The copies and waits so far, of every group.
    pub fn stats(&mut self) -> Result<&[GroupStats]> {
        self.wait_timer.collect(&mut self.group_stats)?;
        Ok(&self.group_stats)
    }

    pub fn staging_bytes(&self) -> u64 {
        self.staging.as_ref().map_or(0, |staging| staging.span().bytes() as u64)
    }

    pub fn window_bytes(&self) -> u64 {
        self.windows.as_ref().map_or(0, Windows::held_bytes)
    }

    /// Notes that a fence of a unit was recorded.
    pub fn note_recorded(&mut self, unit: usize) {
        if !mem::replace(&mut self.slots[unit].unsettled, true) {
            self.unsettled.push(unit);
        }
    }

    /// Waits on the host for every fence that was recorded since it last did. Returns the first
    /// error, after all were waited for.
    pub fn synchronize(&self) -> Result<()> {
        let slots = || self.unsettled.iter().map(|unit| &self.slots[*unit]);
        let uses = slots().map(|slot| &slot.uses);
        let in_groups = self.unsettled_groups.iter().map(|group| &self.groups[*group].uses);
        let uses = uses.chain(in_groups);
        let ready = slots().map(|slot| &slot.ready);
        let fences = uses.flat_map(LastUses::fences).chain(ready);
        fences.map(Fence::synchronize).fold(Ok(()), Result::and)
    }

    /// Begins a call of a step.
    fn enter<'a>(&mut self, engine: EngineStream<'a>) -> Result<Call<'a>> {
        self.check_not_drawn_in(engine.device, engine.capture)?;
        let since = self.steps.enter(engine.stream, engine.capture);
        Ok(Call { engine, since })
    }

    pub fn acquire(&mut self, group: usize, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        let call = self.enter(engine)?;
        let units = self.units_with_slots(group);
        self.check_not_left(group, &units, call)?;
        for unit in units.iter().filter(|unit| self.must_load(**unit, call)) {
            self.check_slot_free(*unit, group)?;
        }
        for &unit in &units {
            if self.must_load(unit, call) {
                self.load(unit, group, CopyKind::AtAcquire, engine)?;
                self.group_stats[group].late_copies += u64::from(self.units[unit].prefetched);
            }
        }
        let waits = capture.is_none() && !self.all_ready(&units)?;
        let timed = match waits {
            true => self.wait_timer.begin(device, stream, &mut self.group_stats)?,
            false => None,
        };
        for &unit in units.iter().filter(|_| waits || capture.is_some()) {
            self.slots[unit].ready.wait(stream, capture)?;
        }
        if let Some(timed) = timed {
            self.wait_timer.end(timed, stream, group)?;
        }
        let holder = Holder::new(stream, capture, call.since);
        self.count_acquired(group, holder);
        let prefetched = self.prefetch_after(group, self.depth - 1, call);
        match prefetched {
            Ok(()) => {
                self.group_stats[group].acquires += 1;
                self.group_stats[group].waits += u64::from(waits);
            }
            Err(_) => drop(self.count_released(group, holder)),
        }
        prefetched
    }

    pub fn release(&mut self, group: usize, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        let call = self.enter(engine)?;
        let release = Holder::new(stream, capture, call.since);
        self.check_acquired(group, &release)?;
        self.record_uses(group, engine)?;
        let released = self.count_released(group, release);
        let mut done = self.prefetch_after(group, self.depth, call);
        if done.is_ok() && capture.is_some() && self.order.last() == Some(&group) {
            done = self.join_copies(device, stream, capture);
        }
        if let (Err(_), Some(holder)) = (&done, released) {
            self.count_acquired(group, holder);
        }
        done
    }

    /// Records the work queued on the stream as the last use of a group.
    fn record_uses(&mut self, group: usize, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        let number = match capture {
            None => Some(device.backend().stream_id(stream)?),
            Some(_) => None,
        };
        let user = User { stream, number };
        for index in 0..self.groups[group].units.len() {
            let unit = self.groups[group].units[index];
            self.note_recorded(unit);
            self.slots[unit].uses.record(device, user, capture)?;
        }
        if self.groups[group].units.is_empty() {
            if !mem::replace(&mut self.groups[group].unsettled, true) {
                self.unsettled_groups.push(group);
            }
            self.groups[group].uses.record(device, user, capture)?;
        }
        Ok(())
    }

    fn count_acquired(&mut self, group: usize, holder: Holder) {
        for &unit in &self.groups[group].units {
            self.slots[unit].count_acquired(holder.capture, holder.count as i32);
            self.slot_map.set_busy(unit, true);
        }
        self.acquired_groups += usize::from(self.groups[group].holders.count() == 0);
        self.groups[group].holders.add(holder);
    }

    fn count_released(&mut self, group: usize, release: Holder) -> Option<Holder> {
        let holder = self.groups[group].holders.remove_one(&release)?;
        self.count_removed(group, holder);
        self.acquired_groups -= usize::from(self.groups[group].holders.count() == 0);
        Some(holder)
    }

    fn count_removed(&mut self, group: usize, holder: Holder) {
        for &unit in &self.groups[group].units {
            self.slots[unit].count_acquired(holder.capture, -(holder.count as i32));
        }
    }

    fn units_with_slots(&self, group: usize) -> Vec<usize> {
        let units = self.groups[group].units.iter().copied();
        let is_copied = |slot: &SlotState| slot.copy.is_some() && !slot.resident;
        units.filter(|unit| is_copied(&self.slots[*unit])).collect()
    }

    fn all_ready(&self, units: &[usize]) -> Result<bool> {
        for &unit in units {
            if !self.slots[unit].ready.is_complete()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the stream wait for all copies: in a capture, for those of the copy streams that it
    /// has drawn in.
    pub fn join(&mut self, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        if capture.is_some() && !self.steps.knows(capture) {
            // A graph without calls of a step, which changes no slot.
            return self.check_not_drawn_in(device, capture);
        }
        self.enter(engine)?;
        self.join_copies(device, stream, capture)
    }

    fn join_copies(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        for copy_stream in &mut self.copy_streams {
            if capture.is_none() || copy_stream.capture == capture {
                copy_stream.end.record(device, copy_stream.stream.get(), capture)?;
                copy_stream.end.wait(stream, capture)?;
            }
        }
        self.steps.join(capture);
        Ok(())
    }

    /// Begins a step of the stream, which relies on nothing that was copied before: units that are
    /// not acquired are copied again, after the work queued on the stream.
    pub fn begin_step(&mut self, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = self.enter(engine)?.engine;
        self.steps.begin(stream, capture);
        if capture.is_some() {
            return Ok(()); // there every copy waits for the stream
        }
        self.fork.record(device, stream, None)?;
        let mut copy_streams = self.copy_streams.iter();
        copy_streams.try_for_each(|copies| self.fork.wait(copies.stream.get(), None))
    }

    /// Releases on the stream the groups that were acquired on `of`, or on any stream, and copies
    /// the first groups of a step into their slots if the next step may rely on that.
    pub fn reset(&mut self, device: &Device, stream: Stream, of: Option<Stream>) -> Result<()> {
        let engine = EngineStream { device, stream, capture: None };
        let call = self.enter(engine)?;
        self.steps.end();
        let held = |group: &usize| self.groups[*group].holders.is_held_on(of);
        let held: Vec<_> = match self.acquired_groups {
            0 => Vec::new(),
            _ => (0..self.groups.len()).filter(held).collect(),
        };
        held.iter().try_for_each(|group| self.record_uses(*group, engine))?;
        for group in held {
            for holder in self.groups[group].holders.remove_all(of) {
                self.count_removed(group, holder);
            }
            self.acquired_groups -= usize::from(self.groups[group].holders.count() == 0);
        }
        for position in 0..self.groups_across_steps().min(self.order.len()) {
            let group = self.order[position];
            for index in 0..self.groups[group].units.len() {
                let unit = self.groups[group].units[index];
                if self.units[unit].prefetched && self.must_load(unit, call) {
                    if self
                        .slot_map
                        .sharing(unit, None)
                        .iter()
                        .any(|other| self.slots[*other].is_acquired())
                    {
                        return Ok(());
                    }
                    self.load(unit, group, CopyKind::Prefetch, engine)?;
                }
            }
        }
        Ok(())
    }

    /// Waits on the host until no copy and no use is in flight, including the work queued on the
    /// stream.
    pub fn quiesce(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(EngineStream { device, stream, capture: None })?;
        // Fences recorded in captures cannot be waited for, but their graphs ran on the engine's
        // stream.
        self.fork.record(device, stream, None)?;
        self.fork.synchronize()?;
        self.synchronize()?;
        for unit in mem::take(&mut self.unsettled) {
            self.slots[unit].unsettled = false;
        }
        for group in mem::take(&mut self.unsettled_groups) {
            self.groups[group].unsettled = false;
        }
        Ok(())
    }
}

impl GroupState {
    fn new(name: String) -> Self {
        Self {
            name,
            units: Vec::new(),
            position: None,
            holders: Holders::default(),
            uses: LastUses::default(),
            unsettled: false,
        }
    }

    /// Makes it a group without units that nothing has used.
    fn clear(&mut self) {
        self.units.clear();
        self.position = None;
        self.holders = Holders::default();
        self.uses.clear(None);
        self.unsettled = false;
    }
}
