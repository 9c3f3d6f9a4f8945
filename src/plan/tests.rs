use std::collections::HashMap;

use proptest::prelude::*;

use crate::plan::order::Order;
use crate::plan::parameter::tests::parameter;
use crate::plan::parameter::{AccessPattern, Parameter, TransferMode};
use crate::plan::plan::*;
use crate::plan::reason::Reason;
use crate::plan::{order, planner};
use crate::status::{
    WB_ERR_BUDGET, WB_ERR_EVERYTHING_FITS, WB_ERR_NOT_MAPPED, WB_ERR_NOTHING_OFFLOADED,
    WB_ERR_OVERFLOW, WB_ERR_SELECTOR, WB_ERR_SLOTS_BUDGET,
};

const PAGE: u64 = 4096;

pub(super) fn platform(views: bool) -> Platform {
    Platform { views, views_reason: "off in this test".into(), page_bytes: PAGE }
}

/// Options that downgrade WB_ERR_NOTHING_OFFLOADED to a warning.
pub(super) fn options(budget: Budget) -> PlanOptions {
    PlanOptions {
        allowed: Allowed { nothing_offloaded: true, ..Allowed::default() },
        ..PlanOptions::new(budget)
    }
}

/// `layers` groups of parameters of these bytes each.
fn model(layers: usize, sizes: &[i64]) -> Vec<Parameter> {
    (0..layers)
        .flat_map(|layer| {
            sizes.iter().enumerate().map(move |(at, bytes)| {
                let name = format!("layers.{layer}.w{at}");
                parameter(&name, &format!("layers.{layer}"), *bytes, 0)
            })
        })
        .collect()
}

impl Plan {
    /// Asserts the plan's invariants.
    pub(super) fn check(&self) {
        let offloaded = |storage: &&PlannedStorage| storage.unit.is_some();
        let sum = |wanted: bool| -> u64 {
            let all = self.storages.iter().filter(|storage| offloaded(storage) == wanted);
            all.map(|storage| storage.bytes).sum()
        };
        assert_eq!(self.offloaded_payload_bytes, sum(true));
        assert_eq!(self.payload_bytes, sum(true) + sum(false));
        let of_groups: u64 =
            self.groups.iter().map(|group| group.offloaded_bytes + group.resident_bytes).sum();
        assert_eq!(of_groups, self.payload_bytes);
        let mut end = 0;
        for (at, unit) in self.units.iter().enumerate() {
            assert_eq!(unit.arena_offset, end);
            end += unit.bytes;
            let mut inside = 0;
            for storage in &unit.storages {
                let storage = &self.storages[*storage];
                assert_eq!((storage.unit, storage.offset_in_unit), (Some(at), inside));
                inside += storage.bytes.next_multiple_of(ALIGNMENT);
            }
            assert_eq!(inside, unit.bytes);
            let slot_end = unit.slot_offset.map_or(0, |slot| slot + unit.bytes);
            assert!(slot_end <= self.slot_bytes);
            assert_eq!(unit.slot_offset.is_none(), unit.transfer_mode == TransferMode::ZeroCopy);
            for group in &unit.groups {
                assert!(self.groups[*group].units.contains(&at));
            }
        }
        assert_eq!(self.arena_bytes, end.next_multiple_of(PAGE));
        for planned in &self.parameters {
            let storage = &self.storages[planned.storage];
            assert_eq!(
                planned.transfer_mode,
                storage.unit.map(|unit| self.units[unit].transfer_mode)
            );
            let word = planned.transfer_mode.map_or("resident", TransferMode::name);
            assert!(planned.reason.to_string().starts_with(word), "{}", planned.reason);
        }
    }
}

/// Small models of any sizes, groups, ties and access patterns.
pub(super) fn models() -> impl Strategy<Value = Vec<Parameter>> {
    prop::collection::vec((0i64..20_000, 0usize..5, 0u64..6, any::<bool>()), 1..24).prop_map(
        |all| {
            let mut tied: HashMap<u64, i64> = HashMap::new();
            all.into_iter()
                .enumerate()
                .map(|(at, (bytes, group, storage, sparse))| {
                    let storage = if storage < 3 { 0 } else { storage };
                    let bytes =
                        if storage == 0 { bytes } else { *tied.entry(storage).or_insert(bytes) };
                    let access = if sparse { AccessPattern::Sparse } else { AccessPattern::Dense };
                    let given = parameter(&format!("p{at}"), &format!("g{group}"), bytes, 0);
                    Parameter { storage_id: storage, access_pattern: access, ..given }
                })
                .collect()
        },
    )
}

pub(super) fn orders() -> impl Strategy<Value = Order> {
    prop::sample::select(vec![Order::Declared, Order::Spread, Order::Largest])
}

proptest! {
    /// The budget is a ceiling, filled greedily in the order: resident parameters would not fit.
    #[test]
    fn an_offload_budget_is_never_overshot(
        model in models(), order in orders(), budget in 0u64..200_000, views in any::<bool>()
    ) {
        let options = PlanOptions { order, ..options(Budget::OffloadBytes(budget)) };
        let plan = planner::plan(model, options, &platform(views)).unwrap();
        plan.check();
        prop_assert!(plan.arena_bytes <= budget);
        let whole_pages = budget - budget % PAGE;
        for planned in plan.parameters.iter().filter(|planned| planned.transfer_mode.is_none()) {
            let needs = plan.storages[planned.storage].bytes.next_multiple_of(ALIGNMENT);
            let used: u64 = plan.units.iter().map(|unit| unit.bytes).sum();
            if needs > 0 && planned.reason != Reason::Tiny {
                // It did not fit when it was tried, so it does not fit at the end.
                prop_assert!(used + needs > whole_pages, "{needs} fits beside {used} of {whole_pages}");
            }
        }
        if order == Order::Spread {
            return Ok(()); // has ranks: see the next test
        }
        // The offloaded storages are those that a greedy walk in that order takes.
        let walked: Vec<usize> =
            (0..plan.storages.len()).filter(|at| plan.storages[*at].bytes > 0).collect();
        let first = |at: &usize| {
            let users = plan.storages[*at].parameters.iter();
            users.map(|parameter| plan.parameters[*parameter].group).min().unwrap()
        };
        let sizes: Vec<_> =
            walked.iter().map(|at| (first(at), plan.storages[*at].bytes)).collect();
        let mut left = whole_pages;
        for index in order::sort(&sizes, order) {
            let storage = &plan.storages[walked[index as usize]];
            let needs = storage.bytes.next_multiple_of(ALIGNMENT);
            prop_assert_eq!(storage.unit.is_some(), needs <= left);
            left -= if needs <= left { needs } else { 0 };
        }
    }

    /// Sparse parameters that can be read in place leave first; tiny ones only once all others have
    /// left.
    #[test]
    fn sparse_parameters_leave_first_and_tiny_ones_last(
        layers in 2usize..6, part in 1u64..40, device in any::<bool>(), views in any::<bool>()
    ) {
        let mut model = model(layers, &[40_000, 16, 30_000]);
        let embed = parameter("embed", "embed", 50_000, 0);
        model.push(Parameter { access_pattern: AccessPattern::Sparse, ..embed });
        let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
        let budget = match device {
            true => Budget::DeviceBytes(total * part / 40),
            false => Budget::OffloadBytes(total * part / 40),
        };
        let Ok(plan) = planner::plan(model, options(budget), &platform(views)) else {
            return Ok(());
        };
        let left = |planned: &&PlannedParameter| planned.transfer_mode.is_some();
        let is_tiny = |planned: &&PlannedParameter| planned.parameter.layout.span_bytes() == 16;
        let large_stays = plan.parameters.iter().any(|one| !left(&one) && !is_tiny(&one));
        let tiny_left = plan.parameters.iter().filter(left).any(|one| is_tiny(&one));
        prop_assert!(!(large_stays && tiny_left), "{budget:?}");
        let any_left = plan.parameters.iter().any(|one| left(&one));
        let embed = &plan.parameters[plan.parameters.len() - 1];
        if any_left && views && (device || total * part / 40 > 53_248) {
            prop_assert_eq!(embed.transfer_mode, Some(TransferMode::ZeroCopy));
        }
    }

    /// With exactly the bytes that all parameters need all are offloaded; with one byte less they
    /// are not.
    #[test]
    fn an_offload_budget_is_exact_to_the_byte(
        sizes in prop::collection::vec(1i64..20_000, 1..12), order in orders()
    ) {
        let model = model(2, &sizes);
        let rounded = |bytes: &i64| (*bytes as u64).next_multiple_of(ALIGNMENT);
        let exact = (2 * sizes.iter().map(rounded).sum::<u64>()).next_multiple_of(PAGE);
        for (budget, everything) in [(exact, true), (exact - 1, false)] {
            let options = PlanOptions { order, ..options(Budget::OffloadBytes(budget)) };
            let plan = planner::plan(model.clone(), options, &platform(true)).unwrap();
            let mut modes = plan.parameters.iter().map(|planned| planned.transfer_mode);
            prop_assert_eq!(modes.all(|mode| mode.is_some()), everything);
            prop_assert!(plan.arena_bytes <= budget);
        }
    }

    /// Resident parameters and slots together keep to a device budget.
    #[test]
    fn a_device_budget_is_never_overshot(
        model in models(), order in orders(), budget in 0u64..300_000, views in any::<bool>()
    ) {
        // Each next budget is one byte less than the last plan took.
        let mut budget = Some(budget);
        while let Some(most) = budget {
            let options = PlanOptions { order, ..options(Budget::DeviceBytes(most)) };
            budget = match planner::plan(model.clone(), options, &platform(views)) {
                Ok(plan) => {
                    plan.check();
                    let took = plan.resident_bytes + plan.slot_bytes;
                    prop_assert!(took <= most, "{took} of {most}");
                    took.checked_sub(1)
                }
                Err(error) => {
                    prop_assert_eq!(error.status, WB_ERR_BUDGET);
                    None
                }
            };
        }
    }

    /// Units that are in their slots at the same time share no bytes of them.
    #[test]
    fn concurrent_units_never_share_slot_bytes(
        model in models(), depth in 0u32..5, bytes in 0u64..100_000
    ) {
        let budget = Budget::OffloadBytes(u64::MAX);
        let options = PlanOptions { depth, slot_bytes: Some(bytes), ..options(budget) };
        let plan = planner::plan(model, options, &platform(false)).unwrap();
        plan.check();
        prop_assert!(plan.ring_bytes <= bytes);
        let lowered = plan.warnings.iter().any(|warning| warning.contains("asked for depth"));
        prop_assert!(depth == 0 || plan.depth == depth as usize || lowered, "{}", plan.depth);
        let ring_len = plan.ring.len();
        let position = |group: &usize| plan.groups[*group].ring_position;
        for (at, one) in plan.units.iter().enumerate() {
            for other in &plan.units[at + 1..] {
                let prefetched = one.transfer_mode == TransferMode::Prefetch;
                let concurrent = one.groups.iter().any(|a| other.groups.iter().any(|b| {
                    let (true, Some(a), Some(b)) = (prefetched, position(a), position(b)) else {
                        return a == b;
                    };
                    let apart = a.abs_diff(b);
                    apart < plan.depth || (!plan.wrap_stalls && ring_len - apart < plan.depth)
                }));
                let (Some(first), Some(second)) = (one.slot_offset, other.slot_offset) else {
                    continue;
                };
                let disjoint = first + one.bytes <= second || second + other.bytes <= first;
                let same_mode = one.transfer_mode == other.transfer_mode;
                prop_assert!(disjoint || (same_mode && !concurrent));
            }
        }
    }
}

#[test]
fn sizes_that_overflow_fail() {
    let many = model(5, &[1 << 62]);
    let mut shared = model(40, &[1 << 59]);
    shared.iter_mut().for_each(|parameter| parameter.storage_id = 7);
    for parameters in [many, shared] {
        for budget in [u64::MAX - 1, 0] {
            let (offload, device) =
                (options(Budget::OffloadBytes(budget)), options(Budget::DeviceBytes(budget)));
            for options in [offload, device] {
                let error =
                    planner::plan(parameters.clone(), options, &platform(true)).unwrap_err();
                assert_eq!(error.status, WB_ERR_OVERFLOW);
            }
        }
    }
}

#[test]
fn useless_plans_fail_unless_allowed() {
    let plan =
        |options: PlanOptions| planner::plan(model(2, &[5000, 300]), options, &platform(true));
    let few = PlanOptions::new(Budget::OffloadBytes(100));
    let error = plan(few.clone()).unwrap_err();
    assert_eq!(error.status, WB_ERR_NOTHING_OFFLOADED);
    assert!(error.message.contains("4096"), "{}", error.message);
    let allowed = Allowed { nothing_offloaded: true, ..Allowed::default() };
    assert_eq!(plan(PlanOptions { allowed, ..few }).unwrap().warnings.len(), 1);

    let fits = PlanOptions::new(Budget::DeviceBytes(1 << 20));
    assert_eq!(plan(fits.clone()).unwrap_err().status, WB_ERR_EVERYTHING_FITS);
    let allowed = Allowed { everything_fits: true, ..Allowed::default() };
    assert!(plan(PlanOptions { allowed, ..fits }).unwrap().units.is_empty());

    let unmatched = PlanOptions {
        select: vec!["layers.0".into(), "w7".into()],
        ..PlanOptions::new(Budget::OffloadBytes(1 << 20))
    };
    let error = plan(unmatched.clone()).unwrap_err();
    assert_eq!(error.status, WB_ERR_SELECTOR);
    assert!(error.message.contains("\"w7\""), "{}", error.message);
    let allowed = Allowed { unmatched_selector: true, ..Allowed::default() };
    let planned = plan(PlanOptions { allowed, ..unmatched }).unwrap();
    assert_eq!(planned.offloaded_payload_bytes, 5300);

    let small = PlanOptions {
        exclude: vec!["layers.0".into()],
        ..PlanOptions::new(Budget::DeviceBytes(1000))
    };
    let error = plan(small).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUDGET);
    assert!(error.message.contains("5632"), "{}", error.message);

    let slots = PlanOptions {
        slot_bytes: Some(4096),
        transfer_mode: TransferMode::Prefetch,
        ..PlanOptions::new(Budget::OffloadBytes(1 << 20))
    };
    assert_eq!(plan(slots).unwrap_err().status, WB_ERR_SLOTS_BUDGET);
}

#[test]
fn zero_copy_without_views_fails() {
    let options = PlanOptions {
        transfer_mode: TransferMode::ZeroCopy,
        ..PlanOptions::new(Budget::OffloadBytes(1 << 20))
    };
    let plan = planner::plan(model(2, &[5000]), options.clone(), &platform(true)).unwrap();
    assert_eq!((plan.slot_bytes, plan.step_bytes, plan.view_bytes), (0, 0, 10_000));
    let error = planner::plan(model(2, &[5000]), options, &platform(false)).unwrap_err();
    assert_eq!(error.status, WB_ERR_NOT_MAPPED);
    assert!(error.message.contains("off in this test"), "{}", error.message);
}

#[test]
fn a_resident_parameter_keeps_its_ties_resident() {
    let mut model = model(3, &[5000]);
    for (name, resident) in [("head", true), ("embed", false)] {
        let tied = parameter(name, name, 3000, 0);
        model.push(Parameter { storage_id: 9, resident, ..tied });
    }
    let options = options(Budget::OffloadBytes(1 << 20));
    let plan = planner::plan(model, options, &platform(true)).unwrap();
    plan.check();
    assert_eq!(plan.offloaded_payload_bytes, 15_000);
    for planned in &plan.parameters[3..] {
        assert_eq!(planned.reason.to_string(), "resident: requested by \"head\"");
    }
}

#[test]
fn slots_as_large_as_what_they_free_are_warned_of() {
    // In a ring of three layers all are adjacent; of four layers, two and two share a slot.
    for (layers, warned) in [(1, true), (2, true), (3, true), (4, false)] {
        let options = PlanOptions {
            transfer_mode: TransferMode::Prefetch,
            ..PlanOptions::new(Budget::OffloadBytes(1 << 20))
        };
        let plan = planner::plan(model(layers, &[5120]), options, &platform(true)).unwrap();
        assert_eq!(plan.warnings.len(), usize::from(warned), "{layers} layers");
        if layers == 2 {
            assert!(plan.warnings[0].contains("10240"), "{}", plan.warnings[0]);
        }
    }
}

#[test]
fn a_group_too_large_for_the_slots_is_not_prefetched() {
    for (views, transfer_mode) in [(true, TransferMode::ZeroCopy), (false, TransferMode::OnDemand)]
    {
        let mut model = model(3, &[5000]);
        model.push(parameter("big", "layers.1", 9000, 0));
        let options =
            PlanOptions { slot_bytes: Some(11_000), ..options(Budget::OffloadBytes(1 << 20)) };
        let plan = planner::plan(model, options, &platform(views)).unwrap();
        plan.check();
        assert_eq!(plan.parameters[0].transfer_mode, Some(TransferMode::Prefetch));
        assert_eq!(plan.parameters[3].transfer_mode, Some(transfer_mode));
        assert_eq!(
            plan.parameters[3].reason.to_string(),
            format!(
                "{}: its group has more bytes than the 11,000 of the slots",
                transfer_mode.name()
            )
        );
        assert_eq!(plan.ring_bytes, 2 * 5120);
    }
}

#[test]
fn parameters_tied_across_groups_are_stored_once() {
    for (views, transfer_mode) in [(true, TransferMode::ZeroCopy), (false, TransferMode::OnDemand)]
    {
        let mut model = model(2, &[5000]);
        for (name, group) in [("embed", "layers.0"), ("head", "layers.1")] {
            model.push(Parameter { storage_id: 9, ..parameter(name, group, 3000, 0) });
        }
        let options = options(Budget::OffloadBytes(1 << 20));
        let plan = planner::plan(model, options, &platform(views)).unwrap();
        plan.check();
        assert_eq!(plan.offloaded_payload_bytes, 13_000);
        assert_eq!(plan.parameters[2].transfer_mode, Some(transfer_mode));
        assert_eq!(plan.parameters[2].storage, plan.parameters[3].storage);
        let unit = plan.storages[plan.parameters[2].storage].unit.unwrap();
        assert_eq!(plan.units[unit].groups, [0, 1]);
    }
}

#[test]
fn a_million_parameters_are_planned_quickly() {
    let parameters: Vec<_> = (0..if cfg!(debug_assertions) { 20_000 } else { 1_000_000 })
        .map(|at| {
            parameter(
                &format!("layers.{}.w{at}", at / 1000),
                &format!("layers.{}", at / 1000),
                4096,
                0,
            )
        })
        .collect();
    let total = parameters.len() as u64 * 4096;
    for budget in [Budget::OffloadBytes(total / 2), Budget::DeviceBytes(total / 2)] {
        let options = options(budget);
        let parameters = parameters.clone();
        let began = std::time::Instant::now();
        let plan = planner::plan(parameters, options, &platform(true)).unwrap();
        println!("{} parameters: {:?}", plan.parameters.len(), began.elapsed());
        plan.check();
        assert!(plan.offloaded_payload_bytes > total / 4);
    }
}
