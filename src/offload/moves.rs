//! The units that a resize moves: which leave the device and which return to it, one after another as
//! their last uses pass. Their addresses stay.

use crate::device::backend::Event;
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::Result;
use crate::memory::buffer::Pinning;
use crate::memory::deferred;
use crate::memory::transfer::Direction;
use crate::offload::addresses::{Addresses, Behind, Home, HostCopy};
use crate::offload::move_target::{Goal, LEAST_BESIDE, Preparation, Target, prepare};
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::staged_moves::{Moved, StagedMove, StagedMoves};
use crate::os::log;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// Copies that are in flight at a time: the link has work while one ends. More of pieces, as far as
/// they have fewer bytes together.
const MOST_IN_FLIGHT: usize = 4;
pub(super) const MOST_BYTES_IN_FLIGHT: usize = 64 << 20;
/// Units for which threads allocate host memory at a time: one makes pages present, which takes many
/// processors, while the other registers them, which takes one.
const MOST_ALLOCATING: usize = 2;

/// Where an offloader is going.
pub struct Resize {
    /// Whether each unit is to be resident.
    pub(super) resident: Vec<bool>,
    /// The limit of device memory.
    device_bytes: u64,
    /// Whether slots are freed, too, and steps refused.
    sleeps: bool,
    /// Whether nothing is in flight and no group acquired, so that slots and windows may go. Steps are refused then.
    quiet: bool,
    device: Arc<Device>,
    stream: OwnedStream,
    moves: Vec<Move>,
    /// Those that pass through staging memory, and those that are to be the next of these.
    staged: Option<StagedMoves>,
    next_staged: Vec<StagedMove>,
    /// Bytes that may still be copied in this call, and those that were, if that is limited.
    pub(super) quota: Option<u64>,
    pub(super) copied_bytes: u64,
}

/// A unit that moves to other memory.
struct Move {
    home: usize,
    goal: Goal,
    bytes: usize,
    stage: Stage,
}

enum Stage {
    /// The memory is being allocated.
    Allocating(Preparation),
    /// The bytes pass through staging memory.
    Staged,
    /// The bytes are being copied.
    Copying { to: Target, copied: Box<dyn Event> },
}

/// How far a resize is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeProgress {
    /// Units that are not where they are to be, and caches that do not have the slots that they are to have.
    pub pending_units: u64,
    /// Their bytes on the device.
    pub pending_bytes: u64,
    /// Device memory of resident units, of slots and of caches, and of copies that are being made.
    pub device_bytes: u64,
    /// Host memory of units that are read in place, and of copies that resident ones keep.
    pub host_bytes: u64,
}

impl Resize {
    /// A resize to `device_bytes`, with the units that are to be resident.
    pub fn new(
        device: &Arc<Device>,
        resident: Vec<bool>,
        device_bytes: u64,
        sleeps: bool,
    ) -> Result<Self> {
        let stream = OwnedStream::new(device)?;
        let device = device.clone();
        Ok(Self {
            resident,
            device_bytes,
            sleeps,
            quiet: false,
            device,
            stream,
            moves: Vec::new(),
            staged: None,
            next_staged: Vec::new(),
            quota: None,
            copied_bytes: 0,
        })
    }

    /// Changes where units are to be. Copies in flight that are no longer wanted are dropped later.
    pub fn redirect(&mut self, resident: Vec<bool>, device_bytes: u64, sleeps: bool) {
        let is_other = self.resident != resident || self.sleeps != sleeps;
        if let Some(staged) = self.staged.as_ref().filter(|_| is_other) {
            staged.cancel();
        }
        (self.resident, self.device_bytes, self.sleeps) = (resident, device_bytes, sleeps);
        self.quiet &= sleeps;
    }

    /// Whether slots are freed, too, and steps refused.
    pub fn sleeps(&self) -> bool {
        self.sleeps
    }

    /// The device memory of units, of slots and windows, of caches, and of copies that are being made.
    fn held_bytes(&self, addresses: &Addresses) -> u64 {
        addresses.held_bytes() + self.coming_bytes(true)
    }

    /// Permits what is held now that a cache is new: nothing is moving.
    pub fn permit(&mut self, held_bytes: u64) {
        self.device_bytes = self.device_bytes.max(held_bytes);
    }

    /// The bytes of copies that are being made, on the device or in host memory.
    fn coming_bytes(&self, on_device: bool) -> u64 {
        let goes = |one: &&Move| (one.goal == Goal::Device) == on_device;
        self.moves.iter().filter(goes).map(|one| one.bytes as u64).sum()
    }

    /// Whether a unit is where it is to be.
    pub(super) fn is_done(&self, at: usize, home: &Home) -> bool {
        !home.unmapped
            && match &home.behind {
                Behind::Own(_) => self.resident[at],
                Behind::Host(_) => !self.resident[at] && (home.carried.is_none() || home.in_graphs),
                Behind::Slot => !self.resident[at] && !self.sleeps(),
                Behind::Nothing => self.sleeps(),
            }
    }

    /// Whether a copy of a unit is in flight.
    pub(super) fn is_moving(&self, at: usize) -> bool {
        self.moves.iter().any(|one| one.home == at)
    }

    /// Whether every unit is where it is to be, and slots and windows have memory, or none in sleep.
    pub fn is_idle(&self, addresses: &Addresses) -> bool {
        let mut homes = addresses.homes.iter().enumerate();
        self.moves.is_empty()
            && homes.all(|(at, home)| self.is_done(at, home))
            && addresses.has_slots(!self.sleeps())
            && addresses.pools.is_done()
    }

    /// Reports the progress.
    pub fn progress(&self, addresses: &Addresses) -> ResizeProgress {
        let homes = addresses.homes.iter().enumerate();
        let pending = homes.filter(|(at, home)| !self.is_done(*at, home) || self.is_moving(*at));
        let bytes: Vec<u64> = pending.map(|(_, home)| home.bytes() as u64).collect();
        let (pools, pool_bytes) = addresses.pools.pending();
        ResizeProgress {
            pending_units: bytes.len() as u64 + pools,
            pending_bytes: bytes.iter().sum::<u64>() + pool_bytes,
            device_bytes: self.held_bytes(addresses),
            host_bytes: addresses.host_bytes() + self.coming_bytes(false),
        }
    }

    /// Does what can be done now.
    pub fn advance(
        &mut self,
        addresses: &mut Addresses,
        change: &mut ScheduleChange<'_>,
    ) -> Result<()> {
        // Memory that is not released yet is still held.
        self.device.retry_releases()?;
        if self.is_idle(addresses) && change.is_asleep() == self.sleeps() {
            return Ok(());
        }
        change.wait_for_replays()?;
        addresses.repair(change)?;
        self.next_staged.clear();
        self.finish_staged()?;
        self.finish_moves(addresses, change)?;
        // Steps may be refused since an earlier call has failed half way: that ends no use.
        if self.sleeps() && !self.quiet {
            if change.check_all_released().is_err() {
                // What has failed is repaired, so that groups can be released.
                change.set_asleep(change.is_asleep() && !addresses.is_complete());
                return Ok(());
            }
            change.make_idle(&[])?;
            change.set_asleep(true);
            self.quiet = true;
        }
        self.leave(addresses, change)?;
        let caches_left = addresses.pools.shrink(change)?;
        if caches_left && !self.resident_left(addresses) {
            self.rest(addresses, change)?;
            self.come(addresses, change)?;
        }
        self.begin_staged();
        if !self.sleeps() && addresses.is_complete() && addresses.pools.is_done() {
            change.set_asleep(false);
        }
        self.device.retry_releases()
    }

    /// Whether a unit is still to leave.
    fn resident_left(&self, addresses: &Addresses) -> bool {
        let mut homes = addresses.homes.iter().zip(&self.resident);
        homes.any(|(home, resident)| matches!(home.behind, Behind::Own(_)) && !resident)
    }

    /// Evicts units: to their slots, if every graph copies them there, and else to host memory.
    fn leave(&mut self, addresses: &mut Addresses, change: &mut ScheduleChange<'_>) -> Result<()> {
        for at in 0..addresses.homes.len() {
            let stays = self.resident[at] || !addresses.homes[at].is_on_device();
            // A copy in flight reads what is behind the unit.
            if stays || self.is_moving(at) {
                continue;
            }
            let home = &mut addresses.homes[at];
            home.in_graphs |= change.captures() > home.resident_since;
            if home.carried.is_some() && (self.sleeps() || !home.in_graphs) {
                let behind = if self.sleeps() { Behind::Nothing } else { Behind::Slot };
                self.exchange(addresses, change, at, behind)?;
                continue;
            }
            if let Some(HostCopy::Mappable(memory)) = &home.host_copy {
                let behind = Behind::Host(memory.clone());
                self.exchange(addresses, change, at, behind)?;
                continue;
            }
            // What is not read in place goes to a buffer, which is ready several times sooner. Pieces would
            // need one each; a small unit is copied to it directly, so it must be pinned.
            let is_pinned = self.device.policy().pin || !self.device.capabilities().cuda;
            let home = &addresses.homes[at];
            let has_buffer = home.bytes() >= LEAST_BESIDE || is_pinned;
            let in_place = !self.sleeps() || addresses.keep_host_copy || !has_buffer;
            let in_place = in_place || home.heat.is_some();
            let goal = if in_place { Goal::Host } else { Goal::Buffer };
            self.start(&addresses.homes[at], at, goal, change)?;
        }
        Ok(())
    }

    /// Brings the units without memory of their own, and the slots, to where they are to be. A unit
    /// that a graph does not copy is never in its slot.
    fn rest(&mut self, addresses: &mut Addresses, change: &mut ScheduleChange<'_>) -> Result<()> {
        if !self.sleeps() {
            // Copies of a resize before may still be in flight.
            let held = addresses.held_slot_bytes() + addresses.held_window_bytes();
            let missing = addresses.least_bytes() - held;
            if self.held_bytes(addresses) + missing > self.device_bytes {
                return Ok(());
            }
            addresses.create_slots()?;
            let free = self.device_bytes.saturating_sub(self.held_bytes(addresses));
            addresses.pools.grow(free, change)?;
        }
        for at in 0..addresses.homes.len() {
            let home = &addresses.homes[at];
            let to = match &home.behind {
                Behind::Nothing if !self.sleeps() && home.needs_host(false) => {
                    if !self.resident[at] {
                        self.start(home, at, Goal::Host, change)?;
                    }
                    continue;
                }
                _ if home.carried.is_none() => continue,
                // One that no graph reads in host memory any more has its bytes in the arena, too.
                Behind::Slot | Behind::Host(_) if self.sleeps() && !home.in_graphs => {
                    Behind::Nothing
                }
                Behind::Nothing if !self.sleeps() => Behind::Slot,
                Behind::Host(_) if !self.sleeps() && !self.resident[at] && !home.in_graphs => {
                    Behind::Slot
                }
                _ => continue,
            };
            self.exchange(addresses, change, at, to)?;
        }
        if self.sleeps() {
            addresses.free_slots()?;
        }
        Ok(())
    }

    /// Starts to copy units into device memory of their own, as far as that is free.
    fn come(&mut self, addresses: &mut Addresses, change: &mut ScheduleChange<'_>) -> Result<()> {
        let mut held = self.held_bytes(addresses);
        for (at, home) in addresses.homes.iter().enumerate() {
            let with = held + home.bytes() as u64;
            let comes = self.resident[at] && !home.is_on_device() && with <= self.device_bytes;
            if comes && self.start(home, at, Goal::Device, change)? {
                held = with;
            }
        }
        self.finish_moves(addresses, change)
    }

    /// Begins to move a unit, if as many bytes may be copied now. Returns whether it did.
    fn start(
        &mut self,
        home: &Home,
        at: usize,
        goal: Goal,
        change: &ScheduleChange<'_>,
    ) -> Result<bool> {
        let staged = staged_source(home, goal);
        let is_full = match staged {
            Some(_) => self.staged.is_some(),
            None => self.is_full(home.bytes()),
        };
        let over = self.quota.is_some_and(|quota| home.bytes() as u64 > quota);
        if self.is_moving(at) || is_full || over {
            return Ok(false);
        }
        if let Some(from) = staged {
            self.next_staged.push(StagedMove { home: at, from, goal });
        } else {
            let allocated = prepare(&self.device, home.bytes(), goal);
            let stage = match allocated.is_running() {
                true => Stage::Allocating(allocated),
                false => self.copy(home, allocated, change)?,
            };
            self.moves.push(Move { home: at, goal, bytes: home.bytes(), stage });
        }
        self.copied_bytes += home.bytes() as u64;
        if let Some(quota) = &mut self.quota {
            *quota -= home.bytes() as u64;
        }
        Ok(true)
    }

    /// Whether no more may be copied directly now.
    fn is_full(&self, more: usize) -> bool {
        let direct = self.moves.iter().filter(|one| !matches!(one.stage, Stage::Staged));
        let allocating = direct.clone().filter(|one| matches!(one.stage, Stage::Allocating(_)));
        let bytes: usize = direct.clone().map(|one| one.bytes).sum();
        (direct.count() >= MOST_IN_FLIGHT && bytes + more > MOST_BYTES_IN_FLIGHT)
            || allocating.count() >= MOST_ALLOCATING
    }

    /// Begins the moves through staging memory.
    fn begin_staged(&mut self) {
        let next = std::mem::take(&mut self.next_staged);
        if next.is_empty() {
            return;
        }
        self.moves.extend(next.iter().map(|one| Move {
            home: one.home,
            goal: one.goal,
            bytes: one.from.bytes(),
            stage: Stage::Staged,
        }));
        let direction = if self.sleeps { Direction::FromDevice } else { Direction::ToDevice };
        self.staged = Some(StagedMoves::begin(&self.device, direction, next));
    }

    /// Notes which of the moves through staging memory are made. If an error has ended them, or another
    /// resize, the others are begun again by the next call.
    fn finish_staged(&mut self) -> Result<()> {
        let Some(staged) = &self.staged else { return Ok(()) };
        // Asked first, so that nothing moves after the look.
        let is_running = staged.is_running();
        for Moved { home, to, copied } in staged.take_moved() {
            let mut moves = self.moves.iter_mut();
            if let Some(one) = moves.find(|one| one.home == home) {
                one.stage = Stage::Copying { to, copied };
            }
        }
        if is_running {
            return Ok(());
        }
        self.moves.retain(|one| !matches!(one.stage, Stage::Staged));
        self.staged.take().map_or(Ok(()), StagedMoves::finish)
    }

    /// Queues the copy of a unit to its new memory, for which it waits.
    fn copy(
        &self,
        home: &Home,
        allocated: Preparation,
        change: &ScheduleChange<'_>,
    ) -> Result<Stage> {
        let to = allocated.finish()?;
        let stream = self.stream.get();
        let copied = self.device.backend().new_event(false)?;
        let queued = match home.source() {
            Some(from) => self.device.copy(to.span().part(0, from.bytes()), from, stream),
            None => change.copy_unit(home.unit, to.span(), stream),
        };
        if let Err(error) = queued.and_then(|()| copied.record(stream)) {
            // The memory is freed next, and a part of the copy may be in flight.
            self.device.backend().synchronize(stream)?;
            return Err(error);
        }
        Ok(Stage::Copying { to, copied })
    }

    /// Copies to memory that has been allocated, and ends the moves whose copies are made, of units that are not in
    /// use. A move that fails is not there any more, and is begun again by the next call.
    fn finish_moves(
        &mut self,
        addresses: &mut Addresses,
        change: &mut ScheduleChange<'_>,
    ) -> Result<()> {
        let mut index = 0;
        while let Some(one) = self.moves.get(index) {
            let at = one.home;
            // A resize that came later may have changed its mind.
            let home = &addresses.homes[at];
            let is_wanted = match one.goal {
                Goal::Device => self.resident[at],
                Goal::Host => !self.resident[at] && home.needs_host(self.sleeps()),
                Goal::Buffer => !self.resident[at] && self.sleeps(),
            };
            let is_done = match &one.stage {
                Stage::Allocating(memory) => !memory.is_running(),
                Stage::Staged => false,
                Stage::Copying { copied, .. } => {
                    copied.is_complete()? && (!is_wanted || change.is_unused(home.unit)?)
                }
            };
            if !is_done {
                index += 1;
                continue;
            }
            if let Stage::Copying { to: Target::Mapped { window, .. }, .. } = &one.stage {
                window.unmap()?;
            }
            let one = self.moves.remove(index);
            match one.stage {
                Stage::Staged => {}
                _ if !is_wanted => {}
                Stage::Allocating(memory) => {
                    let stage = self.copy(&addresses.homes[at], memory, change)?;
                    self.moves.insert(index, Move { stage, ..one });
                    index += 1;
                }
                Stage::Copying { to: Target::Mapped { memory, .. }, .. } => {
                    let on_device = one.goal == Goal::Device;
                    let behind = if on_device { Behind::Own(memory) } else { Behind::Host(memory) };
                    self.exchange(addresses, change, at, behind)?;
                }
                Stage::Copying { to: Target::Buffer(buffer), .. } => {
                    self.exchange(addresses, change, at, Behind::Nothing)?;
                    addresses.homes[at].host_copy = Some(HostCopy::Buffer(buffer));
                }
            }
        }
        Ok(())
    }

    /// Puts other memory behind a unit, if it is not in use.
    fn exchange(
        &self,
        addresses: &mut Addresses,
        change: &mut ScheduleChange<'_>,
        at: usize,
        behind: Behind,
    ) -> Result<()> {
        let unit = addresses.homes[at].unit;
        if !change.is_unused(unit)? {
            return Ok(());
        }
        let before = addresses.homes[at].behind.clone();
        let put = addresses.put(at, behind);
        let keeps = addresses.keep_host_copy;
        let home = &mut addresses.homes[at];
        if matches!(before, Behind::Slot) {
            home.copied_by_graphs |= change.captures() > home.slot_since;
        }
        change.set_resident(unit, home.carried.is_none() || home.needs_no_copy());
        if home.unmapped {
            change.set_asleep(true);
        }
        put?;
        match (&home.behind, before) {
            (Behind::Own(_), Behind::Host(memory)) if keeps => {
                home.host_copy = Some(HostCopy::Mappable(memory));
            }
            (Behind::Own(_) | Behind::Host(_), Behind::Nothing) | (Behind::Host(_), _) => {
                if let Some(HostCopy::Buffer(buffer)) = home.host_copy.take() {
                    // To free it takes as long as to allocate it.
                    deferred::drop_after(None, Box::new(buffer), &self.device);
                }
            }
            _ => {}
        }
        match home.behind {
            Behind::Own(_) => home.resident_since = change.captures(),
            Behind::Slot => home.slot_since = change.captures(),
            _ => {}
        }
        Ok(())
    }
}

/// The bytes of a unit that goes through staging memory, since those are pageable or are to be.
fn staged_source(home: &Home, goal: Goal) -> Option<Span> {
    match home.buffer() {
        Some(buffer) => (buffer.pinning() == Pinning::Pageable).then(|| buffer.data()),
        None => (goal == Goal::Buffer && home.bytes() >= LEAST_BESIDE).then(|| home.used()),
    }
}

impl Drop for Resize {
    /// Waits for the copies, whose memory is freed next.
    fn drop(&mut self) {
        if let Some(staged) = &self.staged {
            staged.cancel();
        }
        let is_lost = || self.device.backend().is_lost();
        for one in &self.moves {
            if let Stage::Copying { copied, .. } = &one.stage {
                log::best_effort_wait(|| copied.synchronize(), is_lost);
            }
        }
    }
}
