//! Budgets of device memory: the plan is the fastest, and what was asked is kept.

use proptest::prelude::*;

use crate::plan::parameter::TransferMode;
use crate::plan::parameter::tests::parameter;
use crate::plan::parameter::{AccessPattern, Parameter};
use crate::plan::plan::*;
use crate::plan::planner;
use crate::plan::reason::Reason;
use crate::plan::tests::{models, options, orders, platform};
use crate::status::WB_ERR_BUDGET;

/// The shape of an 8-billion-parameter Llama in bf16: 16.06 GB.
fn llama_8b() -> Vec<Parameter> {
    let mut model = Vec::new();
    let mut add = |name: String, group: &str, rows: i64, columns: i64| {
        model.push(parameter(&name, group, 2 * rows * columns, 0));
    };
    add("embed".into(), "embed", 128_256, 4096);
    for layer in 0..32 {
        let group = format!("layers.{layer}");
        for (name, rows, columns) in [
            ("q", 4096, 4096),
            ("k", 1024, 4096),
            ("v", 1024, 4096),
            ("o", 4096, 4096),
            ("gate", 14_336, 4096),
            ("up", 14_336, 4096),
            ("down", 4096, 14_336),
            ("norm", 4096, 1),
        ] {
            add(format!("{group}.{name}"), &group, rows, columns);
        }
    }
    add("norm".into(), "head", 4096, 1);
    add("head".into(), "head", 128_256, 4096);
    model[0].access_pattern = AccessPattern::Sparse;
    model
}

/// A budget, a link of 50 GB/s and a transfer mode.
fn gigabytes(bytes: f64, transfer_mode: TransferMode) -> PlanOptions {
    PlanOptions {
        transfer_mode,
        link_bytes_per_second: 50e9,
        ..PlanOptions::new(Budget::DeviceBytes((bytes * 1e9) as u64))
    }
}

fn used(plan: &Plan) -> u64 {
    plan.resident_bytes + plan.slot_bytes
}

/// The fastest plan by brute force: of all budgets of host memory in whole pages, those whose plans
/// fit into the device's budget.
fn fastest_by_host_budget(
    model: &[Parameter],
    given: &PlanOptions,
    device_bytes: u64,
    platform: &Platform,
    step: u64,
) -> Option<(f64, u64)> {
    let total: u64 = model.iter().map(|one| one.layout.span_bytes() + ALIGNMENT).sum();
    (0..=total.div_ceil(step))
        .filter_map(|at| {
            let given = PlanOptions { budget: Budget::OffloadBytes(at * step), ..given.clone() };
            let plan = planner::plan(model.to_vec(), given, platform).ok()?;
            (used(&plan) <= device_bytes).then(|| (plan.step_seconds.unwrap(), at * step))
        })
        .min_by(|one, other| one.0.total_cmp(&other.0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// No plan under a budget of host memory that fits is faster than the plan under the budget of
    /// device memory.
    #[test]
    fn a_device_budget_is_as_fast_as_any_host_budget_that_fits(
        model in models(),
        order in orders(),
        // Slower than the link, as fast, faster, not known.
        compute in prop::sample::select(vec![0.3e9, 1e9, 5e9, 0.0]),
        rows in prop::sample::select(vec![0u64, 1, 2048]),
        transfer_mode in prop::sample::select(vec![TransferMode::Auto, TransferMode::Prefetch]),
        depth in 0u32..4,
        part in 0u64..40,
        views in any::<bool>(),
    ) {
        let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
        let device_bytes = total * part / 40;
        let given = PlanOptions {
            order, transfer_mode, depth, rows,
            link_bytes_per_second: 1e9,
            compute_bytes_per_second: compute,
            ..options(Budget::DeviceBytes(device_bytes))
        };
        let platform = platform(views);
        let by_host = fastest_by_host_budget(&model, &given, device_bytes, &platform, 4096);
        match (planner::plan(model, given, &platform), by_host) {
            (Ok(plan), Some((fastest, bytes))) => {
                plan.check();
                let took = plan.step_seconds.unwrap();
                prop_assert!(
                    took <= fastest * (1.0 + 1e-9),
                    "{took} s, but {fastest} s with offload_bytes {bytes}"
                );
            }
            (Ok(_), None) => {}
            (Err(error), None) => prop_assert_eq!(error.status, WB_ERR_BUDGET),
            (Err(error), Some(fastest)) => prop_assert!(false, "{error:?}, but {fastest:?}"),
        }
    }
}

#[test]
fn an_8b_model_is_prefetched_two_groups_at_a_time_under_any_budget() {
    for (budget, transfer_mode) in [4.0, 6.0, 8.0, 12.0, 15.0]
        .into_iter()
        .flat_map(|budget| [(budget, TransferMode::Auto), (budget, TransferMode::Prefetch)])
    {
        let given = gigabytes(budget, transfer_mode);
        let plan = planner::plan(llama_8b(), given.clone(), &platform(true)).unwrap();
        plan.check();
        let bytes = (budget * 1e9) as u64;
        println!(
            "{budget} GB {transfer_mode:?}: depth {} stalls {} slots {} MB, {} MB copied, {:.1} ms {:?}",
            plan.depth,
            plan.wrap_stalls,
            plan.slot_bytes / 1_000_000,
            plan.step_bytes / 1_000_000,
            1e3 * plan.step_seconds.unwrap(),
            plan.warnings
        );
        assert!(used(&plan) <= bytes);
        assert_eq!(plan.view_bytes, 0, "no dense parameter is read in place");
        if plan.step_bytes > 0 {
            assert!(plan.depth >= 2, "{budget} GB: copies and kernels overlap");
        }
        assert_eq!(plan.warnings, [""; 0]);
        let host = fastest_by_host_budget(&llama_8b(), &given, bytes, &platform(true), 1 << 27);
        assert!(plan.step_seconds.unwrap() <= host.unwrap().0, "{budget} GB, {host:?}");
        for planned in plan.parameters.iter().filter(|one| one.parameter.layout.span_bytes() < 9000)
        {
            assert!(planned.transfer_mode.is_none(), "norms stay");
        }
    }
}

#[test]
fn what_was_asked_is_kept_or_is_an_error() {
    let given = |budget: f64, depth| PlanOptions { depth, ..gigabytes(budget, TransferMode::Auto) };
    for depth in 1..=6 {
        let plan = planner::plan(llama_8b(), given(12.0, depth), &platform(true)).unwrap();
        assert_eq!(plan.depth, depth as usize);
    }
    // No bytes for slots: everything would be read in place.
    let error = planner::plan(llama_8b(), given(1e-9, 0), &platform(true)).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUDGET);
    assert!(error.message.contains("zero-copy"), "{}", error.message);
    let error = planner::plan(llama_8b(), given(1.0, 8), &platform(false)).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUDGET);
    assert!(error.message.contains("with depth 8"), "{}", error.message);
}

#[test]
fn a_ring_that_cannot_overlap_is_warned_of() {
    // One layer fits, two do not, and what does not fit cannot be read in place.
    let plan = planner::plan(llama_8b(), gigabytes(1.2, TransferMode::Auto), &platform(false));
    let plan = plan.unwrap();
    assert_eq!(plan.depth, 1);
    assert!(plan.warnings.iter().any(|one| one.contains("take turns")), "{:?}", plan.warnings);
    // With views, the head does not fit beside a layer.
    let plan =
        planner::plan(llama_8b(), gigabytes(1.0, TransferMode::Auto), &platform(true)).unwrap();
    assert!(plan.warnings.iter().any(|one| one.contains("read in place")), "{:?}", plan.warnings);
    assert_eq!(plan.parameters[0].reason, Reason::Sparse(TransferMode::ZeroCopy));
}

#[test]
fn the_time_of_planning_does_not_depend_on_the_bytes_that_are_missing() {
    let count = if cfg!(debug_assertions) { 4000 } else { 100_000 };
    for groups in [1, 4, 64, count] {
        let model: Vec<_> = (0..count)
            .map(|at| parameter(&format!("p{at}"), &format!("g{}", at % groups), 1024, 0))
            .collect();
        for transfer_mode in [TransferMode::Prefetch, TransferMode::OnDemand, TransferMode::Auto] {
            let began = std::time::Instant::now();
            let budget = Budget::DeviceBytes(count as u64 * 1024 - 1);
            let given = PlanOptions { transfer_mode, ..options(budget) };
            let outcome = planner::plan(model.clone(), given, &platform(true));
            println!(
                "{groups} groups, {transfer_mode:?}: {:?} {}",
                began.elapsed(),
                outcome.is_ok()
            );
            assert!(began.elapsed().as_secs() < 20, "{groups} groups, {transfer_mode:?}");
        }
    }
}
