//! A pool of slots whose memory is exchanged at addresses that stay, while graphs exist.

use std::sync::atomic::Ordering;

use crate::cache::cache::{ExpertCache, Pool};
use crate::cache::calls::InUse;
use crate::cache::pool::PoolSize;
use crate::device::backend::Stream;
use crate::device::kernel::Kernel;
use crate::error::{Result, fail};
use crate::os::sync::{self, MutexGuard};
use crate::status::{WB_ERR_INTERNAL, WB_ERR_SLOTS_BUDGET};

impl ExpertCache {
    /// Number of lanes, of which each has a slot at least.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// The fewest slots with which every captured call finds its experts.
    pub fn least_slots(&self) -> u32 {
        let needed = self.most_captured.load(Ordering::Acquire).max(1);
        needed.saturating_mul(self.lanes).min(self.most_slots())
    }

    /// The most slots that are of use.
    pub fn most_slots(&self) -> u32 {
        self.experts.count()
    }

    /// Notes that no graph is launched again that has captured calls.
    pub fn forget_graphs(&self) {
        self.most_captured.store(0, Ordering::Release);
    }

    /// Device memory for a number of slots; none for 0.
    pub fn bytes_for(&self, slots: u32) -> u64 {
        let size = || PoolSize::of(&self.experts, self.lanes, slots, self.piece);
        if slots == 0 { 0 } else { size().bytes() }
    }

    /// The most slots in `device_bytes`, but not fewer than [`ExpertCache::least_slots`].
    pub fn slots_in(&self, device_bytes: u64) -> u32 {
        let least = self.least_slots();
        PoolSize::most(&self.experts, self.lanes, least, device_bytes, self.piece).slots
    }

    /// Whether the calls that were queued outside of captures have ended.
    pub fn is_idle(&self) -> Result<bool> {
        self.order.is_idle()
    }

    /// Whether the pool has memory for so many slots, and no other, and calls use it.
    pub fn has_pool_of(&self, slots: u32) -> bool {
        let Some(pool) = &self.range else { return true };
        let pool = sync::lock(pool);
        pool.is_settled
            && self.capacity() == slots
            && pool.is_saved == (slots == 0)
            && pool.range.is_for(&self.experts, self.lanes, slots)
    }

    /// Whether slots are to be taken away, or memory behind them, to have `slots` of them.
    pub fn is_larger_than(&self, slots: u32) -> bool {
        let Some(pool) = &self.range else { return false };
        let pool = sync::lock(pool);
        !pool.is_settled
            || self.capacity() > slots
            || pool.range.is_larger_than(&self.experts, self.lanes, slots)
    }

    /// Takes slots away beyond `slots`, and a step of their memory; for 0 the state, too, which is kept in
    /// host memory, and calls are refused. Experts in them are evicted. No kernel of a call reads slots now,
    /// and all earlier work that did is complete once `stream` is.
    pub fn shrink_pool(&self, slots: u32, stream: Stream) -> Result<()> {
        let mut pool = self.pool_range()?;
        if slots < self.capacity() {
            pool.is_settled = false;
            self.change(stream, "resize", &|| {
                let least = self.least_slots();
                if (1..least).contains(&slots) {
                    fail!(
                        WB_ERR_SLOTS_BUDGET,
                        "asked for {slots} slots, and calls that were captured meanwhile need {least}: resize \
                         again"
                    );
                }
                let used = slots.min(self.slots());
                Ok(InUse { keep: used, slots: used, capacity: Some(slots) })
            })?;
        }
        if !pool.is_settled {
            self.synchronize();
            self.device.backend().synchronize(stream)?;
            if slots == 0 && !pool.is_saved {
                let reader = sync::lock(&self.reader);
                let to = reader.staging.span().part(0, self.state_span.bytes());
                self.device.copy(to, self.state_span, reader.stream.get())?;
                self.device.backend().synchronize(reader.stream.get())?;
                pool.is_saved = true;
            }
            pool.is_settled = true;
        }
        pool.range.shrink(&self.experts, self.lanes, slots)
    }

    /// Puts a step of the memory behind as many slots, and uses them once all of it is there.
    pub fn grow_pool(&self, slots: u32, stream: Stream) -> Result<()> {
        let mut pool = self.pool_range()?;
        pool.range.grow(&self.experts, self.lanes, slots)?;
        if !pool.range.is_for(&self.experts, self.lanes, slots) {
            return Ok(());
        }
        if pool.is_saved {
            let reader = sync::lock(&self.reader);
            let from = reader.staging.span().part(0, self.state_span.bytes());
            self.device.copy(self.state_span, from, reader.stream.get())?;
            self.device.backend().synchronize(reader.stream.get())?;
        }
        // A kernel that is given slot 0 for an id of another pass, with the weight 0, reads numbers.
        for span in pool.range.uncleared() {
            self.device.backend().launch(Kernel::Zero { span }, stream)?;
        }
        let changed = self.change(stream, "resize", &|| {
            Ok(InUse { keep: self.slots(), slots, capacity: Some(slots) })
        });
        // Calls change the state from then on. Before, what is saved is still all of it.
        pool.is_saved &= self.capacity() == 0;
        changed?;
        pool.range.note_cleared();
        Ok(())
    }

    fn pool_range(&self) -> Result<MutexGuard<'_, Pool>> {
        match &self.range {
            Some(pool) => Ok(sync::lock(pool)),
            None => fail!(WB_ERR_INTERNAL, "asked to resize a pool at addresses that do not stay"),
        }
    }
}
