//! Storages that the device keeps compressed: only under a budget of device memory, as many as are needed,
//! and never for a slower step.

use proptest::prelude::*;

use crate::error::Result;
use crate::plan::compression::Compression;
use crate::plan::device_budget::{self, Outcome};
use crate::plan::input::PlanInput;
use crate::plan::leaving::Keep;
use crate::plan::parameter::tests::parameter;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::plan::*;
use crate::plan::planner::plan;
use crate::plan::tests::platform;
use crate::plan::trial::Trials;
use crate::tensor::dtype::{Dtype, WB_DTYPE_BF16};
use crate::tensor::layout::Layout;

fn weight(at: usize, group: usize, bytes: u64, permille: u64) -> Parameter {
    let dtype = Dtype::from_code(WB_DTYPE_BF16).unwrap();
    let group = format!("layers.{group}");
    Parameter {
        layout: Layout::new(dtype, &[(bytes / 2) as i64], None).unwrap(),
        encoded_bytes: Some(bytes * permille / 1000),
        ..parameter(&format!("{group}.w{at}"), &group, 2, 0)
    }
}

/// The weights of 16 layers of Llama-3-8B, normally distributed, which become 66.6 % as large: 6.98 GB.
fn llama() -> Vec<Parameter> {
    let sizes = [4096 * 4096, 1024 * 4096, 1024 * 4096, 4096 * 4096]
        .into_iter()
        .chain([14_336 * 4096; 3])
        .map(|values: u64| 2 * values);
    let layer = |layer| sizes.clone().enumerate().map(move |(at, bytes)| (layer, at, bytes));
    (0..16).flat_map(layer).map(|(layer, at, bytes)| weight(at, layer, bytes, 666)).collect()
}

fn options(budget: Budget, compress: Compression) -> PlanOptions {
    let mut options = PlanOptions::new(budget);
    options.compress = compress;
    options.link_bytes_per_second = 50e9;
    options.allowed.everything_fits = true;
    options.allowed.nothing_offloaded = true;
    options
}

/// Device memory of a plan, of which the sums are those of its storages and units.
fn device_bytes(made: &Plan) -> u64 {
    let kept = made.storages.iter().filter(|one| one.kept_bytes > 0);
    let sums = kept
        .clone()
        .fold((0, 0), |(kept, decoded), one| (kept + one.kept_bytes, decoded + one.bytes));
    assert_eq!((made.kept_bytes, made.kept_decoded_bytes), sums);
    for storage in &made.storages {
        let unit = storage.unit.map(|unit| &made.units[unit]);
        assert_eq!(unit.is_some_and(|unit| unit.kept), storage.kept_bytes > 0);
        if let (Some(unit), true) = (unit, storage.kept_bytes > 0) {
            let coding = storage.coding.as_ref().unwrap();
            assert_eq!(unit.transfer_mode, TransferMode::Prefetch);
            assert!(storage.kept_bytes >= coding.encoded_bytes);
            assert!(storage.kept_bytes < storage.bytes.next_multiple_of(ALIGNMENT));
        }
    }
    made.resident_bytes + made.slot_bytes + made.window_bytes + made.kept_bytes
}

fn auto() -> Compression {
    Compression::Auto(Vec::new())
}

#[test]
fn half_of_a_model_over_the_link_is_a_fifth_with_compressed_residents() {
    let model = llama();
    let payload: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
    // Every second layer leaves, uncompressed, and two have slots.
    let mut half = options(Budget::OffloadBytes(payload), Compression::Off);
    half.select = (0..16).step_by(2).map(|layer| format!("layers.{layer}")).collect();
    let raw = plan(model.clone(), half, &platform(true)).unwrap();
    assert_eq!(raw.step_bytes, payload / 2);
    let budget = Budget::DeviceBytes(raw.resident_bytes + raw.slot_bytes);
    let made = plan(model.clone(), options(budget, auto()), &platform(true)).unwrap();
    assert!(device_bytes(&made) <= budget.device_bytes().unwrap());
    let bound = raw.step_seconds.unwrap();
    let part = made.step_seconds.unwrap() / bound;
    assert!(part <= 0.40, "{part} of the raw link bound, {} kept", made.kept_decoded_bytes);
    // Hardly a byte is resident and not compressed: residents are compressed first.
    assert!(made.resident_bytes < payload / 100);
    let carried: u64 =
        made.storages.iter().filter(|one| one.kept_bytes == 0).map(|one| one.bytes).sum();
    assert_eq!(made.kept_decoded_bytes + carried, payload);
}

#[test]
fn no_more_are_kept_than_are_needed() {
    let model = llama();
    let payload: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
    let of = |bytes: u64| {
        let made =
            plan(model.clone(), options(Budget::DeviceBytes(bytes), auto()), &platform(true));
        let made = made.unwrap();
        assert!(device_bytes(&made) <= bytes);
        made
    };
    assert_eq!(of(payload).kept_bytes, 0);
    let mut last = 0;
    for percent in [98, 95, 92, 88, 84] {
        let budget = payload / 100 * percent;
        let made = of(budget);
        assert_eq!(made.step_bytes, 0, "{percent} %: nothing leaves");
        assert!(made.kept_decoded_bytes > last, "{percent} %");
        last = made.kept_decoded_bytes;
        // Without the smallest that is kept, the rest would not fit: it frees at least what is over.
        let frees = |one: &PlannedStorage| one.bytes - one.kept_bytes;
        let least = made.storages.iter().filter(|one| one.kept_bytes > 0).map(frees).min();
        let left = budget - device_bytes(&made);
        assert!(left < least.unwrap(), "{percent} %: {left} left, {least:?}");
        let reason = |one: &&PlannedParameter| made.storages[one.storage].kept_bytes > 0;
        let kept = made.parameters.iter().find(reason).unwrap();
        assert!(made.reason(kept).ends_with("; compressed to 67 %, on the device"));
    }
}

#[test]
fn without_a_budget_of_device_memory_nothing_is_kept() {
    let model = llama();
    for compress in [auto(), Compression::Selected(vec!["layers".into()])] {
        let made =
            plan(model.clone(), options(Budget::OffloadBytes(3 << 30), compress), &platform(true));
        let made = made.unwrap();
        device_bytes(&made);
        assert!(made.kept_bytes == 0 && made.encoded_bytes > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// No budget is exceeded, and no step is slower than that of the plan which keeps nothing.
    #[test]
    fn budgets_hold_and_steps_are_not_slower(
        sizes in prop::collection::vec((1u64..900_000, 0u64..1100, 0usize..5), 1..24),
        groups in 1usize..9,
        percent in 5u64..110,
        depth in 0u32..4,
        rows in prop::option::of(1u64..4096),
        kernels in any::<bool>(),
        views in any::<bool>(),
    ) {
        let model: Vec<_> = sizes.iter().enumerate().map(|(at, (half, ratio, mode))| {
            let mut one = weight(at, at % groups, 2 * half, *ratio);
            one.transfer_mode = match mode {
                0 if views => TransferMode::ZeroCopy,
                1 => TransferMode::OnDemand,
                2 => TransferMode::Prefetch,
                _ => TransferMode::Auto,
            };
            one
        }).collect();
        let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
        let budget = total * percent / 100 + 2048;
        let mut given = options(Budget::DeviceBytes(budget), Compression::Selected(vec!["*".into()]));
        (given.depth, given.rows) = (depth, rows.unwrap_or(0));
        given.compute_bytes_per_second = if kernels { 2e12 } else { 0.0 };
        let made = plan(model.clone(), given.clone(), &platform(views));
        let platform = platform(views);
        let input = PlanInput::new(model, given, &platform).unwrap();
        let all: Vec<usize> = (0..input.storages.len()).collect();
        let trials = || Trials::new(&input, budget);
        let fits = |found: Result<Outcome>| match found.ok()? {
            Outcome::Fits(choice) => Some(choice.key.cost),
            _ => None,
        };
        let without = match trials().all_bytes <= budget {
            true => None,
            false => fits(device_budget::search(&input, &all, trials(), budget, Keep::Nothing)),
        };
        match (made, without) {
            (Ok(made), without) => {
                prop_assert!(device_bytes(&made) <= budget);
                prop_assert!(views || made.kept_bytes == 0);
                let found = fits(device_budget::choose(&input, &all, 0, budget));
                if made.offloaded_payload_bytes > 0 {
                    let found = found.unwrap();
                    prop_assert!((made.cost - found).abs() <= 1e-6 * found, "{} {found}", made.cost);
                }
                if let Some(without) = without {
                    prop_assert!(made.cost <= without * (1.0 + 1e-6), "{} {without}", made.cost);
                }
            }
            (Err(_), Some(_)) => prop_assert!(false, "only without compressed residents there is a plan"),
            (Err(_), None) => {}
        }
    }
}
