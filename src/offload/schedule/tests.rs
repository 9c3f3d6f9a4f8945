use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use crate::device::backend::Stream;
use crate::device::device::{Device, DeviceOptions};
use crate::device::owned::DeviceMemory;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit};
use crate::offload::schedule::schedule::Schedule;
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT};

const BYTES: usize = 4096;

/// Groups of one unit each, in `slots` slots, on the host device with streams that dawdle.
struct Bench {
    // First: it waits for what is queued before the memory goes.
    schedule: Schedule,
    device: Arc<Device>,
    arena: Arc<Buffer>,
    slots: DeviceMemory,
    arrangement: Arrangement,
    wrong: Arc<AtomicUsize>,
}

fn bench(groups: usize, depth: usize, slots: usize, ahead: bool) -> Bench {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let options = BufferOptions::default();
    let arena = Buffer::alloc(&device, groups * BYTES, &options, &mut None).unwrap();
    let memory = DeviceMemory::alloc(&device, slots * BYTES).unwrap().unwrap();
    let mut arrangement = Arrangement { depth, ..Arrangement::default() };
    for group in 0..groups {
        let host = arena.data().part(group * BYTES, BYTES);
        bytes::fill(host, group as u8 + 1);
        let slot = memory.span().part(group % slots * BYTES, BYTES);
        arrangement.units.push(CarriedUnit { host, slot: Some(slot), ahead, groups: vec![group] });
        arrangement.groups.push(format!("layers.{group}"));
        if ahead {
            arrangement.ring.push(group);
        }
    }
    let schedule = Schedule::new(&device, &arrangement, None).unwrap();
    Bench { schedule, device, arena, slots: memory, arrangement, wrong: Arc::default() }
}

impl Bench {
    /// Acquires, uses for a while and releases a group: its slot must hold its bytes throughout.
    fn visit(&self, group: usize, stream: Stream, pause: Duration) {
        self.schedule.acquire(group, stream).unwrap();
        let slot = self.arrangement.units[group].slot.unwrap();
        let (wrong, wanted) = (self.wrong.clone(), group as u8 + 1);
        let check = move || {
            for moment in [Duration::ZERO, pause] {
                thread::sleep(moment);
                let right = bytes::is_filled(slot, wanted);
                wrong.fetch_add(usize::from(!right), Ordering::Relaxed);
            }
        };
        self.device.backend().call(stream, Box::new(check)).unwrap();
        self.schedule.release(group, stream).unwrap();
    }

    fn dawdle(&self, pause: Duration) {
        for lane in &self.schedule.machine().lanes {
            let work = Box::new(move || thread::sleep(pause));
            self.device.backend().call(lane.stream.get(), work).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Whatever the ring, whatever order and on whatever streams: what is acquired is there
    /// until it is released.
    #[test]
    fn what_is_acquired_is_there(
        groups in 1usize..=12,
        depth in 1usize..=6,
        extra in 0usize..=1,
        ahead in any::<bool>(),
        visits in prop::collection::vec((0usize..12, 0u64..300, 0u64..300, 0usize..2), 0..24),
        in_order in any::<bool>(),
    ) {
        let slots = (depth + extra).min(groups);
        let bench = bench(groups, depth.min(groups), slots, ahead);
        let streams: Vec<_> =
            (0..2).map(|_| bench.device.backend().new_stream().unwrap()).collect();
        bench.schedule.reset(streams[0]).unwrap();
        for (index, (group, pause, dawdle, stream)) in visits.into_iter().enumerate() {
            let group = if in_order { index } else { group } % groups;
            bench.dawdle(Duration::from_micros(dawdle));
            bench.visit(group, streams[stream], Duration::from_micros(pause));
        }
        for stream in streams {
            bench.device.backend().synchronize(stream).unwrap();
        }
        prop_assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
    }
}

/// In the order of a step nothing is late, each unit moves once a step, and a step begins and
/// ends with the same groups in their slots.
#[test]
fn a_step_in_order_finds_everything_in_its_slot() {
    for groups in 1..=12 {
        for depth in (2..=6).filter(|depth| *depth <= groups) {
            // Slots that no two of `depth` groups in a row share, the last and first included.
            let slots = if groups % depth == 0 { depth } else { groups };
            let bench = bench(groups, depth, slots, true);
            let stream = bench.device.backend().new_stream().unwrap();
            bench.schedule.reset(stream).unwrap();
            let loaded = || -> Vec<_> {
                bench.schedule.machine().units.iter().map(|unit| unit.loaded).collect()
            };
            for _ in 0..3 {
                let begin = loaded();
                prop_assert_first(&begin, depth - 1);
                let before = bench.schedule.carried().unwrap();
                (0..groups).for_each(|group| bench.visit(group, stream, Duration::ZERO));
                let after = bench.schedule.carried().unwrap();
                assert_eq!(after.late_copies, 0, "{groups} groups, depth {depth}");
                let moved = (after.copies - before.copies) as usize;
                assert!(moved == groups || slots == groups, "{moved} of {groups}");
            }
            bench.device.backend().synchronize(stream).unwrap();
            assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
        }
    }
}

fn prop_assert_first(loaded: &[bool], count: usize) {
    assert!(loaded[..count.min(loaded.len())].iter().all(|loaded| *loaded), "{loaded:?}");
}

#[test]
fn a_slot_that_is_held_is_not_taken() {
    let bench = bench(4, 2, 2, true);
    let stream = bench.device.backend().new_stream().unwrap();
    bench.schedule.acquire(0, stream).unwrap();
    let error = bench.schedule.acquire(2, stream).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUSY);
    assert!(error.message.contains("layers.0"), "{}", error.message);
    bench.schedule.acquire(0, stream).unwrap();
    bench.schedule.release(0, stream).unwrap();
    bench.schedule.acquire(2, stream).unwrap_err();
    bench.schedule.release(0, stream).unwrap();
    bench.schedule.acquire(2, stream).unwrap();
    let error = bench.schedule.release(1, stream).unwrap_err();
    assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
    bench.schedule.reset(stream).unwrap();
    bench.visit(0, stream, Duration::ZERO);
    bench.device.backend().synchronize(stream).unwrap();
    assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
    assert!(bench.arena.data().bytes() > bench.slots.span().bytes());
}
