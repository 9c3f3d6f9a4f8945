//! Fixed addresses: every unit has a range of its own, and this is what is behind it. A unit is
//! resident in memory of its own, in pieces of the slots that it shares with others, in host memory
//! that the device reads in place, or not at all, while the offloader is asleep. Of a unit in pieces each
//! piece is resident or in host memory.

use std::collections::HashMap;
use std::ops::Range;

use crate::device::address_range::{AddressRange, PhysicalMemory};
use crate::device::backend::PhysicalKind;
use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::offload::backing::HostUnit;
use crate::offload::expert_pools::ExpertPools;
use crate::offload::schedule::schedule::ScheduleChange;
use crate::offload::window_range::WindowRange;
use crate::os::log;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::heat::Heat;
use crate::plan::plan::Plan;
use crate::plan::residency::Movable;
use crate::status::WB_ERR_INTERNAL;

/// What is behind the addresses of a unit.
#[derive(Clone)]
pub enum Behind {
    /// Nothing: an access faults.
    Nothing,
    /// Its pieces of the slots.
    Slot,
    /// Device memory of its own.
    Own(Arc<PhysicalMemory>),
    /// Host memory, which the device reads in place.
    Host(Arc<PhysicalMemory>),
}

/// Host memory with the bytes of resident parameters of the plan.
#[derive(Clone)]
pub enum HostCopy {
    /// That can be put behind their addresses. The driver creates it slowly.
    Mappable(Arc<PhysicalMemory>),
    /// That is only copied to and from, while nothing is behind their addresses.
    Buffer(Arc<Buffer>),
}

/// The range of a unit, or a piece of it, which moves as a whole.
pub struct Home {
    /// The unit's index in the schedule.
    pub unit: usize,
    /// The addresses of the unit.
    pub memory: Arc<DeviceMemory>,
    /// The part of them: all, or a piece.
    place: Range<usize>,
    /// Of a piece: bytes that a step reads of it.
    pub heat: Option<f64>,
    /// The unit's bytes in the arena, and its part of the slots; `None` for resident parameters of the
    /// plan.
    pub carried: Option<(Span, Range<usize>)>,
    /// What is behind its addresses.
    pub behind: Behind,
    /// Whether that is not mapped, since a call of the driver failed half way.
    pub unmapped: bool,
    /// Whether a replacement of its bytes has not reached that yet, since a copy has failed.
    pub stale: bool,
    /// A copy of its bytes: one that is kept while it is resident, or where they are while it is not.
    pub host_copy: Option<HostCopy>,
    /// How many captures there were when it became resident.
    pub resident_since: u64,
    /// Whether a graph may exist that does not copy the unit.
    pub in_graphs: bool,
    /// How many captures there were when it got its slot.
    pub slot_since: u64,
    /// Whether a graph may exist that copies the unit.
    pub copied_by_graphs: bool,
}

impl Home {
    /// Whole pieces for the unit.
    pub fn bytes(&self) -> usize {
        self.place.len()
    }

    /// The bytes that are copied when it moves.
    pub fn used(&self) -> Span {
        let bytes = self.carried.as_ref().map_or(self.bytes(), |(host, _)| host.bytes());
        self.memory.span().part(self.place.start, bytes)
    }

    /// Its addresses, behind which memory is exchanged.
    pub fn range(&self) -> Result<&AddressRange> {
        match self.memory.range() {
            Some(range) => Ok(range),
            None => fail!(WB_ERR_INTERNAL, "a unit has no address range"),
        }
    }

    /// Memory that has its bytes as they are to be when it moves; `None` if they are to be copied from the
    /// arena, as the schedule does it.
    pub fn source(&self) -> Option<Span> {
        match &self.carried {
            Some(_) if !self.is_on_device() => None,
            _ => Some(self.buffer().map_or_else(|| self.used(), |buffer| buffer.data())),
        }
    }

    /// The buffer that has its bytes while nothing is behind its addresses.
    pub fn buffer(&self) -> Option<&Arc<Buffer>> {
        match (&self.host_copy, &self.behind) {
            (Some(HostCopy::Buffer(buffer)), Behind::Nothing) => Some(buffer),
            _ => None,
        }
    }

    /// Whether steps copy nothing to it.
    pub fn needs_no_copy(&self) -> bool {
        matches!(self.behind, Behind::Own(_) | Behind::Host(_))
    }

    /// Whether host memory is to be behind it while it is not resident.
    pub fn needs_host(&self, asleep: bool) -> bool {
        self.carried.is_none() || self.in_graphs && !asleep
    }

    /// Whether it has device memory of its own.
    pub fn is_on_device(&self) -> bool {
        matches!(self.behind, Behind::Own(_))
    }
}

/// A unit in pieces.
pub(super) struct Pieces {
    /// The indexes of its pieces among the homes.
    pub(super) homes: Range<usize>,
    pub(super) heat: Heat,
}

/// All ranges, and the memory of the slots.
pub struct Addresses {
    pub(super) device: Arc<Device>,
    /// All homes, in the order of the schedule's units.
    pub homes: Vec<Home>,
    /// The first index of each unit, by its first address.
    home_at: HashMap<usize, usize>,
    /// The units in pieces, by their first addresses.
    pub(super) pieces: HashMap<usize, Pieces>,
    /// The slots in pieces, by their offsets: a piece ends where any slot begins or ends, since a
    /// mapping has all of a piece. None while the offloader is asleep.
    slots: Vec<(Range<usize>, Arc<PhysicalMemory>)>,
    slot_bytes: u64,
    /// The slots of expert caches.
    pub pools: ExpertPools,
    /// Through which compressed bytes pass to slots. It has memory while these have.
    windows: WindowRange,
    /// Whether residents of the plan keep a host copy.
    pub keep_host_copy: bool,
}

impl Addresses {
    /// No ranges yet.
    fn new(device: &Arc<Device>, plan: &Plan) -> Result<Self> {
        Ok(Self {
            pools: ExpertPools::new(plan),
            windows: WindowRange::reserve(device, plan.window_bytes)?,
            ..Self::without_units(device, plan.slot_bytes, plan.options.keep_host_copy)
        })
    }

    /// No ranges yet, of a plan without windows and caches.
    pub fn without_units(device: &Arc<Device>, slot_bytes: u64, keep_host_copy: bool) -> Self {
        Self {
            device: device.clone(),
            homes: Vec::new(),
            home_at: HashMap::new(),
            pieces: HashMap::new(),
            slots: Vec::new(),
            pools: ExpertPools::default(),
            slot_bytes,
            windows: WindowRange::default(),
            keep_host_copy,
        }
    }

    /// Ranges for the units of a plan that have slots, and the memory of these, which
    /// [`Addresses::put_slots`] puts there; `None` for a plan without fixed addresses.
    pub fn of_units(
        device: &Arc<Device>,
        plan: &Plan,
        units: &mut [HostUnit],
    ) -> Result<Option<Self>> {
        let Some(granularity) = plan.granularity else { return Ok(None) };
        let mut addresses = Self::new(device, plan)?;
        for (at, unit) in units.iter_mut().enumerate() {
            let Some(start) = unit.slot_offset else { continue };
            let bytes = unit.region.bytes().next_multiple_of(granularity as usize);
            let start = start as usize;
            addresses.add_carried(at, unit.region, start..start + bytes)?;
            unit.range = addresses.homes.last().map(|home| home.memory.clone());
        }
        addresses.create_slots()?;
        Ok(Some(addresses))
    }

    /// Puts the slots behind the addresses of all units that have one.
    pub fn put_slots(&mut self) -> Result<()> {
        let carried = (0..self.homes.len()).filter(|at| self.homes[*at].carried.is_some());
        carried.collect::<Vec<_>>().into_iter().try_for_each(|at| self.put(at, Behind::Slot))
    }

    /// Adds a unit with a slot, and nothing behind its addresses.
    pub fn add_carried(&mut self, unit: usize, host: Span, slot: Range<usize>) -> Result<()> {
        let memory = DeviceMemory::reserve(&self.device, slot.end - slot.start)?;
        let all = 0..memory.span().bytes();
        self.add(unit, Arc::new(memory), all, Some((host, slot)));
        Ok(())
    }

    /// Adds resident parameters, in memory of their own. Returns it.
    pub fn add_resident(&mut self, unit: usize, bytes: usize) -> Result<Arc<DeviceMemory>> {
        let memory = Arc::new(DeviceMemory::reserve(&self.device, bytes)?);
        self.add(unit, memory.clone(), 0..bytes, None);
        let at = self.homes.len() - 1;
        let own = PhysicalMemory::create(&self.device, bytes, PhysicalKind::Device)?;
        self.put(at, Behind::Own(own))?;
        Ok(memory)
    }

    pub(super) fn add(
        &mut self,
        unit: usize,
        memory: Arc<DeviceMemory>,
        place: Range<usize>,
        carried: Option<(Span, Range<usize>)>,
    ) {
        self.home_at.entry(memory.span().start()).or_insert(self.homes.len());
        self.homes.push(Home {
            unit,
            memory,
            place,
            heat: None,
            carried,
            behind: Behind::Nothing,
            unmapped: false,
            stale: false,
            host_copy: None,
            resident_since: 0,
            in_graphs: false,
            slot_since: 0,
            copied_by_graphs: false,
        });
    }

    /// Creates the memory of the slots and of the windows, if there is none.
    pub fn create_slots(&mut self) -> Result<()> {
        self.windows.fill()?;
        if !self.slots.is_empty() || self.slot_bytes == 0 {
            return Ok(());
        }
        let slots = self.homes.iter().filter_map(|home| home.carried.as_ref());
        let mut cuts = vec![0, self.slot_bytes as usize];
        cuts.extend(slots.flat_map(|(_, slot)| [slot.start, slot.end]));
        cuts.sort_unstable();
        cuts.dedup();
        let piece = |ends: &[usize]| {
            let bytes = ends[1] - ends[0];
            let memory = PhysicalMemory::create(&self.device, bytes, PhysicalKind::Device)?;
            Ok((ends[0]..ends[1], memory))
        };
        self.slots = cuts.windows(2).map(piece).collect::<Result<_>>()?;
        Ok(())
    }

    /// Frees the memory of the windows, and of the slots, which is behind no addresses any more.
    pub fn free_slots(&mut self) -> Result<()> {
        self.slots.clear();
        self.windows.clear()
    }

    /// The addresses of the windows, if there are some.
    pub fn windows(&self) -> Option<Arc<DeviceMemory>> {
        self.windows.memory()
    }

    /// Bytes of device memory behind the windows.
    pub fn held_window_bytes(&self) -> u64 {
        self.windows.held_bytes()
    }

    /// Whether slots and windows have memory, all of it, or none.
    pub fn has_slots(&self, filled: bool) -> bool {
        let held = self.held_slot_bytes() + self.held_window_bytes();
        held == if filled { self.least_bytes() } else { 0 }
    }

    /// Bytes of slots and windows, without which no step runs.
    pub fn least_bytes(&self) -> u64 {
        self.slot_bytes + self.windows.bytes()
    }

    fn pieces(&self, at: usize) -> Vec<Arc<PhysicalMemory>> {
        match (&self.homes[at].behind, &self.homes[at].carried) {
            (Behind::Own(memory) | Behind::Host(memory), _) => vec![memory.clone()],
            (Behind::Slot, Some((_, slot))) => {
                let within = |piece: &&(Range<usize>, _)| {
                    slot.start <= piece.0.start && piece.0.end <= slot.end
                };
                self.slots.iter().filter(within).map(|(_, memory)| memory.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Puts other memory behind a unit's addresses. The last use of it has passed. If that fails, the
    /// memory before stays; if not even that can be mapped, the unit is `unmapped`.
    pub fn put(&mut self, at: usize, behind: Behind) -> Result<()> {
        let before = std::mem::replace(&mut self.homes[at].behind, behind);
        let done = self.map(at);
        if done.is_err() {
            self.homes[at].behind = before;
            // On a lost device nothing can be mapped.
            if !self.device.backend().is_lost() {
                log::best_effort(|| self.map(at));
            }
        }
        done
    }

    /// Maps what is to be behind a unit's addresses.
    fn map(&mut self, at: usize) -> Result<()> {
        let pieces = self.pieces(at);
        self.homes[at].unmapped = true;
        let range = self.homes[at].range()?;
        let place = self.homes[at].place.clone();
        range.unmap_at(place.clone())?;
        range.map_at(place.start, &pieces)?;
        self.homes[at].unmapped = false;
        Ok(())
    }

    /// Does again what failed calls have left undone: mappings, and copies of replaced bytes.
    pub fn repair(&mut self, change: &ScheduleChange<'_>) -> Result<()> {
        for at in 0..self.homes.len() {
            if self.homes[at].unmapped {
                self.map(at)?;
            }
            if self.homes[at].stale {
                self.refresh(at, change)?;
            }
        }
        Ok(())
    }

    /// Whether memory with the right bytes is behind the addresses of every unit, and memory behind those of the
    /// windows.
    pub fn is_complete(&self) -> bool {
        let missing =
            |home: &Home| home.unmapped || home.stale || matches!(home.behind, Behind::Nothing);
        !self.homes.iter().any(missing) && self.has_slots(true)
    }

    /// Notes that a unit has new bytes in the arena: memory of its own has them after
    /// [`Addresses::repair`], and a host copy that is kept is out of date. Only slots are filled by
    /// steps.
    pub fn note_replaced(&mut self, unit: usize) {
        // They are in the order of the schedule.
        let Ok(at) = self.homes.binary_search_by_key(&unit, |home| home.unit) else { return };
        let home = &mut self.homes[at];
        home.host_copy = None;
        home.stale = home.carried.is_some() && home.needs_no_copy();
    }

    /// Whether a replacement has not reached memory of a unit's own.
    pub fn is_stale(&self) -> bool {
        self.homes.iter().any(|home| home.stale)
    }

    /// Copies a unit's bytes from the arena to memory of its own.
    fn refresh(&mut self, at: usize, change: &ScheduleChange<'_>) -> Result<()> {
        let home = &mut self.homes[at];
        if home.needs_no_copy() {
            let stream = OwnedStream::new(&self.device)?;
            change.copy_unit(home.unit, home.used(), stream.get())?;
            self.device.backend().synchronize(stream.get())?;
        }
        home.stale = false;
        Ok(())
    }

    fn home_of(&self, memory: &DeviceMemory) -> Option<&Home> {
        self.home_at.get(&memory.span().start()).map(|at| &self.homes[*at])
    }

    /// The buffer that has the bytes of resident parameters while nothing is behind their addresses.
    pub fn buffer_of(&self, memory: &DeviceMemory) -> Option<&Arc<Buffer>> {
        self.home_of(memory)?.buffer()
    }

    /// Notes that resident parameters were written, of which a host copy that is kept is then out of
    /// date.
    pub fn note_written(&mut self, memory: &DeviceMemory) {
        for at in self.homes_of(memory) {
            let home = &mut self.homes[at];
            if home.buffer().is_none() {
                home.host_copy = None;
            }
        }
    }

    /// The indexes of a unit, or of its pieces; none for memory without fixed addresses.
    pub(super) fn homes_of(&self, memory: &DeviceMemory) -> Range<usize> {
        let start = memory.span().start();
        match (self.pieces.get(&start), self.home_at.get(&start)) {
            (Some(pieces), _) => pieces.homes.clone(),
            (None, Some(at)) => *at..*at + 1,
            (None, None) => 0..0,
        }
    }

    /// Makes host copies of all resident parameters of the plan, which are filled.
    pub fn copy_to_host(&mut self) -> Result<()> {
        let own = |home: &&mut Home| home.carried.is_none() && home.is_on_device();
        for home in self.homes.iter_mut().filter(own) {
            let memory = PhysicalMemory::create(&self.device, home.bytes(), PhysicalKind::Host)?;
            let window = AddressRange::reserve(&self.device, home.bytes())?;
            window.map(std::slice::from_ref(&memory))?;
            copy(&self.device, window.span(), home.used())?;
            window.unmap()?;
            home.host_copy = Some(HostCopy::Mappable(memory));
        }
        Ok(())
    }

    /// The units, for the choice of those that are resident.
    pub fn movable(&self) -> Vec<Movable> {
        let one = |home: &Home| Movable {
            bytes: home.bytes() as u64,
            has_slot: home.carried.is_some(),
            heat: home.heat,
            resident: home.is_on_device(),
        };
        self.homes.iter().map(one).collect()
    }

    /// Bytes of slots that have memory.
    pub fn held_slot_bytes(&self) -> u64 {
        self.slots.iter().map(|(range, _)| (range.end - range.start) as u64).sum()
    }

    /// Device memory of resident units, of slots, of windows, and of caches.
    pub fn held_bytes(&self) -> u64 {
        let caches = self.pools.held_bytes();
        self.resident_bytes() + self.held_slot_bytes() + self.held_window_bytes() + caches
    }

    /// Device memory of units that are resident.
    fn resident_bytes(&self) -> u64 {
        let resident = self.homes.iter().filter(|home| home.is_on_device());
        resident.map(|home| home.bytes() as u64).sum()
    }

    /// Host memory that units have beside the arena.
    pub fn host_bytes(&self) -> u64 {
        let held = |home: &Home| match (&home.behind, &home.host_copy) {
            (Behind::Host(_), _) | (_, Some(HostCopy::Mappable(_))) => home.bytes() as u64,
            (_, Some(HostCopy::Buffer(buffer))) => buffer.data().bytes() as u64,
            (_, None) => 0,
        };
        self.homes.iter().map(held).sum()
    }
}

/// Copies, and waits for it.
fn copy(device: &Arc<Device>, to: Span, from: Span) -> Result<()> {
    let stream = OwnedStream::new(device)?;
    device.copy(to, from, stream.get())?;
    device.backend().synchronize(stream.get())
}
