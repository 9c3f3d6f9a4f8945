//! `wb_offloader`: a committed plan, which keeps parameters and transfers them.

pub mod handle;
pub mod parameters;
pub mod resize;
pub(in crate::capi) mod source;
pub mod stats;
pub mod step;

pub use handle::*;
pub use parameters::*;
pub use resize::*;
pub use stats::*;
pub use step::*;
