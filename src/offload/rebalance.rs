//! Hot pieces come to the device, and cold ones leave it, while as much device memory is held as before.

use crate::device::backend::Stream;
use crate::error::{Result, fail};
use crate::offload::addresses::{Addresses, Home};
use crate::offload::backing::Backing;
use crate::offload::moves::{MOST_BYTES_IN_FLIGHT, Resize, ResizeProgress};
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::plan::residency::{self, Movable};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE};

/// What a rebalance has done, and what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebalance {
    /// Bytes whose copies this call has queued, in either direction.
    pub copied_bytes: u64,
    /// Bytes of pieces that are not where they are to be.
    pub pending_bytes: u64,
    /// What is held.
    pub progress: ResizeProgress,
}

impl Offloader {
    /// Notes how often a step reads `bytes` bytes of a parameter from `offset` on. Fails with
    /// `WB_ERR_NOT_SUPPORTED` if the parameter is not in pieces.
    pub fn prefer(&self, index: usize, offset: u64, bytes: u64, weight: f64) -> Result<()> {
        let mut state = self.state()?;
        let parameter = state.parameter(index)?;
        let (name, span_bytes) = (parameter.name.clone(), parameter.layout.span_bytes());
        if !weight.is_finite() || weight < 0.0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to prefer bytes of parameter {name:?} with the weight {weight}: give the number of times \
                 that a step reads them, which is not negative"
            );
        }
        let Some(end) = offset.checked_add(bytes).filter(|end| *end <= span_bytes) else {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked to prefer {bytes} bytes at {offset} of parameter {name:?}, which has {span_bytes}"
            );
        };
        let backing = parameter.backing.clone();
        let Some(addresses) = &mut state.addresses else { return Err(self.no_addresses()) };
        if let Backing::Owned { memory, offset: start } = &backing
            && addresses.prefer(memory, start + offset..start + end, weight)
        {
            return Ok(());
        }
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to prefer bytes of parameter {name:?}, which moves as a whole; those that are read in place, \
             or would be if they left, are in pieces, if their group has a whole piece of them: ask for \
             transfer_mode zero-copy, and leave out host_store"
        )
    }

    /// Moves the hottest pieces to the device and the coldest to host memory, at the device memory
    /// of now; copies at most `max_bytes` bytes in this call.
    pub fn rebalance(&self, max_bytes: u64, stream: Stream) -> Result<Rebalance> {
        let mut state = self.state()?;
        let state = &mut *state;
        let Some(addresses) = &mut state.addresses else { return Err(self.no_addresses()) };
        let mut change = self.schedule().change(stream)?;
        let resize = match &mut state.resize {
            Some(resize) => resize,
            none => {
                let resident = addresses.movable().iter().map(|unit| unit.resident).collect();
                none.insert(Resize::new(self.device(), resident, addresses.held_bytes(), false)?)
            }
        };
        let copied_bytes = resize.rebalance(addresses, &mut change, max_bytes)?;
        let pending_bytes = resize.unbalanced_bytes(addresses);
        Ok(Rebalance { copied_bytes, pending_bytes, progress: resize.progress(addresses) })
    }
}

impl Resize {
    /// Goes on to the hottest pieces at the same device memory, and copies at most `max_bytes` bytes in
    /// this call. Returns how many it has copied.
    pub fn rebalance(
        &mut self,
        addresses: &mut Addresses,
        change: &mut ScheduleChange<'_>,
        max_bytes: u64,
    ) -> Result<u64> {
        if self.is_idle(addresses) {
            // As many as leave at once: each returns what it has freed before others leave.
            let mut left = max_bytes.min(MOST_BYTES_IN_FLIGHT as u64);
            for (leaves, comes) in residency::exchanges(&self.movable(addresses)) {
                let Some(after) = left.checked_sub(addresses.homes[comes].bytes() as u64) else {
                    break;
                };
                left = after;
                (self.resident[leaves], self.resident[comes]) = (false, true);
            }
        }
        (self.quota, self.copied_bytes) = (Some(max_bytes), 0);
        let done = self.advance(addresses, change);
        self.quota = None;
        done.map(|()| self.copied_bytes)
    }

    /// Bytes of what is not where it is to be, and of pieces that are to change places.
    pub fn unbalanced_bytes(&self, addresses: &Addresses) -> u64 {
        let mut wanted = self.resident.clone();
        for (leaves, comes) in residency::exchanges(&self.movable(addresses)) {
            (wanted[leaves], wanted[comes]) = (false, true);
        }
        let homes = addresses.homes.iter().enumerate();
        let is_there = |at: usize, home: &Home| match home.heat {
            Some(_) => home.is_on_device() == wanted[at] && !home.unmapped,
            None => self.is_done(at, home),
        };
        let missing = homes.filter(|(at, home)| !is_there(*at, home) || self.is_moving(*at));
        missing.map(|(_, home)| home.bytes() as u64).sum()
    }

    /// The units, with where they are to be.
    fn movable(&self, addresses: &Addresses) -> Vec<Movable> {
        let mut units = addresses.movable();
        units.iter_mut().zip(&self.resident).for_each(|(unit, to)| unit.resident = *to);
        units
    }
}
