//! Experts in a plan: they share one budget with the ring and with resident parameters.

use crate::plan::parameter::tests::parameter;
use crate::plan::parameter::{AccessPattern, Parameter, TransferMode};
use crate::plan::plan::*;
use crate::plan::tests::{options, platform};
use crate::plan::{fixed, planner};
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_EVERYTHING_FITS, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED, wb_status,
};

const LAYERS: usize = 4;
const DENSE: u64 = 4096;
const EXPERTS: u64 = 8;
const EXPERT: u64 = 1024;
const ALL: u64 = LAYERS as u64 * (DENSE + EXPERTS * EXPERT);

/// Layers of a dense parameter, and of eight experts in one tensor.
fn model() -> Vec<Parameter> {
    let layer = |at: usize| {
        let group = format!("layers.{at}");
        let dense = parameter(&format!("{group}.dense"), &group, DENSE as i64, 0);
        let experts = (EXPERTS * EXPERT) as i64;
        let mut experts = parameter(&format!("{group}.experts"), &group, experts, 0);
        experts.access_pattern = AccessPattern::Experts;
        let dtype = experts.layout.dtype();
        let shape = [EXPERTS as i64, EXPERT as i64];
        experts.layout = crate::tensor::layout::Layout::new(dtype, &shape, None).unwrap();
        [dense, experts]
    };
    (0..LAYERS).flat_map(layer).collect()
}

fn plan(given: PlanOptions) -> Plan {
    let plan = planner::plan(model(), given, &platform(true)).unwrap();
    plan.check();
    plan
}

fn refused(given: PlanOptions, views: bool) -> (wb_status, String) {
    let error = planner::plan(model(), given, &platform(views)).unwrap_err();
    (error.status, error.message)
}

fn modes(plan: &Plan) -> Vec<Option<TransferMode>> {
    plan.parameters.iter().map(|one| one.transfer_mode).collect()
}

#[test]
fn experts_leave_as_a_whole_and_caches_get_what_the_others_leave() {
    let dense = LAYERS as u64 * DENSE;
    for left in [EXPERT, 5 * EXPERT + 17, ALL - dense - 1] {
        let found = plan(PlanOptions::new(Budget::DeviceBytes(dense + left)));
        assert_eq!((found.resident_bytes, found.slot_bytes, found.expert_bytes), (dense, 0, left));
        assert_eq!(modes(&found), [None, Some(TransferMode::ZeroCopy)].repeat(LAYERS));
        assert_eq!((found.step_bytes, found.view_bytes), (0, 0));
        let (slots, all) = (left / EXPERT, LAYERS as u64 * EXPERTS);
        let said = format!("zero-copy: of experts, about {slots} of {all} in slots of");
        assert!(found.parameters[1].reason.to_string().starts_with(&said), "{left}");
    }
}

#[test]
fn caches_residents_and_the_ring_never_exceed_one_budget() {
    for budget in (14..44).map(|at| at * 1000) {
        for expert_bytes in [2 * EXPERT, 6000] {
            let given = PlanOptions {
                expert_bytes,
                transfer_mode: TransferMode::Prefetch,
                ..PlanOptions::new(Budget::DeviceBytes(budget))
            };
            let found = plan(given);
            let used = found.resident_bytes + found.slot_bytes + found.expert_bytes;
            assert!(used <= budget, "{used} of {budget}");
            assert_eq!(found.expert_bytes, expert_bytes);
            // Dense parameters leave only where they do not fit beside the caches.
            let fits = LAYERS as u64 * DENSE + expert_bytes <= budget;
            let stays = modes(&found).iter().filter(|mode| mode.is_none()).count();
            assert_eq!(stays == LAYERS, fits, "{budget}");
            assert!(found.step_bytes > 0 || fits);
        }
    }
}

/// Pieces of the tests with fixed addresses.
const PIECE: u64 = 1024;

fn fixed_plan(given: PlanOptions) -> crate::error::Result<Plan> {
    let given = PlanOptions { fixed_addresses: true, ..given };
    fixed::plan(model(), given, &platform(true), PIECE)
}

/// Where everything fits but for the padding to whole pieces, experts are not divided.
#[test]
fn with_fixed_addresses_experts_stay_or_leave_as_a_whole() {
    let (mut stay, mut leave) = (0, 0);
    for budget in (ALL - 4 * PIECE..ALL + 16 * PIECE).step_by(512) {
        let mut given = PlanOptions::new(Budget::DeviceBytes(budget));
        (given.fixed_addresses, given.allowed.everything_fits) = (true, true);
        let found = fixed::plan(model(), given, &platform(true), 3 * PIECE).unwrap();
        let modes: Vec<_> = modes(&found).into_iter().skip(1).step_by(2).collect();
        assert!(found.resident_bytes + found.slot_bytes + found.expert_bytes <= budget);
        match found.expert_bytes {
            0 => assert_eq!(modes, [None; LAYERS], "{budget}"),
            _ => assert_eq!(modes, [Some(TransferMode::ZeroCopy); LAYERS], "{budget}"),
        }
        *(if found.expert_bytes == 0 { &mut stay } else { &mut leave }) += 1;
    }
    assert!(stay > 0 && leave > 0, "{stay} {leave}");
}

#[test]
fn with_fixed_addresses_experts_stay_in_the_arena_and_caches_get_what_whole_pieces_leave() {
    let dense = LAYERS as u64 * DENSE;
    for left in [EXPERT, 5 * EXPERT + 17, ALL - dense - 1] {
        let found = fixed_plan(PlanOptions::new(Budget::DeviceBytes(dense + left))).unwrap();
        assert_eq!((found.resident_bytes, found.slot_bytes, found.expert_bytes), (dense, 0, left));
        assert_eq!(modes(&found), [None, Some(TransferMode::ZeroCopy)].repeat(LAYERS));
        assert!(found.storages.iter().all(|one| one.pieces.is_none()), "no expert is in pieces");
        assert_eq!(found.arena_bytes, LAYERS as u64 * EXPERTS * EXPERT);
        // The state of a cache takes a piece.
        let said = format!("zero-copy: of experts, about {} of", (left - PIECE) / EXPERT);
        assert!(found.parameters[1].reason.to_string().starts_with(&said), "{left}");
    }
    for budget in (14..44).map(|at| at * 1000) {
        for expert_bytes in [0, 2 * EXPERT, 6000] {
            let given = PlanOptions {
                expert_bytes,
                transfer_mode: TransferMode::Prefetch,
                ..PlanOptions::new(Budget::DeviceBytes(budget))
            };
            let found = match fixed_plan(given) {
                Ok(found) => found,
                Err(error) => {
                    assert_eq!(error.status, WB_ERR_BUDGET, "{error:?}");
                    // Nothing is left for caches that take what is left.
                    assert!(expert_bytes == 0 && budget <= dense, "{budget} {expert_bytes}");
                    continue;
                }
            };
            let used = found.resident_bytes + found.slot_bytes + found.expert_bytes;
            assert!(used <= budget, "{used} of {budget}");
            assert!(expert_bytes != 0 || used == budget, "{used} of {budget}");
            assert!(expert_bytes == 0 || found.expert_bytes == expert_bytes);
        }
    }
}

#[test]
fn the_predicted_hit_rate_is_the_part_of_the_experts_that_have_slots() {
    let all = LAYERS as u64 * EXPERTS;
    for slots in [1, 5, all - 1] {
        let given =
            PlanOptions { expert_bytes: slots * EXPERT, ..options(Budget::OffloadBytes(ALL)) };
        let rate = plan(given).expert_hit_rate().unwrap();
        assert!((rate - slots as f64 / all as f64).abs() < 1e-9, "{rate} with {slots} slots");
    }
    let more = PlanOptions { expert_bytes: 2 * ALL, ..options(Budget::OffloadBytes(ALL)) };
    assert_eq!(plan(more).expert_hit_rate(), Some(1.0));
    assert_eq!(plan(options(Budget::OffloadBytes(ALL))).expert_hit_rate(), None);
}

#[test]
fn where_everything_fits_experts_stay() {
    let budget = Budget::DeviceBytes(ALL);
    let mut given = PlanOptions { expert_bytes: EXPERT, ..PlanOptions::new(budget) };
    assert_eq!(refused(given.clone(), true).0, WB_ERR_EVERYTHING_FITS);
    given.allowed.everything_fits = true;
    let found = plan(given);
    assert_eq!((found.expert_bytes, found.resident_bytes), (0, ALL));
}

#[test]
fn a_budget_of_host_memory_takes_experts_first() {
    let experts = EXPERTS * EXPERT;
    let host = Budget::OffloadBytes(2 * experts);
    let found = plan(PlanOptions { expert_bytes: 3000, ..options(host) });
    let offloaded = |one: &&PlannedParameter| one.transfer_mode.is_some();
    let left: Vec<_> = found.parameters.iter().filter(offloaded).collect();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|one| one.parameter.access_pattern == AccessPattern::Experts));
    assert_eq!(found.expert_bytes, 3000);
    let without = plan(options(Budget::OffloadBytes(experts - 4096)));
    assert!(without.parameters.iter().filter(offloaded).count() > 0);
    assert_eq!(without.expert_bytes, 0);
}

#[test]
fn what_no_cache_can_carry_is_refused() {
    let device = |bytes| PlanOptions::new(Budget::DeviceBytes(bytes));
    let (status, message) = refused(device(LAYERS as u64 * DENSE), true);
    assert_eq!(status, WB_ERR_BUDGET);
    assert!(message.contains("leaves none for caches"), "{message}");
    let (status, _) = refused(PlanOptions { expert_bytes: 9000, ..device(8000) }, true);
    assert_eq!(status, WB_ERR_BUDGET);
    let (status, message) = refused(device(ALL - 1), false);
    assert_eq!(status, WB_ERR_NOT_MAPPED);
    assert!(message.contains("by an expert cache"), "{message}");
    let mut model = model();
    model[1].transfer_mode = TransferMode::Prefetch;
    let error = planner::plan(model, device(ALL - 1), &platform(true)).unwrap_err();
    assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
}
