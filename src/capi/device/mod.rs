//! `wb_device`: a CUDA device, or the host.

pub mod handle;
pub mod info;
pub mod memory;
pub mod stream;

pub use handle::*;
pub use info::*;
pub use memory::*;
pub use stream::*;

pub use crate::capi::tristate::*;
