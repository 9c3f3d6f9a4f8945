//! The concurrent parts of the library in every order of events that threads can bring about, bounded
//! as each model says. The sources are the library's own; what they stand on is replaced: locks,
//! shared references and threads are loom's ([`primitives`]), and the device keeps account of who has
//! waited for whom ([`device`]).

// Each source is only partly used.
#![allow(dead_code, unused_imports)]

#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/capi/handle.rs"]
mod handle;
#[path = "../../../src/log.rs"]
mod log;
#[path = "../../../src/offload/mark.rs"]
mod mark;
#[path = "../../../src/memory/pages/mod.rs"]
mod pages;
#[path = "../../../src/process.rs"]
mod process;
#[path = "../../../src/memory/deferred/reclaimer.rs"]
mod reclaimer;
#[path = "../../../src/offload/schedule.rs"]
mod schedule;
#[path = "../../../src/status.rs"]
mod status;
#[path = "../../../src/sync.rs"]
mod sync;
#[path = "../../../src/offload/waits.rs"]
mod waits;

mod device;
mod primitives;
mod transfer;

mod handles;
mod reclaiming;
mod ring;

/// Where the sources look for each other.
mod memory {
    pub(crate) use crate::pages;
}
mod offload {
    pub(crate) use crate::{mark, transfer, waits};
}

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A model's name, the most preemptions that are tried in one run of it, and what its threads do.
type Model = (&'static str, usize, fn());

fn main() {
    let models: Vec<Model> = [handles::MODELS, reclaiming::MODELS, ring::MODELS].concat();
    let chosen = std::env::args().nth(1).unwrap_or_default();
    let begin = Instant::now();
    let (mut count, mut orders) = (0, 0);
    for model in models.iter().filter(|model| model.0.contains(&chosen)) {
        let since = Instant::now();
        let tried = try_all_orders(model);
        println!("{}: {tried} orders, {:.1} s", model.0, since.elapsed().as_secs_f64());
        count += 1;
        orders += tried;
    }
    find_what_is_broken();
    let (found, seconds) = (ring::BROKEN.len(), begin.elapsed().as_secs());
    println!(
        "reliability: {{\"models\": {count}, \"orders\": {orders}, \"self_checks\": {found}, \
         \"seconds\": {seconds}}}"
    );
    assert!(count > 0, "no model is named {chosen:?}");
}

/// How many orders there were; a panic where one breaks a rule.
fn try_all_orders(&(_, preemptions, run): &Model) -> u64 {
    let tried = Arc::new(AtomicU64::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    let one_more = tried.clone();
    builder.check(move || {
        one_more.fetch_add(1, Ordering::Relaxed);
        run();
    });
    tried.load(Ordering::Relaxed)
}

/// Uses that break the ring's rules on purpose are found.
fn find_what_is_broken() {
    let say = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    for model in ring::BROKEN {
        let found = panic::catch_unwind(|| try_all_orders(model)).is_err();
        assert!(found, "not found: {}", model.0);
        println!("found, as it must be: {}", model.0);
    }
    panic::set_hook(say);
}
