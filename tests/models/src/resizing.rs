//! What models of resizes have in common: `Resize` of the library with the addresses and the caches that
//! it changes, under a lock as in `Offloader`, beside the schedule.

use weighbridge::device::backend::Stream;
use weighbridge::device::device::Device;
use weighbridge::offload::addresses::Addresses;
use weighbridge::offload::moves::{Resize, ResizeProgress};
use weighbridge::offload::schedule::schedule::Schedule;
use weighbridge::os::sync::{self, Arc, Mutex};
use weighbridge::plan::residency;
use weighbridge::status::WB_ERR_SLOTS_BUDGET;

use crate::backend::Account;
use crate::ranges::PAGE;

/// Whose work ends.
#[derive(PartialEq)]
pub enum Pace {
    /// All that is queued, between two calls of a resize.
    Together,
    /// At once what the library queues; what the engine does only after the calls of a resize.
    SlowStep,
}

pub struct Resizing {
    pub device: Arc<Device>,
    pub account: Arc<Account>,
    pub schedule: Schedule,
    /// As the state of an offloader.
    pub state: Mutex<(Addresses, Option<Resize>)>,
}

impl Resizing {
    /// Begins a resize to so many pages, but no fewer than the graphs of caches need, as
    /// `Offloader::resize`. Returns how many.
    pub fn resize(&self, pages: usize, graphs_dropped: bool, stream: Stream) -> usize {
        let mut state = sync::lock(&self.state);
        let (addresses, resize) = &mut *state;
        let (units, least) = (addresses.movable(), addresses.least_bytes());
        let claim = addresses.pools.claim(graphs_dropped);
        let of_caches = claim.as_ref().map_or(0, |claim| claim.least_bytes as usize / PAGE);
        let pages = if pages == 0 { 0 } else { pages.max(of_caches) };
        let bytes = (pages * PAGE) as u64;
        let caches = match claim {
            Some(claim) if pages > 0 => {
                residency::bytes_for_caches(&units, least, bytes, claim).unwrap()
            }
            _ => 0,
        };
        let resident = match pages {
            0 => vec![false; units.len()],
            _ => residency::choose(&units, least, bytes - caches).unwrap(),
        };
        self.account.limit((bytes as usize).max(self.account.held()));
        let mut change = self.schedule.change(stream).unwrap();
        change.wait_for_replays().unwrap();
        if graphs_dropped {
            addresses.pools.forget_graphs();
        }
        match pages {
            0 => addresses.pools.sleep(),
            _ => addresses.pools.share(caches),
        }
        if graphs_dropped {
            let captures = change.captures();
            for home in &mut addresses.homes {
                (home.in_graphs, home.resident_since) = (false, captures);
            }
        }
        let resize =
            resize.get_or_insert_with(|| Resize::new(&self.device, Vec::new(), 0, false).unwrap());
        resize.redirect(resident, bytes, pages == 0);
        if let Err(error) = resize.advance(addresses, &mut change) {
            // A capture came between, and needs more slots of a cache: the caller resizes again.
            assert_eq!(error.status, WB_ERR_SLOTS_BUDGET, "{error}");
        }
        pages
    }

    /// Goes on with a resize, if there was one.
    pub fn progress(&self, stream: Stream) -> Option<ResizeProgress> {
        let mut state = sync::lock(&self.state);
        let (addresses, resize) = &mut *state;
        let mut change = self.schedule.change(stream).unwrap();
        let resize = resize.as_mut()?;
        resize.advance(addresses, &mut change).unwrap();
        Some(resize.progress(addresses))
    }

    /// Goes on until all is where it is to be, and checks what is held.
    pub fn finish(&self, pages: usize, stream: Stream) {
        for _ in 0..20 {
            let progress = self.progress(stream).unwrap();
            if progress.pending_units == 0 {
                assert_eq!(progress.device_bytes, self.account.held() as u64);
                assert!(self.account.held() <= pages * PAGE, "{progress:?}");
                return self.account.limit(pages * PAGE);
            }
        }
        panic!("a resize to {pages} pages does not end");
    }
}
