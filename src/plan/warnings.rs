//! Warnings of what a plan could not do as well as was asked.

use crate::plan::input::PlanInput;
use crate::plan::parameter::TransferMode;
use crate::plan::placement::Placement;
use crate::plan::plan::Budget;
use crate::plan::reason::Reason;
use crate::plan::slot_ring::{RingShape, SlotRing};

/// Warns of slots that take as much device memory as offloading frees, and of a ring that is not as
/// deep as it should be.
pub fn of_slots(input: &PlanInput<'_>, placement: &Placement, warnings: &mut Vec<String>) {
    let slots = &placement.slots;
    let with_slots =
        placement.units.iter().filter(|unit| unit.transfer_mode != TransferMode::ZeroCopy);
    let copied: u64 = with_slots.map(|unit| unit.bytes).sum();
    if slots.slot_bytes > 0 && slots.slot_bytes >= copied {
        warnings.push(format!(
            "the slots take {} bytes of device memory for the {copied} bytes that are copied into \
             them: offload more groups, ask for less depth, or let the device read in place",
            slots.slot_bytes
        ));
    }
    let asked = input.options.depth as usize;
    if asked > slots.depth && !placement.storages.is_empty() {
        warnings.push(format!(
            "asked for depth {asked}; {} groups are prefetched: the depth is {}",
            slots.ring.len(),
            slots.depth
        ));
    }
    if asked == 0 && slots.streams() && slots.depth == 1 {
        let two = RingShape { depth: 2, wraps: false };
        let needs = SlotRing::with_shape(&placement.unit_sizes(), two).ring_bytes;
        let option = match input.options.budget {
            Budget::DeviceBytes(_) => "device_bytes",
            Budget::OffloadBytes(_) => "slot_bytes",
        };
        warnings.push(format!(
            "the slots have space for one group at a time, so that copies and kernels take turns: slots \
             for two need {needs} bytes instead of {}; raise {option}",
            slots.ring_bytes
        ));
    }
}

/// Warns of parameters that are not prefetched because they do not fit into the slots.
pub fn of_modes(input: &PlanInput<'_>, reasons: &[Option<Reason>], warnings: &mut Vec<String>) {
    let (mut count, mut bytes, mut how) = (0, 0, TransferMode::ZeroCopy);
    for (storage, reason) in input.storages.iter().zip(reasons) {
        if let Some(Reason::TooLarge { transfer_mode, .. }) = reason {
            count += 1;
            bytes += storage.bytes;
            how = *transfer_mode;
        }
    }
    if count > 0 {
        warnings.push(format!(
            "{count} parameters of {bytes} bytes do not fit into the slots of their groups and are \
             {} in every step, although it reads all of them",
            match how {
                TransferMode::ZeroCopy => "read in place",
                _ => "copied on demand",
            }
        ));
    }
}
