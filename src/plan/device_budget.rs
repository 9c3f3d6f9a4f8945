//! Finds the fastest plan under a budget of device memory: which storages leave, how much of each
//! group the ring holds, and how deep it is.

use crate::error::Result;
use crate::plan::input::PlanInput;
use crate::plan::leaving::{Leaving, Spread, Taken};
use crate::plan::order::Order;
use crate::plan::parameter::TransferMode;
use crate::plan::placement::{PrefetchLimits, too_large_mode};
use crate::plan::plan::ALIGNMENT;
use crate::plan::slot_ring::{RingShape, SlotRing, UnitSize, shapes};
use crate::plan::step_model::{StepLoad, StepRing};

/// Storages that are inspected in the search for a better plan than the first that fits. Small
/// models are searched completely, large ones near the first plan only.
const WORK: usize = 20_000_000;

/// The number of times that a search takes exactly the bytes that it is short of; after that, it
/// takes twice as many each time.
const EXACT_JUMPS: usize = 12;

/// What is chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The storages that leave, in order.
    pub storages: Vec<usize>,
    /// Bytes of a group in the ring, at most, as far as modes are free.
    pub prefetch_limit: Option<u64>,
    /// The shape of the ring.
    pub shape: RingShape,
}

/// What a budget of device memory allows.
#[derive(Debug)]
pub enum Outcome {
    /// The fastest plan.
    Fits(Choice),
    /// No plan fits; the one that needs least has these bytes of slots beside what must stay.
    TooSmall { slots: u64 },
    /// Only plans fit that keep and prefetch nothing; with slots, these bytes are needed.
    AllInPlace { needs: u64 },
}

/// A set of storages with a ring, and what follows from it.
#[derive(Debug)]
struct Trial {
    /// Bytes over the budget, of the device or of slots.
    short: u64,
    /// The least that a plan is compared by: its cost, whether it stalls, its offloaded bytes and
    /// its slots.
    key: (f64, bool, u64, u64),
    ring_bytes: u64,
    slot_bytes: u64,
}

impl Trial {
    fn key_of_bytes(&self) -> (f64, bool, u64) {
        (self.key.0, self.key.1, self.key.2)
    }
}

/// The best so far.
#[derive(Debug)]
struct Best {
    trial: Trial,
    variant: Variant,
    positions: Vec<u32>,
}

/// What is varied beside the storages that leave.
#[derive(Debug, Clone, Copy)]
struct Variant {
    /// Index of an order.
    order: usize,
    shape: RingShape,
    prefetch_limit: Option<u64>,
}

/// A candidate as a trial reads it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    storage: u32,
    /// Its first group.
    group: u32,
    bytes: u64,
    mode: TransferMode,
    /// Whether another mode may replace it.
    free: bool,
    /// Whether several groups use it.
    shared: bool,
    /// Whether a step reads all of it.
    dense: bool,
}

struct Search<'a> {
    input: &'a PlanInput<'a>,
    budget: u64,
    /// Bytes of all storages on the device.
    all: u64,
    orders: Vec<(Leaving, Vec<Entry>)>,
    /// Bytes of candidates that cost no time: sparse ones that are read in place.
    free_bytes: u64,
    /// 0, 1, 2, ...: a slice of it names one group.
    group_ids: Vec<usize>,
    best: Option<Best>,
    work: usize,
}

/// Finds the fastest plan in which the candidates that stay, all other storages and the slots fit
/// into `budget` bytes.
pub fn choose(input: &PlanInput<'_>, candidates: &[usize], budget: u64) -> Result<Outcome> {
    let all = (0..input.storages.len()).map(|at| input.rounded_bytes(at)).sum();
    let asked = input.options.depth as usize;
    if all <= budget {
        let shape = RingShape { depth: asked.max(1), wraps: true };
        return Ok(Outcome::Fits(Choice { storages: Vec::new(), prefetch_limit: None, shape }));
    }
    let mut search = Search::new(input, candidates, budget, all)?;
    let (limit, views) = (input.options.slot_bytes, input.platform.views);
    let shapes = shapes(asked);
    let (serial, overlapping): (Vec<RingShape>, Vec<_>) =
        shapes.iter().partition(|shape| asked == 0 && shape.depth == 1);
    // Depth beyond two costs memory, and only kernels of uneven length make it worth that.
    let deeper = asked != 0 || input.model.knows_compute();
    for shape in overlapping.iter().rev().filter(|shape| deeper || shape.depth == 2) {
        search.every_order(*shape, limit);
    }
    if asked == 0 && views && input.model.knows_rows() {
        search.every_order(serial[0], Some(0));
    }
    if search.best.is_none() || input.model.knows_compute() {
        serial.iter().for_each(|shape| search.every_order(*shape, limit));
    }
    if views && search.best.as_ref().is_none_or(|best| asked == 0 && best.is_serial()) {
        let two = overlapping.iter().filter(|shape| asked != 0 || shape.depth == 2);
        two.for_each(|shape| search.limit_the_ring(*shape, limit));
    }
    if search.best.is_none() && asked == 0 && views {
        search.every_order(serial[0], Some(0));
    }
    search.keep_what_fits();
    Ok(search.outcome(&shapes))
}

impl Best {
    fn is_serial(&self) -> bool {
        self.trial.ring_bytes > 0 && self.variant.shape.depth == 1
    }
}

impl<'a> Search<'a> {
    fn new(input: &'a PlanInput<'a>, candidates: &[usize], budget: u64, all: u64) -> Result<Self> {
        let spreads: &[Spread] = match input.options.order {
            Order::Spread => &[Spread::Parts, Spread::Bytes, Spread::LargestOfGroup],
            Order::Declared | Order::Largest => &[Spread::Parts],
        };
        let mut entries = vec![None; input.storages.len()];
        let mut free_bytes = 0;
        for &storage in candidates {
            let entry = Entry::new(input, storage)?;
            if entry.mode == TransferMode::ZeroCopy && !entry.dense {
                free_bytes += entry.bytes;
            }
            entries[storage] = Some(entry);
        }
        let order = |spread: &Spread| {
            let leaving = Leaving::new(input, candidates, *spread);
            let entries = leaving.0.iter().filter_map(|candidate| entries[candidate.storage]);
            let entries = entries.collect();
            (leaving, entries)
        };
        Ok(Self {
            input,
            budget,
            all,
            orders: spreads.iter().map(order).collect(),
            free_bytes,
            group_ids: (0..input.groups.len()).collect(),
            best: None,
            work: 0,
        })
    }

    /// Searches every order of leaving with a ring.
    fn every_order(&mut self, shape: RingShape, prefetch_limit: Option<u64>) {
        for order in 0..self.orders.len() {
            self.search(Variant { order, shape, prefetch_limit });
        }
    }

    /// Searches the numbers of bytes that leave, first for any that fits, then for a better one.
    fn search(&mut self, variant: Variant) {
        let needs = self.all - self.budget;
        self.find_enough(variant, needs);
        let mut bytes = needs;
        while self.work < WORK {
            let taken = self.take(variant, bytes);
            let next = taken.next;
            if self.cannot_win(&taken) {
                break;
            }
            self.consider(variant, taken);
            let Some(next) = next else { break };
            bytes = next;
        }
    }

    /// Finds a number of bytes to take with which the rest fits, near the smallest one. Few tries
    /// are needed, since the slots of more storages are hardly ever smaller.
    fn find_enough(&mut self, variant: Variant, needs: u64) {
        let (mut bytes, mut too_few, mut step) = (needs, needs, 0u64);
        for tries in 0.. {
            let taken = self.take(variant, bytes);
            if self.cannot_win(&taken) {
                return;
            }
            let (took, next) = (taken.bytes, taken.next);
            let short = self.consider(variant, taken);
            if short == 0 {
                break;
            }
            let Some(next) = next else { return };
            too_few = bytes;
            step = if tries < EXACT_JUMPS { short } else { short.max(step.saturating_mul(2)) };
            bytes = next.max(took.saturating_add(step));
        }
        // The last steps may have been long.
        let precise = (needs / 256).max(ALIGNMENT);
        while step > 0 && bytes - too_few > precise {
            let middle = too_few + (bytes - too_few) / 2;
            let taken = self.take(variant, middle);
            match self.consider(variant, taken) {
                0 => bytes = middle,
                _ => too_few = middle,
            }
        }
    }

    fn take(&mut self, variant: Variant, bytes: u64) -> Taken {
        let (leaving, _) = &self.orders[variant.order];
        self.work += leaving.0.len();
        leaving.take(bytes, |_, _| {})
    }

    /// Whether no plan that moves as many bytes is better than the best one.
    fn cannot_win(&self, taken: &Taken) -> bool {
        let moved = taken.bytes.saturating_sub(self.free_bytes);
        let least = self.input.model.least_cost(moved);
        self.best
            .as_ref()
            .is_some_and(|best| (least, false, taken.bytes) > best.trial.key_of_bytes())
    }

    /// Tries a set of storages, and keeps it if it is the best that fits. Returns the bytes that it
    /// is over the budget.
    fn consider(&mut self, variant: Variant, taken: Taken) -> u64 {
        let trial = self.trial(variant, &taken.positions, taken.bytes);
        let short = trial.short;
        let better = self.best.as_ref().is_none_or(|best| trial.key < best.trial.key);
        if short == 0 && better {
            self.best = Some(Best { trial, variant, positions: taken.positions });
        }
        short
    }

    fn trial(&mut self, variant: Variant, positions: &[u32], bytes: u64) -> Trial {
        let input = self.input;
        let entries = &self.orders[variant.order].1;
        self.work += 2 * positions.len();
        let groups = input.groups.len();
        let mut load = StepLoad::new(groups);
        let (mut prefetched, mut on_demand) = (vec![0u64; groups], vec![0u64; groups]);
        let mut shared: Vec<UnitSize<'_>> = Vec::new();
        let taken = || positions.iter().map(|position| &entries[*position as usize]);
        let mut limits = variant.prefetch_limit.map(|limit| {
            let mut limits = PrefetchLimits::new(groups, limit);
            for entry in taken().filter(|entry| entry.mode == TransferMode::Prefetch && !entry.free)
            {
                limits.require(&input.groups_of[entry.storage as usize], entry.bytes);
            }
            limits
        });
        for entry in taken() {
            let (storage, group) = (entry.storage as usize, entry.group as usize);
            let mut mode = entry.mode;
            if let Some(limits) = &mut limits
                && mode == TransferMode::Prefetch
                && entry.free
                && !limits.admit(group, entry.bytes)
            {
                mode = too_large_mode(input.platform.views);
            }
            match mode {
                TransferMode::ZeroCopy if !entry.dense => {}
                TransferMode::ZeroCopy => {
                    let bytes = input.storages[storage].bytes;
                    let dense = input.dense_groups(storage);
                    dense.iter().for_each(|group| load.read[*group] += bytes);
                }
                transfer_mode if entry.shared => {
                    let groups = &input.groups_of[storage];
                    shared.push(UnitSize { transfer_mode, bytes: entry.bytes, groups });
                }
                TransferMode::Prefetch => prefetched[group] += entry.bytes,
                _ => on_demand[group] += entry.bytes,
            }
        }
        let mut units = shared;
        for (transfer_mode, bytes) in
            [(TransferMode::Prefetch, &prefetched), (TransferMode::OnDemand, &on_demand)]
        {
            let own = bytes.iter().zip(self.group_ids.chunks(1)).filter(|(bytes, _)| **bytes > 0);
            units.extend(own.map(|(bytes, groups)| UnitSize {
                transfer_mode,
                bytes: *bytes,
                groups,
            }));
        }
        for unit in &units {
            let bytes_of = match unit.transfer_mode {
                TransferMode::Prefetch => &mut load.prefetched,
                _ => &mut load.on_demand,
            };
            unit.groups.iter().for_each(|group| bytes_of[*group] += unit.bytes);
        }
        let slots = SlotRing::with_shape(&units, variant.shape);
        self.work += 8 * units.len();
        let ring = StepRing { groups: &slots.ring, shape: slots.shape() };
        let over_slots =
            slots.ring_bytes.saturating_sub(input.options.slot_bytes.unwrap_or(u64::MAX));
        let used = self.all - bytes + slots.slot_bytes;
        let key = (
            input.model.cost(&load, ring),
            slots.wrap_stalls && slots.streams(),
            bytes,
            slots.slot_bytes,
        );
        Trial {
            short: used.saturating_sub(self.budget).max(over_slots),
            key,
            ring_bytes: slots.ring_bytes,
            slot_bytes: slots.slot_bytes,
        }
    }

    /// Everything that may leave, in the first order.
    fn everything(&mut self, shape: RingShape, prefetch_limit: Option<u64>) -> Trial {
        let variant = Variant { order: 0, shape, prefetch_limit };
        let taken = self.take(variant, u64::MAX);
        self.trial(variant, &taken.positions, taken.bytes)
    }

    /// Where the ring of everything is too large: searches with the largest part of each group in
    /// the ring that fits, while the rest is read in place.
    fn limit_the_ring(&mut self, shape: RingShape, limit: Option<u64>) {
        let largest = limit.unwrap_or(u64::MAX).min(self.budget) / ALIGNMENT;
        let (mut fits, mut too_large) = (0, largest + 1);
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            match self.everything(shape, Some(middle * ALIGNMENT)).short {
                0 => fits = middle,
                _ => too_large = middle,
            }
        }
        if fits > 0 {
            self.every_order(shape, Some(fits * ALIGNMENT));
        }
    }

    /// Leaves on the device what fits into the bytes that the best plan does not use.
    fn keep_what_fits(&mut self) {
        let Some(Best { trial, variant, positions }) = &self.best else { return };
        let (variant, entries) = (*variant, &self.orders[variant.order].1);
        let used = self.all - trial.key.2 + trial.slot_bytes;
        let mut left = self.budget - used;
        let mut bytes = trial.key.2;
        let mut keeps = |position: &u32| {
            let entry = &entries[*position as usize];
            let moves = entry.mode != TransferMode::ZeroCopy || entry.dense;
            if !moves || entry.bytes > left {
                return true;
            }
            left -= entry.bytes;
            bytes -= entry.bytes;
            false
        };
        let mut kept: Vec<u32> =
            positions.iter().rev().filter(|position| keeps(position)).copied().collect();
        kept.reverse();
        if kept.len() < positions.len() {
            self.consider(variant, Taken { positions: kept, bytes, next: None });
        }
    }

    fn outcome(mut self, shapes: &[RingShape]) -> Outcome {
        let Some(best) = self.best.take() else {
            return Outcome::TooSmall { slots: self.least_slots(shapes) };
        };
        let entries = &self.orders[best.variant.order].1;
        if best.trial.ring_bytes == 0 && self.reads_all_in_place(&best, entries) {
            let leaves: u64 = entries.iter().map(|entry| entry.bytes).sum();
            return Outcome::AllInPlace { needs: self.all - leaves + self.least_slots(shapes) };
        }
        let storage = |position: &u32| entries[*position as usize].storage as usize;
        Outcome::Fits(Choice {
            storages: best.positions.iter().map(storage).collect(),
            prefetch_limit: best.variant.prefetch_limit,
            shape: best.variant.shape,
        })
    }

    /// Bytes of the slots of everything that may leave, in the shape with which they are fewest.
    fn least_slots(&mut self, shapes: &[RingShape]) -> u64 {
        let limit = self.input.options.slot_bytes;
        let slots = shapes.iter().map(|shape| self.everything(*shape, limit).slot_bytes);
        slots.min().unwrap_or(0)
    }

    /// Whether a plan without a ring keeps none of the dense candidates whose mode is free, of which
    /// there are some, although the rows of a step are not known to be few.
    fn reads_all_in_place(&self, best: &Best, entries: &[Entry]) -> bool {
        if self.input.model.knows_rows() {
            return false;
        }
        let ring = |entry: &&Entry| entry.free && entry.mode == TransferMode::Prefetch;
        let all = entries.iter().filter(ring).count();
        let offloaded = best.positions.iter().map(|position| &entries[*position as usize]);
        all > 0 && offloaded.filter(ring).count() == all
    }
}

impl Entry {
    fn new(input: &PlanInput<'_>, storage: usize) -> Result<Self> {
        Ok(Self {
            storage: storage as u32,
            group: input.groups_of[storage][0] as u32,
            bytes: input.rounded_bytes(storage),
            mode: input.preferred_mode(storage)?,
            free: input.mode_is_free(storage),
            shared: input.groups_of[storage].len() > 1,
            dense: !input.is_sparse(storage),
        })
    }
}
