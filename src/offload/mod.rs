//! Offloading: a committed plan, its memory, and the calls of a step.

mod accounting;
mod add;
mod alias;
mod backing;
mod bulk_copy;
#[cfg(test)]
mod change_tests;
mod commit;
pub mod device_plan;
mod edit;
mod held_buffers;
mod host_memory;
mod host_space;
mod intervals;
pub mod offloader;
mod parameter_table;
pub mod parameters;
mod quantize;
mod reconcile;
mod replace;
mod requantize;
pub mod schedule;
mod slot_budget;
mod slot_sums;
mod source_store;
mod state;
mod stats;
#[cfg(test)]
mod tests;
