//! Runs the targets without a fuzzer: on every seed, on every input that once broke a promise, and on
//! pseudorandom inputs, which are the same in every run.

use std::fs;
use std::path::Path;

use weighbridge_fuzz::TARGETS;

/// Pseudorandom inputs of each target; half of them are seeds with some bytes changed.
const INPUTS: usize = 1000;

/// A pseudorandom number generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn inputs_in(folder: &str, target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(target);
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = files.map(|file| file.expect("it is listed").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("it can be read")).collect()
}

fn input(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.next() & 1 == 0 || seeds.is_empty() {
        let bytes = random.below(400);
        return (0..bytes).map(|_| random.next() as u8).collect();
    }
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(5) + 1 {
        let at = random.below(input.len());
        if let Some(byte) = input.get_mut(at) {
            *byte = random.next() as u8;
        }
    }
    input
}

fn replay(name: &str) {
    let (_, run) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    let seeds = inputs_in("seeds", name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let mut random = Random(7);
    let inputs = (0..INPUTS).map(|_| input(&mut random, &seeds));
    let mut runs = 0;
    for input in inputs_in("crashes", name).into_iter().chain(seeds.clone()).chain(inputs) {
        if std::panic::catch_unwind(|| run(&input)).is_err() {
            panic!("{name} breaks a promise on {input:?}");
        }
        runs += 1;
    }
    println!("{name}: {runs} inputs");
}

#[test]
fn headers_are_accepted_or_refused_as_the_format_says() {
    replay("headers");
}

#[test]
fn selectors_match_as_a_plain_matcher_does() {
    replay("selectors");
}

#[test]
fn plans_keep_their_promises_for_all_options() {
    replay("plans");
}

#[test]
fn tensors_are_imported_whole_or_left_to_the_caller() {
    replay("dlpack");
}

#[test]
fn layouts_and_scales_stay_inside_their_bytes() {
    replay("layouts");
}

#[test]
fn damaged_bytes_are_refused_and_decoded_within_their_memory() {
    replay("codec");
}

#[test]
fn slots_hold_the_experts_of_a_plain_model() {
    replay("experts");
}

#[test]
fn sequences_of_calls_leave_nothing_behind() {
    replay("calls");
}
