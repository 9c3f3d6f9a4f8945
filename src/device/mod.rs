//! Devices: CUDA devices and the host, behind one trait.

pub mod address_range;
pub mod backend;
pub mod cuda;
#[allow(clippy::module_inception)]
pub mod device;
pub mod experts;
pub mod host;
pub mod kernel;
pub mod owned;
pub mod policy;
pub mod registry;
pub mod stats;
pub mod unreleased;
