//! Compressing blocks of a commit by the device: raw bytes go to its memory, and compressed ones come back to the
//! arena. Copies both ways and the kernels overlap.

use crate::codec::format::read_header;
use crate::codec::queue;
use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::{Result, catch_panic, fail};
use crate::memory::buffer::Buffer;
use crate::offload::backing::Encoding;
use crate::offload::bulk_copy::{self, CopyJob};
use crate::offload::device_plan::DevicePlan;
use crate::offload::state::OffloadState;
use crate::os::parallel::{Phase, Progress, report};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, log};
use crate::plan::plan::ALIGNMENT;
use crate::status::{WB_ERR_DEVICE_MEMORY, WB_ERR_INTERNAL, WB_ERR_NOT_SUPPORTED};
use crate::tensor::coded::HEADER;

/// Bytes of device memory that are taken where the slots are too small, at most.
const MOST_BYTES: u64 = 256 << 20;

/// Blocks in device memory at a time: one is encoded while the bytes of the next arrive.
const LANES: usize = 2;

/// A block that is to be compressed.
pub struct EncodeTask {
    /// Its index.
    pub block: usize,
    /// Name of its first parameter.
    pub name: String,
    /// Its true bytes.
    pub decoded_bytes: u64,
    /// Space for it.
    pub capacity: u64,
    /// The copies of its bytes to its place in the arena, if these are not there yet.
    pub jobs: Vec<CopyJob>,
}

impl EncodeTask {
    /// Device memory for its raw bytes, and for the compressed ones.
    fn needs(&self) -> u64 {
        self.decoded_bytes.next_multiple_of(ALIGNMENT) + self.capacity
    }

    /// Whether its bytes are in device memory, all of them.
    fn is_on_device(&self) -> bool {
        let bytes: usize = self.jobs.iter().map(|job| job.from.span.bytes()).sum();
        self.jobs.iter().all(|job| job.from.on_device) && bytes as u64 == self.decoded_bytes
    }
}

/// The progress of compressing the blocks of a commit.
pub struct EncodeProgress<'a, 'p> {
    done: u64,
    total: u64,
    progress: &'a mut Progress<'p>,
}

impl<'a, 'p> EncodeProgress<'a, 'p> {
    /// Nothing of as many bytes is done.
    pub fn new(total: u64, progress: &'a mut Progress<'p>) -> Self {
        Self { done: 0, total, progress }
    }

    /// Notes that as many bytes more are compressed. Fails if the caller cancels.
    pub fn add(&mut self, bytes: u64) -> Result<()> {
        self.done += bytes;
        report(self.progress, Phase::Compress, self.done as usize, self.total as usize)
    }
}

/// Device memory in which blocks are compressed. Freed with this, unless it is that of the slots.
struct Workspace {
    span: Span,
    _memory: Arc<DeviceMemory>,
}

/// The blocks that the device compresses, and its memory for them.
#[derive(Default)]
pub struct DeviceEncode {
    tasks: Vec<EncodeTask>,
    workspace: Option<Workspace>,
}

impl DeviceEncode {
    /// Takes from `tasks` those that the device compresses. It does so if it is a CUDA device, the arena is pinned,
    /// and the block fits, raw and compressed, into the memory of the slots, which nothing uses before the first
    /// step, or into as much as a budget of device memory leaves beside them. Otherwise it fails if the options
    /// ask for the device.
    pub fn take(
        plan: &DevicePlan,
        arena: &Buffer,
        slots: Option<&Arc<DeviceMemory>>,
        tasks: &mut Vec<EncodeTask>,
    ) -> Result<Self> {
        let DevicePlan { device, plan: planned } = plan;
        let (cuda, asked) = (device.capabilities().cuda, planned.options.device_encoding);
        let (true, Some(most)) = (asked.unwrap_or(cuda), tasks.iter().map(EncodeTask::needs).max())
        else {
            return Ok(Self::default());
        };
        let is_pinned = arena.pinned_bytes() > 0;
        let workspace = match cuda && !is_pinned {
            true => None,
            false => Workspace::new(plan, slots, LANES as u64 * most)?,
        };
        let space = workspace.as_ref().map_or(0, |workspace| workspace.span.bytes() as u64);
        let space = space / ALIGNMENT * ALIGNMENT;
        let found: Vec<_> = tasks.extract_if(.., |task| task.needs() <= space).collect();
        if let (Some(true), Some(left)) = (asked, tasks.first()) {
            let why = match cuda && !is_pinned {
                true => format!("the arena is not pinned ({})", arena.fallback_reason()),
                false => format!(
                    "it needs {} bytes of device memory; the slots, and what a budget leaves beside them, have \
                     {space}",
                    left.needs()
                ),
            };
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "encode_on_device is on, and parameter {:?} cannot be compressed by the device: {why}; leave it to \
                 the default, with which the host's cores compress such parameters",
                left.name
            );
        }
        Ok(Self { tasks: found, workspace })
    }

    /// Bytes that the device compresses.
    pub fn bytes(&self) -> u64 {
        self.tasks.iter().map(|task| task.decoded_bytes).sum()
    }

    /// Compresses the blocks, whose bytes `threads` threads copy to the arena as far as they are not there.
    pub fn run(
        self,
        device: &Arc<Device>,
        state: &mut OffloadState,
        threads: usize,
        progress: &mut EncodeProgress<'_, '_>,
    ) -> Result<()> {
        let Some(Workspace { span, .. }) = &self.workspace else { return Ok(()) };
        // Blocks that are too large to share the memory follow alone.
        let lane_bytes = span.bytes() / LANES / ALIGNMENT as usize * ALIGNMENT as usize;
        let shares = |task: &EncodeTask| task.needs() <= lane_bytes as u64;
        let (sharing, alone): (Vec<_>, Vec<_>) = self.tasks.into_iter().partition(shares);
        let all_bytes = span.bytes() / ALIGNMENT as usize * ALIGNMENT as usize;
        for (tasks, lanes, bytes) in [(sharing, LANES, lane_bytes), (alone, 1, all_bytes)] {
            if tasks.is_empty() {
                continue;
            }
            let pipeline = Pipeline::new(device, *span, (lanes, bytes), &tasks)?;
            // Also after a panic, before the memory is used otherwise.
            let run = catch_panic(|| pipeline.run(&tasks, state, threads, progress));
            run.and(pipeline.wait())?;
        }
        Ok(())
    }
}

impl Workspace {
    /// Memory of `wanted` bytes, or of less: that of the slots, or a new one where they are smaller.
    /// `None` if there is none. That the device has less than the budget leaves is logged: the slots are used, or
    /// the host's cores, which take longer.
    fn new(
        plan: &DevicePlan,
        slots: Option<&Arc<DeviceMemory>>,
        wanted: u64,
    ) -> Result<Option<Self>> {
        let DevicePlan { device, plan } = plan;
        // Behind fixed addresses the memory is that of several ranges.
        let slots = slots.filter(|slots| slots.range().is_none());
        let in_slots = slots.map_or(0, |slots| slots.span().bytes() as u64);
        let held = plan.resident_bytes + plan.slot_bytes + plan.window_bytes + plan.expert_bytes;
        let left = plan.options.budget.device_bytes().map(|budget| budget.saturating_sub(held));
        let new = wanted.min(left.unwrap_or(MOST_BYTES)).min(MOST_BYTES);
        if in_slots < wanted.min(MOST_BYTES) && new > in_slots {
            match DeviceMemory::alloc(device, new as usize) {
                Ok(Some(memory)) => {
                    return Ok(Some(Self { span: memory.span(), _memory: Arc::new(memory) }));
                }
                Ok(None) => {}
                Err(error) if error.status == WB_ERR_DEVICE_MEMORY => log::record(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(slots.map(|slots| Self { span: slots.span(), _memory: slots.clone() }))
    }
}

/// Memory of a block on the device, and what has reached it.
struct Lane {
    memory: Span,
    /// Where compressed bytes begin in it.
    encoded_at: usize,
    /// The raw bytes are there.
    arrived: Box<dyn Event>,
    /// They are compressed, and the header is in the arena.
    encoded: Box<dyn Event>,
    /// The compressed bytes are in the arena.
    left: Box<dyn Event>,
}

impl Lane {
    /// The space of the raw bytes of a block, and that of the compressed ones. The latter is never a part of the
    /// former of another block, which may arrive before they have left.
    fn spaces(&self, task: &EncodeTask) -> (Span, Span) {
        let raw = self.memory.part(0, task.decoded_bytes as usize);
        (raw, self.memory.part(self.encoded_at, task.capacity as usize))
    }
}

/// Blocks in flight through the device.
struct Pipeline<'a> {
    device: &'a Arc<Device>,
    lanes: Vec<Lane>,
    /// Of copies to the device, of kernels, and of copies back.
    streams: [OwnedStream; 3],
}

impl<'a> Pipeline<'a> {
    /// Lanes of `lane_bytes` bytes, of which each of the tasks needs no more.
    fn new(
        device: &'a Arc<Device>,
        memory: Span,
        (lanes, lane_bytes): (usize, usize),
        tasks: &[EncodeTask],
    ) -> Result<Self> {
        let most = tasks.iter().map(|task| task.capacity).max().unwrap_or(0);
        let encoded_at = lane_bytes - most as usize;
        let event = || device.backend().new_event(false);
        let lane = |at: usize| {
            let memory = memory.part(at * lane_bytes, lane_bytes);
            Ok(Lane { memory, encoded_at, arrived: event()?, encoded: event()?, left: event()? })
        };
        let lanes = (0..lanes).map(lane).collect::<Result<_>>()?;
        let stream = || OwnedStream::new(device);
        Ok(Self { device, lanes, streams: [stream()?, stream()?, stream()?] })
    }

    fn run(
        &self,
        tasks: &[EncodeTask],
        state: &mut OffloadState,
        threads: usize,
        progress: &mut EncodeProgress<'_, '_>,
    ) -> Result<()> {
        for at in 0..tasks.len() {
            if !tasks[at].is_on_device() {
                // While the device works on those before.
                let arena = state.host.arena().clone();
                bulk_copy::into_place(self.device, &arena, &tasks[at].jobs, threads)?;
            }
            if let Some(before) = at.checked_sub(self.lanes.len()) {
                self.end(&tasks[before], before, state, progress)?;
            }
            self.begin(&tasks[at], at, state)?;
        }
        let last = tasks.len().saturating_sub(self.lanes.len());
        (last..tasks.len()).try_for_each(|at| self.end(&tasks[at], at, state, progress))
    }

    /// Queues the work on a block until its size is known.
    fn begin(&self, task: &EncodeTask, at: usize, state: &OffloadState) -> Result<()> {
        let lane = &self.lanes[at % self.lanes.len()];
        let [to, kernels, _] = self.streams();
        let (raw, encoded) = lane.spaces(task);
        let (place, encoding) = place_of(task, state)?;
        if task.is_on_device() {
            for job in &task.jobs {
                let part = raw.part(job.to.start() - place.start(), job.from.span.bytes());
                self.device.copy(part, job.from.span, to)?;
            }
        } else {
            self.device.copy(raw, place.part(0, raw.bytes()), to)?;
        }
        lane.arrived.record(to)?;
        lane.arrived.wait(kernels, WaitScope::Capture)?;
        if at >= self.lanes.len() {
            lane.left.wait(kernels, WaitScope::Capture)?;
        }
        queue::encode(self.device, encoding.coded, raw, encoded, kernels)?;
        let header = HEADER as usize;
        self.device.copy(place.part(0, header), encoded.part(0, header), kernels)?;
        lane.encoded.record(kernels)
    }

    /// Waits until a block is compressed, and queues the copy of what it has become.
    fn end(
        &self,
        task: &EncodeTask,
        at: usize,
        state: &mut OffloadState,
        progress: &mut EncodeProgress<'_, '_>,
    ) -> Result<()> {
        let lane = &self.lanes[at % self.lanes.len()];
        let [_, _, back] = self.streams();
        lane.encoded.synchronize()?;
        let (place, encoding) = place_of(task, state)?;
        let found = read_header(&bytes::read(place.part(0, HEADER as usize)), task.capacity)?;
        if found.coded != encoding.coded || found.decoded_bytes != task.decoded_bytes {
            fail!(
                WB_ERR_INTERNAL,
                "the device has compressed parameter {:?} to other bytes than its own",
                task.name
            );
        }
        let bytes = found.encoded_bytes as usize;
        self.device.copy(place.part(0, bytes), lane.spaces(task).1.part(0, bytes), back)?;
        lane.left.record(back)?;
        state.host.note_encoded(task.block, found.encoded_bytes);
        progress.add(task.decoded_bytes)
    }

    fn streams(&self) -> [Stream; 3] {
        [0, 1, 2].map(|at| self.streams[at].get())
    }

    /// Waits for everything that is queued.
    fn wait(&self) -> Result<()> {
        let wait = |stream| self.device.backend().synchronize(stream);
        self.streams().map(wait).into_iter().collect()
    }
}

/// The place of a block in the arena, and how it is to be compressed.
fn place_of(task: &EncodeTask, state: &OffloadState) -> Result<(Span, Encoding)> {
    let block = &state.host.blocks()[task.block];
    match block.encoding {
        Some(encoding) => Ok((block.place(&state.host.units()[block.unit]), encoding)),
        None => fail!(WB_ERR_INTERNAL, "parameter {:?} is not to be compressed", task.name),
    }
}
