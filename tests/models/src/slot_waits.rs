//! Threads that wait for a slot which another thread's step occupies: the call that frees it wakes
//! them, in every order, and a wait that ends by its timeout leaves nothing behind. A long wait ends by
//! a notification only, so that a lost one is a deadlock, which loom reports.

use std::time::Duration;

use loom::thread::{self, JoinHandle};
use weighbridge::device::backend::Stream;
use weighbridge::os::sync::Arc;
use weighbridge::status::{WB_ERR_BUSY, WB_ERR_TIMEOUT};

use crate::ring::Bench;

pub const MODELS: &[crate::Model] = &[
    ("waits: beside a release", 4, || {
        beside(true, |bench, stream| bench.use_and_release(0, stream))
    }),
    ("waits: beside a release, on demand", 4, || {
        beside(false, |bench, stream| bench.use_and_release(0, stream));
    }),
    ("waits: beside a reset of the stream", 4, || {
        beside(true, |bench, stream| bench.schedule.reset(stream, Some(stream)).unwrap());
    }),
    ("waits: beside a reset of all streams", 4, || {
        beside(true, |bench, stream| bench.schedule.reset(stream, None).unwrap());
    }),
    ("waits: two threads, for one slot", 3, two_for_one_slot),
    ("waits: two threads, for a slot each", 3, two_for_a_slot_each),
    ("waits: a timeout", 4, a_timeout),
    ("waits: the offloader is closed meanwhile", 4, closed_meanwhile),
];

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(1);

/// Groups in two slots, of which the first ones are acquired on the stream.
fn occupied(groups: usize, prefetched: bool, acquired: usize) -> (Arc<Bench>, Stream) {
    let bench = Bench::new(groups, prefetched);
    let stream = bench.account.new_stream();
    bench.schedule.reset(stream, None).unwrap();
    (0..acquired).for_each(|group| bench.schedule.acquire(group, stream, None).unwrap());
    (bench, stream)
}

/// A thread that waits for a group as long as it takes, uses it and releases it.
fn waiter(bench: &Arc<Bench>, group: usize) -> JoinHandle<()> {
    let (bench, stream) = (bench.clone(), bench.account.new_stream());
    thread::spawn(move || {
        bench.schedule.acquire(group, stream, Some(LONG)).unwrap();
        bench.use_and_release(group, stream);
    })
}

/// A thread waits for the slot of group 0, which is freed by `free`.
fn beside(prefetched: bool, free: fn(&Bench, Stream)) {
    let (bench, stream) = occupied(3, prefetched, 1);
    let waiter = waiter(&bench, 2);
    free(&bench, stream);
    waiter.join().unwrap();
}

/// The second thread is woken by the release of the first.
fn two_for_one_slot() {
    let (bench, stream) = occupied(5, false, 1);
    let waiters = [waiter(&bench, 2), waiter(&bench, 4)];
    bench.use_and_release(0, stream);
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
}

/// The release of one slot wakes the thread that waits for it, not the other in its place.
fn two_for_a_slot_each() {
    let (bench, stream) = occupied(4, false, 2);
    let (first, second) = (waiter(&bench, 2), waiter(&bench, 3));
    bench.use_and_release(1, stream);
    second.join().unwrap();
    bench.use_and_release(0, stream);
    first.join().unwrap();
}

/// A wait ends by its timeout or by the release, and the next one acquires.
fn a_timeout() {
    let (bench, stream) = occupied(3, true, 1);
    let (other, own) = (bench.clone(), bench.account.new_stream());
    let waiter = thread::spawn(move || {
        if let Err(error) = other.schedule.acquire(2, own, Some(SHORT)) {
            assert_eq!(error.status, WB_ERR_TIMEOUT, "{error}");
            other.schedule.acquire(2, own, Some(LONG)).unwrap();
        }
        other.use_and_release(2, own);
    });
    bench.use_and_release(0, stream);
    waiter.join().unwrap();
    // No thread holds a slot now, and the one that acquires does not wait for itself.
    bench.schedule.acquire(0, stream, None).unwrap();
    let error = bench.schedule.acquire(2, stream, Some(LONG)).unwrap_err();
    assert_eq!(error.status, WB_ERR_BUSY, "{error}");
    bench.use_and_release(0, stream);
}

/// The thread that frees the slot releases the offloader, whose memory stays for the waiting one.
fn closed_meanwhile() {
    let (bench, stream) = occupied(3, true, 1);
    let waiter = waiter(&bench, 2);
    bench.use_and_release(0, stream);
    drop(bench);
    waiter.join().unwrap();
}
