//! Random sequences of calls. Handles are retained and released in any order, children outlive their
//! parents, references are dropped after the work on a stream. Bytes are compared with a model of them,
//! and at the end nothing may be left on the device.
//!
//! `WEIGHBRIDGE_FUZZ_DEVICE` names another device than the host.

mod buffer;
mod carried;
mod dlpack;
mod engine;
mod moves;
mod offloader;
mod references;
mod safetensors;
mod sequence;

use arbitrary::{Result, Unstructured};

use sequence::Sequence;

/// The most calls of a sequence.
const MOST_CALLS: usize = 24;

/// Reads the bytes as one call after another.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut sequence = Sequence::new(u.ratio(1, 2).unwrap_or(false));
    for _ in 0..MOST_CALLS {
        if u.is_empty() || call(&mut sequence, &mut u).is_err() {
            break;
        }
    }
    sequence.end(&mut u);
}

fn call(sequence: &mut Sequence, u: &mut Unstructured<'_>) -> Result<()> {
    // Four times each number; the last time, some are other calls.
    let number = u.int_in_range(0..=111)?;
    match number % 28 {
        25 if number >= 84 => sequence.plan_carried(u),
        0..=1 => sequence.alloc(u),
        2 => sequence.register(u),
        3..=5 => sequence.view(u),
        6 => sequence.view_copy(u),
        7 => sequence.view_buffer(u),
        8..=9 => sequence.retain(u),
        10..=11 => sequence.release(u),
        12..=13 => sequence.release_after(u),
        14 => sequence.write(u),
        15 => sequence.copy(u),
        16 => sequence.export(u),
        17 => sequence.import(u),
        18 => sequence.delete_tensor(u),
        19 => sequence.open_file(u),
        20 => sequence.view_of_file(u),
        21 => sequence.stream(u),
        22 => sequence.queue(u),
        23 => sequence.device_memory(u),
        24 => sequence.retain_device(u),
        25 => sequence.plan(u),
        26 => sequence.commit(u),
        _ => sequence.use_offloader(u),
    }
}
