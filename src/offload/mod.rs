//! Offloading: a committed plan, its memory, and the calls of a step.

mod accounting;
mod add;
pub mod address_state;
pub mod addresses;
mod alias;
pub mod arbiter;
mod backing;
mod bulk_copy;
#[cfg(test)]
mod change_tests;
mod commit;
mod compressed;
mod device_encode;
pub mod device_plan;
mod edit;
#[cfg(test)]
mod encode_tests;
pub mod encoded;
pub mod encoded_source;
mod expert_caches;
pub mod expert_pools;
pub mod expert_table;
#[cfg(test)]
mod expert_tests;
mod held_buffers;
mod host_memory;
mod host_space;
mod intervals;
mod kept;
mod move_target;
pub mod moves;
pub mod offloader;
mod parameter_table;
pub mod parameters;
mod pieces;
#[cfg(test)]
mod pieces_tests;
mod quantize;
pub mod rebalance;
mod reconcile;
mod replace;
mod requantize;
mod resize;
#[cfg(test)]
mod resize_tests;
pub mod schedule;
mod scratch;
mod slot_budget;
mod slot_fit;
mod slot_sums;
mod source_store;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod window_range;
