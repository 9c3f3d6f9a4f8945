//! The storages that may leave the device, in the order in which they leave it.

use crate::plan::input::PlanInput;
use crate::plan::order::{self, Order};
use crate::plan::parameter::TransferMode;

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

/// A storage that may leave.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its index.
    pub storage: usize,
    /// Its bytes in the arena or on the device.
    pub bytes: u64,
    rank: Rank,
}

/// How candidates are spread over the groups. Other orders have the first way only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The same part of every group, so that copies overlap best with kernels.
    Parts,
    /// As many bytes of every group, so that slots are smallest.
    Bytes,
    /// The same with the largest of a group first, of which fewer fill a slot.
    LargestOfGroup,
}

/// Candidates in the order in which they leave.
#[derive(Debug)]
pub struct Leaving(pub Vec<Candidate>);

/// The candidates that leave if they may take a number of bytes.
#[derive(Debug, Default)]
pub struct Taken {
    /// Their positions in the order.
    pub positions: Vec<u32>,
    /// Their bytes.
    pub bytes: u64,
    /// The smallest number of bytes with which others leave; `None` if all leave.
    pub next: Option<u64>,
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
    pub fn new(input: &PlanInput<'_>, storages: &[usize], spread: Spread) -> Self {
        let sizes: Vec<_> = storages
            .iter()
            .map(|at| (input.groups_of[*at][0], input.storages[*at].bytes))
            .collect();
        let ranks = ranks(input, storages);
        let sorted = match (input.options.order, spread) {
            (Order::Spread, Spread::Bytes) => order::sort_by_bytes_of_group(&sizes, false),
            (Order::Spread, Spread::LargestOfGroup) => order::sort_by_bytes_of_group(&sizes, true),
            (order, _) => order::sort(&sizes, order),
        };
        let mut leaving: Vec<_> = sorted
            .into_iter()
            .map(|index| Candidate {
                storage: storages[index],
                bytes: input.rounded_bytes(storages[index]),
                rank: ranks.as_ref().map_or(Rank::Normal, |ranks| ranks[index]),
            })
            .collect();
        leaving.sort_by_key(|candidate| candidate.rank);
        Self(leaving)
    }

    /// Takes every candidate that still fits into `budget` bytes, in order. `stays` gets the others.
    pub fn take(&self, budget: u64, mut stays: impl FnMut(&Candidate, Stays)) -> Taken {
        let mut taken = Taken::default();
        let (mut left, mut others_left) = (budget, true);
        for (position, candidate) in self.0.iter().enumerate() {
            if candidate.rank == Rank::Last && !others_left {
                stays(candidate, Stays::Tiny);
            } else if candidate.bytes > left {
                let with_it = budget.saturating_add(candidate.bytes - left);
                taken.next = Some(taken.next.map_or(with_it, |next| next.min(with_it)));
                others_left &= candidate.rank == Rank::Last;
                stays(candidate, Stays::TooLarge { left });
            } else {
                left -= candidate.bytes;
                taken.bytes += candidate.bytes;
                taken.positions.push(position as u32);
            }
        }
        taken
    }
}

/// The rank of each storage; `None` if the order says it all.
fn ranks(input: &PlanInput<'_>, storages: &[usize]) -> Option<Vec<Rank>> {
    if input.options.order != Order::Spread {
        return None;
    }
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
    let rank = |storage: &usize| {
        let in_place = matches!(input.preferred_mode(*storage), Ok(TransferMode::ZeroCopy));
        match input.storages[*storage].bytes {
            _ if in_place && input.is_sparse(*storage) => Rank::First,
            bytes if bytes <= tiny => Rank::Last,
            _ => Rank::Normal,
        }
    };
    Some(storages.iter().map(rank).collect())
}
