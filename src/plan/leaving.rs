//! The storages that may leave the device, in the order in which they leave it.

use crate::error::Result;
use crate::plan::input::PlanInput;
use crate::plan::order::{self, Order};
use crate::plan::parameter::TransferMode;
use crate::plan::plan::Budget;

/// Of a model's bytes at most this part is tiny: norms and biases, which cost more to move than
/// their memory is worth.
const TINY_PART: u64 = 1024;

/// When a storage leaves, as far as the order does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Sparse parameters that are read in place, since hardly any of their bytes cross the link.
    First,
    Normal,
    /// Tiny ones, only once all others have left.
    Last,
}

/// Which storages the device keeps compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// As many as are needed. Only what costs no time leaves.
    Needed,
    /// All that can be, except those that leave.
    All,
}

/// What a search takes when it takes a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A resident one leaves.
    Leaves,
    /// A resident one is kept compressed.
    IsKept,
    /// One that is kept compressed leaves.
    KeptLeaves,
}

/// A storage that may leave. Searches read all of these many times: they are small, and hold what
/// they need of the input.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its bytes in what the budget limits: in the arena, or on the device.
    pub bytes: u64,
    /// Its index.
    pub storage: u32,
    /// Its first group.
    pub group: u32,
    /// How it is transferred if its group is not too large for its slot.
    pub mode: TransferMode,
    /// Whether another mode may replace that.
    pub free: bool,
    /// Whether several groups use it.
    pub shared: bool,
    /// Whether a step reads all of it.
    pub dense: bool,
    /// How its placement changes when it is taken.
    pub step: Step,
    /// Whether it is carried compressed; otherwise all of its numbers of bytes are the same.
    compressed: bool,
    rank: Rank,
}

impl Candidate {
    /// Whether a step moves or reads all of its bytes over the link.
    pub fn moves(&self) -> bool {
        self.mode != TransferMode::ZeroCopy || self.dense
    }

    /// The candidate where storages are kept compressed; `None` if it is none then.
    fn keeping(mut self, input: &PlanInput<'_>, keep: Keep) -> Option<Self> {
        let storage = self.storage as usize;
        match (keep, input.kept_bytes(storage)) {
            (Keep::Needed, Some(kept)) => {
                self.bytes -= kept;
                self.free = false;
                self.step = Step::IsKept;
            }
            (Keep::Needed, None) if self.moves() => return None,
            (Keep::All, Some(kept)) => {
                self.bytes = kept;
                self.free = false;
                self.step = Step::KeptLeaves;
            }
            _ => {}
        }
        Some(self)
    }

    /// Its bytes in its slot.
    pub fn carried(&self, input: &PlanInput<'_>) -> u64 {
        match self.compressed {
            true => input.carried_bytes(self.storage as usize, self.mode),
            false => self.bytes,
        }
    }

    /// What a copy of it moves over the link: as many bytes as a raw copy moves in the same time.
    pub fn link(&self, input: &PlanInput<'_>) -> u64 {
        match self.compressed {
            _ if self.step == Step::IsKept => 0,
            true => input.link_bytes(self.storage as usize, self.mode).as_copied(),
            false => self.bytes,
        }
    }
}

/// How candidates are spread over the groups. Other orders have the first way only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// The same part of every group, so that copies overlap best with kernels.
    Parts,
    /// As many bytes of every group, so that slots are smallest.
    Bytes,
    /// The same with the largest of a group first, of which fewer fill a slot.
    LargestOfGroup,
}

/// Candidates in the order in which they leave.
#[derive(Debug)]
pub struct Leaving {
    /// All of them; tiny ones are last.
    pub candidates: Vec<Candidate>,
    /// How many are not tiny.
    others: usize,
    /// Of each candidate, the least bytes of it and of those behind it that are tiny if it is, and not if
    /// it is not: with less space than that a search is at its end.
    least: Vec<u64>,
}

/// The candidates that leave if they may take a number of bytes.
#[derive(Debug)]
pub struct Taken {
    /// Their positions in the order.
    pub positions: Vec<u32>,
    /// Their bytes.
    pub bytes: u64,
    /// The smallest number of bytes with which others leave; `None` if all leave.
    pub next: Option<u64>,
}

impl Taken {
    /// Notes a number of bytes with which another leaves.
    fn add_next(&mut self, bytes: u64) {
        self.next = Some(self.next.map_or(bytes, |next| next.min(bytes)));
    }
}

/// Why a candidate is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It has more bytes than were left of the budget.
    TooLarge { left: u64 },
    /// It is tiny, and larger ones stay.
    Tiny,
}

impl Leaving {
    /// The order of the options for these storages.
    pub fn new(input: &PlanInput<'_>, storages: &[usize]) -> Result<Self> {
        Ok(Self::in_orders(input, storages, &[Spread::Parts], Keep::Nothing)?.remove(0))
    }

    /// The orders that the options leave open, each once.
    pub fn every_order(input: &PlanInput<'_>, storages: &[usize], keep: Keep) -> Result<Vec<Self>> {
        let spreads: &[Spread] = match input.options.order {
            Order::Spread => &[Spread::Parts, Spread::Bytes, Spread::LargestOfGroup],
            Order::Declared | Order::Largest => &[Spread::Parts],
        };
        Self::in_orders(input, storages, spreads, keep)
    }

    fn in_orders(
        input: &PlanInput<'_>,
        storages: &[usize],
        spreads: &[Spread],
        keep: Keep,
    ) -> Result<Vec<Self>> {
        let candidates = candidates(input, storages)?;
        let sizes: Vec<_> = storages
            .iter()
            .map(|at| (input.groups_of[*at][0], input.storages[*at].bytes))
            .collect();
        let mut orders: Vec<Vec<u32>> = Vec::new();
        for spread in spreads {
            let order = match (input.options.order, spread) {
                (Order::Spread, Spread::Bytes) => order::sort_by_bytes_of_group(&sizes, false),
                (Order::Spread, Spread::LargestOfGroup) => {
                    order::sort_by_bytes_of_group(&sizes, true)
                }
                (order, _) => order::sort(&sizes, order),
            };
            if !orders.contains(&order) {
                orders.push(order);
            }
        }
        let in_order = |order: Vec<u32>| {
            let mut leaving: Vec<_> = order
                .into_iter()
                .filter_map(|at| candidates[at as usize].keeping(input, keep))
                .collect();
            leaving.sort_by_key(|candidate| candidate.rank);
            Self::in_order(leaving)
        };
        Ok(orders.into_iter().map(in_order).collect())
    }

    fn in_order(candidates: Vec<Candidate>) -> Self {
        let others = candidates.partition_point(|candidate| candidate.rank != Rank::Last);
        let mut least: Vec<u64> = candidates.iter().map(|candidate| candidate.bytes).collect();
        let (of_others, of_tiny) = least.split_at_mut(others);
        for part in [of_others, of_tiny] {
            for at in (1..part.len()).rev() {
                part[at - 1] = part[at - 1].min(part[at]);
            }
        }
        Self { candidates, others, least }
    }

    /// With space for all positions: of a large list only those that are written take memory.
    fn nothing(&self) -> Taken {
        Taken { positions: Vec::with_capacity(self.candidates.len()), bytes: 0, next: None }
    }

    /// Takes every candidate that still fits into `budget` bytes, in order; tiny ones only if all others
    /// leave.
    pub fn take(&self, budget: u64) -> Taken {
        let mut taken = self.nothing();
        let mut left = budget;
        for part in [0..self.others, self.others..self.candidates.len()] {
            if taken.next.is_some() {
                break;
            }
            let (least, start) = (&self.least[part.clone()], part.start);
            for (at, candidate) in self.candidates[part].iter().enumerate() {
                if candidate.bytes <= left {
                    left -= candidate.bytes;
                    taken.positions.push((start + at) as u32);
                    continue;
                }
                // If nothing behind it fits either, the smallest of them is the next.
                let ends = least[at] > left;
                let next = if ends { least[at] } else { candidate.bytes };
                taken.add_next(budget.saturating_add(next - left));
                if ends {
                    break;
                }
            }
        }
        taken.bytes = budget - left;
        taken
    }

    /// Gives `stays` each candidate that was not taken, and why.
    pub fn others_stay(
        &self,
        budget: u64,
        taken: &Taken,
        mut stays: impl FnMut(&Candidate, Stays),
    ) {
        let (mut left, mut takes) = (budget, taken.positions.iter().peekable());
        let mut all_others_leave = true;
        for (position, candidate) in self.candidates.iter().enumerate() {
            if takes.next_if(|next| **next as usize == position).is_some() {
                left -= candidate.bytes;
            } else if position >= self.others && !all_others_leave {
                stays(candidate, Stays::Tiny);
            } else {
                all_others_leave &= position >= self.others;
                stays(candidate, Stays::TooLarge { left });
            }
        }
    }

    /// Takes of each of the model's groups, in order, every candidate that still fits into `level`
    /// bytes. Tiny ones stay, and those leave that do not move.
    pub fn take_evenly(&self, level: u64, groups: usize) -> Taken {
        let mut taken = self.nothing();
        let mut left = vec![level; groups];
        for (position, candidate) in self.candidates.iter().enumerate() {
            let left = &mut left[candidate.group as usize];
            if candidate.moves() {
                if candidate.rank == Rank::Last {
                    continue;
                }
                if candidate.bytes > *left {
                    taken.add_next(level.saturating_add(candidate.bytes - *left));
                    continue;
                }
                *left -= candidate.bytes;
            }
            taken.bytes += candidate.bytes;
            taken.positions.push(position as u32);
        }
        taken
    }
}

/// A candidate for each storage.
fn candidates(input: &PlanInput<'_>, storages: &[usize]) -> Result<Vec<Candidate>> {
    let ranked = input.options.order == Order::Spread;
    let tiny = if ranked { tiny_bytes(input, storages) } else { 0 };
    let mut candidates = Vec::with_capacity(storages.len());
    for &storage in storages {
        let (mode, dense) = (input.preferred_mode(storage)?, !input.is_sparse(storage));
        let groups = &input.groups_of[storage];
        candidates.push(Candidate {
            bytes: match input.options.budget {
                Budget::OffloadBytes(_) => input.host_bytes(storage, mode),
                Budget::DeviceBytes(_) => input.rounded_bytes(storage),
            },
            storage: storage as u32,
            group: groups[0] as u32,
            mode,
            free: input.mode_is_free(storage),
            shared: groups.len() > 1,
            dense,
            step: Step::Leaves,
            compressed: input.coding(storage, mode).is_some(),
            rank: match input.storages[storage].bytes {
                _ if !ranked => Rank::Normal,
                _ if mode == TransferMode::ZeroCopy && !dense => Rank::First,
                bytes if bytes <= tiny => Rank::Last,
                _ => Rank::Normal,
            },
        });
    }
    Ok(candidates)
}

/// The bytes of the largest storage that is tiny.
fn tiny_bytes(input: &PlanInput<'_>, storages: &[usize]) -> u64 {
    let mut sizes: Vec<u64> = storages.iter().map(|at| input.storages[*at].bytes).collect();
    sizes.sort_unstable();
    let mut left = sizes.iter().sum::<u64>() / TINY_PART;
    let mut tiny = 0;
    for same in sizes.chunk_by(|one, other| one == other) {
        let bytes = same.iter().sum::<u64>();
        if bytes > left {
            break;
        }
        left -= bytes;
        tiny = same[0];
    }
    tiny
}
