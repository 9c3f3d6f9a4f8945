//! Finds the fastest plan under a budget of device memory: which storages leave, how much of each
//! group the ring holds, and how deep it is.

use crate::error::Result;
use crate::plan::input::PlanInput;
use crate::plan::leaving::{Candidate, Keep, Leaving, Step, Taken};
use crate::plan::order::Order;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::ALIGNMENT;
use crate::plan::slot_ring::{MOST_DEPTH, RingShape, shapes};
use crate::plan::trial::{Key, Trial, Trials, Variant};

/// Storages that are inspected in the search for a better plan than the first that fits. Small
/// models are searched completely, large ones near the first plan only.
const WORK: usize = 20_000_000;

/// The number of times that a search takes exactly the bytes that it is short of; after that, it
/// takes twice as many each time.
const EXACT_JUMPS: usize = 12;

/// The number of levels that are tried at most, and how many of them after the first that fits.
const LEVELS: usize = 64;
const MORE_LEVELS: usize = 8;

/// What is chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The storages that leave, in order.
    pub storages: Vec<usize>,
    /// Those that the device keeps compressed.
    pub kept: Vec<usize>,
    /// Bytes of a group in the ring, at most, as far as modes are free.
    pub prefetch_limit: Option<u64>,
    /// The shape of the ring.
    pub shape: RingShape,
    /// What it was compared by.
    pub key: Key,
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

/// The best so far.
struct Best {
    trial: Trial,
    variant: Variant,
    positions: Vec<u32>,
}

struct Search<'a> {
    input: &'a PlanInput<'a>,
    budget: u64,
    trials: Trials<'a>,
    orders: Vec<Leaving>,
    /// Bytes of candidates that cost no time: sparse ones that are read in place.
    free_bytes: u64,
    /// What candidates move over the link, at least, as a part of their bytes.
    least_link: f64,
    /// Whether all groups of the ring may have slots at the same time.
    short_ring: bool,
    /// Storages that are kept compressed, as far as they can be, unless they leave.
    kept: Vec<usize>,
    best: Option<Best>,
    work: usize,
}

/// Finds the fastest plan in which the candidates that stay, all other storages and the slots fit
/// into `budget` bytes. `leave` bytes of the others leave in any case, and move nothing.
///
/// Storages that are compressed are first kept on the device so, as many as are needed and no more; if
/// all of them are too many, others leave. That is only done where a step is faster for it.
pub fn choose(
    input: &PlanInput<'_>,
    candidates: &[usize],
    leave: u64,
    budget: u64,
) -> Result<Outcome> {
    let trials = || {
        let mut trials = Trials::new(input, budget);
        trials.all_bytes -= leave;
        trials
    };
    if trials().all_bytes <= budget {
        let shape = RingShape { depth: (input.options.depth as usize).max(1), wraps: true };
        let (storages, kept, prefetch_limit, key) = (Vec::new(), Vec::new(), None, Key::NOTHING);
        return Ok(Outcome::Fits(Choice { storages, kept, prefetch_limit, shape, key }));
    }
    let without = search(input, candidates, trials(), budget, Keep::Nothing)?;
    if !candidates.iter().any(|at| input.kept_bytes(*at).is_some()) {
        return Ok(without);
    }
    let mut with = search(input, candidates, trials(), budget, Keep::Needed)?;
    if !matches!(with, Outcome::Fits(_)) {
        let mut trials = trials();
        trials.keep_all(candidates);
        with = search(input, candidates, trials, budget, Keep::All)?;
    }
    let faster = match (&with, &without) {
        (Outcome::Fits(with), Outcome::Fits(without)) => {
            let is_less = (with.key.cost, with.key.stalls) < (without.key.cost, without.key.stalls);
            is_less && !with.kept.is_empty()
        }
        (with, _) => matches!(with, Outcome::Fits(_)),
    };
    Ok(if faster { with } else { without })
}

/// Finds the fastest plan in which storages are kept compressed, or leave, as `keep` says.
pub fn search(
    input: &PlanInput<'_>,
    candidates: &[usize],
    trials: Trials<'_>,
    budget: u64,
    keep: Keep,
) -> Result<Outcome> {
    let asked = input.options.depth as usize;
    let mut search = Search::new(input, candidates, trials, budget, keep)?;
    let shapes = shapes(asked);
    search.every_shape(&shapes);
    search.keep_what_fits();
    Ok(search.outcome(&shapes))
}

impl Best {
    fn is_serial(&self) -> bool {
        self.trial.ring_bytes > 0 && self.variant.shape.depth == 1
    }
}

impl<'a> Search<'a> {
    fn new(
        input: &'a PlanInput<'a>,
        candidates: &[usize],
        trials: Trials<'a>,
        budget: u64,
        keep: Keep,
    ) -> Result<Self> {
        let orders = Leaving::every_order(input, candidates, keep)?;
        let kept = match keep {
            Keep::All => candidates.to_vec(),
            Keep::Nothing | Keep::Needed => Vec::new(),
        };
        let free = orders[0].candidates.iter().filter(|candidate| !candidate.moves());
        let free_bytes = free.map(|candidate| candidate.bytes).sum();
        let link =
            orders[0].candidates.iter().map(|one| one.link(input) as f64 / one.bytes.max(1) as f64);
        let least_link = link.fold(1.0, f64::min);
        let ring = orders[0].candidates.iter().filter(|one| one.mode == TransferMode::Prefetch);
        let mut in_ring = vec![false; input.groups.len()];
        let groups = ring.map(|one| one.group).chain(trials.kept_groups());
        groups.for_each(|group| in_ring[group as usize] = true);
        let ring_len = in_ring.iter().filter(|one| **one).count();
        let short_ring = ring_len <= MOST_DEPTH.max(input.options.depth as usize);
        Ok(Self {
            input,
            budget,
            trials,
            orders,
            free_bytes,
            least_link,
            short_ring,
            kept,
            best: None,
            work: 0,
        })
    }

    /// Searches rings of these shapes, those first that overlap copies with kernels.
    fn every_shape(&mut self, shapes: &[RingShape]) {
        let asked = self.input.options.depth as usize;
        let (limit, views) = (self.input.options.slot_bytes, self.input.platform.views);
        let model = &self.input.model;
        let (serial, overlapping): (Vec<RingShape>, Vec<_>) =
            shapes.iter().partition(|shape| asked == 0 && shape.depth == 1);
        // Depth beyond two costs memory, and only kernels of uneven length make it worth that.
        let deeper = asked != 0 || model.knows_compute();
        for shape in overlapping.iter().rev().filter(|shape| deeper || shape.depth == 2) {
            self.every_order(*shape, limit);
        }
        if asked == 0 && views && model.knows_rows() {
            self.every_order(serial[0], Some(0));
        }
        // What is read in place is read again for many rows, a copy is made once.
        let in_place = |best: &Best| model.knows_rows() && best.trial.ring_bytes == 0;
        if model.knows_compute() || self.best.as_ref().is_none_or(in_place) {
            serial.iter().for_each(|shape| self.every_order(*shape, limit));
        }
        let no_overlap = |best: &Best| asked == 0 && (best.is_serial() || in_place(best));
        if views && self.best.as_ref().is_none_or(no_overlap) {
            let two = overlapping.iter().filter(|shape| asked != 0 || shape.depth == 2);
            two.for_each(|shape| self.limit_the_ring(*shape, limit));
            if model.knows_rows() || self.best.is_none() {
                serial.iter().for_each(|shape| self.limit_the_ring(*shape, limit));
            }
        }
        if self.best.is_none() && asked == 0 && views {
            self.every_order(serial[0], Some(0));
        }
    }

    /// Searches every order of leaving with a ring.
    fn every_order(&mut self, shape: RingShape, prefetch_limit: Option<u64>) {
        for order in 0..self.orders.len() {
            self.search(Variant { order, shape, prefetch_limit });
        }
        if self.input.options.order == Order::Spread && prefetch_limit.is_none() {
            self.every_level(Variant { order: self.orders.len() - 1, shape, prefetch_limit });
        }
    }

    /// Searches sets of which no group has more bytes than a level, the same for all. With few large
    /// storages their slots are smaller than those of an order, in which a group's next storage
    /// is mostly a large one. What is more than enough stays.
    fn every_level(&mut self, variant: Variant) {
        let groups = self.input.groups.len();
        let needs = self.trials.all_bytes.saturating_sub(self.budget);
        let mut level = needs.saturating_sub(self.free_bytes) / groups as u64;
        let mut more = MORE_LEVELS;
        for _ in 0..LEVELS {
            if self.work >= WORK || more == 0 {
                break;
            }
            let leaving = &self.orders[variant.order];
            self.work += leaving.candidates.len();
            let taken = leaving.take_evenly(level, groups);
            let Some(next) = taken.next else { break };
            let trial = self.trial(variant, &taken.positions, taken.bytes);
            let short = trial.short;
            if short == 0 {
                more -= 1;
                let kept = self.without_surplus(variant, &trial, &taken.positions);
                self.consider(variant, kept.unwrap_or(taken));
            }
            level = next.max(level + short / groups as u64);
        }
    }

    /// Searches the numbers of bytes that leave, first for any that fits, then for a better one.
    fn search(&mut self, variant: Variant) {
        let needs = self.trials.all_bytes.saturating_sub(self.budget);
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
        let leaving = &self.orders[variant.order];
        self.work += leaving.candidates.len();
        leaving.take(bytes)
    }

    /// Whether no plan that moves as many bytes is better than the best one. Storages that leave
    /// are moved in every step, unless a short ring has slots for all of its groups.
    fn cannot_win(&self, taken: &Taken) -> bool {
        if self.short_ring {
            return false;
        }
        let moved = taken.bytes.saturating_sub(self.free_bytes);
        let least = self.input.model.least_cost((moved as f64 * self.least_link) as u64);
        self.best.as_ref().is_some_and(|Best { trial: Trial { key, .. }, .. }| {
            (least, false, taken.bytes) > (key.cost, key.stalls, key.offloaded_bytes)
        })
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
        let candidates = &self.orders[variant.order].candidates;
        let trial = self.trials.run(candidates, positions, bytes, variant);
        self.work += trial.work;
        trial
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
        let variant = *variant;
        if let Some(taken) = self.without_surplus(variant, trial, positions) {
            self.consider(variant, taken);
        }
    }

    /// The storages of a trial that fits without those, the last first, for which the budget has
    /// space; `None` if it has none.
    fn without_surplus(&self, variant: Variant, trial: &Trial, positions: &[u32]) -> Option<Taken> {
        let candidates = &self.orders[variant.order].candidates;
        let used = self.trials.all_bytes - trial.key.offloaded_bytes + trial.key.slot_bytes;
        let mut left = self.budget - used;
        let mut bytes = trial.key.offloaded_bytes;
        let mut keeps = |position: &u32| {
            let one = &candidates[*position as usize];
            if !one.moves() || one.bytes > left {
                return true;
            }
            left -= one.bytes;
            bytes -= one.bytes;
            false
        };
        let mut kept: Vec<u32> =
            positions.iter().rev().filter(|position| keeps(position)).copied().collect();
        kept.reverse();
        (kept.len() < positions.len()).then_some(Taken { positions: kept, bytes, next: None })
    }

    fn outcome(mut self, shapes: &[RingShape]) -> Outcome {
        let Some(best) = self.best.take() else {
            return Outcome::TooSmall { slots: self.least_slots(shapes) };
        };
        let candidates = &self.orders[best.variant.order].candidates;
        if best.trial.ring_bytes == 0 && self.reads_all_in_place(&best, candidates) {
            let leaves: u64 = candidates.iter().map(|one| one.bytes).sum();
            return Outcome::AllInPlace {
                needs: self.trials.all_bytes - leaves + self.least_slots(shapes),
            };
        }
        let taken = best.positions.iter().map(|position| &candidates[*position as usize]);
        let storage = |one: &Candidate| one.storage as usize;
        let (now_kept, leaving): (Vec<_>, Vec<_>) = taken.partition(|one| one.step == Step::IsKept);
        let storages: Vec<usize> = leaving.into_iter().map(storage).collect();
        let mut leaves = vec![false; self.input.storages.len()];
        storages.iter().for_each(|at| leaves[*at] = true);
        let mut kept = std::mem::take(&mut self.kept);
        kept.retain(|at| !leaves[*at] && self.input.kept_bytes(*at).is_some());
        kept.extend(now_kept.into_iter().map(storage));
        Outcome::Fits(Choice {
            storages,
            kept,
            prefetch_limit: best.variant.prefetch_limit,
            shape: best.trial.shape,
            key: best.trial.key,
        })
    }

    /// Bytes of the slots of everything that may leave, in the shape with which they are fewest.
    fn least_slots(&mut self, shapes: &[RingShape]) -> u64 {
        let limit = self.input.options.slot_bytes;
        let slots = shapes.iter().map(|shape| self.everything(*shape, limit).key.slot_bytes);
        slots.min().unwrap_or(0)
    }

    /// Whether a plan without a ring keeps none of the dense candidates whose mode is free, of which
    /// there are some, although the rows of a step are not known to be few.
    fn reads_all_in_place(&self, best: &Best, candidates: &[Candidate]) -> bool {
        if self.input.model.knows_rows() {
            return false;
        }
        let ring = |one: &&Candidate| one.free && one.mode == TransferMode::Prefetch;
        let all = candidates.iter().filter(ring).count();
        let offloaded = best.positions.iter().map(|position| &candidates[*position as usize]);
        all > 0 && offloaded.filter(ring).count() == all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::parameter::Parameter;
    use crate::plan::parameter::tests::parameter;
    use crate::plan::plan::{Budget, PlanOptions};
    use crate::plan::tests::platform;

    /// Storages of 31 sizes, one after another in each of the groups; and the bytes of all.
    fn model(count: usize, groups: usize) -> (Vec<Parameter>, u64) {
        let size = |at: usize| 1024 + 256 * (at as i64 * 7919 % 31);
        let model = (0..count)
            .map(|at| parameter(&format!("p{at}"), &format!("g{}", at % groups), size(at), 0))
            .collect();
        (model, (0..count).map(size).sum::<i64>() as u64)
    }

    fn options(budget: u64, transfer_mode: TransferMode) -> PlanOptions {
        PlanOptions { transfer_mode, ..PlanOptions::new(Budget::DeviceBytes(budget)) }
    }

    /// A search that ends with the first plan that fits: the search for better ones has a limit of
    /// its own.
    fn first_fit<'a>(input: &'a PlanInput<'a>, budget: u64) -> Search<'a> {
        let candidates: Vec<usize> = (0..input.storages.len()).collect();
        let mut search =
            Search::new(input, &candidates, Trials::new(input, budget), budget, Keep::Nothing)
                .unwrap();
        search.work = WORK;
        search.every_shape(&shapes(0));
        search
    }

    /// The storages and units that a search inspects for each storage, of models with a budget
    /// that is one byte too small for everything.
    #[test]
    fn a_search_inspects_each_storage_a_few_dozen_times() {
        let count: usize = 20_000;
        // A try for each storage would inspect thousands for each.
        for (groups, most) in [(1, 900), (4, 200), (64, 100), (count, 60)] {
            let (model, total) = model(count, groups);
            for transfer_mode in
                [TransferMode::Prefetch, TransferMode::OnDemand, TransferMode::Auto]
            {
                let (given, platform) = (options(total - 1, transfer_mode), platform(true));
                let input = PlanInput::new(model.clone(), given, &platform).unwrap();
                let each = (first_fit(&input, total - 1).work - WORK) / count;
                assert!(each < most, "{groups} groups, {transfer_mode:?}: {each} each");
            }
        }
    }

    /// Of the storages that leave in the first plan that fits, none could stay.
    #[test]
    fn what_fits_beside_the_first_plan_stays() {
        let (model, total) = model(10_000, 100);
        let budget = total / 2;
        let (given, platform) = (options(budget, TransferMode::Prefetch), platform(true));
        let input = PlanInput::new(model, given, &platform).unwrap();
        let mut search = first_fit(&input, budget);
        search.keep_what_fits();
        let Best { trial, variant, positions } = search.best.unwrap();
        let used = total - trial.key.offloaded_bytes + trial.key.slot_bytes;
        let bytes =
            |position: &u32| search.orders[variant.order].candidates[*position as usize].bytes;
        let smallest = positions.iter().map(bytes).min().unwrap();
        assert!(used <= budget && budget - used < smallest, "{used} of {budget}, {smallest}");
    }
}
