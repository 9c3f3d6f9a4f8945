//! Blocks that the device keeps compressed: memory for them there, and their bytes in it. Host memory has
//! the same bytes.

use std::ffi::CStr;

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::Result;
use crate::offload::backing::{Backing, Kept};
use crate::offload::bulk_copy::{self, CopyJob};
use crate::offload::device_plan::DevicePlan;
use crate::offload::state::OffloadState;
use crate::os::parallel::Progress;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::plan::ALIGNMENT;

/// Copies the blocks that a plan has the device keep, once they are compressed, to new device memory. Those
/// for which the budget has no space, after others in the order of the plan, stay in host memory alone.
pub fn keep_all(
    plan: &DevicePlan,
    state: &mut OffloadState,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let DevicePlan { device, plan } = plan;
    let Some(budget) = plan.options.budget.device_bytes().filter(|_| plan.kept_bytes > 0) else {
        return Ok(());
    };
    let others = plan.resident_bytes + plan.slot_bytes + plan.window_bytes + plan.expert_bytes;
    let left = budget.saturating_sub(others);
    let (mut places, mut end) = (Vec::new(), 0);
    for (at, block) in state.host.blocks().iter().enumerate() {
        let is_planned = plan.units.get(block.unit).is_some_and(|unit| unit.kept);
        let Some(encoding) = block.encoding.filter(|_| is_planned) else { continue };
        let bytes = encoding.encoded_bytes.next_multiple_of(ALIGNMENT);
        if end + bytes <= left {
            places.push((at, end, bytes));
            end += bytes;
        }
    }
    let Some(memory) = DeviceMemory::alloc(device, end as usize)?.map(Arc::new) else {
        return Ok(());
    };
    let job = |&(at, offset, _): &(usize, u64, u64)| {
        let from = state.stored(at);
        let to = memory.span().part(offset as usize, from.bytes());
        CopyJob { to, from: Location::host(from) }
    };
    let jobs: Vec<_> = places.iter().map(job).collect();
    bulk_copy::into_device(device, memory.span(), &jobs, threads, progress)?;
    for (at, offset, bytes) in places {
        state.host.note_kept(at, Kept { memory: memory.clone(), offset, bytes });
    }
    state.kept = Some(memory);
    Ok(())
}

impl OffloadState {
    /// The bytes of a block in host memory.
    pub fn stored(&self, at: usize) -> Span {
        let block = &self.host.blocks()[at];
        let place = block.place(&self.host.units()[block.unit]);
        place.part(0, block.stored_bytes() as usize)
    }

    /// The place of a block in host memory at the device's addresses, if it has such.
    pub fn on_device(&self, at: usize) -> Option<Span> {
        let block = &self.host.blocks()[at];
        if let Some(apart) = &block.apart {
            return apart.on_device();
        }
        let unit = &self.host.units()[block.unit];
        let offset = unit.offset_in_buffer() + block.offset;
        Some(unit.buffer.device_data()?.part(offset as usize, block.capacity as usize))
    }

    /// Device memory for what the device keeps compressed.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.as_ref().map_or(0, |memory| memory.span().bytes() as u64)
    }

    /// For a parameter, the device memory that keeps it compressed, and if the device does not keep it although
    /// the plan has it so, why.
    pub fn kept_of(&self, at: usize, is_planned: bool) -> (u64, &'static CStr) {
        let Backing::Block { block, .. } = self.parameters[at].backing else { return (0, c"") };
        let block = &self.host.blocks()[block];
        let reason = match &block.kept {
            _ if block.device_encoded_bytes() > 0 || !is_planned => c"",
            Some(_) => {
                c"its replacement is compressed to more bytes than it has space for on the device"
            }
            None => {
                c"the budget had no space for its compressed bytes at the commit, or it has another size since"
            }
        };
        (block.device_encoded_bytes(), reason)
    }
}
