//! Calls of an expert cache: what each needs, and the kernel that it queues.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::cache::cache::ExpertCache;
use crate::device::backend::Stream;
use crate::device::experts::ExpertCall;
use crate::device::kernel::Kernel;
use crate::error::{Error, Result, fail};
use crate::status::{
    WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FOUND, WB_ERR_OUT_OF_RANGE,
    WB_ERR_SLOTS_BUDGET, WB_ERR_UNALIGNED,
};

/// Ids of experts on the device.
#[derive(Debug, Clone, Copy)]
pub struct ExpertIds {
    /// Their address.
    pub address: u64,
    /// How many there are.
    pub count: u64,
    /// Whether they have 8 bytes instead of 4.
    pub wide: bool,
}

/// Whose call it is, and for which part of a layer.
#[derive(Debug, Clone, Copy)]
pub struct RouteOptions {
    /// The lane.
    pub lane: u32,
    /// The pass, below `passes`.
    pub pass: u32,
    /// How many passes the layer is computed in.
    pub passes: u32,
}

impl Default for RouteOptions {
    fn default() -> Self {
        Self { lane: 0, pass: 0, passes: 1 }
    }
}

/// What a change of the slots in use leaves.
#[derive(Clone, Copy)]
pub(super) struct InUse {
    /// The first slot that is emptied.
    pub keep: u32,
    /// How many are used.
    pub slots: u32,
    /// How many have memory, if that changes.
    pub capacity: Option<u32>,
}

impl ExpertCache {
    /// The passes that a call with `count` ids of a layer needs: 1 if a lane has enough slots.
    pub fn passes(&self, layer: u64, count: u64) -> Result<u64> {
        let experts = u64::from(self.layer(layer)?);
        let each = u64::from(self.slots() / self.lanes);
        if each == 0 {
            return Err(asleep());
        }
        Ok(if experts.min(count) <= each { 1 } else { experts.div_ceil(each) })
    }

    /// Brings the experts that ids name into slots, and writes their slots to `slots`; -1 for an id
    /// without one in the pass.
    pub fn route(
        &self,
        layer: u64,
        ids: ExpertIds,
        slots: u64,
        options: RouteOptions,
        stream: Stream,
    ) -> Result<()> {
        let experts = u64::from(self.layer(layer)?);
        let RouteOptions { lane, pass, passes } = options;
        if lane >= self.lanes {
            fail!(WB_ERR_OUT_OF_RANGE, "asked for lane {lane}; there are {}", self.lanes);
        }
        if passes == 0 || pass >= passes || u64::from(passes) > experts {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for pass {pass} of {passes}; layer {layer} has {experts} experts, and a pass has \
                 at least one"
            );
        }
        check_numbers(ids, "ids")?;
        check_numbers(ExpertIds { address: slots, ..ids }, "slots")?;
        let (pass, passes) = (u64::from(pass), u64::from(passes));
        let (first, end) = (experts * pass / passes, experts * (pass + 1) / passes);
        let needed = ids.count.min(end - first) as u32;
        let (first, end) = (first as u32, end as u32);
        let call = ExpertCall { slots, lane, first, end, ..self.call_of(layer, ids) };
        self.queue(call, stream, &|capturing| {
            let (slots, each) = (self.slots(), self.slots() / self.lanes);
            if needed > each {
                fail!(
                    WB_ERR_SLOTS_BUDGET,
                    "{} ids of layer {layer} name up to {needed} experts, and a lane has {each} of {slots} \
                     slots: give more slots, or compute the layer in {} passes",
                    ids.count,
                    experts.div_ceil(u64::from(each))
                );
            }
            self.most_needed.fetch_max(needed, Ordering::AcqRel);
            if capturing {
                self.most_captured.fetch_max(needed, Ordering::AcqRel);
            }
            Ok(())
        })
    }

    /// Brings the experts that ids name into slots ahead of their call, as far as slots are free to
    /// take.
    pub fn prefetch(&self, layer: u64, ids: ExpertIds, stream: Stream) -> Result<()> {
        let experts = self.layer(layer)?;
        check_numbers(ids, "ids")?;
        let call = ExpertCall { hint: 1, end: experts, ..self.call_of(layer, ids) };
        self.queue(call, stream, &|_| Ok(()))
    }

    /// Waits on the host for the calls that were queued; graphs that are replayed are not seen.
    pub fn synchronize(&self) {
        self.order.synchronize(&self.device);
    }

    /// Empties all slots: the weights in host memory have changed.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        if self.slots() == 0 {
            return Ok(());
        }
        self.change(stream, "reset", &|| {
            let slots = self.in_use()?;
            Ok(InUse { keep: 0, slots, capacity: None })
        })
    }

    /// The slots in use. Fails if none has memory.
    fn in_use(&self) -> Result<u32> {
        match self.slots() {
            0 => Err(asleep()),
            slots => Ok(slots),
        }
    }

    /// Uses as many slots from now on. What is in slots beyond them is evicted.
    pub fn resize(&self, slots: u64, stream: Stream) -> Result<()> {
        self.change(stream, "resize", &|| {
            self.in_use()?;
            let capacity = u64::from(self.capacity());
            if slots > capacity {
                fail!(
                    WB_ERR_OUT_OF_RANGE,
                    "asked for {slots} slots; the cache has memory for {capacity}"
                );
            }
            let needed = self.most_needed.load(Ordering::Acquire).max(1);
            let least = u64::from(needed) * u64::from(self.lanes);
            if slots < least {
                fail!(
                    WB_ERR_SLOTS_BUDGET,
                    "asked for {slots} slots; calls so far, which a graph may repeat, need up to \
                     {needed} for each of {} lanes: {least}",
                    self.lanes
                );
            }
            let slots = slots as u32;
            Ok(InUse { keep: slots, slots, capacity: None })
        })
    }

    /// A call for a layer, which exists.
    fn call_of(&self, layer: u64, ids: ExpertIds) -> ExpertCall {
        let at = layer as usize;
        ExpertCall {
            ids: ids.address,
            count: ids.count,
            wide: ids.wide.into(),
            layer: layer as u32,
            base: self.experts.bases[at],
            experts: self.experts.layers[at],
            ..ExpertCall::default()
        }
    }

    /// Queues the kernel of a call, if `check` permits it.
    fn queue(
        &self,
        call: ExpertCall,
        stream: Stream,
        check: &dyn Fn(bool) -> Result<()>,
    ) -> Result<()> {
        if self.lost.load(Ordering::Acquire) {
            fail!(
                WB_ERR_NOT_FOUND,
                "the experts of this cache are parameters of an offloader that have no bytes, or were \
                 replaced by others: replace them again, by tensors like those that the cache was made \
                 for, or make another cache"
            );
        }
        if call.count == 0 {
            return Ok(());
        }
        let state = self.state;
        self.order.queue(
            &self.device,
            stream,
            &mut |capturing| {
                self.in_use()?;
                check(capturing).map(|()| Kernel::ExpertsRoute { state, call })
            },
            &mut || {},
        )
    }

    /// Queues a change of the slots in use.
    pub(super) fn change(
        &self,
        stream: Stream,
        what: &str,
        chosen: &dyn Fn() -> Result<InUse>,
    ) -> Result<()> {
        let state = self.state;
        let after = Cell::new(None);
        self.order.queue(
            &self.device,
            stream,
            &mut |capturing| {
                if capturing {
                    fail!(
                        WB_ERR_CAPTURING,
                        "asked to {what} on a stream that is being captured; each replay would repeat \
                         it: call it outside of the capture"
                    );
                }
                let chosen = chosen()?;
                after.set(Some(chosen));
                Ok(Kernel::ExpertsResize { state, keep: chosen.keep, slots: chosen.slots })
            },
            &mut || {
                let Some(InUse { slots, capacity, .. }) = after.get() else { return };
                self.slots.store(slots, Ordering::Release);
                if let Some(capacity) = capacity {
                    self.capacity.store(capacity, Ordering::Release);
                }
            },
        )
    }
}

/// Kernels access numbers only at multiples of their size: any other address is an error that stays
/// with the engine's context.
fn check_numbers(numbers: ExpertIds, what: &str) -> Result<()> {
    let bytes = if numbers.wide { 8 } else { 4 };
    if numbers.count > 0 && numbers.address == 0 {
        fail!(WB_ERR_INVALID_ARGUMENT, "{what} is NULL, and there are {} ids", numbers.count);
    }
    if !numbers.address.is_multiple_of(bytes) {
        fail!(
            WB_ERR_UNALIGNED,
            "{what} is {:#x}, which is not a multiple of {bytes}, the bytes of an id",
            numbers.address
        );
    }
    Ok(())
}

fn asleep() -> Error {
    let message = "the slots of the cache have no memory, since its offloader is asleep, or a resize has \
                   failed half way: resize it to the device memory that it may use, and repeat that until it \
                   succeeds";
    Error::new(WB_ERR_BUSY, message)
}
