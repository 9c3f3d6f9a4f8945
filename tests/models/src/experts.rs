//! Calls of one expert cache on several streams: each reads and writes the state of the cache, so each
//! is ordered after the one before it, whichever thread queued that.

use loom::thread;
use weighbridge::cache::order::Order;
use weighbridge::device::backend::Stream;
use weighbridge::device::device::Device;
use weighbridge::device::experts::{ExpertCall, ExpertState};
use weighbridge::device::kernel::Kernel;
use weighbridge::os::sync::Arc;

use crate::backend::{self, Account};

pub const MODELS: &[crate::Model] = &[
    ("experts: three threads, a stream each", 3, three_threads),
    ("experts: two threads, two streams in turn", 4, two_streams_in_turn),
    ("experts: a capture beside calls that run", 4, a_capture_beside_calls),
];

/// Models that break a rule, which must be found.
pub const BROKEN: &[crate::Model] =
    &[("experts: calls on two streams without an order", 4, without_an_order)];

struct Bench {
    device: Arc<Device>,
    account: Arc<Account>,
    order: Order,
}

fn kernel() -> Kernel {
    let state = ExpertState { head: 4096, ..ExpertState::default() };
    Kernel::ExpertsRoute { state, call: ExpertCall::default() }
}

impl Bench {
    fn new() -> Arc<Self> {
        let (device, account) = backend::device();
        let order = Order::new(&device).unwrap();
        Arc::new(Self { device, account, order })
    }

    fn call(&self, stream: Stream) {
        self.order.queue(&self.device, stream, &mut |_| Ok(kernel()), &mut || {}).unwrap();
    }
}

fn three_threads() {
    let bench = Bench::new();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (bench, stream) = (bench.clone(), bench.account.new_stream());
            thread::spawn(move || bench.call(stream))
        })
        .collect();
    bench.call(bench.account.new_stream());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    bench.order.synchronize(&bench.device);
}

fn two_streams_in_turn() {
    let bench = Bench::new();
    let streams = [bench.account.new_stream(), bench.account.new_stream()];
    let (other, mine) = (bench.clone(), streams);
    let thread = thread::spawn(move || mine.into_iter().for_each(|stream| other.call(stream)));
    streams.into_iter().rev().for_each(|stream| bench.call(stream));
    thread.join().unwrap();
}

/// Calls on two streams of a capture, while another thread makes calls that run. The engine launches
/// the graph after them.
fn a_capture_beside_calls() {
    let bench = Bench::new();
    let [first, second, eager] = [(); 3].map(|()| bench.account.new_stream());
    let other = bench.clone();
    let thread = thread::spawn(move || (0..2).for_each(|_| other.call(eager)));
    bench.account.begin_capture(first);
    bench.call(first);
    let fork = bench.device.backend().new_event(false).unwrap();
    fork.record(first).unwrap();
    fork.wait(second, weighbridge::device::backend::WaitScope::Capture).unwrap();
    bench.call(second);
    bench.call(first);
    let graph = bench.account.end_capture(first);
    thread.join().unwrap();
    bench.account.order(eager, first);
    for _ in 0..2 {
        bench.account.replay(&graph, first).unwrap();
    }
}

fn without_an_order() {
    let bench = Bench::new();
    for _ in 0..2 {
        let stream = bench.account.new_stream();
        bench.device.backend().launch(kernel(), stream).unwrap();
    }
}
