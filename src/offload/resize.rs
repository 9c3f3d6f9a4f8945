//! A budget that changes while an engine runs.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::backend::Stream;
use crate::error::{Error, Result, fail};
use crate::offload::moves::{Resize, ResizeProgress};
use crate::offload::offloader::Offloader;
use crate::plan::plan::Budget;
use crate::plan::residency;
use crate::status::{WB_ERR_BUSY, WB_ERR_NOT_SUPPORTED, WB_ERR_TIMEOUT};

/// How long [`Offloader::resize_wait`] leaves the locks to others, where nothing can be waited for.
pub(super) const PAUSE: Duration = Duration::from_micros(100);

impl Offloader {
    /// Begins to hold what a budget says: 0 bytes of device memory put the offloader to sleep. Does at
    /// once what can be done at once; [`Offloader::resize_advance`] goes on. Without `graphs_dropped`,
    /// every graph that was captured stays right; with it, none is launched again.
    pub fn resize(
        &self,
        budget: Budget,
        graphs_dropped: bool,
        stream: Stream,
    ) -> Result<ResizeProgress> {
        self.begin_resize(budget, graphs_dropped, false, stream)
    }

    /// As [`Offloader::resize`], by the arbiter.
    pub(super) fn resize_shared(&self, device_bytes: u64, stream: Stream) -> Result<()> {
        self.begin_resize(Budget::DeviceBytes(device_bytes), false, true, stream).map(drop)
    }

    fn begin_resize(
        &self,
        budget: Budget,
        graphs_dropped: bool,
        by_arbiter: bool,
        stream: Stream,
    ) -> Result<ResizeProgress> {
        let mut state = self.state()?;
        // Under the lock: an arbiter that comes later waits for this call, and sees what it has done.
        if !by_arbiter && self.shared.load(Ordering::Acquire) {
            fail!(
                WB_ERR_BUSY,
                "asked to resize an offloader that shares the budget of an arbiter: use it with \
                 wb_arbiter_use, resize the arbiter, or remove the offloader from it"
            );
        }
        let state = &mut *state;
        let Some(addresses) = &mut state.addresses else { return Err(self.no_addresses()) };
        let (units, least_bytes) = (addresses.movable(), addresses.least_bytes());
        let caches = match (budget, addresses.pools.claim(graphs_dropped)) {
            (Budget::DeviceBytes(bytes @ 1..), Some(claim)) => {
                residency::bytes_for_caches(&units, least_bytes, bytes, claim)?
            }
            _ => 0,
        };
        let resident = match budget {
            Budget::DeviceBytes(0) => vec![false; units.len()],
            Budget::DeviceBytes(bytes) => residency::choose(&units, least_bytes, bytes - caches)?,
            Budget::OffloadBytes(bytes) => residency::choose_offloaded(&units, bytes),
        };
        let mut change = self.schedule().change(stream)?;
        change.wait_for_replays()?;
        if graphs_dropped {
            addresses.pools.forget_graphs();
        }
        match budget {
            Budget::DeviceBytes(0) => addresses.pools.sleep(),
            Budget::DeviceBytes(_) => addresses.pools.share(caches),
            Budget::OffloadBytes(_) => addresses.pools.wake(),
        }
        let device_bytes = match budget {
            Budget::DeviceBytes(bytes) => bytes,
            Budget::OffloadBytes(_) => {
                let resident = residency::resident_bytes(&units, &resident);
                least_bytes + resident + addresses.pools.target_bytes()
            }
        };
        let sleeps = budget == Budget::DeviceBytes(0);
        if graphs_dropped {
            let captures = change.captures();
            for home in &mut addresses.homes {
                (home.in_graphs, home.resident_since) = (false, captures);
                (home.copied_by_graphs, home.slot_since) = (false, captures);
            }
        }
        let resize = match &mut state.resize {
            Some(resize) => {
                resize.redirect(resident, device_bytes, sleeps);
                resize
            }
            none => none.insert(Resize::new(self.device(), resident, device_bytes, sleeps)?),
        };
        resize.advance(addresses, &mut change)?;
        Ok(resize.progress(addresses))
    }

    /// Bytes of slots and windows, and of the slots of caches that graphs need; and with all slots of
    /// caches that are of use, and all units that can be resident.
    pub(super) fn resize_bounds(&self) -> Result<(u64, u64)> {
        let state = self.state()?;
        let Some(addresses) = &state.addresses else { return Err(self.no_addresses()) };
        let (pools, least) = (&addresses.pools, addresses.least_bytes());
        let units: u64 = addresses.movable().iter().map(|unit| unit.bytes).sum();
        let caches = pools.claim(false).map_or(0, |claim| claim.least_bytes);
        Ok((least + caches, least + units + pools.most_bytes()))
    }

    /// Bytes of device memory that a resize could free.
    pub(super) fn held_device_bytes(&self) -> Result<u64> {
        let state = self.state()?;
        let Some(addresses) = &state.addresses else { return Err(self.no_addresses()) };
        Ok(match &state.resize {
            Some(resize) => resize.progress(addresses).device_bytes,
            None => addresses.held_bytes(),
        })
    }

    /// Whether steps are refused since nothing is on the device.
    pub(super) fn is_asleep(&self) -> bool {
        self.schedule().is_asleep()
    }

    /// Fails if an arbiter resizes the offloader.
    pub(super) fn check_not_shared(&self) -> Result<()> {
        if self.shared.load(Ordering::Acquire) {
            return Err(is_shared());
        }
        Ok(())
    }

    /// Notes that an arbiter resizes the offloader. Fails if one does already.
    pub(super) fn share(&self) -> Result<Shared<'_>> {
        if self.shared.swap(true, Ordering::AcqRel) {
            return Err(is_shared());
        }
        Ok(Shared(self))
    }

    /// Notes that no arbiter resizes the offloader.
    pub(super) fn clear_shared(&self) {
        self.shared.store(false, Ordering::Release);
    }

    /// Goes on with a resize, as far as possible without a wait for uses of units. Where graphs exist,
    /// waits for the work queued on the stream.
    pub fn resize_advance(&self, stream: Stream) -> Result<ResizeProgress> {
        let mut state = self.state()?;
        let state = &mut *state;
        let Some(addresses) = &mut state.addresses else { return Err(self.no_addresses()) };
        let mut change = self.schedule().change(stream)?;
        let Some(resize) = &mut state.resize else {
            return Ok(ResizeProgress {
                pending_units: 0,
                pending_bytes: 0,
                device_bytes: addresses.held_bytes(),
                host_bytes: addresses.host_bytes(),
            });
        };
        resize.advance(addresses, &mut change)?;
        Ok(resize.progress(addresses))
    }

    /// Goes on with a resize until it is done. Fails with `WB_ERR_TIMEOUT` if that takes longer, such
    /// as while a group is acquired; the resize can be continued.
    pub fn resize_wait(&self, stream: Stream, timeout: Duration) -> Result<ResizeProgress> {
        let begin = Instant::now();
        loop {
            let progress = self.resize_advance(stream)?;
            if progress.pending_units == 0 {
                return Ok(progress);
            }
            if begin.elapsed() >= timeout {
                fail!(
                    WB_ERR_TIMEOUT,
                    "after {timeout:?}: {} units are not where the resize is to put them; a unit moves when \
                     its groups are released and their work is done",
                    progress.pending_units
                );
            }
            thread::sleep(PAUSE);
        }
    }

    pub(super) fn no_addresses(&self) -> Error {
        match self.options().fixed_addresses {
            true => self.device().backend().no_address_ranges(),
            false => Error::new(
                WB_ERR_NOT_SUPPORTED,
                "asked to change what is behind addresses, and the plan of this offloader has no \
                 fixed ones: set wb_plan_options.fixed_addresses",
            ),
        }
    }
}

/// An offloader that is an arbiter's, until this is dropped.
pub(super) struct Shared<'a>(&'a Offloader);

impl Shared<'_> {
    /// Leaves it the arbiter's.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.0.clear_shared();
    }
}

fn is_shared() -> Error {
    let message = "the offloader is in an arbiter already: remove it from that first";
    Error::new(WB_ERR_BUSY, message)
}
