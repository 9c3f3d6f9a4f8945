//! A committed plan: parameters where they are kept, and the machinery that carries them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::fill::{self, Job};
use super::parameter::Carrier;
use super::plan::{ALIGNMENT, DevicePlan};
use super::schedule::{Arrangement, Carried, Moving, Schedule};
use super::transfer::Staging;
use crate::device::{Device, DeviceMemory, Stream};
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::pages::Span;
use crate::memory::parallel::Progress;
use crate::memory::view::{Access, View};
use crate::status::{
    WB_ERR_NOT_FOUND, WB_ERR_NOT_MAPPED, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
};
use crate::tensor::Layout;

/// Where a parameter's bytes come from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// All bytes that it spans.
    pub span: Span,
    /// They are in device memory.
    pub on_device: bool,
}

/// A parameter as it is kept.
pub(super) struct Kept {
    pub name: String,
    pub group: usize,
    pub layout: Layout,
    pub place: Place,
}

/// Where a parameter is kept.
#[derive(Clone)]
pub(super) enum Place {
    /// In a block that is offloaded, at so many bytes behind its start.
    Block(usize, u64),
    /// On the device, in the engine's own memory.
    Theirs(Span),
    /// On the device, in memory of ours at an offset of bytes.
    Ours(Arc<DeviceMemory>, u64),
    /// Nowhere yet: it is resident and had no source.
    Nowhere,
}

/// Bytes that parameters share: one tensor, or tied ones.
pub(super) struct Block {
    pub unit: usize,
    /// From the start of the unit.
    pub offset: u64,
    /// Bytes in use; the block's room is this rounded up, or more after a smaller one replaced it.
    pub bytes: u64,
    pub room: u64,
    pub parameters: Vec<usize>,
}

/// A stretch of host memory that moves as one, as far as blocks reach in it.
pub(super) struct Unit {
    pub buffer: Arc<Buffer>,
    pub region: Span,
    pub carrier: Carrier,
    pub groups: Vec<usize>,
    /// From the start of the slots.
    pub slot: Option<u64>,
}

/// What is where, behind one lock.
pub(super) struct State {
    pub kept: Vec<Kept>,
    pub names: HashMap<String, usize>,
    pub blocks: Vec<Block>,
    /// The host memory of the plan; what outgrew it has buffers of its own.
    pub arena: Arc<Buffer>,
    pub units: Vec<Unit>,
    pub groups: Vec<String>,
    pub ring: Vec<usize>,
    pub depth: usize,
    pub slots: Option<Arc<DeviceMemory>>,
    /// The most that was held at a time.
    pub peak: Held,
    /// Grows whenever an address changed.
    pub generation: u64,
}

/// Bytes that are held, padding and free room included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    /// Address space of the host.
    pub mapped_bytes: u64,
    /// Device memory for slots.
    pub slot_bytes: u64,
}

/// A committed plan.
pub struct Offloader {
    // First: it waits for what is queued before the memory goes.
    schedule: Schedule,
    state: Mutex<State>,
    plan: Arc<DevicePlan>,
}

/// What a parameter is now.
#[derive(Debug, Clone)]
pub struct Described {
    /// Type, shape and strides.
    pub layout: Layout,
    /// Index of its group.
    pub group: usize,
    /// How it is carried; `None` while it is resident.
    pub carrier: Option<Carrier>,
    /// Where the device finds the first element: always, or while the group is acquired.
    pub device_address: Option<u64>,
    /// Where the host finds the first element of what is offloaded.
    pub host_address: Option<u64>,
}

/// Bytes by what they are for. They add up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
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
    pub peak: Held,
    /// What was carried.
    pub carried: Carried,
    /// Grows whenever an address changed.
    pub generation: u64,
}

impl Offloader {
    /// Commits a plan: takes the host memory and the slots, and copies every parameter that has a
    /// source to where it is kept. What is queued on `stream` comes first. When this returns the
    /// sources of what is offloaded, and of what was on the host, are not needed any more.
    pub fn commit(
        plan: Arc<DevicePlan>,
        sources: &[Option<Source>],
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
            .map(|unit| Unit {
                buffer: arena.clone(),
                region: arena.data().part(unit.arena_offset as usize, unit.bytes as usize),
                carrier: unit.carrier,
                groups: unit.groups.clone(),
                slot: unit.slot_offset,
            })
            .collect();
        let Keeping { kept, blocks, to_host, to_device } = keep(&plan, sources, &units)?;
        fill::into_host(device, &arena, &to_host, options.threads, progress)?;
        fill::into_device(device, &to_device, progress)?;
        let mut state = State {
            names: kept.iter().enumerate().map(|(at, kept)| (kept.name.clone(), at)).collect(),
            kept,
            blocks,
            arena: arena.clone(),
            units,
            groups: drawn.groups.iter().map(|group| group.name.clone()).collect(),
            ring: drawn.ring.clone(),
            depth: drawn.depth,
            slots,
            peak: Held::default(),
            generation: 0,
        };
        state.note_peak();
        let pageable = arena.pinned_bytes() == 0 && arena.data().bytes() > 0;
        let staging =
            if pageable && device.facts().cuda { Some(Staging::new(device)?) } else { None };
        let schedule = Schedule::new(device, &state.arrangement(), staging)?;
        schedule.reset(stream)?;
        Ok(Arc::new(Self { schedule, state: Mutex::new(state), plan }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
    pub fn group(&self, name: &str) -> Result<usize> {
        match self.state().groups.iter().position(|group| group == name) {
            Some(index) => Ok(index),
            None => fail!(WB_ERR_NOT_FOUND, "there is no group {name:?}"),
        }
    }

    fn check_group(&self, group: usize) -> Result<()> {
        let groups = self.plan.plan.groups.len();
        if group >= groups {
            fail!(WB_ERR_OUT_OF_RANGE, "asked for group {group}; there are {groups}");
        }
        Ok(())
    }

    /// Makes the stream wait until the group's parameters are where their addresses say, and holds
    /// them there.
    pub fn acquire(&self, group: usize, stream: Stream) -> Result<()> {
        self.check_group(group)?;
        self.schedule.acquire(group, stream)
    }

    /// What was queued on the stream is the last use of the group.
    pub fn release(&self, group: usize, stream: Stream) -> Result<()> {
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

    /// The index of a parameter.
    pub fn find(&self, name: &str) -> Result<usize> {
        self.state().find(name)
    }

    /// What a parameter is now.
    pub fn describe(&self, name: &str) -> Result<Described> {
        let state = self.state();
        let kept = &state.kept[state.find(name)?];
        let (host, device) = state.addresses(kept);
        Ok(Described {
            layout: kept.layout.clone(),
            group: kept.group,
            carrier: state.carrier(kept),
            device_address: device,
            host_address: host,
        })
    }

    /// A view of a parameter from the device: of host memory that it reads in place, of the slot, or
    /// of what is resident in memory of the offloader. A slot's bytes are the parameter's while its
    /// group is acquired.
    pub fn view(&self, name: &str) -> Result<Arc<View>> {
        let state = self.state();
        let kept = &state.kept[state.find(name)?];
        let before = kept.layout.bytes_before();
        match &kept.place {
            Place::Ours(memory, offset) => {
                View::of_device(memory.clone(), kept.layout.clone(), offset + before)
            }
            Place::Block(block, offset) => {
                let block = &state.blocks[*block];
                let unit = &state.units[block.unit];
                let at = block.offset + offset + before;
                match (unit.slot, &state.slots) {
                    (Some(slot), Some(slots)) => {
                        View::of_device(slots.clone(), kept.layout.clone(), slot + at)
                    }
                    _ => {
                        let start = unit.region.start() - unit.buffer.data().start();
                        let layout = kept.layout.clone();
                        View::new(unit.buffer.clone(), layout, start as u64 + at, Access::Device)
                    }
                }
            }
            Place::Theirs(_) => fail!(
                WB_ERR_NOT_SUPPORTED,
                "parameter {name:?} is resident in memory of the engine's own: use that tensor"
            ),
            Place::Nowhere => fail!(
                WB_ERR_NOT_FOUND,
                "parameter {name:?} is resident and was given no source: replace it with one first"
            ),
        }
    }

    /// A view of the host's bytes of a parameter that is offloaded, to read or to save.
    pub fn host_view(&self, name: &str) -> Result<Arc<View>> {
        let state = self.state();
        let kept = &state.kept[state.find(name)?];
        let Place::Block(block, offset) = kept.place else {
            fail!(WB_ERR_NOT_FOUND, "parameter {name:?} is resident: the host holds no bytes of it")
        };
        let block = &state.blocks[block];
        let unit = &state.units[block.unit];
        let start = (unit.region.start() - unit.buffer.data().start()) as u64;
        let at = start + block.offset + offset + kept.layout.bytes_before();
        View::new(unit.buffer.clone(), kept.layout.clone(), at, Access::Host)
    }

    /// Bytes by what they are for, and what was carried.
    pub fn stats(&self) -> Result<Stats> {
        let carried = self.schedule.carried()?;
        let state = self.state();
        let mut stats = Stats {
            carried,
            generation: state.generation,
            staging_bytes: self.schedule.staging_bytes(),
            peak: state.peak,
            ..Stats::default()
        };
        for block in &state.blocks {
            stats.offloaded_bytes += block.bytes;
            if state.units[block.unit].slot.is_none() {
                stats.view_bytes += block.bytes;
            }
        }
        for buffer in state.buffers() {
            stats.asked_bytes += buffer.data().bytes() as u64;
            stats.pinned_bytes += buffer.pinned_bytes();
        }
        stats.resident_bytes = state.resident_bytes();
        Held { mapped_bytes: stats.mapped_bytes, slot_bytes: stats.slot_bytes } = state.held();
        Ok(stats)
    }
}

impl State {
    pub(super) fn find(&self, name: &str) -> Result<usize> {
        match self.names.get(name) {
            Some(index) => Ok(*index),
            None => fail!(WB_ERR_NOT_FOUND, "there is no parameter {name:?}"),
        }
    }

    /// What the schedule is to work on.
    pub(super) fn arrangement(&self) -> Arrangement {
        let slots = self.slots.as_ref().map(|slots| slots.span());
        let moving = |(unit, extent): (&Unit, u64)| Moving {
            host: unit.region.part(0, extent as usize),
            slot: unit.slot.zip(slots).map(|(at, slots)| slots.part(at as usize, extent as usize)),
            ahead: unit.carrier == Carrier::Prefetch,
            groups: unit.groups.clone(),
        };
        Arrangement {
            units: self.units.iter().zip(self.extents()).map(moving).collect(),
            groups: self.groups.clone(),
            ring: self.ring.clone(),
            depth: self.depth,
        }
    }

    /// All host memory: the arena, and what has a buffer of its own.
    pub(super) fn buffers(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        let own = self.units.iter().map(|unit| &unit.buffer);
        [&self.arena].into_iter().chain(own.filter(|buffer| !Arc::ptr_eq(buffer, &self.arena)))
    }

    fn held(&self) -> Held {
        Held {
            mapped_bytes: self.buffers().map(|buffer| buffer.mapped_bytes()).sum(),
            slot_bytes: self.slots.as_ref().map_or(0, |slots| slots.span().bytes() as u64),
        }
    }

    /// To be called when memory was taken.
    pub(super) fn note_peak(&mut self) {
        let held = self.held();
        self.peak.mapped_bytes = self.peak.mapped_bytes.max(held.mapped_bytes);
        self.peak.slot_bytes = self.peak.slot_bytes.max(held.slot_bytes);
    }

    /// How far blocks reach in each unit.
    pub(super) fn extents(&self) -> Vec<u64> {
        let mut extents = vec![0; self.units.len()];
        for block in self.blocks.iter().filter(|block| !block.parameters.is_empty()) {
            extents[block.unit] = (block.offset + block.room).max(extents[block.unit]);
        }
        extents
    }

    pub(super) fn carrier(&self, kept: &Kept) -> Option<Carrier> {
        match kept.place {
            Place::Block(block, _) => Some(self.units[self.blocks[block].unit].carrier),
            _ => None,
        }
    }

    /// Where the host and the device find a parameter's first element.
    pub(super) fn addresses(&self, kept: &Kept) -> (Option<u64>, Option<u64>) {
        let before = kept.layout.bytes_before();
        match &kept.place {
            Place::Nowhere => (None, None),
            Place::Theirs(span) => (None, Some(span.start() as u64 + before)),
            Place::Ours(memory, offset) => {
                (None, Some(memory.span().start() as u64 + offset + before))
            }
            Place::Block(block, offset) => {
                let block = &self.blocks[*block];
                let unit = &self.units[block.unit];
                let at = block.offset + offset + before;
                let start = (unit.region.start() - unit.buffer.data().start()) as u64;
                let slots = self.slots.as_ref().map(|slots| slots.span().start() as u64);
                let device = match unit.slot.zip(slots) {
                    Some((slot, slots)) => Some(slots + slot + at),
                    None => unit.buffer.device_address().map(|address| address + start + at),
                };
                (Some(unit.region.start() as u64 + at), device)
            }
        }
    }

    /// Bytes of what is resident; what is tied lies in the same place and counts once.
    pub(super) fn resident_bytes(&self) -> u64 {
        let mut spans: Vec<(u64, u64)> = self
            .kept
            .iter()
            .filter(|kept| !matches!(kept.place, Place::Block(..) | Place::Nowhere))
            .filter_map(|kept| {
                let start = self.addresses(kept).1? - kept.layout.bytes_before();
                Some((start, start + kept.layout.span_bytes()))
            })
            .collect();
        spans.sort_unstable();
        let mut counted = (0, 0);
        for (start, end) in spans {
            counted = (counted.0 + end.saturating_sub(start.max(counted.1)), end.max(counted.1));
        }
        counted.0
    }
}

/// `WB_ERR_NOT_MAPPED` where the plan counts on views and the memory that was made has none.
fn check_views(plan: &DevicePlan, arena: &Buffer) -> Result<()> {
    let views = |unit: &&super::plan::Unit| unit.carrier == Carrier::View;
    let bytes: u64 = plan.plan.units.iter().filter(views).map(|unit| unit.bytes).sum();
    if bytes > 0 && arena.device_address().is_none() {
        fail!(
            WB_ERR_NOT_MAPPED,
            "the plan lets the device read {bytes} bytes in place, but it cannot see this memory ({}): \
             make the plan for a device that was opened with the same choice of pinning",
            arena.note()
        );
    }
    Ok(())
}

/// What is kept where by a plan, and what has to be copied for it.
#[derive(Default)]
struct Keeping {
    kept: Vec<Kept>,
    blocks: Vec<Block>,
    to_host: Vec<Job>,
    to_device: Vec<Job>,
}

fn keep(plan: &DevicePlan, sources: &[Option<Source>], units: &[Unit]) -> Result<Keeping> {
    let drawn = &plan.plan;
    let mut keeping = Keeping::default();
    let ours = resident_memory(plan, sources)?;
    let mut places = Vec::with_capacity(drawn.storages.len());
    for (at, storage) in drawn.storages.iter().enumerate() {
        let pieces = pieces_of(plan, at, sources);
        let (place, to, jobs) = match (storage.unit, &ours[at]) {
            (Some(unit), _) => {
                let room = storage.bytes.next_multiple_of(ALIGNMENT);
                keeping.blocks.push(Block {
                    unit,
                    offset: storage.offset_in_unit,
                    bytes: storage.bytes,
                    room,
                    parameters: storage.parameters.to_vec(),
                });
                let to = units[unit].region.part(storage.offset_in_unit as usize, room as usize);
                (Place::Block(keeping.blocks.len() - 1, 0), to, &mut keeping.to_host)
            }
            (None, Some((memory, offset))) => {
                let to = memory.span().part(*offset as usize, storage.bytes as usize);
                (Place::Ours(memory.clone(), *offset), to, &mut keeping.to_device)
            }
            (None, None) => {
                places.push(Place::Nowhere);
                continue;
            }
        };
        jobs.extend(pieces.into_iter().map(|(offset, source)| Job {
            to: to.part(offset as usize, source.span.bytes()),
            from: source.span,
            from_device: source.on_device,
        }));
        places.push(place);
    }
    for (at, planned) in drawn.parameters.iter().enumerate() {
        let place = match (&places[planned.storage], sources[at]) {
            (Place::Block(block, _), _) => Place::Block(*block, planned.offset),
            (Place::Ours(memory, offset), _) => {
                Place::Ours(memory.clone(), offset + planned.offset)
            }
            (_, Some(source)) => Place::Theirs(source.span),
            (_, None) => Place::Nowhere,
        };
        keeping.kept.push(Kept {
            name: planned.parameter.name.clone(),
            group: planned.group,
            layout: planned.parameter.layout.clone(),
            place,
        });
    }
    Ok(keeping)
}

/// The bytes of a storage that its parameters bring, each byte once, in order: offsets in the
/// storage and where they come from.
fn pieces_of(plan: &DevicePlan, storage: usize, sources: &[Option<Source>]) -> Vec<(u64, Source)> {
    let parameters = &plan.plan.storages[storage].parameters;
    let mut given: Vec<(u64, Source)> = parameters
        .iter()
        .filter_map(|at| Some((plan.plan.parameters[*at].offset, sources[*at]?)))
        .collect();
    given.sort_by_key(|(offset, _)| *offset);
    let mut done = 0;
    given.retain_mut(|(offset, source)| {
        let end = *offset + source.span.bytes() as u64;
        let skip = done.max(*offset) - *offset;
        *offset += skip;
        source.span = source.span.part(skip as usize, usize::MAX);
        done = done.max(end);
        source.span.bytes() > 0
    });
    given
}

/// Device memory for what is resident and comes from the host: one allocation, an offset for each
/// storage.
type Resident = Vec<Option<(Arc<DeviceMemory>, u64)>>;

fn resident_memory(plan: &DevicePlan, sources: &[Option<Source>]) -> Result<Resident> {
    let drawn = &plan.plan;
    let mut offsets = vec![None; drawn.storages.len()];
    let mut total = 0;
    for (at, storage) in drawn.storages.iter().enumerate() {
        let mut given = storage.parameters.iter().filter_map(|parameter| sources[*parameter]);
        if storage.unit.is_none() && given.any(|source| !source.on_device) {
            offsets[at] = Some(total as u64);
            total += storage.bytes.next_multiple_of(ALIGNMENT) as usize;
        }
    }
    let memory = DeviceMemory::alloc(&plan.device, total)?.map(Arc::new);
    Ok(offsets.into_iter().map(|offset| memory.clone().zip(offset)).collect())
}
