//! The state of the schedule, and what each call does to it.

use std::mem;

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::{Result, fail};
use crate::memory::staging::Staging;
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit};
use crate::offload::schedule::fence::{Capture, Fence};
use crate::offload::schedule::last_use::LastUses;
use crate::offload::schedule::slot::{SlotMap, SlotState};
use crate::offload::schedule::stats::TransferStats;
use crate::offload::schedule::wait_timer::WaitTimer;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT};

/// The engine's stream in a call, and the capture that it is in.
#[derive(Clone, Copy)]
pub(super) struct EngineStream<'a> {
    pub device: &'a Device,
    pub stream: Stream,
    pub capture: Capture,
}

/// The kinds of copies. Each has a copy stream of its own, so that an acquired group waits for no
/// prefetches of others. The number is the index of the stream.
#[derive(Clone, Copy)]
pub(super) enum CopyKind {
    /// Before the unit's group is acquired.
    Prefetch = 0,
    /// When the group is acquired: of an on-demand unit, or of a prefetched one that is late.
    AtAcquire = 1,
}

/// A stream of the schedule for copies.
pub(super) struct CopyStream {
    pub stream: OwnedStream,
    /// The capture that it was last drawn into.
    pub capture: Capture,
    /// Recorded at its end by a join.
    end: Fence,
}

/// The state of a group.
pub(super) struct GroupState {
    pub name: String,
    pub units: Vec<usize>,
    /// Its position in the ring.
    pub position: Option<usize>,
    /// How often it is acquired.
    acquired: u32,
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
    acquired_groups: usize,
    pub groups: Vec<GroupState>,
    pub ring: Vec<usize>,
    pub depth: usize,
    /// Whether host memory and slots are where `units` says.
    pub laid_out: bool,
    /// Whether the engine says when steps begin, so that nothing is prefetched for the next one.
    pub steps_are_separate: bool,
    /// Recorded on an engine's stream, for copy streams to wait for.
    pub fork: Fence,
    /// The capture that the last call was in.
    capture: Capture,
    /// Which units were in their slots when that capture began.
    loaded_before_capture: Vec<bool>,
    /// Whether a graph exists, which may be launched at any time.
    pub graph_exists: bool,
    pub stats: TransferStats,
    wait_timer: WaitTimer,
    pub staging: Option<Staging>,
    /// Recorded after the last copy out of the staging buffer, outside of captures.
    pub staging_free: Fence,
}

impl Machine {
    /// A machine without units. With `staging`, host memory is pageable.
    pub fn new(device: &Arc<Device>, staging: Option<Staging>) -> Result<Self> {
        // The one stream orders the uses of the staging buffer.
        let count = if staging.is_some() { 1 } else { 2 };
        let copy_streams = (0..count).map(|_| {
            let stream = OwnedStream::new(device)?;
            Ok(CopyStream { stream, capture: None, end: Fence::new(device)? })
        });
        Ok(Self {
            copy_streams: copy_streams.collect::<Result<_>>()?,
            units: Vec::new(),
            slots: Vec::new(),
            slot_map: SlotMap::default(),
            unsettled: Vec::new(),
            unsettled_groups: Vec::new(),
            acquired_groups: 0,
            groups: Vec::new(),
            ring: Vec::new(),
            depth: 1,
            laid_out: false,
            steps_are_separate: false,
            fork: Fence::new(device)?,
            capture: None,
            loaded_before_capture: Vec::new(),
            graph_exists: false,
            stats: TransferStats::default(),
            wait_timer: WaitTimer::default(),
            staging,
            staging_free: Fence::new(device)?,
        })
    }

    /// Takes an arrangement, with nothing acquired and nothing in slots.
    pub fn lay_out(&mut self, device: &Device, arrangement: Arrangement) -> Result<()> {
        let Arrangement { units, groups, ring, depth } = arrangement;
        let slots = SlotState::new_all(device, &units, self.staging.as_ref())?;
        let mut groups: Vec<_> = groups.into_iter().map(GroupState::new).collect();
        for (index, unit) in units.iter().enumerate() {
            unit.groups.iter().for_each(|group| groups[*group].units.push(index));
        }
        for (position, group) in ring.iter().enumerate() {
            groups[*group].position = Some(position);
        }
        self.slot_map = SlotMap::new(&units);
        (self.units, self.slots, self.groups, self.ring) = (units, slots, groups, ring);
        self.unsettled.clear();
        self.unsettled_groups.clear();
        self.acquired_groups = 0;
        self.depth = depth.max(1);
        self.loaded_before_capture.clear();
        self.laid_out = true;
        Ok(())
    }

    /// Notes that the unit's host memory was written. A slot that holds the old bytes is filled
    /// again at once, since a graph may be about to read it.
    pub fn mark_dirty(&mut self, unit: usize, engine: EngineStream<'_>) -> Result<()> {
        if mem::take(&mut self.slots[unit].loaded) && self.units[unit].prefetched {
            self.load(unit, CopyKind::Prefetch, engine)?;
        }
        Ok(())
    }

    /// Fails with `WB_ERR_BUSY` while the group is acquired.
    pub fn check_released(&self, group: usize) -> Result<()> {
        let group = &self.groups[group];
        if group.acquired > 0 {
            fail!(
                WB_ERR_BUSY,
                "asked to change group {:?}, which is acquired {} times: release it first",
                group.name,
                group.acquired
            );
        }
        Ok(())
    }

    /// Fails with `WB_ERR_BUSY` while any group is acquired.
    pub fn check_all_released(&self) -> Result<()> {
        if self.acquired_groups == 0 {
            return Ok(());
        }
        (0..self.groups.len()).try_for_each(|group| self.check_released(group))
    }

    pub fn stats(&mut self) -> Result<TransferStats> {
        Ok(TransferStats { waited_seconds: self.wait_timer.seconds()?, ..self.stats })
    }

    pub fn staging_bytes(&self) -> u64 {
        self.staging.as_ref().map_or(0, |staging| staging.span().bytes() as u64)
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

    /// Notes that a capture begins or has ended.
    fn enter(&mut self, capture: Capture) {
        if capture == self.capture {
            return;
        }
        if self.capture.is_some() {
            // Its graph may or may not have run: a unit is in its slot only if it is in both cases.
            for (slot, before) in self.slots.iter_mut().zip(&self.loaded_before_capture) {
                slot.loaded &= *before;
            }
        }
        if capture.is_some() {
            self.graph_exists = true;
            self.loaded_before_capture = self.slots.iter().map(|slot| slot.loaded).collect();
        }
        self.capture = capture;
    }

    pub fn acquire(&mut self, group: usize, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        self.enter(capture);
        let units = self.units_with_slots(group);
        for unit in units.iter().filter(|unit| self.must_load(**unit)) {
            self.check_slot_free(*unit, group)?;
        }
        for &unit in &units {
            if self.must_load(unit) {
                self.stats.late_copies += u64::from(self.units[unit].prefetched);
                self.load(unit, CopyKind::AtAcquire, engine)?;
            }
        }
        let waits = capture.is_none() && !self.all_ready(&units)?;
        let timed = if waits { self.wait_timer.begin(device, stream)? } else { None };
        for &unit in units.iter().filter(|_| waits || capture.is_some()) {
            self.slots[unit].ready.wait(stream, capture)?;
        }
        if let Some(timed) = timed {
            self.wait_timer.end(timed, stream)?;
        }
        self.count_acquired(group);
        let prefetched = self.prefetch_after(group, self.depth - 1, engine);
        match prefetched {
            Ok(()) => self.stats.acquires += 1,
            Err(_) => self.count_released(group),
        }
        prefetched
    }

    pub fn release(&mut self, group: usize, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        self.enter(capture);
        if self.groups[group].acquired == 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to release group {:?}, which is not acquired",
                self.groups[group].name
            );
        }
        for index in 0..self.groups[group].units.len() {
            let unit = self.groups[group].units[index];
            self.note_recorded(unit);
            self.slots[unit].uses.record(device, stream, capture)?;
        }
        if self.groups[group].units.is_empty() {
            self.record_use_of_group(group, device, stream, capture)?;
        }
        self.count_released(group);
        let mut done = self.prefetch_after(group, self.depth, engine);
        if done.is_ok() && capture.is_some() && self.ring.last() == Some(&group) {
            done = self.join(engine);
        }
        if done.is_err() {
            self.count_acquired(group);
        }
        done
    }

    fn record_use_of_group(
        &mut self,
        group: usize,
        device: &Device,
        stream: Stream,
        capture: Capture,
    ) -> Result<()> {
        if !mem::replace(&mut self.groups[group].unsettled, true) {
            self.unsettled_groups.push(group);
        }
        self.groups[group].uses.record(device, stream, capture)
    }

    fn count_acquired(&mut self, group: usize) {
        for &unit in &self.groups[group].units {
            self.slots[unit].acquired += 1;
            self.slot_map.set_busy(unit, true);
        }
        self.groups[group].acquired += 1;
        self.acquired_groups += usize::from(self.groups[group].acquired == 1);
    }

    fn count_released(&mut self, group: usize) {
        for &unit in &self.groups[group].units {
            self.slots[unit].acquired -= 1;
        }
        self.groups[group].acquired -= 1;
        self.acquired_groups -= usize::from(self.groups[group].acquired == 0);
    }

    fn units_with_slots(&self, group: usize) -> Vec<usize> {
        let units = self.groups[group].units.iter().copied();
        units.filter(|unit| self.slots[*unit].copy.is_some()).collect()
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
    pub fn join(
        &mut self,
        EngineStream { device, stream, capture }: EngineStream<'_>,
    ) -> Result<()> {
        self.enter(capture);
        for copy_stream in &mut self.copy_streams {
            if capture.is_none() || copy_stream.capture == capture {
                copy_stream.end.record(device, copy_stream.stream.get(), capture)?;
                copy_stream.end.wait(stream, capture)?;
            }
        }
        Ok(())
    }

    /// Begins a step that relies on nothing that was copied before: units that are not acquired are
    /// copied again, after the work queued on the stream.
    pub fn begin_step(&mut self, engine: EngineStream<'_>) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        self.enter(capture);
        self.steps_are_separate = true;
        for slot in self.slots.iter_mut().filter(|slot| slot.acquired == 0) {
            slot.loaded = false;
        }
        if capture.is_some() {
            return Ok(()); // there every copy waits for the stream
        }
        self.fork.record(device, stream, None)?;
        let mut copy_streams = self.copy_streams.iter();
        copy_streams.try_for_each(|copies| self.fork.wait(copies.stream.get(), None))
    }

    /// Releases all groups as if on the stream, and copies the first groups of a step into their
    /// slots.
    pub fn reset(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(None);
        for unit in 0..self.slots.len() {
            if self.slots[unit].acquired > 0 {
                self.note_recorded(unit);
                self.slots[unit].uses.record(device, stream, None)?;
            }
        }
        for group in 0..self.groups.len() {
            if self.groups[group].acquired > 0 && self.groups[group].units.is_empty() {
                self.record_use_of_group(group, device, stream, None)?;
            }
        }
        self.slots.iter_mut().for_each(|slot| slot.acquired = 0);
        self.groups.iter_mut().for_each(|group| group.acquired = 0);
        self.acquired_groups = 0;
        let engine = EngineStream { device, stream, capture: None };
        for position in 0..self.groups_across_steps().min(self.ring.len()) {
            let group = self.ring[position];
            for index in 0..self.groups[group].units.len() {
                let unit = self.groups[group].units[index];
                if self.units[unit].prefetched && !self.slots[unit].loaded {
                    self.load(unit, CopyKind::Prefetch, engine)?;
                }
            }
        }
        Ok(())
    }

    /// Waits on the host until no copy and no use is in flight, including the work queued on the
    /// stream.
    pub fn quiesce(&mut self, device: &Device, stream: Stream) -> Result<()> {
        self.enter(None);
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
            acquired: 0,
            uses: LastUses::default(),
            unsettled: false,
        }
    }
}
