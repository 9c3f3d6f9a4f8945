//! Fuzz targets. Each is a function of bytes, which decodes a case from them, passes it to the C interface
//! as a user would, and panics if a promise is broken. `targets/` has the entry points for libFuzzer,
//! `tests/replay.rs` the one for a plain test.
//!
//! Pointers are always valid, as the interface requires: everything else is arbitrary.

mod c;
pub mod calls;
pub mod codec;
pub mod dlpack;
pub mod experts;
pub mod headers;
pub mod layouts;
mod memory;
mod oracle;
pub mod plans;
pub mod selectors;

/// A target.
pub type Target = fn(&[u8]);

/// All targets and their names.
pub const TARGETS: [(&str, Target); 8] = [
    ("headers", headers::run),
    ("selectors", selectors::run),
    ("plans", plans::run),
    ("dlpack", dlpack::run),
    ("layouts", layouts::run),
    ("codec", codec::run),
    ("experts", experts::run),
    ("calls", calls::run),
];
