//! CUDA devices, through the driver API.
#![allow(unsafe_code)]

mod context;
pub mod device;
mod driver;
mod event;
mod kernels;
