//! Decides which parameters are offloaded, how each is transferred, and why. Pure: it allocates
//! nothing and uses no device.

#[cfg(test)]
mod budget_tests;
pub mod compression;
mod device_budget;
#[cfg(test)]
mod expert_tests;
pub mod experts;
pub mod fixed;
mod group_bytes;
pub mod grouping;
pub mod heat;
mod input;
pub mod json;
#[cfg(test)]
mod kept_tests;
mod leaving;
pub mod order;
pub mod parameter;
pub mod pieces;
mod placement;
#[allow(clippy::module_inception)]
pub mod plan;
pub mod planner;
pub mod quantization;
pub mod reason;
pub mod residency;
pub mod selector;
pub mod sharing;
pub mod slot_packing;
pub mod slot_ring;
mod step_model;
#[cfg(test)]
mod tests;
mod trial;
mod warnings;
