//! What the fuzzer runs: for each subject a function of bytes, which reads a case from them, hands it to
//! the C interface as a user would, and panics where a promise is broken. `targets/` are libFuzzer's
//! entries, `tests/replay.rs` the plain test's.
//!
//! Pointers are always valid, as the interface asks: everything else is arbitrary.

mod c;
pub mod calls;
pub mod dlpack;
pub mod headers;
pub mod layouts;
mod memory;
mod oracle;
pub mod plans;
pub mod selectors;

/// A target: a subject's function of bytes.
pub type Target = fn(&[u8]);

/// All of them by their names.
pub const TARGETS: [(&str, Target); 6] = [
    ("headers", headers::run),
    ("selectors", selectors::run),
    ("plans", plans::run),
    ("dlpack", dlpack::run),
    ("layouts", layouts::run),
    ("calls", calls::run),
];
