//! The schedule: decides which unit is in its slot, and orders copies and kernels, behind
//! `acquire_group` and `release_group`.
//!
//! A *unit* is host memory that is copied as one. Its *slot* is a fixed range of device memory;
//! units that are never needed at the same time share it. An engine acquires a *group*: all units
//! that some of its kernels read. Zero-copy units have no slot and need nothing here. Of the
//! others,
//!
//! - *prefetched* units are copied before their group is acquired. Their groups form the *ring*, in
//!   the order of a step, of which `depth` have their slots at the same time;
//! - *on-demand* units are copied every time that their group is acquired.
//!
//! The host never waits in these calls. Fences on streams make every order:
//!
//! - `acquire` makes the engine's stream wait for the unit's `ready` fence, which its copy stream
//!   records after the copy. Until the release, no copy into the slot is queued.
//! - `release` records a last use on the engine's stream, then queues the copies of the next
//!   `depth` groups. A copy waits for the last uses of all units that share its slot. A slot is not
//!   overwritten while its unit is acquired, or needed sooner than the one to be copied.
//!
//! Once a step was captured, none relies on a copy of another, since a replay overwrites slots and
//! is not seen. Before that, the end of a step prefetches the first groups of the next.
//!
//! A group that is acquired out of order is copied when it is acquired: this costs time, nothing
//! else.
//!
//! Compressed units are decoded into their slots, large ones out of `windows`, which copies fill.
//!
//! `schedule` has the lock and the calls, `machine` the state, `load` the copies, `steps` which of
//! them a call relies on, `checks` the calls that are refused; `arrangement` is the input.

pub mod arrangement;
mod checks;
mod fence;
mod holders;
mod last_use;
mod load;
mod machine;
#[allow(clippy::module_inception)]
pub mod schedule;
mod slot;
pub mod stats;
mod steps;
#[cfg(test)]
mod tests;
mod unit_copy;
mod wait_timer;
mod windows;
