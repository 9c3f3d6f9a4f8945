//! [`ExpertPools`]: with fixed addresses, slots of expert caches are part of the device memory that a
//! resize changes.

use crate::cache::cache::ExpertCache;
use crate::error::Result;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::os::sync::{Arc, Weak, downgrade};
use crate::plan::plan::Plan;
use crate::plan::residency::CacheClaim;

/// The caches of an offloader, and how many slots each is to have.
pub struct ExpertPools {
    pools: Vec<Pool>,
    /// Bytes of device memory that caches may take; `None` if no budget limits them.
    pub limit: Option<u64>,
    /// Bytes that the options of the plan give them; 0 for what others leave.
    asked_bytes: u64,
    /// Whether the plan has experts for caches.
    planned: bool,
}

struct Pool {
    cache: Weak<ExpertCache>,
    /// The units that its experts are in.
    units: Vec<usize>,
    /// How many slots it is to have; 0 while the offloader is to sleep.
    slots: u32,
    /// How many it has otherwise.
    awake_slots: u32,
}

impl ExpertPools {
    /// No cache yet.
    pub fn new(plan: &Plan) -> Self {
        let limited = plan.expert_bytes > 0 || plan.options.budget.device_bytes().is_some();
        Self {
            pools: Vec::new(),
            limit: limited.then_some(plan.expert_bytes),
            asked_bytes: plan.options.expert_bytes,
            planned: plan.experts().count > 0,
        }
    }

    /// Takes a cache in, which has memory for `slots`.
    pub fn add(&mut self, cache: &Arc<ExpertCache>, mut units: Vec<usize>, slots: u32) {
        units.sort_unstable();
        units.dedup();
        self.pools.retain(|pool| pool.cache.upgrade().is_some());
        let cache = downgrade(cache);
        self.pools.push(Pool { cache, units, slots, awake_slots: slots });
    }

    fn alive(&self) -> impl Iterator<Item = (Arc<ExpertCache>, &Pool)> {
        self.pools.iter().filter_map(|pool| Some((pool.cache.upgrade()?, pool)))
    }

    /// Device memory of all of them.
    pub fn held_bytes(&self) -> u64 {
        self.alive().map(|(cache, _)| cache.device_bytes()).sum()
    }

    /// Device memory that all of them are to have.
    pub fn target_bytes(&self) -> u64 {
        self.alive().map(|(cache, pool)| cache.bytes_for(pool.slots)).sum()
    }

    /// What they claim of a budget, if graphs are launched again or not.
    pub fn claim(&self, graphs_dropped: bool) -> Option<CacheClaim> {
        let least = |cache: &ExpertCache| match graphs_dropped {
            true => cache.bytes_for(cache.lanes()),
            false => cache.bytes_for(cache.least_slots()),
        };
        let least_bytes = self.alive().map(|(cache, _)| least(&cache)).sum();
        let asked_bytes = self.asked_bytes;
        let is_any = self.planned || self.alive().next().is_some();
        is_any.then_some(CacheClaim { asked_bytes, least_bytes })
    }

    /// All bytes that are of use.
    pub fn most_bytes(&self) -> u64 {
        let most: u64 = self.alive().map(|(cache, _)| cache.bytes_for(cache.most_slots())).sum();
        if self.asked_bytes > 0 { most.min(self.asked_bytes) } else { most }
    }

    /// Notes that no graph is launched again.
    pub fn forget_graphs(&self) {
        self.alive().for_each(|(cache, _)| cache.forget_graphs());
    }

    /// Divides device memory, of which there is enough for what graphs need: what is over that by the bytes
    /// of the experts.
    pub fn share(&mut self, bytes: u64) {
        self.limit = Some(bytes);
        let caches: Vec<_> = self.pools.iter().map(|pool| pool.cache.upgrade()).collect();
        let range = |cache: &ExpertCache| {
            let least = cache.bytes_for(cache.least_slots());
            (least, cache.bytes_for(cache.most_slots()) - least)
        };
        let ranges: Vec<_> =
            caches.iter().map(|cache| cache.as_deref().map_or((0, 0), range)).collect();
        let least: u64 = ranges.iter().map(|(least, _)| least).sum();
        let all: u64 = ranges.iter().map(|(_, more)| more).sum();
        let over = bytes.saturating_sub(least);
        let mut left = bytes;
        for ((pool, cache), (least, more)) in self.pools.iter_mut().zip(&caches).zip(&ranges) {
            let Some(cache) = cache else { continue };
            let part = u128::from(over) * u128::from(*more) / u128::from(all.max(1));
            pool.slots = cache.slots_in(least + (part as u64).min(*more));
            left = left.saturating_sub(cache.bytes_for(pool.slots));
        }
        // What is less than a slot of one may be one of another.
        for (pool, cache) in self.pools.iter_mut().zip(&caches) {
            let Some(cache) = cache else { continue };
            let held = cache.bytes_for(pool.slots);
            pool.slots = cache.slots_in(held + left);
            left -= cache.bytes_for(pool.slots) - held;
            pool.awake_slots = pool.slots;
        }
    }

    /// Takes all memory from the caches.
    pub fn sleep(&mut self) {
        self.pools.iter_mut().for_each(|pool| pool.slots = 0);
    }

    /// Leaves the caches what they have while the offloader does not sleep.
    pub fn wake(&mut self) {
        self.pools.iter_mut().for_each(|pool| pool.slots = pool.awake_slots);
    }

    /// How many caches do not have the memory that they are to have, and the bytes that differ.
    pub fn pending(&self) -> (u64, u64) {
        let pending = self.alive().filter(|(cache, pool)| !cache.has_pool_of(pool.slots));
        let differs =
            pending.map(|(cache, pool)| cache.device_bytes().abs_diff(cache.bytes_for(pool.slots)));
        differs.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes))
    }

    /// Whether every cache has the memory that it is to have.
    pub fn is_done(&self) -> bool {
        self.pending().0 == 0
    }

    /// Takes memory away from caches that are to have less and are not in use. Returns whether none is
    /// left that is to have less.
    pub fn shrink(&self, change: &mut ScheduleChange<'_>) -> Result<bool> {
        let mut done = true;
        for (cache, pool) in self.alive() {
            if cache.has_pool_of(pool.slots) || !cache.is_larger_than(pool.slots) {
                continue;
            }
            let mut is_unused = cache.is_idle()?;
            for unit in &pool.units {
                is_unused &= change.is_unused(*unit)?;
            }
            if is_unused {
                // Kernels that read slots are in no order with calls of the cache.
                change.wait_for_stream()?;
                cache.shrink_pool(pool.slots, change.stream())?;
            }
            done &= !cache.is_larger_than(pool.slots);
        }
        Ok(done)
    }

    /// Gives caches that are to have more memory as much, as far as that is at most `free` bytes.
    pub fn grow(&self, mut free: u64, change: &ScheduleChange<'_>) -> Result<()> {
        for (cache, pool) in self.alive().filter(|(_, pool)| pool.slots > 0) {
            if cache.has_pool_of(pool.slots) {
                continue;
            }
            let more = cache.bytes_for(pool.slots).saturating_sub(cache.device_bytes());
            if let Some(left) = free.checked_sub(more) {
                free = left;
                cache.grow_pool(pool.slots, change.stream())?;
            }
        }
        Ok(())
    }
}
