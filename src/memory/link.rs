//! What the link carries: bytes a second from pinned host memory to the device, measured.

use crate::device::device::Device;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::Result;
use crate::memory::staging::{STAGING_BYTES, Staging};
use crate::os::sync::Arc;

/// Copies of a measurement, queued in a row: enough that beginning and ending them does not count.
const COPIES: usize = 8;

/// Measurements, of which the fastest is the link's.
const RUNS: usize = 3;

/// Measures, and lets plans for the device that do not say what its link carries count on it.
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
        // Waited for in any case: what is queued uses memory that goes with this function.
        let queued = queue();
        backend.synchronize(stream.get()).and(queued)?;
        let seconds = end.seconds_since(&*begin)?.unwrap_or(f64::INFINITY).max(f64::MIN_POSITIVE);
        fastest = fastest.max((COPIES * from.bytes()) as f64 / seconds);
    }
    device.set_link_bytes_per_second(fastest);
    Ok(fastest)
}
