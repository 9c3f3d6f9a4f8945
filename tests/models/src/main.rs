//! The parts of the library that threads share, in every order of events that threads can bring
//! about, up to a number of preemptions. The library is built with `--cfg loom`, which makes its
//! locks, references and counters loom's. The device is a [`backend`] that executes nothing and
//! records which stream has waited for which.

#[cfg(not(loom))]
compile_error!("the models need RUSTFLAGS=\"--cfg loom\": use `make models`");

mod backend;
mod experts;
mod handles;
mod moves;
mod pieces;
mod pools;
mod ranges;
mod reclaimer;
mod replays;
mod resizing;
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
    // With the most preemptions of a quick run.
    let models = [
        (handles::MODELS, 3),
        (reclaimer::MODELS, 2),
        (ring::MODELS, 2),
        (slot_waits::MODELS, 2),
        (replays::MODELS, 3),
        (experts::MODELS, 3),
        (moves::MODELS, 2),
        (pools::MODELS, 2),
    ];
    let models =
        models.into_iter().flat_map(|(models, most)| models.iter().map(move |one| (one, most)));
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let quick = arguments.first().is_some_and(|first| first == "--quick");
    arguments.drain(..usize::from(quick));
    let chosen = arguments.into_iter().next().unwrap_or_default();
    let step = if quick { 16 } else { 1 };
    let begin = Instant::now();
    let (mut count, mut orders) = (0, 0);
    for (model, most) in models.filter(|(model, _)| model.0.contains(&chosen)) {
        let since = Instant::now();
        let tried = try_all_orders(model, if quick { most } else { usize::MAX });
        println!("{}: {tried} orders, {:.1} s", model.0, since.elapsed().as_secs_f64());
        count += 1;
        orders += tried;
    }
    for (name, cases, run) in
        [replays::ENUMERATED, pieces::ENUMERATED, moves::ENUMERATED, pools::ENUMERATED]
    {
        if !name.contains(&chosen) {
            continue;
        }
        let since = Instant::now();
        // One case of each `step`, another digit each time.
        let chosen = (0..cases / step).map(|index| index * step + index % step);
        let tried = chosen.len();
        for case in chosen {
            check(0, move || run(case));
        }
        println!("{name}: {tried} cases, {:.1} s", since.elapsed().as_secs_f64());
        count += 1;
        orders += tried as u64;
    }
    check_that_defects_are_found();
    let found = broken().len();
    let seconds = begin.elapsed().as_secs();
    println!(
        "reliability: {{\"models\": {count}, \"orders\": {orders}, \"self_checks\": {found}, \
         \"seconds\": {seconds}}}"
    );
    assert!(count > 0, "no model is named {chosen:?}");
}

/// Returns the number of orders, of at most `most` preemptions; panics in the first order that breaks
/// a rule.
fn try_all_orders(&(_, preemptions, run): &Model, most: usize) -> u64 {
    let tried = Arc::new(AtomicU64::new(0));
    let counter = tried.clone();
    check(preemptions.min(most), move || {
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

/// The models that break a rule on purpose.
fn broken() -> Vec<Model> {
    [ring::BROKEN, experts::BROKEN, moves::BROKEN, pools::BROKEN].concat()
}

/// Runs them: each must panic.
fn check_that_defects_are_found() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    for model in broken() {
        let found = panic::catch_unwind(|| try_all_orders(&model, usize::MAX)).is_err();
        assert!(found, "not found: {}", model.0);
        println!("found, as it must be: {}", model.0);
    }
    panic::set_hook(hook);
}
