//! The offloader: a committed plan, and the calls of a step.

use std::collections::HashSet;
use std::ffi::CStr;
use std::mem;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use once_cell::sync::OnceCell;

use crate::device::backend::{Location, Stream};
use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Error, Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::staging::{STAGING_BYTES, Staging};
use crate::offload::addresses::Addresses;
use crate::offload::backing::{Apart, ApartKind, c_name};
use crate::offload::commit::{CommitLayout, lay_out};
use crate::offload::device_encode::DeviceEncode;
use crate::offload::device_plan::DevicePlan;
use crate::offload::expert_table::ExpertCaches;
use crate::offload::host_memory::HostMemory;
use crate::offload::parameter_table::ParameterTable;
use crate::offload::schedule::arrangement::Passages;
use crate::offload::schedule::schedule::Schedule;
use crate::offload::schedule::stats::GroupStats;
use crate::offload::source_store::{EncodedStore, UnitStore};
use crate::offload::state::{EncodedBy, HeldBytes, OffloadState, check_index};
use crate::offload::{bulk_copy, encoded, encoded_source, kept, quantize, source_store};
use crate::os::parallel::{Progress, both};
use crate::os::sync::{Arc, Mutex, MutexGuard};
use crate::os::{page, sync};
use crate::plan::parameter::TransferMode;
use crate::plan::plan::{ALIGNMENT, HostStore, Plan, PlanOptions, PlannedStorage, PlannedUnit};
use crate::quant::quantizer::Quantizer;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED};

/// A committed plan. Its calls may come from any thread.
pub struct Offloader {
    // Dropped first, since it waits for what uses the memory.
    schedule: Schedule,
    /// Locked before the schedule where both are.
    state: Mutex<OffloadState>,
    /// For replacements of quantized parameters; made by the first.
    pub(super) quantizer: OnceCell<Arc<Quantizer>>,
    plan: Arc<DevicePlan>,
    /// Device memory for what the device keeps compressed.
    kept_bytes: u64,
    /// Whether an arbiter resizes it.
    pub(super) shared: AtomicBool,
}

impl Offloader {
    /// Commits a plan: allocates the host memory and the slots, and copies every parameter that has
    /// a source. Waits for the work queued on `stream` first. When it returns, the sources of
    /// offloaded parameters, and of any in host memory, are no longer needed; a resident parameter
    /// in device memory stays there. Sources in `buffers` may become host memory, if the plan allows
    /// it; then these are kept.
    pub fn commit(
        plan: Arc<DevicePlan>,
        sources: &[Option<Location>],
        buffers: &[Arc<Buffer>],
        stream: Stream,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        let DevicePlan { device, plan: planned } = &*plan;
        device.backend().synchronize(stream)?;
        if planned.options.host_store != HostStore::Copy {
            buffers.iter().try_for_each(|buffer| buffer.check_file())?;
        }
        let stores = match planned.options.host_store {
            HostStore::Source => source_store::find(&plan, sources, buffers),
            HostStore::Copy | HostStore::Compressed => {
                planned.units.iter().map(|_| Err(String::new())).collect()
            }
        };
        encoded_source::check_all(planned, sources)?;
        if planned.options.verify_compressed {
            encoded_source::verify_carried(planned, sources, options.threads, progress)?;
        }
        let encoded_stores = source_store::find_encoded(&plan, sources, buffers);
        let places = arena_layout(planned, &stores, &encoded_stores);
        let arena = Buffer::alloc(device, places.bytes as usize, options, progress)?;
        check_views(planned, &stores, &encoded_stores, &arena)?;
        let slot_bytes = planned.slot_bytes as usize;
        let slots = match planned.options.fixed_addresses && slot_bytes > 0 {
            true => Some(DeviceMemory::reserve(device, slot_bytes)?),
            false => DeviceMemory::alloc(device, slot_bytes)?,
        }
        .map(Arc::new);
        let store_reasons = store_reasons(planned, &stores, &encoded_stores);
        let unit = |((unit, store), (offset, bytes)): ((&PlannedUnit, UnitStore), (u64, u64))| {
            let region = arena.data().part(offset as usize, bytes as usize);
            store.unwrap_or_else(|_| source_store::own_unit(arena.clone(), region, unit))
        };
        let mut units: Vec<_> =
            planned.units.iter().zip(stores).zip(places.units).map(unit).collect();
        let in_arena = |(store, span): (_, Option<(u64, u64)>)| match (store, span) {
            (Ok(apart), _) => Some(apart),
            (Err(_), Some((offset, bytes))) => {
                let span = arena.data().part(offset as usize, bytes as usize);
                Some(Apart { buffer: arena.clone(), span, kind: ApartKind::Arena })
            }
            (Err(_), None) => None,
        };
        let aparts = encoded_stores.into_iter().zip(places.storages).map(in_arena).collect();
        let mut addresses = Addresses::of_units(device, planned, &mut units)?;
        let layout = lay_out(&plan, sources, &units, aparts, addresses.as_mut())?;
        let CommitLayout { parameters, blocks, mut to_host, mut to_encode, to_device, to_decode } =
            layout;
        let by_device = DeviceEncode::take(&plan, &arena, slots.as_ref(), &mut to_encode)?;
        to_host.extend(to_encode.into_iter().flat_map(|task| task.jobs));
        let mut fill = || bulk_copy::into_host(device, &arena, &to_host, options.threads, progress);
        match &mut addresses {
            Some(addresses) => both(|| addresses.put_slots(), fill)?,
            None => fill()?,
        }
        for (memory, jobs) in to_device {
            bulk_copy::into_device(device, memory.span(), &jobs, options.threads, progress)?;
        }
        encoded_source::decode_all(&plan, &to_decode, buffers, options.threads, progress)?;
        let groups: std::sync::Arc<[_]> =
            planned.groups.iter().map(|group| group.name.clone()).collect();
        let named = groups.iter().cloned().enumerate();
        let mut state = OffloadState {
            store_reasons,
            no_reason: c"".into(),
            shown_dims: HashSet::new(),
            parameters: ParameterTable::new(parameters),
            host: HostMemory::new(arena.clone(), units, blocks, groups.len()),
            group_of: named.map(|(group, name)| (name, group)).collect(),
            groups,
            ring: planned.ring.clone(),
            depth: planned.depth,
            wraps: !planned.wrap_stalls,
            ring_bytes: planned.ring_bytes,
            slots,
            kept: None,
            encoded_by: EncodedBy::default(),
            addresses: addresses.take(),
            resident_units: match planned.options.fixed_addresses {
                true => {
                    let units = planned.resident_units().into_iter().map(|unit| unit.groups);
                    units.chain(planned.pieces.iter().map(|unit| unit.groups.clone())).collect()
                }
                false => Vec::new(),
            },
            expert_caches: ExpertCaches::default(),
            resize: None,
            peak: HeldBytes::default(),
            generation: 0,
        };
        state.update_peak();
        state.host.set_ring(&state.ring, planned.options.depth as usize);
        quantize::quantize_all(&plan, &mut state, sources, options.threads, progress)?;
        encoded::encode_all(device, &mut state, by_device, options.threads, progress)?;
        kept::keep_all(&plan, &mut state, options.threads, progress)?;
        if let Some(addresses) = state.addresses.as_mut().filter(|all| all.keep_host_copy) {
            addresses.copy_to_host()?;
        }
        let pageable = arena.pinned_bytes() == 0 && arena.data().bytes() > 0;
        let staging = match pageable && device.capabilities().cuda {
            true => Some(Staging::new(device, STAGING_BYTES)?),
            false => None,
        };
        let windows = match &state.addresses {
            Some(addresses) => addresses.windows(),
            None => DeviceMemory::alloc(device, planned.window_bytes as usize)?.map(Arc::new),
        };
        let schedule = Schedule::new(device, state.arrangement(), Passages { staging, windows })?;
        schedule.reset(stream, None)?;
        let kept_bytes = state.kept_bytes();
        let (state, quantizer) = (Mutex::new(state), OnceCell::new());
        let shared = AtomicBool::new(false);
        Ok(Arc::new(Self { schedule, state, quantizer, plan, kept_bytes, shared }))
    }

    /// Locks the state. Fails in a forked child, where the lock may never be released.
    pub(super) fn state(&self) -> Result<MutexGuard<'_, OffloadState>> {
        self.device().backend().check_process()?;
        Ok(sync::lock(&self.state))
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan.plan
    }

    pub(super) fn options(&self) -> &PlanOptions {
        &self.plan().options
    }

    /// The budget of device memory for resident parameters and slots, if there is one.
    pub(super) fn device_budget(&self) -> Option<u64> {
        let budget = self.options().budget.device_bytes();
        let others = self.plan().expert_bytes + self.plan().window_bytes + self.kept_bytes;
        budget.map(|bytes| bytes.saturating_sub(others))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.plan.device
    }

    /// The index of a group by its name.
    pub fn find_group(&self, name: &str) -> Result<usize> {
        let state = self.state()?;
        match state.group_of.get(name) {
            Some(index) => Ok(*index),
            None => {
                let count = state.group_of.len();
                Err(Error::not_found("group", name, count, "wb_plan_to_json"))
            }
        }
    }

    fn check_group(&self, group: usize) -> Result<()> {
        check_index("group", group, self.plan.plan.groups.len())
    }

    /// Makes the stream wait until the group's parameters are at their device addresses, and keeps
    /// them there until the group is released as often. With a timeout, waits for a slot that
    /// another thread's step occupies.
    pub fn acquire_group(
        &self,
        group: usize,
        stream: Stream,
        timeout: Option<Duration>,
    ) -> Result<()> {
        self.check_group(group)?;
        self.schedule.acquire(group, stream, timeout)
    }

    /// Records the work queued on the stream as the last use of the group, and prefetches the next
    /// groups.
    pub fn release_group(&self, group: usize, stream: Stream) -> Result<()> {
        self.check_group(group)?;
        self.schedule.release(group, stream)
    }

    /// Takes the groups that the coming steps acquire, and their order; none for those of the plan.
    pub fn expect(&self, groups: Vec<usize>) -> Result<()> {
        self.device().backend().check_process()?;
        let mut seen = vec![false; self.plan.plan.groups.len()];
        for &group in &groups {
            self.check_group(group)?;
            if mem::replace(&mut seen[group], true) {
                fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "asked to expect group {group} more than once: name each group of a step once"
                );
            }
        }
        self.schedule.expect((!groups.is_empty()).then_some(groups));
        Ok(())
    }

    /// The copies of a group, and the waits for them.
    pub fn group_stats(&self, group: usize) -> Result<GroupStats> {
        self.device().backend().check_process()?;
        self.check_group(group)?;
        self.schedule.group_stats(group)
    }

    /// Makes the stream wait for every copy that was queued. Ends the capture of a part of a step.
    pub fn join(&self, stream: Stream) -> Result<()> {
        self.schedule.join(stream)
    }

    /// Begins a step that relies on nothing that was copied before.
    pub fn begin_step(&self, stream: Stream) -> Result<()> {
        self.schedule.begin_step(stream)
    }

    /// Ends an abandoned step: releases the groups that were acquired on the stream.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        self.schedule.reset(stream, Some(stream))
    }

    /// Ends the steps of all streams: releases all groups on the stream.
    pub fn reset_all(&self, stream: Stream) -> Result<()> {
        self.schedule.reset(stream, None)
    }
}

/// The arena's bytes, and what is where in it.
struct ArenaLayout {
    /// Offset and bytes of each unit, without what is apart from it; none of one that stays in its source.
    units: Vec<(u64, u64)>,
    /// Offset and bytes of each storage that has the compressed bytes of its source in the arena.
    storages: Vec<Option<(u64, u64)>>,
    bytes: u64,
}

/// The places of everything in the arena: units and storages that stay in their sources have none.
fn arena_layout(plan: &Plan, stores: &[UnitStore], encoded: &[EncodedStore]) -> ArenaLayout {
    let mut storages = vec![None; plan.storages.len()];
    let mut bytes = 0;
    let mut place = |bytes_of: u64| {
        let offset = bytes;
        bytes += bytes_of.next_multiple_of(ALIGNMENT);
        (offset, bytes_of)
    };
    let mut unit = |(unit, store): (&PlannedUnit, &UnitStore)| {
        let members = unit.storages.iter().map(|at| (*at, &plan.storages[*at]));
        let (given, own): (Vec<_>, Vec<_>) = members.partition(|(_, storage)| storage.is_given());
        let own = own.iter().map(|(_, storage)| storage.carried_bytes());
        let region = place(if store.is_ok() { 0 } else { own.sum() });
        for (at, storage) in given.into_iter().filter(|(at, _)| encoded[*at].is_err()) {
            let encoded_bytes = storage.coding.as_ref().map_or(0, |coding| coding.encoded_bytes);
            storages[at] = Some(place(encoded_bytes));
        }
        region
    };
    let units = plan.units.iter().zip(stores).map(&mut unit).collect();
    ArenaLayout { units, storages, bytes: bytes.next_multiple_of(page::page_bytes() as u64) }
}

/// For each storage why it is not in its source's memory.
fn store_reasons(
    plan: &Plan,
    stores: &[UnitStore],
    encoded: &[EncodedStore],
) -> Vec<std::sync::Arc<CStr>> {
    let none: std::sync::Arc<CStr> = c"".into();
    let texts: Vec<_> = stores
        .iter()
        .map(|store| match store {
            Err(reason) if !reason.is_empty() => c_name(reason),
            _ => none.clone(),
        })
        .collect();
    let of = |(storage, encoded): (&PlannedStorage, &EncodedStore)| match (storage.unit, encoded) {
        (Some(_), Err(reason)) if storage.is_given() => c_name(reason),
        (Some(unit), _) => texts[unit].clone(),
        (None, _) => none.clone(),
    };
    plan.storages.iter().zip(encoded).map(of).collect()
}

/// Fails with `WB_ERR_NOT_MAPPED` if zero-copy units or compressed ones are in the arena, and the
/// arena is not mapped for the device.
fn check_views(
    plan: &Plan,
    stores: &[UnitStore],
    encoded: &[EncodedStore],
    arena: &Buffer,
) -> Result<()> {
    let zero_copy = |(unit, store): &(&PlannedUnit, &UnitStore)| {
        unit.transfer_mode == TransferMode::ZeroCopy && store.is_err()
    };
    let in_arena = plan.units.iter().zip(stores).filter(zero_copy);
    let coded = plan.storages.iter().zip(encoded);
    let coded = coded.filter(|(storage, store)| storage.coding.is_ok() && store.is_err());
    let decoded_bytes: u64 = coded.map(|(storage, _)| storage.bytes).sum();
    let bytes = in_arena.map(|(unit, _)| unit.bytes).sum::<u64>() + decoded_bytes;
    if bytes > 0 && arena.device_address().is_none() {
        fail!(
            WB_ERR_NOT_MAPPED,
            "the plan lets the device read {bytes} bytes in place, or decode them, but this memory is not mapped for it \
             ({}): make the plan for a device that was opened with the same choice of pinning",
            arena.fallback_reason()
        );
    }
    Ok(())
}
