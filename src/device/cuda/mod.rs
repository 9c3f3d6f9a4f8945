//! CUDA devices, through the driver API.
#![allow(unsafe_code)]

mod addresses;
mod capabilities;
mod code;
mod context;
pub mod device;
mod driver;
mod event;
mod kernels;
mod memory;
mod ptx;
mod stream;
