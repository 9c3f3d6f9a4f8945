//! A plain cache by the rules of ARCHITECTURE.md, which the tests compare the kernels with.

use std::collections::BTreeSet;

use crate::cache::counters::ExpertCounters;

/// A slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// The layer and the expert in it.
    pub holds: Option<(usize, usize)>,
    /// The last call that used it.
    pub used: u64,
    /// Lanes whose kernels may read it.
    pub held: BTreeSet<u32>,
}

/// The cache.
#[derive(Debug, Clone)]
pub struct Reference {
    pub slots: Vec<Slot>,
    pub counters: Vec<ExpertCounters>,
    layers: Vec<usize>,
    expert_bytes: u64,
    clock: u64,
}

impl Reference {
    pub fn new(layers: &[usize], slots: usize, expert_bytes: u64) -> Self {
        Self {
            slots: vec![Slot::default(); slots],
            counters: vec![ExpertCounters::default(); layers.len()],
            layers: layers.to_vec(),
            expert_bytes,
            clock: 0,
        }
    }

    /// The slot of an expert.
    pub fn slot_of(&self, layer: usize, expert: usize) -> Option<usize> {
        self.slots.iter().position(|slot| slot.holds == Some((layer, expert)))
    }

    /// A call; a hint without a lane. Returns the slot of each id, -1 for none, and the slots that
    /// were taken.
    pub fn call(
        &mut self,
        layer: usize,
        ids: &[i64],
        lane: Option<u32>,
        pass: std::ops::Range<usize>,
    ) -> (Vec<i64>, Vec<usize>) {
        if ids.is_empty() {
            return (Vec::new(), Vec::new());
        }
        self.clock += 1;
        let experts = self.layers[layer];
        let is_needed = |id: i64| id >= 0 && pass.contains(&(id as usize));
        let needed: BTreeSet<usize> =
            ids.iter().filter(|id| is_needed(**id)).map(|id| *id as usize).collect();
        let (present, absent): (Vec<usize>, Vec<usize>) =
            needed.iter().partition(|expert| self.slot_of(layer, **expert).is_some());
        if let Some(lane) = lane {
            for slot in &mut self.slots {
                slot.held.remove(&lane);
            }
        }
        let mut taken_by_call: Vec<usize> =
            present.iter().filter_map(|expert| self.slot_of(layer, *expert)).collect();
        let mut free: Vec<(u64, usize)> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(at, slot)| slot.held.is_empty() && !taken_by_call.contains(at))
            .map(|(at, slot)| (slot.used, at))
            .collect();
        free.sort_unstable();
        let mut victims: Vec<usize> = free.iter().take(absent.len()).map(|(_, at)| *at).collect();
        victims.sort_unstable();
        let counters = &mut self.counters[layer];
        for (expert, victim) in absent.iter().zip(&victims) {
            let before = self.slots[*victim].holds.replace((layer, *expert));
            counters.evictions += u64::from(before.is_some());
        }
        taken_by_call.extend(&victims);
        for slot in &taken_by_call {
            self.slots[*slot].used = self.clock;
            self.slots[*slot].held.extend(lane);
        }
        counters.bytes += victims.len() as u64 * self.expert_bytes;
        counters.refused += (absent.len() - victims.len()) as u64;
        let is_expert = |id: &&i64| **id >= 0 && (**id as usize) < experts;
        counters.ignored += (ids.len() - ids.iter().filter(is_expert).count()) as u64;
        match lane {
            None => counters.prefetched += victims.len() as u64,
            Some(_) => {
                counters.hits += present.len() as u64;
                counters.misses += absent.len() as u64;
                counters.calls += 1;
            }
        }
        let slot = |id: &i64| match is_needed(*id) {
            true => self.slot_of(layer, *id as usize).map_or(-1, |slot| slot as i64),
            false => -1,
        };
        (ids.iter().map(slot).collect(), victims)
    }

    /// Keeps the first slots, and has as many from then on.
    pub fn resize(&mut self, keep: usize, slots: usize) {
        self.slots.truncate(keep);
        self.slots.resize(slots, Slot::default());
    }
}
