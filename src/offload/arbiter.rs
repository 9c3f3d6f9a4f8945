//! An arbiter: offloaders of one device share a budget of its memory. It is asked, and never acts by
//! itself.

use std::time::{Duration, Instant};

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::offload::moves::ResizeProgress;
use crate::offload::offloader::Offloader;
use crate::offload::resize::PAUSE;
use crate::os::sync;
use crate::os::sync::{Arc, Mutex, MutexGuard, thread};
use crate::plan::sharing::{Claim, share};
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FOUND, WB_ERR_TIMEOUT,
};

/// How an offloader shares.
#[derive(Debug, Clone, Copy)]
pub struct MemberOptions {
    /// Those of a higher priority give memory later.
    pub priority: i32,
    /// What others leave it; 0 lets it sleep.
    pub min_bytes: u64,
    /// The stream of its steps and graphs.
    pub stream: Stream,
}

struct Member {
    offloader: Arc<Offloader>,
    options: MemberOptions,
    /// The number of its last use.
    used: u64,
    slot_bytes: u64,
    whole_bytes: u64,
    /// What it is to hold.
    target: u64,
    /// What it may hold, or come to hold, as far as it was resized.
    limit: u64,
    /// Whether the last resize failed before it had begun, or may have.
    failed: bool,
}

/// What an offloader holds, and is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberInfo {
    /// See [`MemberOptions`].
    pub priority: i32,
    /// See [`MemberOptions`].
    pub min_bytes: u64,
    /// Less puts it to sleep.
    pub slot_bytes: u64,
    /// All that it can use.
    pub whole_bytes: u64,
    /// What it is to hold at most.
    pub target_bytes: u64,
    /// What it holds.
    pub device_bytes: u64,
    /// Whether steps are refused.
    pub is_asleep: bool,
}

/// How far the last change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArbiterProgress {
    /// Whether the offloader that was used last may run steps.
    pub is_ready: bool,
    /// Offloaders that do not hold yet what they are to hold.
    pub pending: u64,
    /// Device memory of all of them.
    pub device_bytes: u64,
    /// Host memory of all of them beside their arenas.
    pub host_bytes: u64,
}

impl Member {
    fn claim(&self) -> Claim {
        Claim {
            priority: self.options.priority,
            used: self.used,
            min_bytes: self.options.min_bytes,
            slot_bytes: self.slot_bytes,
            whole_bytes: self.whole_bytes,
            target_bytes: self.target,
        }
    }

    /// Resizes it. If that fails it may have begun, so that it holds one or the other.
    fn resize(&mut self, bytes: u64) -> Result<()> {
        (self.failed, self.limit) = (true, self.limit.max(bytes));
        self.offloader.resize_shared(bytes, self.options.stream)?;
        (self.failed, self.limit) = (false, bytes);
        Ok(())
    }

    fn is_pending(&self, progress: &ResizeProgress) -> bool {
        self.failed || self.limit != self.target || progress.pending_units > 0
    }
}

struct State {
    device_bytes: u64,
    members: Vec<Member>,
    /// Of all offloaders.
    uses: u64,
}

impl State {
    fn find(&self, offloader: &Offloader) -> Result<usize> {
        let is_it = |member: &Member| std::ptr::eq(&*member.offloader, offloader);
        match self.members.iter().position(is_it) {
            Some(at) => Ok(at),
            None => fail!(WB_ERR_NOT_FOUND, "the offloader is not in this arbiter: add it first"),
        }
    }

    /// Decides what each offloader is to hold.
    fn plan(&mut self, next: Option<usize>, device_bytes: u64) -> Result<()> {
        for member in &mut self.members {
            // A capture may need more slots of expert caches.
            (member.slot_bytes, member.whole_bytes) = member.offloader.resize_bounds()?;
        }
        let claims: Vec<_> = self.members.iter().map(Member::claim).collect();
        let shares = share(&claims, next, device_bytes)?;
        for (member, share) in self.members.iter_mut().zip(shares) {
            member.target = share;
        }
        Ok(())
    }

    /// Does what can be done now: offloaders that are to give memory are resized first, those that are to
    /// get it once that is free.
    fn advance(&mut self) -> Result<ArbiterProgress> {
        let mut result = Ok(());
        for member in &mut self.members {
            let shrinks =
                member.target < member.limit || member.failed && member.target <= member.limit;
            if shrinks && let Err(error) = member.resize(member.target) {
                // The others still give what they are to give.
                result = result.and(Err(error));
            }
        }
        result?;
        let mut held = Vec::with_capacity(self.members.len());
        for member in &self.members {
            held.push(member.offloader.resize_advance(member.options.stream)?);
        }
        for at in 0..self.members.len() {
            let others = self.members.iter().zip(&held).enumerate().filter(|(one, _)| *one != at);
            let taken: u64 =
                others.map(|(_, (other, held))| other.limit.max(held.device_bytes)).sum();
            let free = self.device_bytes.saturating_sub(taken);
            let member = &mut self.members[at];
            if member.target <= member.limit && !member.failed {
                continue;
            }
            // Its slots first, with which it can run.
            let bytes = if free >= member.target { member.target } else { member.slot_bytes };
            if bytes <= free && (bytes > member.limit || member.failed) {
                member.resize(bytes)?;
                held[at] = member.offloader.resize_advance(member.options.stream)?;
            }
        }
        let last = self.members.iter().enumerate().max_by_key(|(_, member)| member.used);
        let all = self.members.iter().zip(&held);
        Ok(ArbiterProgress {
            is_ready: last.is_some_and(|(_, member)| !member.offloader.is_asleep()),
            pending: all.filter(|(member, held)| member.is_pending(held)).count() as u64,
            device_bytes: held.iter().map(|held| held.device_bytes).sum(),
            host_bytes: held.iter().map(|held| held.host_bytes).sum(),
        })
    }
}

/// Shares the memory of a device among offloaders. Its calls may come from any thread.
pub struct Arbiter {
    device: Arc<Device>,
    state: Mutex<State>,
}

impl Arbiter {
    /// An arbiter over `device_bytes` bytes, without offloaders.
    pub fn new(device: &Arc<Device>, device_bytes: u64) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        if device_bytes == 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to share 0 bytes of device memory: give a budget"
            );
        }
        let state = State { device_bytes, members: Vec::new(), uses: 0 };
        Ok(Arc::new(Self { device: device.clone(), state: Mutex::new(state) }))
    }

    /// Locks the state. Fails in a forked child, where the lock may never be released.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        self.device.backend().check_process()?;
        Ok(sync::lock(&self.state))
    }

    /// Adds an offloader with the memory that it holds. Fails with `WB_ERR_BUDGET` if that does not fit
    /// beside what the others may hold.
    pub fn add(&self, offloader: Arc<Offloader>, options: MemberOptions) -> Result<()> {
        let mut state = self.state()?;
        // First, so that no resize of the caller comes between what it holds and this.
        let shared = offloader.share()?;
        let member = self.new_member(&state, &offloader, options)?;
        state.uses += 1;
        let used = state.uses;
        state.members.push(Member { used, ..member });
        shared.keep();
        Ok(())
    }

    /// A member that was not used yet.
    fn new_member(
        &self,
        state: &State,
        offloader: &Arc<Offloader>,
        options: MemberOptions,
    ) -> Result<Member> {
        let kind = |device: &Device| {
            let capabilities = device.capabilities();
            (capabilities.cuda, capabilities.ordinal)
        };
        if kind(offloader.device()) != kind(&self.device) {
            fail!(WB_ERR_INVALID_ARGUMENT, "the offloader is of another device than the arbiter");
        }
        let progress = offloader.resize_advance(options.stream)?;
        if progress.pending_units > 0 {
            fail!(
                WB_ERR_BUSY,
                "{} units of the offloader are being moved: wait for that with wb_offloader_resize_wait",
                progress.pending_units
            );
        }
        let (slot_bytes, whole_bytes) = offloader.resize_bounds()?;
        let held = progress.device_bytes;
        let others: u64 = state.members.iter().map(|member| member.limit.max(member.target)).sum();
        if others.saturating_add(held) > state.device_bytes {
            fail!(
                WB_ERR_BUDGET,
                "the offloader holds {held} bytes of device memory, beside {others} of the others; the \
                 arbiter shares {}: resize it before, or use it when another gives memory",
                state.device_bytes
            );
        }
        Ok(Member {
            offloader: offloader.clone(),
            options,
            used: 0,
            slot_bytes,
            whole_bytes,
            target: held,
            limit: held,
            failed: false,
        })
    }

    /// Removes an offloader, which keeps what it holds.
    pub fn remove(&self, offloader: &Offloader) -> Result<()> {
        let mut state = self.state()?;
        let at = state.find(offloader)?;
        let removed = state.members.remove(at);
        drop(state);
        removed.offloader.clear_shared();
        Ok(())
    }

    /// Begins to give an offloader as much memory as it can use, and does what can be done at once.
    pub fn use_next(&self, offloader: &Offloader) -> Result<ArbiterProgress> {
        let mut state = self.state()?;
        let at = state.find(offloader)?;
        let device_bytes = state.device_bytes;
        state.plan(Some(at), device_bytes)?;
        state.uses += 1;
        state.members[at].used = state.uses;
        state.advance()
    }

    /// Changes the budget. All offloaders are idle then: they keep what fits.
    pub fn resize(&self, device_bytes: u64) -> Result<ArbiterProgress> {
        let mut state = self.state()?;
        state.plan(None, device_bytes)?;
        state.device_bytes = device_bytes;
        state.advance()
    }

    /// Goes on, as far as possible without a wait.
    pub fn progress(&self) -> Result<ArbiterProgress> {
        self.state()?.advance()
    }

    /// Goes on until every offloader holds what it is to hold. Fails with `WB_ERR_TIMEOUT` if that takes
    /// longer.
    pub fn wait(&self, timeout: Duration) -> Result<ArbiterProgress> {
        let begin = Instant::now();
        loop {
            let progress = self.progress()?;
            if progress.pending == 0 {
                return Ok(progress);
            }
            if begin.elapsed() >= timeout {
                fail!(
                    WB_ERR_TIMEOUT,
                    "after {timeout:?}: {} offloaders do not hold what they are to hold; one moves when its \
                     groups are released and their work is done",
                    progress.pending
                );
            }
            thread::sleep(PAUSE);
        }
    }

    /// What an offloader holds, and is to hold.
    pub fn member_info(&self, offloader: &Offloader) -> Result<MemberInfo> {
        let state = self.state()?;
        let member = &state.members[state.find(offloader)?];
        Ok(MemberInfo {
            priority: member.options.priority,
            min_bytes: member.options.min_bytes,
            slot_bytes: member.slot_bytes,
            whole_bytes: member.whole_bytes,
            target_bytes: member.target,
            device_bytes: member.offloader.held_device_bytes()?,
            is_asleep: member.offloader.is_asleep(),
        })
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        if self.device.backend().check_process().is_err() {
            return;
        }
        for member in &sync::lock(&self.state).members {
            member.offloader.clear_shared();
        }
    }
}
