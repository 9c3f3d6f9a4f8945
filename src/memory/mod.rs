//! Host memory that a device accesses: buffers, views of them, and deferred releases.

mod allocate;
pub mod buffer;
pub mod deferred;
mod file;
pub mod link;
mod pin;
mod register;
pub mod safetensors_file;
pub mod staging;
pub mod transfer;
pub mod view;
