//! The bytes that need slots at a time, kept up to date, so that most changes of sizes are known to
//! fit without packing all units again.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use crate::plan::parameter::TransferMode;
use crate::plan::plan::ALIGNMENT;

/// The bytes of a unit before and after a change.
#[derive(Debug, Clone, Copy)]
pub struct UnitChange<'a> {
    pub transfer_mode: TransferMode,
    pub groups: &'a [usize],
    pub before: u64,
    pub after: u64,
}

/// For each group the sum of its units that need slots.
#[derive(Debug, Default)]
pub struct SlotSums {
    prefetched: GroupSums,
    on_demand: GroupSums,
}

impl SlotSums {
    /// The sums of `groups` groups without units.
    pub fn new(groups: usize) -> Self {
        let new = || GroupSums { sums: vec![0; groups], ..GroupSums::default() };
        Self { prefetched: new(), on_demand: new() }
    }

    /// Takes the groups that have prefetched units, ascending, of which `depth` have their slots at a
    /// time. They must not change before [`SlotSums::forget_ring`].
    pub fn set_ring(&mut self, ring: &[usize], depth: usize) {
        self.prefetched.set_lanes(ring, depth);
    }

    /// Whether a group is in the ring.
    pub fn is_in_ring(&self, group: usize) -> bool {
        self.prefetched.lane_of.get(group).is_some_and(Option::is_some)
    }

    /// Forgets which groups have prefetched units.
    pub fn forget_ring(&mut self) {
        self.prefetched.set_lanes(&[], 0);
    }

    /// Takes a change of a unit.
    pub fn apply(&mut self, change: UnitChange<'_>) {
        match change.transfer_mode {
            TransferMode::Prefetch => self.prefetched.apply(change),
            TransferMode::OnDemand => self.on_demand.apply(change),
            _ => {}
        }
    }

    /// What slots need after these changes, with `depth` groups of the ring at a time.
    pub fn after(&self, depth: usize, changes: &[UnitChange<'_>]) -> SlotNeeds {
        let with = |mode| {
            let changes = changes.iter().filter(move |change| change.transfer_mode == mode);
            changes.collect::<SmallVec<[_; 2]>>()
        };
        let (ring, no_ring_shared) = self.prefetched.after(depth, &with(TransferMode::Prefetch));
        let (on_demand, no_shared) = self.on_demand.after(1, &with(TransferMode::OnDemand));
        SlotNeeds { ring, on_demand, exact: depth == 1 && no_ring_shared && no_shared }
    }
}

/// Bytes of slots that units need at most: [`stack`] places them in as many.
///
/// [`stack`]: crate::plan::slot_packing::stack
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotNeeds {
    /// Of prefetched units.
    pub ring: u64,
    /// Of on-demand units.
    pub on_demand: u64,
    /// Whether no packing needs fewer.
    pub exact: bool,
}

type Ordered = BTreeSet<(u64, usize)>;

/// The sums of one transfer mode.
#[derive(Debug, Default)]
struct GroupSums {
    /// By group, of units that no other group uses.
    sums: Vec<u64>,
    /// Sum and group, of those above 0.
    ordered: Ordered,
    /// The same of each lane, whose groups are as far apart in the ring as it is deep.
    lanes: Vec<Ordered>,
    /// The lane of each group, if the ring is known.
    lane_of: Vec<Option<usize>>,
    /// The sum of units that several groups use.
    shared: u64,
}

impl GroupSums {
    fn apply(&mut self, UnitChange { groups, before, after, .. }: UnitChange<'_>) {
        let (before, after) = (rounded(before), rounded(after));
        let &[group] = groups else {
            self.shared = self.shared + after - before;
            return;
        };
        let old = self.sums[group];
        let new = old + after - before;
        self.sums[group] = new;
        let lane = self.lane_of.get(group).copied().flatten().map(|lane| &mut self.lanes[lane]);
        for ordered in lane.into_iter().chain([&mut self.ordered]) {
            ordered.remove(&(old, group));
            if new > 0 {
                ordered.insert((new, group));
            }
        }
    }

    fn set_lanes(&mut self, ring: &[usize], count: usize) {
        // One lane has what all have.
        let (ring, count) = if count < 2 { (&[][..], 0) } else { (ring, count) };
        // A ring that is shorter than its depth leaves lanes empty.
        self.lanes = vec![Ordered::new(); count.min(ring.len())];
        self.lane_of.clear();
        self.lane_of.resize(if ring.is_empty() { 0 } else { self.sums.len() }, None);
        for (position, &group) in ring.iter().enumerate() {
            self.lane_of[group] = Some(position % count);
            if self.sums[group] > 0 {
                self.lanes[position % count].insert((self.sums[group], group));
            }
        }
    }

    /// After these changes: the largest sums, `count` of all or one of each lane, and all that is
    /// shared, together, and whether nothing is.
    fn after(&self, count: usize, changes: &[&UnitChange<'_>]) -> (u64, bool) {
        let mut shared = self.shared;
        let mut changed: SmallVec<[(usize, u64); 2]> = SmallVec::new();
        for UnitChange { groups, before, after, .. } in changes {
            let (before, after) = (rounded(*before), rounded(*after));
            let &[group] = *groups else {
                shared = shared + after - before;
                continue;
            };
            match changed.iter_mut().find(|(other, _)| *other == group) {
                Some((_, sum)) => *sum = *sum + after - before,
                None => changed.push((group, self.sums[group] + after - before)),
            }
        }
        let is_changed = |group: usize| changed.iter().any(|(other, _)| *other == group);
        let largest = |ordered: &Ordered, count: usize, changed: &mut dyn Iterator<Item = u64>| {
            let others = ordered.iter().rev().filter(|(_, group)| !is_changed(*group));
            let mut largest: Vec<u64> = others.take(count).map(|(sum, _)| *sum).collect();
            largest.extend(changed);
            largest.sort_unstable_by(|one, other| other.cmp(one));
            largest.into_iter().take(count).sum::<u64>()
        };
        let of_all = largest(&self.ordered, count, &mut changed.iter().map(|(_, sum)| *sum));
        let of_lanes = |(lane, ordered): (usize, &Ordered)| {
            let here = changed.iter().filter(|(group, _)| self.lane_of[*group] == Some(lane));
            largest(ordered, 1, &mut here.map(|(_, sum)| *sum))
        };
        let is_known = count == self.lanes.len()
            && changed.iter().all(|(group, _)| matches!(self.lane_of.get(*group), Some(Some(_))));
        let all = match is_known {
            true => of_all.min(self.lanes.iter().enumerate().map(of_lanes).sum()),
            false => of_all,
        };
        (shared + all, shared == 0)
    }
}

fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::slot_ring::{SlotRing, UnitSize};
    use proptest::prelude::*;

    const GROUPS: usize = 9;

    /// Transfer mode, groups and bytes.
    fn units() -> impl Strategy<Value = Vec<(TransferMode, Vec<usize>, u64)>> {
        let mode = prop_oneof![
            6 => Just(TransferMode::Prefetch),
            2 => Just(TransferMode::OnDemand),
            1 => Just(TransferMode::ZeroCopy),
        ];
        let one = (0..GROUPS).prop_map(|group| vec![group]);
        let two = (0..GROUPS - 1, 1..GROUPS)
            .prop_map(|(one, more)| vec![one, GROUPS.min(one + more) - 1]);
        let two = two.prop_filter("two groups", |groups| groups[0] < groups[1]);
        let groups = prop_oneof![12 => one, 1 => two];
        prop::collection::vec((mode, groups, 0u64..3000), 1..14)
    }

    proptest! {
        /// What the sums say is enough for a ring, which stays within it; and where they are exact,
        /// one slot's alignment less is not.
        #[test]
        fn the_sums_are_what_slots_need(
            units in units(),
            changed in prop::collection::vec((0usize..14, 0u64..5000), 0..3),
            depth in 0usize..4,
            knows_ring in any::<bool>(),
        ) {
            let mut sums = SlotSums::new(GROUPS);
            if knows_ring {
                let prefetched =
                    units.iter().filter(|(mode, ..)| *mode == TransferMode::Prefetch);
                let ring: BTreeSet<usize> =
                    prefetched.flat_map(|(_, groups, _)| groups.iter().copied()).collect();
                sums.set_ring(&ring.into_iter().collect::<Vec<_>>(), depth);
            }
            for (transfer_mode, groups, bytes) in &units {
                let transfer_mode = *transfer_mode;
                sums.apply(UnitChange { transfer_mode, groups, before: 0, after: 7 });
                sums.apply(UnitChange { transfer_mode, groups, before: 7, after: *bytes });
            }
            let mut after: Vec<u64> = units.iter().map(|(_, _, bytes)| *bytes).collect();
            let mut changes = Vec::new();
            for (unit, bytes) in changed.into_iter().filter(|(unit, _)| *unit < units.len()) {
                let (transfer_mode, groups, _) = &units[unit];
                let (transfer_mode, before) = (*transfer_mode, after[unit]);
                changes.push(UnitChange { transfer_mode, groups, before, after: bytes });
                after[unit] = bytes;
            }
            let needs = sums.after(depth.max(1), &changes);
            let size = |((transfer_mode, groups, _), bytes): (&(TransferMode, Vec<usize>, u64), &u64)| {
                (*transfer_mode, groups.clone(), *bytes)
            };
            let sizes: Vec<_> = units.iter().zip(&after).map(size).collect();
            let sizes: Vec<_> = sizes.iter().map(|(transfer_mode, groups, bytes)| UnitSize {
                transfer_mode: *transfer_mode,
                bytes: *bytes,
                groups,
            }).collect();
            let slots = SlotRing::new(&sizes, depth, Some(needs.ring));
            prop_assert!(slots.ring_bytes <= needs.ring, "{} of {needs:?}", slots.ring_bytes);
            let on_demand = slots.slot_bytes - slots.ring_bytes;
            prop_assert!(on_demand <= needs.on_demand, "{on_demand} of {needs:?}");
            if needs.exact {
                prop_assert_eq!(on_demand, needs.on_demand);
                if let Some(less) = needs.ring.checked_sub(ALIGNMENT) {
                    let slots = SlotRing::new(&sizes, depth, Some(less));
                    prop_assert_eq!(slots.ring_bytes, needs.ring);
                }
            }
            for change in changes {
                sums.apply(change);
            }
            prop_assert_eq!(sums.after(depth.max(1), &[]), needs);
        }
    }
}
