//! Plans for fixed addresses: every unit on the device, in its slot or resident, takes whole pieces of
//! memory, and so do the resident parameters of each group.

use crate::error::{Result, fail, format_bytes};
use crate::plan::parameter::Parameter;
use crate::plan::pieces;
use crate::plan::plan::{ALIGNMENT, Budget, Plan, PlanOptions, Platform};
use crate::plan::planner;
use crate::plan::slot_ring::{RingShape, SlotRing, UnitSize};
use crate::status::{WB_ERR_BUDGET, WB_ERR_NOT_SUPPORTED};

/// Maximum bytes of parameters with fixed addresses: a plan lists their pieces.
const MOST_BYTES: u64 = 16 << 40;

/// As [`planner::plan`], with what the device holds in multiples of `granularity` bytes.
pub fn plan(
    parameters: Vec<Parameter>,
    options: PlanOptions,
    platform: &Platform,
    granularity: u64,
) -> Result<Plan> {
    let all = parameters.iter().map(|one| one.layout.span_bytes().next_multiple_of(ALIGNMENT));
    let all: u64 = all.fold(0, u64::saturating_add);
    if all > MOST_BYTES {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked for fixed addresses of parameters of {}; at most {} can have them, since pieces of \
             {granularity} bytes are listed: leave out fixed_addresses",
            format_bytes(all),
            format_bytes(MOST_BYTES)
        );
    }
    // The budget without padding, and the limit of the ring, that are tried.
    let rounded = |bytes: u64, ring: Option<u64>| -> Result<Plan> {
        let mut given = options.clone();
        given.slot_bytes = ring;
        if let Budget::DeviceBytes(budget) = &mut given.budget {
            *budget = bytes;
            given.allowed.everything_fits = true;
        }
        let (mut plan, prediction) = planner::plan_with_load(parameters.clone(), given, platform)?;
        plan.options = options.clone();
        if let Some(read) = round(&mut plan, granularity, platform.page_bytes) {
            prediction.with_read(&mut plan, read);
        }
        Ok(plan)
    };
    let most_ring = options.slot_bytes.map(|bytes| bytes / granularity * granularity);
    let ring_fits = |plan: &Plan| most_ring.is_none_or(|most| plan.ring_bytes <= most);
    let fits = |plan: &Plan, ceiling: u64| {
        let others = plan.resident_bytes + plan.slot_bytes + plan.window_bytes;
        others + plan.expert_bytes <= ceiling
            && (plan.expert_bytes > 0 || plan.experts().count == 0)
            && !plan.splits_experts()
            && ring_fits(plan)
    };
    let Some(ceiling) = options.budget.device_bytes() else {
        let mut ring = most_ring;
        let mut plan = rounded(0, ring)?;
        while let (false, Some(bytes)) = (ring_fits(&plan), &mut ring) {
            *bytes = bytes.saturating_sub(granularity).max(1);
            plan = rounded(0, ring)?;
        }
        return Ok(plan);
    };
    // Less than what fails leaves no space for slots, more than what fits exceeds the ceiling.
    let (mut least, mut most) = (0, ceiling.min(all));
    let mut tried = most;
    let mut best = None;
    let mut failed = None;
    while best.is_none() || most - least > (ceiling >> 12).max(ALIGNMENT) {
        match rounded(tried, most_ring) {
            Ok(plan) if fits(&plan, ceiling) => (best, least) = (Some(plan), tried),
            Ok(_) => most = tried,
            Err(error) => (failed, least) = (Some(error), tried),
        }
        if most - least <= 1 {
            break;
        }
        tried = least + (most - least) / 2;
    }
    match best {
        Some(plan) if plan.offloaded_payload_bytes == 0 => {
            // Fails as it would without padding, unless that is allowed.
            planner::plan(parameters, options, platform).map(|_| plan)
        }
        Some(plan) => Ok(plan),
        None => fail!(
            WB_ERR_BUDGET,
            "asked for fixed addresses, for which units and the resident parameters of each group take \
             whole pieces of {granularity} bytes: these do not fit into the budget of {ceiling} bytes{}. \
             Raise it, or leave out fixed_addresses",
            failed.map_or(String::new(), |error| format!(" ({})", error.message))
        ),
    }
}

/// Gives every unit a slot of whole pieces, and counts those, windows and the resident parameters. If some
/// are in pieces, returns the bytes that each group reads in place.
fn round(plan: &mut Plan, granularity: u64, page_bytes: u64) -> Option<Vec<u64>> {
    let before = plan.slot_bytes;
    pieces::take(plan, granularity, page_bytes);
    let sizes: Vec<_> = plan
        .units
        .iter()
        .map(|unit| UnitSize {
            transfer_mode: unit.transfer_mode,
            bytes: unit.bytes.next_multiple_of(granularity),
            groups: &unit.groups,
        })
        .collect();
    let shape = RingShape { depth: plan.depth, wraps: !plan.wrap_stalls };
    let slots = SlotRing::with_shape(&sizes, shape);
    (plan.slot_bytes, plan.ring_bytes) = (slots.slot_bytes, slots.ring_bytes);
    for (unit, offset) in plan.units.iter_mut().zip(slots.offsets) {
        unit.slot_offset = offset;
    }
    let units = plan.resident_units();
    let without = before + units.iter().map(|unit| unit.bytes).sum::<u64>();
    plan.resident_bytes = units.iter().map(|unit| unit.bytes.next_multiple_of(granularity)).sum();
    plan.granularity = Some(granularity);
    plan.window_bytes = plan.window_bytes.next_multiple_of(granularity);
    // Caches get what all others leave, unless a number of bytes was given.
    let takes_rest = plan.expert_bytes > 0 && plan.options.expert_bytes == 0;
    if takes_rest {
        plan.expert_bytes = 0;
    }
    let (in_pieces, read) = match plan.pieces.is_empty() {
        true => (0, None),
        false => {
            let (in_pieces, read) = pieces::place(plan, granularity);
            (in_pieces, Some(read))
        }
    };
    if let (true, Some(budget)) = (takes_rest, plan.options.budget.device_bytes()) {
        let others = plan.resident_bytes + plan.slot_bytes + plan.window_bytes;
        plan.expert_bytes = budget.saturating_sub(others);
    }
    plan.say_experts();
    plan.padding_bytes =
        (plan.resident_bytes + plan.slot_bytes).saturating_sub(without + in_pieces);
    read
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::compression::{ALL_WINDOWS, Compression};
    use crate::plan::parameter::TransferMode;
    use crate::plan::parameter::tests::parameter;
    use crate::plan::tests::platform;
    use crate::tensor::dtype::{Dtype, WB_DTYPE_BF16};
    use crate::tensor::layout::Layout;

    const PIECE: u64 = 2 << 20;

    fn bf16(name: &str, group: &str, bytes: i64) -> Parameter {
        let dtype = Dtype::from_code(WB_DTYPE_BF16).unwrap();
        let layout = Layout::new(dtype, &[bytes / 2], None).unwrap();
        Parameter { layout, ..parameter(name, group, 2, 0) }
    }

    /// Windows are within every budget, and the device keeps nothing compressed, which the reasons say.
    #[test]
    fn windows_are_within_the_budget_and_nothing_is_kept_compressed() {
        let layer = |at: usize| bf16(&format!("layers.{at}.w"), &format!("layers.{at}"), 8 << 20);
        for budget in [1 << 30, 5 << 28, (1 << 30) - PIECE] {
            let mut options = PlanOptions::new(Budget::DeviceBytes(budget));
            options.compress = Compression::Auto(Vec::new());
            options.link_bytes_per_second = 1e9;
            let model: Vec<_> = (0..240).map(layer).collect();
            let unfixed = planner::plan(model.clone(), options.clone(), &platform(true)).unwrap();
            options.fixed_addresses = true;
            let made = plan(model, options, &platform(true), PIECE).unwrap();
            let held = made.resident_bytes + made.slot_bytes + made.window_bytes;
            assert!(held <= budget && budget - held < 16 << 20, "{held} of {budget}");
            assert_eq!(made.window_bytes, if budget >= 1 << 30 { ALL_WINDOWS } else { 0 });
            assert!(unfixed.kept_bytes > 0 && made.kept_bytes == 0 && made.encoded_bytes > 0);
            for planned in made.parameters.iter().filter(|one| one.transfer_mode.is_some()) {
                let reason = made.reason(planned);
                assert!(reason.contains("compressed to") && reason.contains("addresses are fixed"));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Slots are whole pieces that units acquired together do not share, and what the device holds,
        /// in whole pieces, never exceeds the budget.
        #[test]
        fn padding_is_within_the_budget(
            sizes in prop::collection::vec(1i64..6_000_000, 3..24),
            groups in 1usize..6,
            percent in 20u64..110,
            compress in any::<bool>(),
        ) {
            let model: Vec<_> = sizes.iter().enumerate()
                .map(|(at, size)| bf16(&format!("p{at}"), &format!("g{}", at % groups), size + size % 2))
                .collect();
            let total: u64 = model.iter().map(|one| one.layout.span_bytes()).sum();
            let budget = total * percent / 100 + PIECE;
            let mut options = PlanOptions::new(Budget::DeviceBytes(budget));
            options.compress = if compress { Compression::Auto(Vec::new()) } else { Compression::Off };
            options.fixed_addresses = true;
            options.transfer_mode = TransferMode::Prefetch;
            options.allowed.everything_fits = true;
            let Ok(plan) = plan(model, options, &platform(true), PIECE) else { return Ok(()) };
            prop_assert!(plan.resident_bytes + plan.slot_bytes <= budget);
            let resident = plan.resident_units();
            let padded: u64 = resident.iter().map(|unit| unit.bytes.div_ceil(PIECE) * PIECE).sum();
            prop_assert_eq!(padded, plan.resident_bytes);
            for unit in plan.units.iter().filter(|unit| unit.transfer_mode == TransferMode::Prefetch) {
                let offset = unit.slot_offset.unwrap();
                prop_assert_eq!(offset % PIECE, 0);
                prop_assert!(offset + unit.bytes.div_ceil(PIECE) * PIECE <= plan.slot_bytes);
            }
            let payload: u64 = resident.iter().flat_map(|unit| &unit.storages)
                .map(|(at, _)| plan.storages[*at].bytes).sum();
            prop_assert_eq!(payload + plan.offloaded_payload_bytes, plan.payload_bytes);
        }
    }
}
