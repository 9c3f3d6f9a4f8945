//! `wb_buffer`: a range of host memory.

pub mod handle;
pub mod info;
pub mod options;

pub use handle::*;
pub use info::*;
pub use options::*;

pub use crate::capi::progress::*;
