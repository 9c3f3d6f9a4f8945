//! The expert cache: experts of a mixture in slots on the device, the others in pinned host memory.

#[allow(clippy::module_inception)]
pub mod cache;
pub mod calls;
pub mod counters;
pub mod experts;
mod follow;
mod memory;
pub mod order;
pub mod pool;
mod range;
#[cfg(test)]
mod reference;
mod resizing;
mod sources;
#[cfg(test)]
mod tests;
