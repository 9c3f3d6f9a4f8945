//! Numbers of 8 bits: quantizing as a stream of bounded size, whatever the tensor's.
//!
//! [`geometry`] says which elements share a scale. A [`quantizer`] brings a tensor through its staging
//! memory on the device, chunk by chunk, and runs the kernels of [`crate::device::kernel`] there.

pub mod chunks;
pub mod geometry;
pub mod quantizer;
#[cfg(test)]
pub mod reference;
mod run;
#[cfg(test)]
mod tests;
