//! Which unit is in its slot, and when it is copied there: the machinery behind acquire and release.

pub mod arrangement;
mod fence;
mod last_use;
mod machine;
#[allow(clippy::module_inception)]
pub mod schedule;
#[cfg(test)]
mod tests;
mod unit_copy;
mod wait_timer;
