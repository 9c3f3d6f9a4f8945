//! Host memory that a device can reach: buffers, views into them, and how they are given back.

mod allocate;
pub mod buffer;
pub mod deferred;
mod file;
pub mod limits;
pub mod maps;
pub mod model_file;
pub mod pages;
pub mod parallel;
mod pin;
mod register;
pub mod view;

pub use buffer::{Buffer, BufferOptions};
pub use view::View;
