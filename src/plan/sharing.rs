//! How offloaders share device memory: what is used next gets as much as it can use, and what is idle
//! gives it, those of the least priority first.

use std::cmp::Reverse;

use crate::error::{Result, fail};
use crate::status::WB_ERR_BUDGET;

/// An offloader among others.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Those of a higher priority give memory later.
    pub priority: i32,
    /// The number of its last use: larger is later.
    pub used: u64,
    /// What others leave it.
    pub min_bytes: u64,
    /// Its slots. With less than them it sleeps, and holds nothing.
    pub slot_bytes: u64,
    /// All that it can use.
    pub whole_bytes: u64,
    /// What it is to hold now.
    pub target_bytes: u64,
}

impl Claim {
    /// What it keeps whatever others need.
    pub fn floor(&self) -> u64 {
        match self.min_bytes {
            0 => 0,
            bytes => bytes.max(self.slot_bytes).min(self.whole_bytes),
        }
    }
}

/// Gives each offloader its part of `budget` bytes. The one that is used next may grow; the others keep
/// what they have, or less. Fails if what all keep does not fit.
pub fn share(claims: &[Claim], next: Option<usize>, budget: u64) -> Result<Vec<u64>> {
    let kept = |(at, claim): (usize, &Claim)| match next == Some(at) {
        true => claim.floor().max(claim.slot_bytes),
        false => claim.floor().min(claim.target_bytes),
    };
    let mut shares: Vec<u64> = claims.iter().enumerate().map(kept).collect();
    let all = shares.iter().fold(0, |sum: u64, share| sum.saturating_add(*share));
    let Some(mut left) = budget.checked_sub(all) else {
        fail!(
            WB_ERR_BUDGET,
            "asked to share {budget} bytes of device memory among {} offloaders, which keep {all} of them: \
             lower min_bytes of those that are idle, remove one, or raise the budget",
            claims.len()
        )
    };
    let mut order: Vec<usize> = (0..claims.len()).collect();
    let first = |at: &usize| (next == Some(*at), claims[*at].priority, claims[*at].used);
    order.sort_by_key(|at| Reverse(first(at)));
    for at in order {
        let claim = &claims[at];
        let most = if next == Some(at) { claim.whole_bytes } else { claim.target_bytes };
        let more = most.saturating_sub(shares[at]).min(left);
        if shares[at] + more >= claim.slot_bytes {
            shares[at] += more;
            left -= more;
        }
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(priority: i32, used: u64, target_bytes: u64) -> Claim {
        Claim { priority, used, min_bytes: 0, slot_bytes: 10, whole_bytes: 100, target_bytes }
    }

    #[test]
    fn what_is_used_next_gets_memory_and_the_least_important_gives_it() {
        let idle = [claim(0, 1, 100), claim(0, 2, 60), claim(1, 0, 40), claim(0, 3, 0)];
        assert_eq!(share(&idle, Some(3), 300).unwrap(), [100, 60, 40, 100]);
        assert_eq!(share(&idle, Some(3), 250).unwrap(), [50, 60, 40, 100], "used longest ago");
        assert_eq!(share(&idle, Some(3), 209).unwrap(), [0, 60, 40, 100], "less than its slots");
        assert_eq!(share(&idle, Some(3), 150).unwrap(), [0, 10, 40, 100], "then priority");
        assert_eq!(share(&idle, Some(3), 45).unwrap(), [0, 0, 0, 45]);
        assert_eq!(share(&idle, Some(3), 9).unwrap_err().status, WB_ERR_BUDGET);
        assert_eq!(share(&idle, None, 1000).unwrap(), [100, 60, 40, 0], "nothing idle grows");
    }

    #[test]
    fn what_must_stay_stays() {
        let kept = Claim { min_bytes: 30, ..claim(0, 1, 100) };
        let little = Claim { min_bytes: 5, ..claim(0, 2, 20) };
        assert_eq!(share(&[kept, little, claim(9, 3, 0)], Some(2), 70).unwrap(), [30, 10, 30]);
        let error = share(&[kept, little, claim(9, 3, 0)], Some(2), 49).unwrap_err();
        assert_eq!(error.status, WB_ERR_BUDGET);
        assert!(error.message.contains("keep 50"), "{}", error.message);
    }

    proptest! {
        #[test]
        fn no_share_exceeds_anything(
            claims in prop::collection::vec((-2..3i32, 0..9u64, 0..40u64, 0..30u64, 0..200u64, any::<bool>()), 1..6),
            next in 0..8usize,
            budget in 0..500u64,
        ) {
            let claims: Vec<_> = claims.into_iter().map(|(priority, used, min_bytes, slot_bytes, more, sleeps)| {
                let whole_bytes = slot_bytes + more;
                let target_bytes = if sleeps { 0 } else { slot_bytes + more / 2 };
                Claim { priority, used, min_bytes, slot_bytes, whole_bytes, target_bytes }
            }).collect();
            let next = (next < claims.len()).then_some(next);
            let Ok(shares) = share(&claims, next, budget) else { return Ok(()) };
            prop_assert!(shares.iter().sum::<u64>() <= budget);
            for (at, (claim, share)) in claims.iter().zip(&shares).enumerate() {
                prop_assert!(*share == 0 || *share >= claim.slot_bytes.min(claim.target_bytes));
                prop_assert!(*share <= claim.whole_bytes);
                prop_assert!(*share >= claim.floor().min(claim.target_bytes));
                if next == Some(at) {
                    prop_assert!(*share >= claim.slot_bytes);
                } else {
                    prop_assert!(*share <= claim.target_bytes);
                }
            }
        }
    }
}
