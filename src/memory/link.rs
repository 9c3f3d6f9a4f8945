//! Measures the link: bytes per second from pinned host memory to the device.

use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::Result;
use crate::memory::staging::{STAGING_BYTES, Staging};
use crate::os::sync::Arc;

/// Copies of a run, queued in a row: enough that their start and end are negligible.
const COPIES: usize = 8;

/// Runs, of which the fastest counts.
const RUNS: usize = 3;

/// Measures the link, and stores the result for plans on the device whose options do not give one.
pub fn measure(device: &Arc<Device>) -> Result<f64> {
    let staging = Staging::new(device, STAGING_BYTES)?;
    let from = staging.span();
    let Some(memory) = DeviceMemory::alloc(device, from.bytes())? else { return Ok(0.0) };
    let stream = OwnedStream::new(device)?;
    let backend = device.backend();
    let (begin, end) = (backend.new_event(true)?, backend.new_event(true)?);
    let mut fastest: f64 = 0.0;
    for _ in 0..RUNS {
        let queue = || {
            begin.record(stream.get())?;
            (0..COPIES).try_for_each(|_| device.copy(memory.span(), from, stream.get()))?;
            end.record(stream.get())
        };
        // Synchronized even after an error: queued copies use memory that this function frees.
        let queued = queue();
        backend.synchronize(stream.get()).and(queued)?;
        let seconds = end.seconds_since(&*begin)?.unwrap_or(f64::INFINITY).max(f64::MIN_POSITIVE);
        fastest = fastest.max((COPIES * from.bytes()) as f64 / seconds);
    }
    device.set_link_bytes_per_second(fastest);
    Ok(fastest)
}
