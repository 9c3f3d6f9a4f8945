//! The schedule behind its lock: the calls of a step, and changes of what it works on.

use std::time::Duration;

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Error, Result};
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use crate::offload::schedule::machine::{EngineStream, Machine};
use crate::offload::schedule::stats::GroupStats;
use crate::offload::schedule::unit_copy::UnitCopy;
use crate::offload::schedule::windows::WindowStreams;
use crate::os::span::Span;
use crate::os::sync::{Arc, Condvar, Deadline, Mutex, MutexGuard};
use crate::os::{log, sync};
use crate::status::{WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_DEVICE_MEMORY, WB_ERR_TIMEOUT};

/// Which unit is in its slot. Its calls may come from any thread.
pub struct Schedule {
    device: Arc<Device>,
    machine: Mutex<Machine>,
    /// Notified when groups are released.
    released: Condvar,
}

impl Schedule {
    /// A schedule of an arrangement, with nothing in slots. With a staging buffer, host memory is pageable.
    pub fn new(device: &Arc<Device>, arrangement: Arrangement, passages: Passages) -> Result<Self> {
        let keeps = arrangement.units.iter().any(CarriedUnit::is_kept);
        let mut machine = Machine::new(device, passages, keeps)?;
        machine.lay_out(device, arrangement)?;
        Ok(Self { device: device.clone(), machine: Mutex::new(machine), released: Condvar::new() })
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        sync::lock(&self.machine)
    }

    /// The machine, if its slots are laid out.
    fn laid_out(&self) -> Result<MutexGuard<'_, Machine>> {
        let machine = self.machine();
        match (machine.laid_out, machine.asleep) {
            (true, false) => Ok(machine),
            (true, true) => Err(asleep()),
            (false, _) => Err(no_slots()),
        }
    }

    fn engine_stream(&self, stream: Stream) -> Result<EngineStream<'_>> {
        let capture = self.device.backend().capture(stream)?;
        Ok(EngineStream { device: &self.device, stream, capture })
    }

    /// Fails with `WB_ERR_CAPTURING` if the stream is being captured.
    fn check_not_captured(&self, stream: Stream, what: &str) -> Result<()> {
        match self.device.backend().capture(stream)? {
            Some(_) => Err(captured(what)),
            None => Ok(()),
        }
    }

    /// Makes the stream wait until the group's units are in their slots, and keeps them there until
    /// the group is released as often. Fails with `WB_ERR_BUSY` if another step occupies a slot;
    /// with a timeout, waits on the host for its release, unless this thread or the stream occupies
    /// the slot, or in a capture.
    pub fn acquire(&self, group: usize, stream: Stream, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(|timeout| (timeout, Deadline::after(timeout)));
        self.device.backend().with_context(&mut || {
            let engine = self.engine_stream(stream)?;
            let mut machine = self.laid_out()?;
            loop {
                let (mut busy, timeout, deadline) = match (machine.acquire(group, engine), &timeout)
                {
                    (Err(error), Some((timeout, deadline))) if error.status == WB_ERR_BUSY => {
                        (error, timeout, deadline)
                    }
                    (result, _) => return result,
                };
                if engine.capture.is_some() || machine.is_in_the_way(group, stream) {
                    return Err(busy);
                }
                let Some(left) = deadline.left() else {
                    busy.status = WB_ERR_TIMEOUT;
                    busy.message = format!("after {timeout:?}: {}", busy.message);
                    return Err(busy);
                };
                machine = sync::wait_timeout(&self.released, &self.machine, machine, left);
                if !machine.laid_out || machine.asleep {
                    return Err(if machine.asleep { asleep() } else { no_slots() });
                }
            }
        })
    }

    /// Records the work queued on the stream as the last use of the group, and prefetches the next
    /// groups.
    pub fn release(&self, group: usize, stream: Stream) -> Result<()> {
        self.device.backend().with_context(&mut || {
            let engine = self.engine_stream(stream)?;
            self.laid_out()?.release(group, engine)
        })?;
        self.released.notify_all();
        Ok(())
    }

    /// Takes the groups that the coming steps acquire, each once; `None` for those of the plan.
    pub fn expect(&self, groups: Option<Vec<usize>>) {
        self.machine().expect(groups);
    }

    /// Makes the stream wait for every copy that was queued. Ends the capture of a part of a step.
    pub fn join(&self, stream: Stream) -> Result<()> {
        let engine = self.engine_stream(stream)?;
        self.laid_out()?.join(engine)
    }

    /// Begins a step that relies on nothing that was copied before.
    pub fn begin_step(&self, stream: Stream) -> Result<()> {
        self.device.backend().with_context(&mut || {
            let engine = self.engine_stream(stream)?;
            self.laid_out()?.begin_step(engine)
        })
    }

    /// Ends an abandoned step: releases on the stream the groups that were acquired on `of`, or on
    /// any stream.
    pub fn reset(&self, stream: Stream, of: Option<Stream>) -> Result<()> {
        self.check_not_captured(stream, "reset a step")?;
        let done = self.laid_out()?.reset(&self.device, stream, of);
        // Also after an error: groups may have been released.
        self.released.notify_all();
        done
    }

    /// Locks the schedule to change what it works on, which needs [`ScheduleChange::make_idle`].
    pub fn change(&self, stream: Stream) -> Result<ScheduleChange<'_>> {
        let captured = self.device.backend().capture(stream)?.is_some();
        let machine = self.machine();
        let (device, released) = (&self.device, &self.released);
        Ok(ScheduleChange { device, machine, released, stream, captured, idle: false })
    }

    /// Whether steps are refused because no memory is behind addresses.
    pub fn is_asleep(&self) -> bool {
        self.machine().asleep
    }

    /// Bytes of the buffer that pageable memory is staged through.
    pub fn staging_bytes(&self) -> u64 {
        self.machine().staging_bytes()
    }

    /// Bytes of device memory through which compressed bytes pass.
    pub fn window_bytes(&self) -> u64 {
        self.machine().window_bytes()
    }

    /// The copies and waits so far, of all groups.
    pub fn stats(&self) -> Result<GroupStats> {
        Ok(GroupStats::sum(self.machine().stats()?))
    }

    /// The copies and waits so far of a group.
    pub fn group_stats(&self, group: usize) -> Result<GroupStats> {
        Ok(self.machine().stats()?[group])
    }
}

/// The error while slots are invalid.
pub fn no_slots() -> Error {
    let message = "an earlier change of the parameters failed before every slot had its memory again: \
                   free device memory, then call wb_offloader_compact";
    Error::new(WB_ERR_DEVICE_MEMORY, message)
}

/// The error while no memory is behind addresses.
fn asleep() -> Error {
    let message = "the offloader is asleep or is still waking, or a resize or a replacement has failed half way: \
                   resize it to the device memory that it may use, repeat that until it succeeds, and wait \
                   with wb_offloader_resize_wait";
    Error::new(WB_ERR_BUSY, message)
}

fn captured(what: &str) -> Error {
    let message =
        format!("asked to {what} on a stream that is being captured: end the capture first");
    Error::new(WB_ERR_CAPTURING, message)
}

/// A change of a schedule, which is locked: calls of other threads wait until this is dropped.
pub struct ScheduleChange<'a> {
    device: &'a Device,
    machine: MutexGuard<'a, Machine>,
    released: &'a Condvar,
    stream: Stream,
    /// Whether the stream is being captured.
    captured: bool,
    /// Whether nothing is in flight.
    idle: bool,
}

impl ScheduleChange<'_> {
    /// Waits, once, until no copy and no use is in flight, including the work queued on the stream.
    /// Fails with `WB_ERR_CAPTURING` if the stream is being captured or another capture has drawn in
    /// a copy stream, and with `WB_ERR_BUSY` if one of the groups is acquired.
    pub fn make_idle(&mut self, groups: &[usize]) -> Result<()> {
        if self.captured {
            return Err(captured("change parameters"));
        }
        self.machine.check_not_drawn_in(self.device, None)?;
        groups.iter().try_for_each(|group| self.machine.check_released(*group))?;
        if !self.idle {
            self.machine.quiesce(self.device, self.stream)?;
            self.idle = true;
        }
        Ok(())
    }

    /// The stream of the change.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Waits for the work queued on the stream.
    pub fn wait_for_stream(&mut self) -> Result<()> {
        self.machine.fork.record(self.device, self.stream, None)?;
        self.machine.fork.synchronize()
    }

    /// Fails with `WB_ERR_CAPTURING` during a capture, in which no memory can be exchanged.
    /// Waits, where graphs exist, for the work queued on the stream: nothing else shows whether a
    /// replay is in flight.
    pub fn wait_for_replays(&mut self) -> Result<()> {
        if self.captured {
            return Err(captured("resize"));
        }
        self.machine.check_not_drawn_in(self.device, None)?;
        match self.machine.steps.graph_exists {
            true => self.wait_for_stream(),
            false => Ok(()),
        }
    }

    /// Whether no group of a unit is acquired, and its copies and uses outside of captures have ended.
    pub fn is_unused(&self, unit: usize) -> Result<bool> {
        let slot = &self.machine.slots[unit];
        Ok(!slot.is_acquired() && slot.is_complete()?)
    }

    /// Queues copying a unit's bytes from host memory, decoded where they are compressed, to the beginning of
    /// other memory of the device. After an error a part may be in flight.
    pub fn copy_unit(&self, unit: usize, to: Span, stream: Stream) -> Result<()> {
        let streams = WindowStreams { copy: stream, decode: stream, capture: None };
        let copy = UnitCopy::new(&self.machine.units[unit], to, None);
        // Windows are those of steps.
        copy.queue(self.device, streams, None).map(drop)
    }

    /// See [`Machine::set_resident`].
    pub fn set_resident(&mut self, unit: usize, resident: bool) {
        self.machine.set_resident(unit, resident);
    }

    /// How many captures there were.
    pub fn captures(&self) -> u64 {
        self.machine.steps.captures
    }

    /// Whether steps are refused because no memory is behind addresses.
    pub fn is_asleep(&self) -> bool {
        self.machine.asleep
    }

    /// Refuses steps, or permits them again. Calls that wait for a group are woken.
    pub fn set_asleep(&mut self, asleep: bool) {
        self.machine.asleep = asleep;
        self.released.notify_all();
    }

    /// Notes that the unit's host memory was written, so that it is copied again before it is used.
    /// Does nothing while the slots are invalid.
    pub fn mark_dirty(&mut self, unit: usize) {
        if self.machine.laid_out {
            self.machine.mark_dirty(unit);
        }
    }

    /// Whether units and slots are where the arrangement says.
    pub fn is_laid_out(&self) -> bool {
        self.machine.laid_out
    }

    /// Makes host memory and slots invalid before they are freed: nothing is copied until
    /// [`ScheduleChange::lay_out`] has succeeded.
    pub fn invalidate(&mut self) {
        self.machine.laid_out = false;
    }

    /// Fails with `WB_ERR_BUSY` while any group is acquired.
    pub fn check_all_released(&self) -> Result<()> {
        self.machine.check_all_released()
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        self.machine.units.len()
    }

    /// Continues with other units at these indexes, ascending, or after the last one. All others
    /// stay in their slots. No group may be acquired.
    pub fn change_units(&mut self, units: Vec<(usize, CarriedUnit)>) -> Result<()> {
        self.machine.change_units(self.device, units)?;
        self.machine.reset(self.device, self.stream, None)
    }

    /// Continues with another arrangement. No group may be acquired.
    pub fn lay_out(&mut self, arrangement: Arrangement) -> Result<()> {
        self.machine.lay_out(self.device, arrangement)?;
        self.machine.reset(self.device, self.stream, None)
    }
}

impl Drop for Schedule {
    /// Waits for the copies and uses in flight, before the memory is freed that they read and
    /// write.
    fn drop(&mut self) {
        let backend = self.device.backend();
        if backend.check_process().is_ok() && !backend.is_lost() {
            log::best_effort_wait(|| self.machine().synchronize(), || backend.is_lost());
        }
    }
}
