//! The host as a device.

mod addresses;
pub mod codec;
pub mod device;
mod event;
mod kernels;
mod mlock;
mod stream;
