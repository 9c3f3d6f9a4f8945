//! The host as a device.

pub mod device;
mod event;
mod kernels;
mod mlock;
mod stream;
