//! Units in pieces: parameters that the device reads in place have addresses of their own, behind which
//! each piece of memory is on the device or in host memory. So a budget is met to the piece.

use crate::plan::heat::{Heat, hottest};
use crate::plan::parameter::{AccessPattern, TransferMode};
use crate::plan::plan::{ALIGNMENT, Budget, PieceUnit, Plan};
use crate::plan::reason::Reason;

impl Plan {
    /// How often a step reads the bytes of a unit in pieces, before anyone has said so: all of a dense
    /// parameter once, and nothing of others.
    pub fn first_heat(&self, unit: &PieceUnit, piece_bytes: u64) -> Heat {
        let mut heat = Heat::new(unit.bytes, piece_bytes);
        for (storage, offset) in &unit.storages {
            let storage = &self.storages[*storage];
            let of = |at: &usize| self.parameters[*at].parameter.access_pattern;
            if storage.parameters.iter().any(|at| of(at) == AccessPattern::Dense) {
                heat.set(*offset, offset + storage.bytes, 1.0);
            }
        }
        heat
    }

    /// Bytes of a parameter that are on the device in memory of their own.
    pub fn resident_bytes_of(&self, index: usize) -> u64 {
        let planned = &self.parameters[index];
        let bytes = planned.parameter.layout.span_bytes();
        let storage = &self.storages[planned.storage];
        match storage.pieces {
            Some((unit, offset)) => {
                self.resident_within(unit as usize, offset + planned.offset, bytes)
            }
            None if storage.unit.is_some() => 0,
            None => bytes,
        }
    }

    /// Those of a part of a unit in pieces.
    fn resident_within(&self, unit: usize, offset: u64, bytes: u64) -> u64 {
        let piece = self.granularity.unwrap_or(ALIGNMENT);
        let resident = self.pieces[unit].resident.iter().enumerate().filter(|(_, here)| **here);
        let within = |(at, _): (usize, &bool)| {
            let (from, to) = (at as u64 * piece, (at as u64 + 1) * piece);
            (offset + bytes).min(to).saturating_sub(offset.max(from))
        };
        resident.map(within).sum()
    }
}

/// Takes what is read in place, and what would be if it left, out of the units: it is in pieces
/// from now on. Units and groups without a whole piece of it do not change.
pub fn take(plan: &mut Plan, granularity: u64, page_bytes: u64) {
    let is_whole = |plan: &Plan, storages: &[usize]| {
        let bytes = storages.iter().map(|at| plan.storages[*at].bytes.next_multiple_of(ALIGNMENT));
        bytes.sum::<u64>() >= granularity
    };
    let leaves = |unit: usize| {
        let storages = &plan.units[unit].storages;
        storages.iter().all(|at| plan.storages[*at].in_place) && is_whole(plan, storages)
    };
    let taken: Vec<bool> = (0..plan.units.len()).map(leaves).collect();
    let mut of_group: Vec<Vec<usize>> = vec![Vec::new(); plan.groups.len()];
    for (at, storage) in plan.storages.iter().enumerate() {
        let is_free = storage.unit.is_none_or(|unit| taken[unit]);
        if storage.in_place && is_free && storage.bytes > 0 {
            let groups = storage.parameters.iter().map(|at| plan.parameters[*at].group);
            of_group[groups.min().unwrap_or(0)].push(at);
        }
    }
    of_group.retain(|storages| is_whole(plan, storages));
    for storages in of_group {
        let mut unit = PieceUnit::default();
        for at in storages {
            let storage = &mut plan.storages[at];
            (storage.unit, storage.offset_in_unit) = (None, 0);
            storage.pieces = Some((plan.pieces.len() as u32, unit.bytes));
            unit.storages.push((at, unit.bytes));
            unit.bytes += storage.bytes.next_multiple_of(ALIGNMENT);
            unit.groups.extend(storage.parameters.iter().map(|at| plan.parameters[*at].group));
        }
        unit.groups.sort_unstable();
        unit.groups.dedup();
        unit.resident = vec![false; unit.bytes.div_ceil(granularity) as usize];
        plan.pieces.push(unit);
    }
    remove_units(plan, &taken, page_bytes);
}

fn remove_units(plan: &mut Plan, taken: &[bool], page_bytes: u64) {
    let mut numbers = taken.iter();
    plan.units.retain(|_| numbers.next().is_some_and(|taken| !taken));
    let mut offset = 0;
    for unit in &mut plan.units {
        unit.arena_offset = offset;
        offset += unit.host_bytes;
    }
    plan.arena_bytes = offset.next_multiple_of(page_bytes);
    plan.groups.iter_mut().for_each(|group| group.units.clear());
    for (at, unit) in plan.units.iter().enumerate() {
        unit.storages.iter().for_each(|storage| plan.storages[*storage].unit = Some(at));
        unit.groups.iter().for_each(|group| plan.groups[*group].units.push(at));
    }
}

/// Chooses which pieces are on the device beside the other residents and the slots: as many as the
/// budget allows, the hottest. Returns the bytes of parameters in them, and those that each group reads in
/// place in a step.
pub fn place(plan: &mut Plan, granularity: u64) -> (u64, Vec<u64>) {
    let heats: Vec<f64> = plan
        .pieces
        .iter()
        .flat_map(|unit| plan.first_heat(unit, granularity).pieces().to_vec())
        .collect();
    let count = match plan.options.budget {
        Budget::DeviceBytes(budget) => {
            let others = plan.resident_bytes + plan.slot_bytes + plan.window_bytes;
            budget.saturating_sub(others + plan.expert_bytes) / granularity
        }
        Budget::OffloadBytes(budget) => (heats.len() as u64)
            .saturating_sub(budget.saturating_sub(plan.arena_bytes) / granularity),
    };
    let chosen = hottest(&heats, &vec![false; heats.len()], count as usize);
    let mut next = chosen.iter();
    for unit in &mut plan.pieces {
        unit.resident.iter_mut().zip(&mut next).for_each(|(here, chosen)| *here = *chosen);
    }
    plan.resident_bytes += granularity * chosen.iter().filter(|here| **here).count() as u64;
    count_bytes(plan)
}

/// Counts where the bytes are, and says why. Returns those that are in pieces on the device, and those that
/// each group reads in place.
fn count_bytes(plan: &mut Plan) -> (u64, Vec<u64>) {
    let (mut in_pieces, mut read) = (0, vec![0; plan.groups.len()]);
    plan.offloaded_payload_bytes = 0;
    for group in &mut plan.groups {
        (group.offloaded_bytes, group.resident_bytes) = (0, 0);
    }
    for at in 0..plan.storages.len() {
        let storage = &plan.storages[at];
        let resident = match (storage.pieces, storage.unit) {
            (Some((unit, offset)), _) => plan.resident_within(unit as usize, offset, storage.bytes),
            (None, Some(_)) => 0,
            (None, None) => storage.bytes,
        };
        let offloaded = storage.bytes - resident;
        in_pieces += if storage.pieces.is_some() { resident } else { 0 };
        let groups = |plan: &Plan, dense: bool| {
            let of = |at: &usize| {
                let planned = &plan.parameters[*at];
                let is_dense = planned.parameter.access_pattern == AccessPattern::Dense;
                (is_dense || !dense).then_some(planned.group)
            };
            let mut groups: Vec<usize> =
                plan.storages[at].parameters.iter().filter_map(of).collect();
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        let in_place = match storage.unit {
            Some(unit) => plan.units[unit].transfer_mode == TransferMode::ZeroCopy,
            None => storage.pieces.is_some(),
        };
        if in_place {
            groups(plan, true).into_iter().for_each(|group| read[group] += offloaded);
        }
        let first = groups(plan, false)[0];
        plan.groups[first].offloaded_bytes += offloaded;
        plan.groups[first].resident_bytes += resident;
        plan.offloaded_payload_bytes += offloaded;
    }
    for at in 0..plan.parameters.len() {
        if plan.storages[plan.parameters[at].storage].pieces.is_none() {
            continue;
        }
        let resident = plan.resident_bytes_of(at);
        let planned = &mut plan.parameters[at];
        let bytes = planned.parameter.layout.span_bytes();
        if resident == bytes {
            (planned.transfer_mode, planned.reason) = (None, Reason::Fits);
        } else {
            planned.transfer_mode = Some(TransferMode::ZeroCopy);
            planned.reason = Reason::Pieces { resident, bytes };
        }
    }
    plan.view_bytes = read.iter().sum();
    (in_pieces, read)
}

#[cfg(test)]
mod tests {
    use crate::plan::fixed;
    use crate::plan::parameter::tests::parameter;
    use crate::plan::parameter::{AccessPattern, TransferMode};
    use crate::plan::plan::{Budget, Plan, PlanOptions};
    use crate::plan::tests::platform;
    use crate::status::WB_ERR_NOT_SUPPORTED;

    const PIECE: u64 = 2 << 20;
    /// Bytes of the link in a second.
    const LINK: f64 = PIECE as f64;

    /// Two groups of a parameter of 4 and of 2 pieces that are read in place, 5 and 3 seconds of kernels, and
    /// so many pieces on the device.
    fn plan(on_device: u64, rows: u64, seconds: &[f64], sparse: bool) -> Plan {
        let mut model = vec![
            parameter("a", "0", 4 * PIECE as i64, 0),
            parameter("b", "1", 2 * PIECE as i64, 0),
        ];
        if sparse {
            model[1].access_pattern = AccessPattern::Sparse;
        }
        let mut options = PlanOptions::new(Budget::DeviceBytes(on_device * PIECE));
        options.transfer_mode = TransferMode::ZeroCopy;
        options.allowed.everything_fits = true;
        options.link_bytes_per_second = LINK;
        (options.rows, options.group_seconds) = (rows, seconds.to_vec());
        fixed::plan(model, options, &platform(true), PIECE).unwrap()
    }

    /// A number alone allocates nothing: not a list of the pieces of 2^60 bytes.
    #[test]
    fn parameters_of_more_pieces_than_are_listed_are_refused() {
        for bytes in [(16 << 40) + 1, 1 << 60] {
            let mut options = PlanOptions::new(Budget::OffloadBytes(1 << 61));
            options.transfer_mode = TransferMode::ZeroCopy;
            let model = vec![parameter("a", "0", bytes, 0)];
            let error = fixed::plan(model, options, &platform(true), PIECE).unwrap_err();
            assert_eq!(error.status, WB_ERR_NOT_SUPPORTED, "{error}");
            assert!(error.message.contains("leave out fixed_addresses"), "{error}");
        }
    }

    fn seconds(plan: &Plan) -> (f64, f64) {
        (plan.step_seconds.unwrap(), plan.link_seconds.unwrap())
    }

    /// Pieces in host memory are read at nine tenths of the rate of copies, once for every 128 rows; those
    /// on the device cross no link.
    #[test]
    fn predicted_times_count_the_pieces_that_are_read_in_place() {
        let close = |(step, link): (f64, f64), (step_by_hand, link_by_hand): (f64, f64)| {
            assert!((step - step_by_hand).abs() < 1e-6, "a step of {step} s, not {step_by_hand}");
            assert!((link - link_by_hand).abs() < 1e-6, "{link} s of the link, not {link_by_hand}");
        };
        for on_device in 0..=6 {
            let read = (6 - on_device) as f64 / 0.9;
            close(seconds(&plan(on_device, 0, &[], false)), (read, read));
            close(seconds(&plan(on_device, 1280, &[], false)), (10.0 * read, 10.0 * read));
        }
        // Nothing on the device: the kernels wait for their reads.
        let read = [4.0 / 0.9, 2.0 / 0.9];
        close(seconds(&plan(0, 1, &[3.0, 2.0], false)), (read[0] + read[1], read[0] + read[1]));
        // All on the device.
        close(seconds(&plan(6, 1, &[5.0, 3.0], false)), (8.0, 0.0));
        // Of either group a part, by how many pieces of it are there.
        let half = plan(3, 1, &[5.0, 3.0], false);
        let here = |at: usize| half.pieces[at].resident.iter().filter(|here| **here).count() as f64;
        assert_eq!(here(0) + here(1), 3.0);
        let group = |kernels: f64, pieces: f64, here: f64| {
            let part = (pieces - here) / pieces;
            kernels * (1.0 - part) + ((pieces - here) / 0.9).max(kernels * part)
        };
        close(seconds(&half), (group(5.0, 4.0, here(0)) + group(3.0, 2.0, here(1)), 3.0 / 0.9));
        // What is not dense is not counted, on the device or not.
        close(seconds(&plan(0, 1, &[0.0, 1.0], true)), (4.0 / 0.9 + 1.0, 4.0 / 0.9));
        close(seconds(&plan(4, 1, &[0.0, 1.0], true)), (1.0, 0.0));
    }
}
