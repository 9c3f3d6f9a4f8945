//! `wb_view`: a typed, shaped, strided window into memory.

pub mod handle;
pub mod info;
pub mod layout;

pub use handle::*;
pub use info::*;
pub use layout::*;
