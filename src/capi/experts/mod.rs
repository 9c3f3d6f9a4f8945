//! `wb_expert_cache`: experts of a mixture in slots on the device.

pub mod calls;
pub mod handle;
pub mod info;
pub mod options;

pub use calls::*;
pub use handle::*;
pub use info::*;
pub use options::*;
