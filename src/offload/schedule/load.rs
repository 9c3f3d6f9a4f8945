//! Copies into slots: which units are copied next, and what each copy waits for.

use crate::device::backend::Stream;
use crate::error::Result;
use crate::offload::schedule::machine::{Call, CopyKind, EngineStream, Machine};
use crate::offload::schedule::windows::WindowStreams;
use crate::os::log;

impl Machine {
    /// Whether acquiring the unit's group copies it: on-demand units are copied every time.
    pub(super) fn must_load(&self, unit: usize, call: Call<'_>) -> bool {
        let (slot, capture) = (&self.slots[unit], call.engine.capture);
        if slot.resident {
            return false;
        }
        match slot.acquired(capture) {
            // No replay comes between the calls of an eager step.
            1.. if capture.is_none() => slot.loaded.at(None) == 0,
            acquired => {
                !self.is_loaded(unit, call) || (!self.units[unit].prefetched && acquired == 0)
            }
        }
    }

    /// Whether the unit is in its slot, by a copy that the call relies on.
    fn is_loaded(&self, unit: usize, call: Call<'_>) -> bool {
        let loaded = self.slots[unit].loaded.at(call.engine.capture);
        self.slots[unit].resident || loaded > 0 && loaded >= call.since
    }

    /// Whether the stream or this thread has itself acquired what occupies slots of the group's
    /// units: waiting for that would never end.
    pub(super) fn is_in_the_way(&self, group: usize, stream: Stream) -> bool {
        let units = self.groups[group].units.iter();
        let others = units.flat_map(|unit| self.slot_map.sharing(*unit, None));
        let mut holders = others.flat_map(|other| &self.units[other].groups);
        holders.any(|holder| self.groups[*holder].holders.is_own(stream))
    }

    /// Copies the units of the `count` groups that follow in the order, up to the first whose slot
    /// is not free.
    pub(super) fn prefetch_after(
        &mut self,
        group: usize,
        count: usize,
        call: Call<'_>,
    ) -> Result<()> {
        let (Some(position), order_len) = (self.groups[group].position, self.order.len()) else {
            return Ok(());
        };
        let EngineStream { stream, capture, .. } = call.engine;
        if !self.steps.prefetches(stream, capture, call.since) {
            return Ok(());
        }
        for distance in 1..=count.min(order_len - 1) {
            let next = position + distance;
            if next >= order_len && next - order_len >= self.groups_across_steps() {
                return Ok(());
            }
            let next = self.order[next % order_len];
            for index in 0..self.groups[next].units.len() {
                let unit = self.groups[next].units[index];
                if self.is_loaded(unit, call) || !self.units[unit].prefetched {
                    continue;
                }
                if self.slots[unit].is_acquired() || !self.may_evict(unit, position, distance, call)
                {
                    return Ok(());
                }
                self.load(unit, next, CopyKind::Prefetch, call.engine)?;
            }
        }
        Ok(())
    }

    /// How many groups at the start of a step are prefetched by the step before, or by a reset.
    pub(super) fn groups_across_steps(&self) -> usize {
        if self.steps.rely_on_each_other() { (self.depth - 1).max(1) } else { 0 }
    }

    /// Whether nothing that shares the unit's slot is acquired, or needed within `distance` groups
    /// after `position`.
    fn may_evict(&self, unit: usize, position: usize, distance: usize, call: Call<'_>) -> bool {
        let order_len = self.order.len();
        self.slot_map.sharing(unit, None).into_iter().all(|other| {
            let groups = self.units[other].groups.iter();
            let next_use = groups
                .filter_map(|group| self.groups[*group].position)
                .map(|at| match (at + order_len - position) % order_len {
                    0 => order_len,
                    ahead => ahead,
                })
                .min();
            let needed_sooner = next_use.is_some_and(|next| next <= distance);
            !(self.slots[other].is_acquired() || needed_sooner && self.is_loaded(other, call))
        })
    }

    /// Queues the copy of a unit of the group into its slot, after the last uses of all that shares
    /// the slot.
    pub(super) fn load(
        &mut self,
        unit: usize,
        group: usize,
        kind: CopyKind,
        engine: EngineStream<'_>,
    ) -> Result<()> {
        let EngineStream { device, stream, capture } = engine;
        let kind = if self.units[unit].is_kept() { CopyKind::Kept } else { kind };
        let at = (kind as usize).min(self.copy_streams.len() - 1);
        let copy_stream = self.copy_streams[at].stream.get();
        if capture.is_some() || self.steps.graph_exists {
            // The replays of a graph record no fences, and what precedes on this stream may be such
            // a graph. In a capture this also draws the copy stream into it.
            self.fork.record(device, stream, capture)?;
            self.fork.wait_once(copy_stream, capture)?;
            self.copy_streams[at].capture = capture;
        }
        self.wait_for_slot(unit, copy_stream, engine)?;
        let sharing = self.slot_map.sharing(unit, None);
        sharing.iter().for_each(|other| self.slots[*other].loaded.clear(capture));
        self.slot_map.set_busy(unit, true);
        self.note_recorded(unit);
        let queued_at = self.steps.queue_copy();
        let slot = &mut self.slots[unit];
        slot.loaded.clear(capture);
        let Some(copy) = &slot.copy else { return Ok(()) };
        let moved = copy.moved_bytes();
        let decode = self.windows.is_some().then(|| self.copy_streams.len() - 1);
        let decode_stream = decode.map_or(copy_stream, |at| self.copy_streams[at].stream.get());
        let streams = WindowStreams { copy: copy_stream, decode: decode_stream, capture };
        let queued = copy.queue(device, streams, self.windows.as_mut());
        if let (Some(at), Some(windows)) = (decode, &self.windows)
            && capture.is_some()
            && windows.drawn_into == capture
        {
            self.copy_streams[at].capture = capture;
        }
        let queued = queued.and_then(|last| slot.ready.record(device, last, capture));
        let queued = queued.and_then(|()| match (&self.staging, capture) {
            (Some(_), None) => self.staging_free.record(device, copy_stream, None),
            _ => Ok(()),
        });
        if let Err(error) = queued {
            // A part of the copy may be in flight without a fence that others could wait for.
            if capture.is_none() {
                let backend = device.backend();
                for stream in [copy_stream, decode_stream] {
                    log::best_effort_wait(|| backend.synchronize(stream), || backend.is_lost());
                }
            }
            return Err(error);
        }
        slot.loaded.set(capture, queued_at);
        slot.uses.clear(capture);
        if capture.is_none() {
            for other in sharing {
                // What waits for this copy waits for those that it waited for.
                let slot = &self.slots[other];
                let is_over = self.slot_map.is_within(other, unit) || slot.is_complete()?;
                if !slot.is_acquired() && is_over {
                    self.slot_map.set_busy(other, false);
                }
            }
        }
        let stats = &mut self.group_stats[group];
        stats.moved_bytes += moved.moved;
        stats.encoded_bytes += moved.encoded;
        stats.decoded_bytes += moved.decoded;
        stats.copies += 1;
        Ok(())
    }

    /// Makes a copy stream wait for the copies into a unit's slot and for the uses of what was in
    /// it.
    fn wait_for_slot(
        &self,
        unit: usize,
        copy_stream: Stream,
        EngineStream { capture, .. }: EngineStream<'_>,
    ) -> Result<()> {
        for at in self.slot_map.sharing(unit, capture).into_iter().chain([unit]) {
            let slot = &self.slots[at];
            slot.ready.wait_once(copy_stream, capture)?;
            slot.uses.fences().try_for_each(|used| used.wait_once(copy_stream, capture))?;
        }
        if self.staging.is_some() {
            // The copies of a graph run after those through the same buffer that were queued before
            // its launch.
            self.staging_free.wait_once(copy_stream, capture)?;
        }
        Ok(())
    }
}
