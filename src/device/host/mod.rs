//! The host as a device: its memory is the process's own, its streams are threads that work in
//! order, its events are points that those threads pass. Pinning is mlock.

pub mod device;
mod event;
mod kernels;
mod mlock;
mod stream;
