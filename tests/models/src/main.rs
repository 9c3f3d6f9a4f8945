//! The parts of the library that threads share, in every order of events that threads can bring
//! about, up to a number of preemptions. The library is built with `--cfg loom`, which makes its
//! locks, references and counters loom's. The device is a [`backend`] that executes nothing and
//! records which stream has waited for which.

#[cfg(not(loom))]
compile_error!("the models need RUSTFLAGS=\"--cfg loom\": use `make models`");

mod backend;
mod handles;
mod pieces;
mod reclaimer;
mod replays;
mod ring;
mod slot_waits;

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A model's name, the most preemptions in one run of it, and the run.
type Model = (&'static str, usize, fn());

/// A name, a number of cases without threads, and the run of one.
type Enumerated = (&'static str, usize, fn(usize));

fn main() {
    let models: Vec<Model> =
        [handles::MODELS, reclaimer::MODELS, ring::MODELS, slot_waits::MODELS, replays::MODELS]
            .concat();
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
    for (name, cases, run) in [replays::ENUMERATED, pieces::ENUMERATED] {
        if !name.contains(&chosen) {
            continue;
        }
        let since = Instant::now();
        for case in 0..cases {
            check(0, move || run(case));
        }
        println!("{name}: {cases} cases, {:.1} s", since.elapsed().as_secs_f64());
        count += 1;
        orders += cases as u64;
    }
    check_that_defects_are_found();
    let (found, seconds) = (ring::BROKEN.len(), begin.elapsed().as_secs());
    println!(
        "reliability: {{\"models\": {count}, \"orders\": {orders}, \"self_checks\": {found}, \
         \"seconds\": {seconds}}}"
    );
    assert!(count > 0, "no model is named {chosen:?}");
}

/// Returns the number of orders; panics in the first order that breaks a rule.
fn try_all_orders(&(_, preemptions, run): &Model) -> u64 {
    let tried = Arc::new(AtomicU64::new(0));
    let counter = tried.clone();
    check(preemptions, move || {
        counter.fetch_add(1, Ordering::Relaxed);
        run();
    });
    tried.load(Ordering::Relaxed)
}

fn check(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(run);
}

/// Runs the models that break the ring's rules on purpose: each must panic.
fn check_that_defects_are_found() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    for model in ring::BROKEN {
        let found = panic::catch_unwind(|| try_all_orders(model)).is_err();
        assert!(found, "not found: {}", model.0);
        println!("found, as it must be: {}", model.0);
    }
    panic::set_hook(hook);
}
