//! [`ExpertCache`]: queues the kernels of calls, and holds the memory that they use.

use std::cell::Cell;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::cache::counters::ExpertCounters;
use crate::cache::experts::{ExpertTensor, Experts};
use crate::cache::memory::Memory;
use crate::cache::order::Order;
use crate::cache::pool::{COUNTERS_BYTES, PoolSize, initial_state};
use crate::cache::range::PoolRange;
use crate::cache::sources::Sources;
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::experts::{ExpertCall, ExpertState};
use crate::device::kernel::Kernel;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::{Error, Result, fail};
use crate::memory::staging::Staging;
use crate::memory::view::View;
use crate::os::span::Span;
use crate::os::sync::{Arc, Mutex};
use crate::os::{bytes, sync};
use crate::status::{
    WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FOUND, WB_ERR_OUT_OF_RANGE,
    WB_ERR_SLOTS_BUDGET, WB_ERR_UNALIGNED,
};
use crate::tensor::layout::Layout;

/// Options of a cache.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheOptions {
    /// Number of slots, or 0.
    pub slots: u64,
    /// Bytes of device memory that slots and state may take, or 0.
    pub device_bytes: u64,
    /// Batches in flight at a time.
    pub lanes: u32,
    /// Device memory of the caller for the slots, which must stay until the cache is gone.
    pub memory: Option<Span>,
    /// Bytes of the pieces in which memory is exchanged at addresses for slots of all experts;
    /// `None` for slots that have memory as long as the cache is there.
    pub piece: Option<u64>,
}

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

/// What a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheInfo {
    /// Number of layers.
    pub layers: u64,
    /// Number of expert tensors of a layer.
    pub tensors: u64,
    /// Number of experts of all layers.
    pub experts: u64,
    /// Bytes of an expert.
    pub expert_bytes: u64,
    /// Slots in use.
    pub slots: u64,
    /// Slots that there is memory for.
    pub capacity: u64,
    /// Slots that have addresses.
    pub most_slots: u64,
    /// Bytes of device memory of the slots.
    pub slot_bytes: u64,
    /// Bytes of device memory of the state.
    pub state_bytes: u64,
    /// Number of lanes.
    pub lanes: u32,
}

/// The slots of one expert tensor.
pub struct TensorSlots {
    /// The name.
    pub name: CString,
    /// Type and shape `[most_slots, ...]`, contiguous.
    pub layout: Layout,
    /// Address of slot 0.
    pub address: u64,
    /// Bytes of a slot.
    pub expert_bytes: u64,
}

/// A cache of experts.
pub struct ExpertCache {
    pub(super) device: Arc<Device>,
    pub(super) experts: Experts,
    pub(super) lanes: u32,
    size: PoolSize,
    pub(super) state: ExpertState,
    pub(super) order: Order,
    /// Slots in use; 0 while there is no memory behind any.
    slots: AtomicU32,
    /// Slots that there is memory for.
    capacity: AtomicU32,
    /// The most experts that a call may have needed at a time, and that a captured one may need.
    most_needed: AtomicU32,
    pub(super) most_captured: AtomicU32,
    pub(super) reader: Mutex<Reader>,
    /// Where the experts are now, which [`ExpertCache::set_tensors`] changes.
    pub(super) sources: Mutex<Sources>,
    /// Whether calls are refused, since experts have no bytes, or have become other ones.
    pub(super) lost: AtomicBool,
    tensors: Vec<TensorSlots>,
    /// See [`CacheOptions::piece`].
    pub(super) piece: Option<u64>,
    pub(super) range: Option<Mutex<Pool>>,
    pool: Arc<DeviceMemory>,
    pub(super) state_span: Span,
    _state_memory: Option<DeviceMemory>,
}

/// Memory that is exchanged at addresses that stay.
pub(super) struct Pool {
    pub range: PoolRange,
    /// Whether calls that were queued before slots were taken away are complete.
    pub is_settled: bool,
    /// Whether the state is in host memory, since there is none for it.
    pub is_saved: bool,
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

/// Reads the counters, beside the streams of the engine.
pub(super) struct Reader {
    pub stream: OwnedStream,
    pub staging: Staging,
}

impl ExpertCache {
    /// A cache that is empty.
    pub fn new(
        device: &Arc<Device>,
        tensors: Vec<ExpertTensor>,
        options: CacheOptions,
    ) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        let mut experts = Experts::new(device, tensors)?;
        let lanes = options.lanes.max(1);
        let piece = options.piece;
        let size = PoolSize::choose(&experts, lanes, options.slots, options.device_bytes, piece)?;
        let Memory { pool, state: memory, range, slots: addresses } =
            Memory::new(device, &experts, lanes, size, options.memory, piece)?;
        let of_state = memory.as_ref().unwrap_or(&pool).span();
        let most = if range.is_some() { experts.count() } else { size.slots };
        let start = of_state.start() as u64;
        let (image, state) = initial_state(&experts, lanes, most, start, &addresses);
        let state_span = of_state.part(0, image.len());
        let reader = Reader {
            stream: OwnedStream::new(device)?,
            staging: Staging::new(device, state_span.bytes())?,
        };
        let staging = reader.staging.span().part(0, image.len());
        bytes::write(staging, &image);
        device.copy(state_span, staging, reader.stream.get())?;
        // A kernel that is given slot 0 for an id of another pass, with the weight 0, reads numbers.
        let cleared = match &range {
            Some(range) => range.uncleared(),
            None => vec![pool.span()],
        };
        for span in cleared {
            device.backend().launch(Kernel::Zero { span }, reader.stream.get())?;
        }
        // Loads the kernels, which takes long: not in the first call, or in a capture.
        let load = Kernel::ExpertsResize { state, keep: size.slots, slots: size.slots };
        device.backend().launch(load, reader.stream.get())?;
        device.backend().synchronize(reader.stream.get())?;
        let sources = Sources::take(&mut experts);
        Ok(Arc::new(Self {
            device: device.clone(),
            sources: Mutex::new(sources),
            lost: AtomicBool::new(false),
            tensors: slots_of(&experts, most, &addresses)?,
            experts,
            order: Order::new(device)?,
            slots: AtomicU32::new(size.slots),
            capacity: AtomicU32::new(size.slots),
            most_needed: AtomicU32::new(0),
            most_captured: AtomicU32::new(0),
            lanes,
            size,
            state,
            reader: Mutex::new(reader),
            piece,
            range: range.map(|mut range| {
                range.note_cleared();
                Mutex::new(Pool { range, is_settled: true, is_saved: false })
            }),
            pool,
            state_span,
            _state_memory: memory,
        }))
    }

    /// The size that [`ExpertCache::new`] would choose.
    pub fn measure(
        device: &Arc<Device>,
        tensors: Vec<ExpertTensor>,
        options: CacheOptions,
    ) -> Result<PoolSize> {
        let experts = Experts::new(device, tensors)?;
        let CacheOptions { slots, device_bytes, piece, .. } = options;
        PoolSize::choose(&experts, options.lanes.max(1), slots, device_bytes, piece)
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What it is.
    pub fn info(&self) -> CacheInfo {
        let (state_bytes, slot_bytes) = self.held_bytes();
        CacheInfo {
            layers: self.experts.layers.len() as u64,
            tensors: self.experts.kinds.len() as u64,
            experts: u64::from(self.experts.count()),
            expert_bytes: self.experts.bytes(),
            slots: u64::from(self.slots()),
            capacity: u64::from(self.capacity()),
            most_slots: u64::from(self.state.capacity),
            slot_bytes,
            state_bytes,
            lanes: self.lanes,
        }
    }

    /// Device memory of state and slots.
    fn held_bytes(&self) -> (u64, u64) {
        match &self.range {
            Some(pool) => sync::lock(pool).range.held_bytes(),
            None => (self.size.state_bytes, self.size.slot_bytes),
        }
    }

    /// Device memory of slots and state.
    pub fn device_bytes(&self) -> u64 {
        let (state_bytes, slot_bytes) = self.held_bytes();
        state_bytes + slot_bytes
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots.load(Ordering::Acquire)
    }

    /// Slots that there is memory for.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Acquire)
    }

    /// The slots of a tensor by its index.
    pub fn tensor(&self, index: u64) -> Result<&TensorSlots> {
        match self.tensors.get(index as usize) {
            Some(tensor) => Ok(tensor),
            None => {
                fail!(
                    WB_ERR_OUT_OF_RANGE,
                    "asked for tensor {index}; there are {}",
                    self.tensors.len()
                )
            }
        }
    }

    /// The slots of all tensors.
    #[cfg(test)]
    pub fn pool_span(&self) -> Span {
        self.pool.span()
    }

    /// The slots of a tensor as a view of shape `[most_slots, ...]`.
    pub fn view(&self, index: u64) -> Result<Arc<View>> {
        let tensor = self.tensor(index)?;
        let offset = tensor.address - self.pool.span().start() as u64;
        View::of_device(self.pool.clone(), tensor.layout.clone(), offset)
    }

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

    /// The counters of each layer, as they are now.
    pub fn counters(&self) -> Result<Vec<ExpertCounters>> {
        self.device.backend().check_process()?;
        let pool = self.range.as_ref().map(sync::lock);
        let reader = sync::lock(&self.reader);
        let stream = reader.stream.get();
        let count = self.experts.layers.len();
        let mut to = reader.staging.span().part(0, count * COUNTERS_BYTES as usize);
        let offset = self.state.counters - self.state_span.start() as u64;
        if pool.as_ref().is_some_and(|pool| pool.is_saved) {
            to = reader.staging.span().part(offset as usize, to.bytes());
        } else {
            let from = self.state_span.part(offset as usize, to.bytes());
            self.device.copy(to, from, stream)?;
            self.device.backend().synchronize(stream)?;
        }
        let each = COUNTERS_BYTES as usize;
        Ok((0..count).map(|layer| ExpertCounters::read(to.part(layer * each, each))).collect())
    }

    /// The number of experts of a layer.
    pub fn layer(&self, layer: u64) -> Result<u32> {
        match self.experts.layers.get(layer as usize) {
            Some(experts) => Ok(*experts),
            None => fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for layer {layer}; there are {}",
                self.experts.layers.len()
            ),
        }
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

impl Drop for ExpertCache {
    /// Waits for the calls that were queued, whose memory is freed next.
    fn drop(&mut self) {
        if self.device.backend().check_process().is_ok() {
            self.order.synchronize(&self.device);
        }
    }
}

/// The slots of each tensor at its address.
fn slots_of(experts: &Experts, slots: u32, addresses: &[u64]) -> Result<Vec<TensorSlots>> {
    let tensors = experts.kinds.iter().zip(addresses).map(|(kind, address)| {
        let shape: Vec<i64> = [i64::from(slots)].iter().chain(&kind.shape).copied().collect();
        let Ok(name) = CString::new(kind.name.as_str()) else {
            fail!(WB_ERR_INVALID_ARGUMENT, "the name {:?} has a NUL character", kind.name)
        };
        let layout = Layout::new(kind.dtype, &shape, None)?;
        Ok(TensorSlots { name, layout, address: *address, expert_bytes: kind.bytes })
    });
    tensors.collect()
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
