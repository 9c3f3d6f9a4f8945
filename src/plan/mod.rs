//! Decides which parameters are offloaded, how each is transferred, and why. Pure: it allocates
//! nothing and uses no device.

#[cfg(test)]
mod budget_tests;
mod device_budget;
pub mod grouping;
mod input;
pub mod json;
mod leaving;
pub mod order;
pub mod parameter;
mod placement;
#[allow(clippy::module_inception)]
pub mod plan;
pub mod planner;
pub mod quantization;
pub mod reason;
pub mod selector;
pub mod slot_packing;
pub mod slot_ring;
mod step_model;
#[cfg(test)]
mod tests;
mod trial;
mod warnings;
