use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use crate::device::backend::Stream;
use crate::device::device::{Device, DeviceOptions};
use crate::device::owned::DeviceMemory;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit, Passages};
use crate::offload::schedule::schedule::Schedule;
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT};

const BYTES: usize = 4096;

/// Groups of one unit each, in `slots` slots, on the host device.
struct Bench {
    // Dropped first, since it waits for what uses the memory.
    schedule: Schedule,
    device: Arc<Device>,
    arena: Arc<Buffer>,
    slots: DeviceMemory,
    arrangement: Arrangement,
    /// How often a slot had other bytes than its unit's while that was acquired.
    wrong: Arc<AtomicUsize>,
}

fn bench(groups: usize, depth: usize, slots: usize, prefetched: bool) -> Bench {
    let places: Vec<_> = (0..groups).map(|group| (group % slots * BYTES, BYTES)).collect();
    bench_of(&places, depth, prefetched)
}

/// A group for each place: the offset and the bytes of its slot.
fn bench_of(places: &[(usize, usize)], depth: usize, prefetched: bool) -> Bench {
    let device = Device::open("host", DeviceOptions::default()).unwrap();
    let options = BufferOptions::default();
    let arena = Buffer::alloc(&device, places.len() * BYTES, &options, &mut None).unwrap();
    let end = places.iter().map(|(offset, bytes)| offset + bytes).max().unwrap();
    let memory = DeviceMemory::alloc(&device, end).unwrap().unwrap();
    let groups = (0..places.len()).map(|group| format!("layers.{group}")).collect();
    let mut arrangement = Arrangement { groups, depth, ..Arrangement::default() };
    for (group, (offset, bytes)) in places.iter().enumerate() {
        let host = arena.data().part(group * BYTES, *bytes);
        bytes::fill(host, group as u8 + 1);
        let slot = Some(memory.span().part(*offset, *bytes));
        arrangement.units.push(CarriedUnit {
            host,
            slot,
            target: None,
            encoded: Vec::new(),
            prefetched,
            groups: vec![group],
        });
        if prefetched {
            arrangement.ring.push(group);
        }
    }
    let schedule = Schedule::new(&device, arrangement.clone(), Passages::default()).unwrap();
    Bench { schedule, device, arena, slots: memory, arrangement, wrong: Arc::default() }
}

impl Bench {
    /// Acquires, uses for a while and releases a group. Its slot must hold its bytes throughout.
    fn visit(&self, group: usize, stream: Stream, pause: Duration) {
        self.schedule.acquire(group, stream, None).unwrap();
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

    /// Makes the copy streams pause.
    fn delay_copies(&self, pause: Duration) {
        for copies in &self.schedule.machine().copy_streams {
            let work = Box::new(move || thread::sleep(pause));
            self.device.backend().call(copies.stream.get(), work).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// In any ring, any order and on any streams, a unit is in its slot from acquire to release.
    #[test]
    fn an_acquired_unit_stays_in_its_slot(
        groups in 1usize..=12,
        depth in 1usize..=6,
        extra in 0usize..=1,
        prefetched in any::<bool>(),
        visits in prop::collection::vec((0usize..12, 0u64..300, 0u64..300, 0usize..2), 0..24),
        in_order in any::<bool>(),
    ) {
        let slots = (depth + extra).min(groups);
        let bench = bench(groups, depth.min(groups), slots, prefetched);
        let streams: Vec<_> =
            (0..2).map(|_| bench.device.backend().new_stream().unwrap()).collect();
        bench.schedule.reset(streams[0], None).unwrap();
        for (index, (group, pause, delay, stream)) in visits.into_iter().enumerate() {
            let group = if in_order { index } else { group } % groups;
            bench.delay_copies(Duration::from_micros(delay));
            bench.visit(group, streams[stream], Duration::from_micros(pause));
        }
        for stream in streams {
            bench.device.backend().synchronize(stream).unwrap();
        }
        prop_assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Also where slots share bytes in part, and a copy into one follows copies into several.
    #[test]
    fn an_acquired_unit_stays_in_a_slot_that_others_overlap(
        places in prop::collection::vec((0usize..8, 1usize..=8), 1..10),
        depth in 1usize..=4,
        prefetched in any::<bool>(),
        visits in prop::collection::vec((0usize..10, 0u64..300, 0u64..300, 0usize..2), 0..32),
    ) {
        let places: Vec<_> =
            places.into_iter().map(|(at, parts)| (at * BYTES / 8, parts * BYTES / 8)).collect();
        let bench = bench_of(&places, depth, prefetched);
        let streams: Vec<_> =
            (0..2).map(|_| bench.device.backend().new_stream().unwrap()).collect();
        bench.schedule.reset(streams[0], None).unwrap();
        for (group, pause, delay, stream) in visits {
            bench.delay_copies(Duration::from_micros(delay));
            bench.visit(group % places.len(), streams[stream], Duration::from_micros(pause));
        }
        for stream in streams {
            bench.device.backend().synchronize(stream).unwrap();
        }
        prop_assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
    }
}

/// Units that are over leave the map that eager copies look at, so that a load takes no longer with
/// many units in the same slots.
#[test]
fn a_copy_looks_only_at_units_that_are_busy() {
    let bench = bench(64, 2, 2, true);
    let stream = bench.device.backend().new_stream().unwrap();
    bench.schedule.reset(stream, None).unwrap();
    for group in (0..64).chain(0..64) {
        bench.visit(group, stream, Duration::ZERO);
        let machine = bench.schedule.machine();
        assert_eq!(machine.slot_map.sharing(group, Some(1)).len(), 31);
        assert!(machine.slot_map.sharing(group, None).len() <= 1, "of group {group}");
    }
    bench.device.backend().synchronize(stream).unwrap();
    assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
}

/// In the order of a step no copy is late, each unit is copied once, and a step begins and ends
/// with the same groups in their slots.
#[test]
fn a_step_in_order_has_no_late_copies() {
    for groups in 1..=12 {
        for depth in (2..=6).filter(|depth| *depth <= groups) {
            // No two of `depth` consecutive groups share a slot, the last and the first included.
            let slots = if groups % depth == 0 { depth } else { groups };
            let bench = bench(groups, depth, slots, true);
            let stream = bench.device.backend().new_stream().unwrap();
            bench.schedule.reset(stream, None).unwrap();
            let loaded = || -> Vec<_> {
                bench.schedule.machine().slots.iter().map(|slot| slot.loaded.at(None) > 0).collect()
            };
            for _ in 0..3 {
                let begin = loaded();
                assert_first_loaded(&begin, depth - 1);
                let before = bench.schedule.stats().unwrap();
                (0..groups).for_each(|group| bench.visit(group, stream, Duration::ZERO));
                let after = bench.schedule.stats().unwrap();
                assert_eq!(after.late_copies, 0, "{groups} groups, depth {depth}");
                let copied = (after.copies - before.copies) as usize;
                assert!(copied == groups || slots == groups, "{copied} of {groups}");
            }
            bench.device.backend().synchronize(stream).unwrap();
            assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
        }
    }
}

fn assert_first_loaded(loaded: &[bool], count: usize) {
    assert!(loaded[..count.min(loaded.len())].iter().all(|loaded| *loaded), "{loaded:?}");
}

#[test]
fn the_slot_of_an_acquired_group_is_not_overwritten() {
    let bench = bench(4, 2, 2, true);
    let stream = bench.device.backend().new_stream().unwrap();
    bench.schedule.acquire(0, stream, None).unwrap();
    let error = bench.schedule.acquire(2, stream, None).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUSY);
    assert!(error.message.contains("layers.0"), "{}", error.message);
    bench.schedule.acquire(0, stream, None).unwrap();
    bench.schedule.release(0, stream).unwrap();
    bench.schedule.acquire(2, stream, None).unwrap_err();
    bench.schedule.release(0, stream).unwrap();
    bench.schedule.acquire(2, stream, None).unwrap();
    let error = bench.schedule.release(1, stream).unwrap_err();
    assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
    bench.schedule.reset(stream, None).unwrap();
    bench.visit(0, stream, Duration::ZERO);
    bench.device.backend().synchronize(stream).unwrap();
    assert_eq!(bench.wrong.load(Ordering::Relaxed), 0);
    assert!(bench.arena.data().bytes() > bench.slots.span().bytes());
}
