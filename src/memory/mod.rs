//! Host memory that a device can reach: buffers, views into them, and how they are given back.

mod allocate;
pub mod buffer;
pub mod deferred;
mod file;
pub mod link;
mod pin;
mod register;
pub mod safetensors_file;
pub mod staging;
pub mod view;
