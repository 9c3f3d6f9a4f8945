//! A committed plan: parameters where they are kept, and the machinery that carries them.

use std::ffi::CStr;

use crate::device::backend::{Location, Stream};
use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Error, Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::staging::{STAGING_BYTES, Staging};
use crate::memory::view::{Accessor, View};
use crate::offload::commit::{CommitLayout, lay_out};
use crate::offload::device_plan::DevicePlan;
use crate::offload::schedule::schedule::{Schedule, no_slots};
use crate::offload::schedule::stats::TransferStats;
use crate::offload::state::{
    Backing, HeldBytes, HostUnit, OffloadState, ParameterState, check_index,
};
use crate::offload::{bulk_copy, quantize};
use crate::os::parallel::Progress;
use crate::os::sync;
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::plan::parameter::TransferMode;
use crate::plan::plan::PlannedUnit;
use crate::status::{
    WB_ERR_NOT_FOUND, WB_ERR_NOT_MAPPED, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
};
use crate::tensor::layout::Layout;

/// A committed plan.
pub struct Offloader {
    // First: it waits for what is queued before the memory goes.
    schedule: Schedule,
    state: Mutex<OffloadState>,
    plan: Arc<DevicePlan>,
}

/// The current state of a parameter.
#[derive(Debug, Clone)]
pub struct ParameterInfo {
    /// The name; its address stays the same until the parameter is removed.
    pub name: std::sync::Arc<CStr>,
    /// Type, shape and strides.
    pub layout: Layout,
    /// Index of its group.
    pub group: usize,
    /// How it is transferred; `None` for a resident parameter.
    pub transfer_mode: Option<TransferMode>,
    /// Device address of the first element; valid always, or, for a parameter that has a slot, while
    /// its group is acquired.
    pub device_address: Option<u64>,
    /// Whether the memory at `device_address` belongs to the offloader.
    pub owned: bool,
    /// Host address of the first element of an offloaded parameter.
    pub host_address: Option<u64>,
}

/// Bytes by what they are for. They add up.
#[derive(Debug, Clone, Copy, Default)]
pub struct OffloaderStats {
    /// Bytes of parameters that are offloaded, ties counted once.
    pub offloaded_bytes: u64,
    /// Bytes of host memory that was asked for them: padding and free room included.
    pub asked_bytes: u64,
    /// Bytes of address space taken for it.
    pub mapped_bytes: u64,
    /// Bytes of it pinned.
    pub pinned_bytes: u64,
    /// Bytes of parameters that stay on the device, ties counted once, wherever they lie.
    pub resident_bytes: u64,
    /// Bytes of device memory for slots.
    pub slot_bytes: u64,
    /// Bytes that the device reads in place.
    pub view_bytes: u64,
    /// Bytes of the pinned buffer that pageable memory is staged through.
    pub staging_bytes: u64,
    /// The most that was held at a time.
    pub peak: HeldBytes,
    /// Copies into slots.
    pub transfers: TransferStats,
    /// How many parameters there are.
    pub parameters: u64,
    /// Grows whenever an address changed.
    pub generation: u64,
}

impl Offloader {
    /// Commits a plan: takes the host memory and the slots, and copies every parameter that has a
    /// source to where it is kept. What is queued on `stream` comes first. When this returns the
    /// sources of what is offloaded, and of what was on the host, are not needed any more.
    pub fn commit(
        plan: Arc<DevicePlan>,
        sources: &[Option<Location>],
        stream: Stream,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        let device = &plan.device;
        device.backend().synchronize(stream)?;
        let drawn = &plan.plan;
        let arena = Buffer::alloc(device, drawn.arena_bytes as usize, options, progress)?;
        check_views(&plan, &arena)?;
        let slots = DeviceMemory::alloc(device, drawn.slot_bytes as usize)?.map(Arc::new);
        let units: Vec<_> = drawn
            .units
            .iter()
            .map(|unit| HostUnit {
                buffer: arena.clone(),
                region: arena.data().part(unit.arena_offset as usize, unit.bytes as usize),
                transfer_mode: unit.transfer_mode,
                groups: unit.groups.clone(),
                slot: unit.slot_offset,
            })
            .collect();
        let CommitLayout { kept, blocks, to_host, to_device } = lay_out(&plan, sources, &units)?;
        bulk_copy::into_host(device, &arena, &to_host, options.threads, progress)?;
        bulk_copy::into_device(device, &to_device, progress)?;
        let mut state = OffloadState {
            names: kept.iter().enumerate().map(|(at, kept)| (kept.name().to_owned(), at)).collect(),
            kept,
            blocks,
            arena: arena.clone(),
            units,
            groups: drawn.groups.iter().map(|group| group.name.clone()).collect(),
            ring: drawn.ring.clone(),
            depth: drawn.depth,
            slots,
            peak: HeldBytes::default(),
            generation: 0,
        };
        state.note_peak();
        quantize(&plan, &state, sources, progress)?;
        let pageable = arena.pinned_bytes() == 0 && arena.data().bytes() > 0;
        let staging = if pageable && device.capabilities().cuda {
            Some(Staging::new(device, STAGING_BYTES)?)
        } else {
            None
        };
        let schedule = Schedule::new(device, state.arrangement(), staging)?;
        schedule.reset(stream)?;
        Ok(Arc::new(Self { schedule, state: Mutex::new(state), plan }))
    }

    /// What is where. A forked child must not wait for the lock: it may be held for ever.
    pub(super) fn state(&self) -> Result<MutexGuard<'_, OffloadState>> {
        self.device().backend().check_process()?;
        Ok(sync::lock(&self.state))
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The plan that was committed.
    pub fn plan(&self) -> &Arc<DevicePlan> {
        &self.plan
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.plan.device
    }

    /// The index of a group.
    pub fn find_group(&self, name: &str) -> Result<usize> {
        match self.state()?.groups.iter().position(|group| group == name) {
            Some(index) => Ok(index),
            None => fail!(WB_ERR_NOT_FOUND, "there is no group {name:?}"),
        }
    }

    fn check_group(&self, group: usize) -> Result<()> {
        check_index("group", group, self.plan.plan.groups.len())
    }

    /// Makes the stream wait until the group's parameters are where their addresses say, and holds
    /// them there.
    pub fn acquire_group(&self, group: usize, stream: Stream) -> Result<()> {
        self.check_group(group)?;
        self.schedule.acquire(group, stream)
    }

    /// What was queued on the stream is the last use of the group.
    pub fn release_group(&self, group: usize, stream: Stream) -> Result<()> {
        self.check_group(group)?;
        self.schedule.release(group, stream)
    }

    /// Makes the stream wait for every copy that was queued.
    pub fn join(&self, stream: Stream) -> Result<()> {
        self.schedule.join(stream)
    }

    /// Ends a step that was abandoned.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        self.schedule.reset(stream)
    }

    /// The number of parameters.
    pub fn parameter_count(&self) -> Result<usize> {
        Ok(self.state()?.kept.len())
    }

    /// The index of a parameter, valid until a parameter is removed.
    pub fn find_parameter(&self, name: &str) -> Result<usize> {
        self.state()?.find(name)
    }

    /// The current state of a parameter.
    pub fn parameter_info(&self, index: usize) -> Result<ParameterInfo> {
        let state = self.state()?;
        Ok(info_of(&state, state.parameter(index)?))
    }

    /// The current state of `count` parameters from `first` on, all of the same moment.
    pub fn parameter_infos(&self, first: usize, count: usize) -> Result<Vec<ParameterInfo>> {
        let state = self.state()?;
        let all = state.kept.len();
        let Some(some) = first.checked_add(count).and_then(|end| state.kept.get(first..end)) else {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for {count} parameters from parameter {first} on; there are {all}"
            );
        };
        Ok(some.iter().map(|kept| info_of(&state, kept)).collect())
    }

    /// A view of a parameter from the device: of host memory that it reads in place, of the slot, or
    /// of what is resident in memory of the offloader. A slot's bytes are the parameter's while its
    /// group is acquired.
    pub fn view(&self, index: usize) -> Result<Arc<View>> {
        let state = self.state()?;
        let kept = state.parameter(index)?;
        let name = kept.name();
        let before = kept.layout.bytes_before();
        match &kept.place {
            Backing::Owned(memory, offset) => {
                View::of_device(memory.clone(), kept.layout.clone(), offset + before)
            }
            Backing::Block(block, offset) => {
                let block = &state.blocks[*block];
                let unit = &state.units[block.unit];
                let at = block.offset + offset + before;
                match (unit.transfer_mode, unit.slot, &state.slots) {
                    (transfer_mode, ..)
                        if transfer_mode == TransferMode::ZeroCopy
                            || kept.layout.span_bytes() == 0 =>
                    {
                        let start = unit.region.start() - unit.buffer.data().start();
                        let layout = kept.layout.clone();
                        View::new(unit.buffer.clone(), layout, start as u64 + at, Accessor::Device)
                    }
                    (_, Some(slot), Some(slots)) => {
                        View::of_device(slots.clone(), kept.layout.clone(), slot + at)
                    }
                    _ => Err(no_slots()),
                }
            }
            Backing::Borrowed(_) => fail!(
                WB_ERR_NOT_SUPPORTED,
                "parameter {name:?} is resident in memory of the engine's own: use that tensor"
            ),
            Backing::Missing => fail!(
                WB_ERR_NOT_FOUND,
                "parameter {name:?} is resident and was given no source: replace it with one first"
            ),
            Backing::Unbacked(..) => Err(outside(name)),
        }
    }

    /// A view of the host's bytes of a parameter that is offloaded, to read or to save.
    pub fn host_view(&self, index: usize) -> Result<Arc<View>> {
        let state = self.state()?;
        let kept = state.parameter(index)?;
        let name = kept.name();
        let (block, offset) = match kept.place {
            Backing::Block(block, offset) => (block, offset),
            Backing::Unbacked(..) => return Err(outside(name)),
            _ => fail!(
                WB_ERR_NOT_FOUND,
                "parameter {name:?} is resident: the host holds no bytes of it"
            ),
        };
        let block = &state.blocks[block];
        let unit = &state.units[block.unit];
        let start = (unit.region.start() - unit.buffer.data().start()) as u64;
        let at = start + block.offset + offset + kept.layout.bytes_before();
        View::new(unit.buffer.clone(), kept.layout.clone(), at, Accessor::Host)
    }

    /// Bytes by what they are for, and what was carried.
    pub fn stats(&self) -> Result<OffloaderStats> {
        self.device().backend().check_process()?;
        let transfers = self.schedule.stats()?;
        let state = self.state()?;
        let mut stats = OffloaderStats {
            transfers,
            parameters: state.kept.len() as u64,
            generation: state.generation,
            staging_bytes: self.schedule.staging_bytes(),
            peak: state.peak,
            ..OffloaderStats::default()
        };
        for block in &state.blocks {
            stats.offloaded_bytes += block.bytes;
            if state.units[block.unit].transfer_mode == TransferMode::ZeroCopy {
                stats.view_bytes += block.bytes;
            }
        }
        for buffer in state.buffers() {
            stats.asked_bytes += buffer.data().bytes() as u64;
            stats.pinned_bytes += buffer.pinned_bytes();
        }
        stats.resident_bytes = state.resident_bytes();
        HeldBytes { mapped_bytes: stats.mapped_bytes, slot_bytes: stats.slot_bytes } = state.held();
        Ok(stats)
    }
}

fn info_of(state: &OffloadState, kept: &ParameterState) -> ParameterInfo {
    let (host_address, device_address) = state.addresses(kept);
    let owned = matches!(kept.place, Backing::Block(..) | Backing::Owned(..));
    ParameterInfo {
        name: kept.name.clone(),
        layout: kept.layout.clone(),
        group: kept.group,
        transfer_mode: state.transfer_mode(kept),
        device_address,
        owned: owned && device_address.is_some(),
        host_address,
    }
}

fn outside(name: &str) -> Error {
    let message = format!(
        "parameter {name:?} has no bytes: its replacement found no host memory; replace it again"
    );
    Error::new(WB_ERR_NOT_FOUND, message)
}

/// Brings what is kept in 8 bits from its sources.
fn quantize(
    plan: &DevicePlan,
    state: &OffloadState,
    sources: &[Option<Location>],
    progress: &mut Progress<'_>,
) -> Result<()> {
    let Some(rule) = &plan.plan.options.quantize else { return Ok(()) };
    let quantizer = quantize::quantizer(&plan.device)?;
    for (at, source) in sources.iter().enumerate() {
        if let (Some(quantized), Some(source)) = (&state.kept[at].quantized, source) {
            quantize::fill(rule, &quantizer, state, at, &quantized.layout, *source, progress)?;
        }
    }
    Ok(())
}

/// `WB_ERR_NOT_MAPPED` where the plan counts on views and the memory that was made has none.
fn check_views(plan: &DevicePlan, arena: &Buffer) -> Result<()> {
    let views = |unit: &&PlannedUnit| unit.transfer_mode == TransferMode::ZeroCopy;
    let bytes: u64 = plan.plan.units.iter().filter(views).map(|unit| unit.bytes).sum();
    if bytes > 0 && arena.device_address().is_none() {
        fail!(
            WB_ERR_NOT_MAPPED,
            "the plan lets the device read {bytes} bytes in place, but it cannot see this memory ({}): \
             make the plan for a device that was opened with the same choice of pinning",
            arena.fallback_reason()
        );
    }
    Ok(())
}
