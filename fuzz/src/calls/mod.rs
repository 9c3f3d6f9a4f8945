//! Random sequences of calls. Handles are retained and released in any order, children outlive their
//! parents, references go behind streams; bytes are held against a model of them, and at the end nothing
//! is left on the device.
//!
//! `WEIGHBRIDGE_FUZZ_DEVICE` names another device than the host.

mod driver;
mod engine;
mod held;
mod memory;
mod shared;
mod world;

use arbitrary::{Result, Unstructured};

use world::World;

/// No sequence has more calls than this, whatever the bytes say.
const MOST_CALLS: usize = 24;

/// Bytes are read as one call after another.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut world = World::new(u.ratio(1, 2).unwrap_or(false));
    for _ in 0..MOST_CALLS {
        if u.is_empty() || one(&mut world, &mut u).is_err() {
            break;
        }
    }
    world.end(&mut u);
}

fn one(world: &mut World, u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=27)? {
        0..=1 => world.alloc(u),
        2 => world.register(u),
        3..=5 => world.view(u),
        6 => world.view_copy(u),
        7 => world.view_buffer(u),
        8..=9 => world.retain(u),
        10..=11 => world.release(u),
        12..=13 => world.release_after(u),
        14 => world.write(u),
        15 => world.copy(u),
        16 => world.export(u),
        17 => world.import(u),
        18 => world.delete_tensor(u),
        19 => world.open_file(u),
        20 => world.view_of_file(u),
        21 => world.stream(u),
        22 => world.queue(u),
        23 => world.device_memory(u),
        24 => world.retain_device(u),
        25 => world.plan(u),
        26 => world.commit(u),
        _ => world.drive(u),
    }
}
