//! Offloading: a committed plan, its memory, and the machinery that carries groups to the device.

mod alias;
mod bulk_copy;
mod commit;
pub mod device_plan;
mod host_space;
pub mod offloader;
mod quantize;
mod reconcile;
mod replace;
pub mod schedule;
mod state;
