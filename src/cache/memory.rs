//! [`Memory`]: the device memory of a cache: allocated, of the caller, or pieces behind addresses that stay.

use crate::cache::experts::Experts;
use crate::cache::pool::{PoolSize, slot_offsets};
use crate::cache::range::PoolRange;
use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail, format_bytes};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::{
    WB_ERR_INTERNAL, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
    WB_ERR_UNALIGNED,
};

/// The memory of a cache.
pub struct Memory {
    /// Of the slots, or of all.
    pub pool: Arc<DeviceMemory>,
    /// Of the state, if it is not there.
    pub state: Option<DeviceMemory>,
    pub range: Option<PoolRange>,
    /// The address of slot 0 of each tensor.
    pub slots: Vec<u64>,
}

impl Memory {
    /// The memory of a cache of a size, without bytes in it yet.
    pub fn new(
        device: &Arc<Device>,
        experts: &Experts,
        lanes: u32,
        size: PoolSize,
        memory: Option<Span>,
        piece: Option<u64>,
    ) -> Result<Self> {
        if let Some(piece) = piece {
            if memory.is_some() {
                fail!(
                    WB_ERR_NOT_SUPPORTED,
                    "asked for slots in memory of the caller, for an offloader with fixed_addresses, which \
                     gives slots memory and takes it away: leave out memory"
                );
            }
            let mut range = PoolRange::reserve(device, experts, lanes, piece)?;
            while !range.is_for(experts, lanes, size.slots) {
                range.grow(experts, lanes, size.slots)?;
            }
            let (pool, slots) = (range.memory().clone(), range.slot_addresses());
            return Ok(Self { pool, state: None, range: Some(range), slots });
        }
        let pool = match memory {
            None => alloc(device, size.slot_bytes)?,
            Some(memory) => borrow(device, memory, size.slot_bytes)?,
        };
        let start = pool.span().start() as u64;
        let slots =
            slot_offsets(experts, size.slots).0.iter().map(|offset| start + offset).collect();
        let state = Some(alloc(device, size.state_bytes)?);
        Ok(Self { pool: Arc::new(pool), state, range: None, slots })
    }
}

fn alloc(device: &Arc<Device>, bytes: u64) -> Result<DeviceMemory> {
    match DeviceMemory::alloc(device, bytes as usize)? {
        Some(memory) => Ok(memory),
        None => fail!(WB_ERR_INTERNAL, "a cache of no bytes was asked for"),
    }
}

/// The slots in memory of the caller.
fn borrow(device: &Arc<Device>, memory: Span, bytes: u64) -> Result<DeviceMemory> {
    let (start, have) = (memory.start() as u64, memory.bytes() as u64);
    if !start.is_multiple_of(256) {
        fail!(WB_ERR_UNALIGNED, "the memory for slots is at {start:#x}, no multiple of 256");
    }
    if have < bytes {
        fail!(
            WB_ERR_OUT_OF_RANGE,
            "the memory for slots has {}; the slots take {}",
            format_bytes(have),
            format_bytes(bytes)
        );
    }
    if !device.locate(memory)?.on_device {
        fail!(WB_ERR_INVALID_ARGUMENT, "the memory for slots at {start:#x} is not device memory");
    }
    Ok(DeviceMemory::borrowed(device, memory.part(0, bytes as usize)))
}
