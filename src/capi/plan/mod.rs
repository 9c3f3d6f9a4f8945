//! `wb_plan`: the placement of every parameter, before anything is allocated.

pub mod handle;
pub mod info;
pub mod options;

pub use handle::*;
pub use info::*;
pub use options::*;
