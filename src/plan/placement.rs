//! A candidate set of offloaded storages, with the transfer modes, units and slots that follow from
//! it.

use crate::error::{Result, fail};
use crate::plan::input::PlanInput;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::PlannedUnit;
use crate::plan::reason::Reason;
use crate::plan::slot_ring::{RingShape, SlotRing, UnitSize};
use crate::plan::step_model::{LinkBytes, StepLoad};
use crate::status::WB_ERR_SLOTS_BUDGET;

/// Where an offloaded storage is placed.
#[derive(Debug, Clone, Copy)]
pub struct PlacedStorage {
    pub transfer_mode: TransferMode,
    pub unit: u32,
    pub offset: u64,
}

/// A candidate set of offloaded storages.
#[derive(Debug)]
pub struct Placement {
    /// Their indexes, in the order in which they leave the device.
    pub storages: Vec<usize>,
    /// The mode of each.
    transfer_modes: Vec<TransferMode>,
    /// The unit of each.
    unit_of: Vec<usize>,
    pub units: Vec<PlannedUnit>,
    pub slots: SlotRing,
    /// Bytes of a group that may be prefetched, at most.
    prefetch_limit: Option<u64>,
}

impl Placement {
    /// Places the storages, with at most `prefetch_limit` bytes of each group in the ring as far as
    /// their modes are free. The ring has the given shape, or the best that the options allow. Those in
    /// `kept` do not leave: the device keeps them compressed.
    pub fn new(
        input: &PlanInput<'_>,
        storages: Vec<usize>,
        prefetch_limit: Option<u64>,
        shape: Option<RingShape>,
        kept: Vec<usize>,
    ) -> Result<Self> {
        let mut is_kept = vec![false; input.storages.len()];
        kept.iter().for_each(|storage| is_kept[*storage] = true);
        let storages = [storages, kept].concat();
        let transfer_modes = choose_modes(input, &storages, &is_kept, prefetch_limit)?;
        let (mut units, unit_of) = gather_units(input, &storages, &is_kept, &transfer_modes);
        let slots = assign_slots(input, &mut units, shape)?;
        Ok(Self { storages, transfer_modes, unit_of, units, slots, prefetch_limit })
    }

    /// The storages that cross the link to slots. Before they are laid out.
    pub fn copied_storages(&self) -> impl Iterator<Item = usize> {
        let members = (0..self.storages.len()).filter(|member| {
            let is_kept = self.units[self.unit_of[*member]].kept;
            !is_kept && self.transfer_modes[*member] != TransferMode::ZeroCopy
        });
        members.map(|member| self.storages[member])
    }

    /// Lays the units out in the arena and their storages in them. Returns the place of each of the
    /// input's storages that is offloaded.
    pub fn lay_out(&mut self, input: &PlanInput<'_>) -> Vec<Option<PlacedStorage>> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.sort_by_key(|unit| self.units[*unit].groups[0]);
        let mut new_index = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, unit)| new_index[*unit] = at);
        let mut units: Vec<PlannedUnit> =
            order.iter().map(|unit| self.units[*unit].clone()).collect();
        let mut offset = 0;
        for unit in &mut units {
            unit.arena_offset = offset;
            offset += unit.host_bytes;
            unit.bytes = 0;
        }
        let mut member_of = vec![None; input.storages.len()];
        let members = self.storages.iter().enumerate();
        members.for_each(|(member, storage)| member_of[*storage] = Some(member as u32));
        let members = || member_of.iter().enumerate().filter_map(|(at, of)| Some((at, (*of)?)));
        let is_given =
            |(at, of): &(usize, u32)| input.is_given(*at, self.transfer_modes[*of as usize]);
        // In host memory, compressed bytes of sources are apart: others begin the unit.
        let others = members().filter(|member| !is_given(member));
        let mut placed = vec![None; input.storages.len()];
        for (storage, member) in others.chain(members().filter(is_given)) {
            let transfer_mode = self.transfer_modes[member as usize];
            let at = new_index[self.unit_of[member as usize]];
            let unit = &mut units[at];
            let offset = unit.bytes;
            unit.bytes += input.carried_bytes(storage, transfer_mode);
            unit.storages.push(storage);
            placed[storage] = Some(PlacedStorage { transfer_mode, unit: at as u32, offset });
        }
        self.units = units;
        placed
    }

    /// Why an offloaded storage has its transfer mode.
    pub fn reason(
        &self,
        input: &PlanInput<'_>,
        storage: usize,
        transfer_mode: TransferMode,
    ) -> Reason {
        let groups = &input.groups_of[storage];
        let requested = input.requested_mode(storage);
        if requested != TransferMode::Auto {
            return Reason::Requested(requested);
        }
        if groups.len() > 1 {
            let names = groups.iter().map(|group| input.groups[*group].clone()).collect();
            return Reason::TiedAcrossGroups(transfer_mode, names);
        }
        let too_large = transfer_mode == TransferMode::OnDemand && self.prefetch_limit.is_some();
        if input.is_sparse(storage) && !too_large {
            return Reason::Sparse(transfer_mode);
        }
        let slots = self.prefetch_limit.unwrap_or(0);
        match transfer_mode {
            TransferMode::Prefetch => Reason::Dense,
            _ => Reason::TooLarge { transfer_mode, slots },
        }
    }

    /// The units, as slots are assigned to them.
    pub fn unit_sizes(&self) -> Vec<UnitSize<'_>> {
        unit_sizes(&self.units)
    }

    /// What a step moves over the link. Must be called after [`Placement::lay_out`].
    pub fn load(&self, input: &PlanInput<'_>) -> StepLoad {
        let mut load = StepLoad::new(input.groups.len());
        for unit in &self.units {
            let bytes_of = match unit.transfer_mode {
                TransferMode::ZeroCopy => {
                    for storage in &unit.storages {
                        for group in input.dense_groups(*storage) {
                            *load.read.of(group) += input.storages[*storage].bytes;
                        }
                    }
                    continue;
                }
                TransferMode::Prefetch => &mut load.prefetched,
                _ => &mut load.on_demand,
            };
            let bytes = unit_link_bytes(input, unit);
            unit.groups.iter().for_each(|group| {
                *bytes_of.of(*group) += bytes.as_copied();
                *load.kept.of(*group) += bytes.kept;
            });
        }
        load
    }

    /// Bytes that are copied in a step. Must be called after [`Placement::lay_out`].
    pub fn step_bytes(&self, input: &PlanInput<'_>) -> LinkBytes {
        let mut sum = LinkBytes::default();
        for unit in &self.units {
            let moves = match unit.transfer_mode {
                TransferMode::ZeroCopy => false,
                TransferMode::Prefetch => self.slots.streams(),
                _ => true,
            };
            let times = if moves { unit.groups.len() } else { 0 };
            (0..times).for_each(|_| sum += unit_link_bytes(input, unit));
        }
        sum
    }
}

/// What one copy of a unit moves over the link.
fn unit_link_bytes(input: &PlanInput<'_>, unit: &PlannedUnit) -> LinkBytes {
    let mut sum = LinkBytes::default();
    for storage in &unit.storages {
        match unit.kept {
            true => sum.kept += input.storages[*storage].bytes,
            false => sum += input.link_bytes(*storage, unit.transfer_mode),
        }
    }
    sum
}

/// The slots of the units.
fn assign_slots(
    input: &PlanInput<'_>,
    units: &mut [PlannedUnit],
    shape: Option<RingShape>,
) -> Result<SlotRing> {
    let sizes = unit_sizes(units);
    let (depth, limit) = (input.options.depth as usize, input.options.slot_bytes);
    let mut slots = match shape {
        Some(shape) => SlotRing::with_shape(&sizes, shape),
        None => SlotRing::new(&sizes, depth, limit),
    };
    if let Some(limit) = limit
        && slots.ring_bytes > limit
    {
        let group = &input.groups[slots.ring[0]];
        fail!(
            WB_ERR_SLOTS_BUDGET,
            "asked for slots of at most {limit} bytes; prefetching from group {group:?} on needs {} \
             {}: raise slot_bytes, offload less of each group, or choose another transfer_mode{}",
            slots.ring_bytes,
            match depth {
                0 => "even one group at a time".into(),
                depth => format!("with depth {depth}"),
            },
            if depth > 1 { " or less depth" } else { "" },
        );
    }
    for (unit, offset) in units.iter_mut().zip(&slots.offsets) {
        unit.slot_offset = *offset;
    }
    slots.offsets = Vec::new();
    Ok(slots)
}

fn unit_sizes(units: &[PlannedUnit]) -> Vec<UnitSize<'_>> {
    units
        .iter()
        .map(|unit| UnitSize {
            transfer_mode: unit.transfer_mode,
            bytes: unit.bytes,
            groups: &unit.groups,
        })
        .collect()
}

/// The transfer mode of each storage.
fn choose_modes(
    input: &PlanInput<'_>,
    storages: &[usize],
    is_kept: &[bool],
    prefetch_limit: Option<u64>,
) -> Result<Vec<TransferMode>> {
    // What could be kept has its slot whether it is or leaves.
    let keeps = storages.iter().any(|storage| is_kept[*storage]);
    let is_free = |storage: usize| {
        input.mode_is_free(storage) && !(keeps && input.kept_bytes(storage).is_some())
    };
    let mut transfer_modes = Vec::with_capacity(storages.len());
    for storage in storages {
        transfer_modes.push(input.preferred_mode(*storage)?);
    }
    let Some(limit) = prefetch_limit else { return Ok(transfer_modes) };
    let mut limits = PrefetchLimits::new(input.groups.len(), limit);
    for (&storage, transfer_mode) in storages.iter().zip(&transfer_modes) {
        if *transfer_mode == TransferMode::Prefetch && !is_free(storage) {
            limits.require(&input.groups_of[storage], input.carried_bytes(storage, *transfer_mode));
        }
    }
    for (&storage, transfer_mode) in storages.iter().zip(&mut transfer_modes) {
        if *transfer_mode == TransferMode::Prefetch
            && is_free(storage)
            && !limits
                .admit(input.groups_of[storage][0], input.carried_bytes(storage, *transfer_mode))
        {
            *transfer_mode = too_large_mode(input.platform.views);
        }
    }
    Ok(transfer_modes)
}

/// The mode of what does not fit into its group's slot.
pub fn too_large_mode(views: bool) -> TransferMode {
    if views { TransferMode::ZeroCopy } else { TransferMode::OnDemand }
}

/// The bytes of each group that are prefetched, of a limited number.
pub struct PrefetchLimits {
    limit: u64,
    bytes: Vec<u64>,
}

impl PrefetchLimits {
    /// None so far.
    pub fn new(groups: usize, limit: u64) -> Self {
        Self { limit, bytes: vec![0; groups] }
    }

    /// Counts bytes whose mode was requested. These come before all others.
    pub fn require(&mut self, groups: &[usize], bytes: u64) {
        groups.iter().for_each(|group| self.bytes[*group] += bytes);
    }

    /// Whether a group may prefetch `bytes` bytes more, which then count.
    pub fn admit(&mut self, group: usize, bytes: u64) -> bool {
        let fits = self.bytes[group] + bytes <= self.limit;
        self.bytes[group] += if fits { bytes } else { 0 };
        fits
    }
}

/// Gathers storages into units: one for each mode that a group uses, one for those of it that the device
/// keeps compressed, and one for each storage that several groups share. Returns the units, and the unit of each storage.
fn gather_units(
    input: &PlanInput<'_>,
    storages: &[usize],
    is_kept: &[bool],
    transfer_modes: &[TransferMode],
) -> (Vec<PlannedUnit>, Vec<usize>) {
    let mut units: Vec<PlannedUnit> = Vec::new();
    let mut unit_of_group = vec![[[None; 2]; TransferMode::COUNT]; input.groups.len()];
    let mut unit_of = Vec::with_capacity(storages.len());
    for (&storage, &transfer_mode) in storages.iter().zip(transfer_modes) {
        let groups = &input.groups_of[storage];
        let next = units.len();
        let kept = is_kept[storage];
        let unit = match groups.len() {
            1 => *unit_of_group[groups[0]][transfer_mode as usize][usize::from(kept)]
                .get_or_insert(next),
            _ => next,
        };
        if unit == next {
            units.push(PlannedUnit {
                transfer_mode,
                kept,
                groups: groups.to_vec(),
                arena_offset: 0,
                bytes: 0,
                host_bytes: 0,
                slot_offset: None,
                storages: Vec::new(),
            });
        }
        units[unit].bytes += input.carried_bytes(storage, transfer_mode);
        units[unit].host_bytes += input.host_bytes(storage, transfer_mode);
        unit_of.push(unit);
    }
    (units, unit_of)
}
