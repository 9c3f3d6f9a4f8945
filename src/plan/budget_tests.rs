//! Budgets of device memory: the plan is the fastest, and what was asked is kept.

use std::collections::HashSet;

use proptest::prelude::*;

use crate::plan::order::Order;
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

/// Bytes that a step copies if the head stays and as many bytes leave every layer, cut anywhere: the
/// bytes that leave 32 layers free memory for all other bytes and for slots for two layers.
fn least_copied(budget: f64) -> f64 {
    let (hidden, inner, heads, vocabulary) = (4096.0, 14_336.0, 1024.0, 128_256.0);
    let layer = 2.0 * hidden * (2.0 * hidden + 2.0 * heads + 3.0 * inner);
    let head = 2.0 * vocabulary * hidden;
    32.0 * (32.0 * layer + head - 1e9 * budget) / 30.0
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
            (used(&plan) <= device_bytes).then_some((plan.cost, at * step))
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
                if rows > 0 && compute > 0.0 {
                    prop_assert_eq!(plan.step_seconds, Some(plan.cost)); // nothing is assumed
                }
                prop_assert!(
                    plan.cost <= fastest * (1.0 + 1e-9),
                    "{} s, but {fastest} s with offload_bytes {bytes}", plan.cost
                );
            }
            (Ok(_), None) => {}
            (Err(error), None) => prop_assert_eq!(error.status, WB_ERR_BUDGET),
            (Err(error), Some(fastest)) => prop_assert!(false, "{error:?}, but {fastest:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Brute force over all sets of storages and all depths finds nothing that is much faster.
    #[test]
    fn no_set_of_storages_is_much_faster(
        model in prop::collection::vec((256i64..20_000, 0usize..4), 2..8),
        microseconds in prop::collection::vec(0u32..60, 4),
        part in 1u64..40,
    ) {
        let model: Vec<Parameter> = (0..).zip(model)
            .map(|(at, (bytes, group))| parameter(&format!("p{at}"), &format!("g{group}"), bytes, 0))
            .collect();
        let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
        let device_bytes = total * part / 40;
        let groups = model.iter().map(|one| &one.group).collect::<HashSet<_>>().len();
        let given = |budget| PlanOptions {
            transfer_mode: TransferMode::Prefetch,
            link_bytes_per_second: 1e9,
            group_seconds: microseconds[..groups].iter().map(|us| 1e-6 * f64::from(*us)).collect(),
            ..options(budget)
        };
        let platform = platform(false);
        let of_set = |(set, depth): (u32, u32)| {
            let mut model = model.clone();
            for (at, one) in model.iter_mut().enumerate() {
                one.resident = set >> at & 1 == 0;
            }
            let given = PlanOptions { depth, ..given(Budget::OffloadBytes(u64::MAX)) };
            let plan = planner::plan(model, given, &platform).unwrap();
            (used(&plan) <= device_bytes).then(|| (plan.step_seconds.unwrap(), set, plan.depth))
        };
        let fastest = (0..1 << model.len())
            .flat_map(|set| (1..5).map(move |depth| (set, depth)))
            .filter_map(of_set)
            .min_by(|one, other| one.0.total_cmp(&other.0));
        match (planner::plan(model.clone(), given(Budget::DeviceBytes(device_bytes)), &platform), fastest) {
            (Ok(plan), Some((fastest, set, depth))) => {
                let over = plan.step_seconds.unwrap() / fastest;
                prop_assert!(over <= 1.5, "{over} times the time of set {set:b} with depth {depth}");
            }
            (Ok(_), None) => {}
            (Err(error), None) => prop_assert_eq!(error.status, WB_ERR_BUDGET),
            (Err(error), Some(fastest)) => prop_assert!(false, "{error:?}, but {fastest:?}"),
        }
    }

    /// Under any budget, a depth and a limit of slots that are asked for are kept, or there is no
    /// plan; only a ring shorter than the depth lowers it, which a warning says.
    #[test]
    fn depth_and_slots_are_kept_or_refused(
        model in models(),
        order in orders(),
        transfer_mode in prop::sample::select(vec![TransferMode::Auto, TransferMode::Prefetch]),
        compute in prop::sample::select(vec![0.0, 1e9]),
        depth in 0u32..6,
        slot_bytes in prop::option::of(1u64..60_000),
        part in 0u64..40,
        views in any::<bool>(),
    ) {
        let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
        let device_bytes = total * part / 40;
        let given = PlanOptions {
            order, transfer_mode, depth, slot_bytes,
            link_bytes_per_second: 1e9,
            compute_bytes_per_second: compute,
            ..options(Budget::DeviceBytes(device_bytes))
        };
        match planner::plan(model, given, &platform(views)) {
            Ok(plan) => {
                plan.check();
                prop_assert!(used(&plan) <= device_bytes);
                prop_assert!(plan.ring_bytes <= slot_bytes.unwrap_or(u64::MAX));
                let (asked, ring_len) = (depth as usize, plan.ring.len());
                let offloads = !plan.units.is_empty();
                let kept = asked == 0 || plan.depth == asked;
                prop_assert!(kept || !offloads || ring_len < asked, "depth {}", plan.depth);
                let warned = plan.warnings.iter().any(|one| one.contains("asked for depth"));
                prop_assert_eq!(warned, offloads && !kept, "{:?}", plan.warnings);
            }
            Err(error) => prop_assert_eq!(error.status, WB_ERR_BUDGET),
        }
    }
}

/// Three groups in three slots are never copied again, while a ring for two groups at a time would
/// have as many slots and copy all of them in every step.
#[test]
fn a_short_ring_holds_all_of_its_groups_if_that_takes_no_more_slots() {
    let mut model: Vec<_> =
        (0..3).map(|at| parameter(&format!("w{at}"), &format!("g{at}"), 1024, 0)).collect();
    let embed = parameter("embed", "embed", 2048, 0);
    model.push(Parameter { access_pattern: AccessPattern::Sparse, ..embed });
    let given =
        PlanOptions { order: Order::Declared, ..PlanOptions::new(Budget::DeviceBytes(3072)) };
    let plan = planner::plan(model, given, &platform(true)).unwrap();
    plan.check();
    assert_eq!((plan.depth, plan.slot_bytes, plan.step_bytes), (3, 3072, 0));
}

/// Storages that leave are not copied in every step if their short ring has slots for all of its
/// groups: that they have more bytes than the best plan copies does not make them slow.
#[test]
fn more_bytes_may_leave_than_the_fastest_plan_copies() {
    let mut model = Vec::new();
    for (group, storage, bytes) in [
        (0, 0, 15_873),
        (0, 0, 2817),
        (1, 0, 19_713),
        (0, 0, 2817),
        (0, 3, 12_546),
        (2, 0, 17_665),
        (2, 5, 12_056),
        (1, 5, 12_056),
        (3, 3, 12_546),
    ] {
        let one = parameter(&format!("p{}", model.len()), &format!("g{group}"), bytes, 0);
        model.push(Parameter { storage_id: storage, ..one });
    }
    // Tied storages are copied on demand for both of their groups; all others have a slot.
    let given = options(Budget::DeviceBytes(72_960));
    let plan = planner::plan(model, given, &platform(false)).unwrap();
    plan.check();
    assert_eq!(plan.step_bytes, 2 * (12_800 + 12_288));
}

/// A long copy is hidden behind the kernels of several groups only if these have slots, too.
#[test]
fn uneven_kernels_make_the_ring_deeper() {
    let model: Vec<_> = (0..24)
        .map(|at| {
            let bytes = if at % 4 == 0 { 4096 * 1000 } else { 256 * 1000 };
            parameter(&format!("w{at}"), &format!("g{at}"), bytes, 0)
        })
        .collect();
    let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
    let plan = |depth| {
        let given = PlanOptions {
            depth,
            transfer_mode: TransferMode::Prefetch,
            link_bytes_per_second: 1e9,
            group_seconds: vec![1.3e-3; 24],
            ..PlanOptions::new(Budget::DeviceBytes(total / 2))
        };
        planner::plan(model.clone(), given, &platform(true)).unwrap()
    };
    let (free, two) = (plan(0), plan(2));
    assert!(free.depth > 2, "{}", free.depth);
    assert!(
        free.step_seconds < two.step_seconds,
        "{:?}, {:?}",
        free.step_seconds,
        two.step_seconds
    );
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
        assert!(used(&plan) <= bytes);
        assert_eq!(plan.view_bytes, 0, "no dense parameter is read in place");
        if plan.step_bytes > 0 {
            assert!(plan.depth >= 2, "{budget} GB: copies and kernels overlap");
        }
        if transfer_mode == TransferMode::Auto && budget < 15.0 {
            let over = plan.step_bytes as f64 / least_copied(budget);
            assert!(over <= 1.03, "{budget} GB: {over} times the least bytes");
        }
        assert_eq!(plan.warnings, [""; 0]);
        let host = fastest_by_host_budget(&llama_8b(), &given, bytes, &platform(true), 1 << 27);
        assert!(plan.cost <= host.unwrap().0, "{budget} GB, {host:?}");
        for planned in plan.parameters.iter().filter(|one| one.parameter.layout.span_bytes() < 9000)
        {
            assert!(planned.transfer_mode.is_none(), "norms stay");
        }
    }
}

/// Reading in place needs no slots, and costs little if a step has few rows.
#[test]
fn dense_parameters_are_read_in_place_if_the_rows_are_few() {
    let plan = |rows| {
        let given = PlanOptions { rows, ..gigabytes(15.0, TransferMode::Auto) };
        planner::plan(llama_8b(), given, &platform(true)).unwrap()
    };
    let (one, many, unknown) = (plan(1), plan(2048), plan(0));
    assert!(one.view_bytes > 0 && one.step_bytes == 0, "{} read in place", one.view_bytes);
    assert!(one.step_seconds < many.step_seconds, "{:?}", one.step_seconds);
    assert_eq!((many.view_bytes, unknown.view_bytes), (0, 0));
    assert!(many.step_bytes > 0 && unknown.step_bytes > 0);
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
    assert_eq!((plan.depth, plan.view_bytes), (2, 2 * 128_256 * 4096));
    assert_eq!(plan.parameters[0].reason, Reason::Sparse(TransferMode::ZeroCopy));
}

/// Layers of few large matrices leave as evenly as ones that could be cut anywhere: a plan in which two
/// large ones of a layer leave needs slots for two such layers.
#[test]
fn few_large_storages_leave_every_group_evenly() {
    let layer = |one: &Parameter| one.group.strip_prefix("layers.")?.parse::<u32>().ok();
    let mut model = llama_8b();
    model.retain(|one| layer(one).is_some_and(|at| at < 16) && !one.name.ends_with("norm"));
    let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
    for percent in [25, 50, 75] {
        let budget = total * percent / 100;
        let given = gigabytes(budget as f64 / 1e9, TransferMode::Auto);
        let plan = planner::plan(model.clone(), given, &platform(true)).unwrap();
        // The bytes that leave 16 layers free memory for slots for two of them.
        let least = (total - budget) as f64 * 16.0 / 14.0;
        let over = plan.step_bytes as f64 / least;
        assert!(over <= 1.006, "{percent} % on the device: {over} times the least bytes");
    }
}

#[test]
fn a_ring_of_one_group_is_chosen_where_many_rows_would_read_again() {
    let layer = |at: i64, bytes| parameter(&format!("{at}.w"), &format!("{at}"), bytes, 0);
    let equal: Vec<_> = (0..6).map(|at| layer(at, 96 << 20)).collect();
    let uneven: Vec<_> =
        [36, 16, 12, 38].into_iter().zip(0..).map(|(m, at)| layer(at, m << 20)).collect();
    for (model, budget) in [(equal, 120 << 20), (uneven, 42 << 20)] {
        for compute_bytes_per_second in [0.0, 2.5e12] {
            let free = PlanOptions {
                rows: 2048,
                link_bytes_per_second: 50e9,
                compute_bytes_per_second,
                ..PlanOptions::new(Budget::DeviceBytes(budget))
            };
            let serial = PlanOptions { depth: 1, ..free.clone() };
            let plan = |options| planner::plan(model.clone(), options, &platform(true)).unwrap();
            let (free, serial) = (plan(free), plan(serial));
            assert!(used(&free) <= budget);
            assert!(free.ring_bytes > 0, "{} bytes are read in place", free.view_bytes);
            // Unknown kernels count as much as copies, which step_seconds has not.
            let known = compute_bytes_per_second > 0.0;
            assert!(!known || free.step_seconds <= serial.step_seconds);
        }
    }
}
