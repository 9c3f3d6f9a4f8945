//! Which unit is in its slot, and when it is copied there: the machine behind acquire and release.
//!
//! Groups with units that are copied ahead form a ring in the order of a step. A group's release lets
//! the copies begin that need its slot; the ring's last slot is filled by the step that uses it, not
//! by the one before: so every step begins and ends with the first groups in their slots, a captured
//! step can be replayed after any other, and the link still has work across the boundary.
//!
//! A group that is acquired out of order is copied when it is asked for: that costs time and nothing
//! else.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Error, Result, fail};
use crate::memory::staging::Staging;
use crate::offload::schedule::arrangement::{Arrangement, TransferStats};
use crate::offload::schedule::machine::Machine;
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::os::{log, sync};
use crate::status::{WB_ERR_CAPTURING, WB_ERR_DEVICE_MEMORY};

/// The machine. Any thread.
pub struct Schedule {
    device: Arc<Device>,
    machine: Mutex<Machine>,
}

impl Schedule {
    /// The machine for an arrangement. With `staging`, host memory is pageable.
    pub fn new(
        device: &Arc<Device>,
        arrangement: &Arrangement,
        staging: Option<Staging>,
    ) -> Result<Self> {
        let mut machine = Machine::new(device, staging)?;
        machine.lay_out(device, arrangement)?;
        Ok(Self { device: device.clone(), machine: Mutex::new(machine) })
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        sync::lock(&self.machine)
    }

    /// The machine, when it has something to carry.
    fn seated(&self) -> Result<MutexGuard<'_, Machine>> {
        let machine = self.machine();
        if machine.seated { Ok(machine) } else { Err(no_slots()) }
    }

    /// The stream's capture; an error in one, for what cannot be done there.
    fn check_running(&self, stream: Stream, what: &str) -> Result<()> {
        if self.device.backend().capture(stream)?.is_some() {
            fail!(
                WB_ERR_CAPTURING,
                "asked to {what} on a stream that is being captured: end the capture first"
            );
        }
        Ok(())
    }

    /// Makes the stream wait until the group's units are in their slots, and holds them there.
    pub fn acquire(&self, group: usize, stream: Stream) -> Result<()> {
        self.device.backend().within(&mut || {
            let capture = self.device.backend().capture(stream)?;
            self.seated()?.acquire(&self.device, group, stream, capture)
        })
    }

    /// What was queued on the stream is the last use of the group.
    pub fn release(&self, group: usize, stream: Stream) -> Result<()> {
        self.device.backend().within(&mut || {
            let capture = self.device.backend().capture(stream)?;
            self.seated()?.release(&self.device, group, stream, capture)
        })
    }

    /// Makes the stream wait for every copy that was queued: before a capture of a part of a step ends.
    pub fn join(&self, stream: Stream) -> Result<()> {
        let capture = self.device.backend().capture(stream)?;
        let mut machine = self.seated()?;
        machine.enter(capture);
        machine.join(&self.device, stream, capture)
    }

    /// Ends a step that was abandoned: nothing is held, and the first groups are in their slots.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        self.check_running(stream, "reset a step")?;
        self.seated()?.reset(&self.device, stream)
    }

    /// Stops the machine to change what it carries: nothing of the groups is held, no copy is under
    /// way and no use is left, what is queued on the stream included.
    pub fn change(&self, groups: &[usize], stream: Stream) -> Result<ScheduleChange<'_>> {
        self.check_running(stream, "change parameters")?;
        let mut machine = self.machine();
        groups.iter().try_for_each(|group| machine.check_free(*group))?;
        machine.quiesce(&self.device, stream)?;
        Ok(ScheduleChange { device: &self.device, machine, stream })
    }

    /// Bytes of the buffer that pageable memory is staged through.
    pub fn staging_bytes(&self) -> u64 {
        self.machine().staging_bytes()
    }

    /// What was carried so far.
    pub fn carried(&self) -> Result<TransferStats> {
        self.machine().carried()
    }
}

/// The error where a change has lost the slots.
pub fn no_slots() -> Error {
    let message = "an earlier change of the parameters failed before every slot had its memory again: \
                   free device memory, then call wb_offloader_compact";
    Error::new(WB_ERR_DEVICE_MEMORY, message)
}

/// The machine while it stands still. Other threads' calls wait.
pub struct ScheduleChange<'a> {
    device: &'a Device,
    machine: MutexGuard<'a, Machine>,
    stream: Stream,
}

impl ScheduleChange<'_> {
    /// The unit's host memory was written: what is in its slot is old, and is copied again. Without
    /// slots there is nothing old.
    pub fn touch(&mut self, unit: usize) -> Result<()> {
        match self.machine.seated {
            true => self.machine.touch(self.device, unit, self.stream),
            false => Ok(()),
        }
    }

    /// Whether the slots are where the arrangement says.
    pub fn is_seated(&self) -> bool {
        self.machine.seated
    }

    /// Memory that is carried, or slots, are about to go: until [`ScheduleChange::lay_out`] has succeeded
    /// nothing is copied to or from where they were.
    pub fn unseat(&mut self) {
        self.machine.seated = false;
    }

    /// `WB_ERR_BUSY` while any group is held.
    pub fn check_all_free(&self) -> Result<()> {
        self.machine.check_all_free()
    }

    /// Goes on with another arrangement; no group is held, and nothing was touched since this stands
    /// still: what is replaced here must have no copy under way.
    pub fn lay_out(&mut self, arrangement: &Arrangement) -> Result<()> {
        self.machine.lay_out(self.device, arrangement)?;
        self.machine.reset(self.device, self.stream)
    }
}

impl Drop for Schedule {
    /// What is queued reads the host memory and the slots: it runs before those go.
    fn drop(&mut self) {
        let backend = self.device.backend();
        if backend.check_process().is_ok() && !backend.is_gone() {
            log::best_effort_wait(|| self.machine().synchronize(), || backend.is_gone());
        }
    }
}
