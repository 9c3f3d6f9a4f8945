//! Tensors of other libraries, through DLPack.

pub mod export;
pub mod import;
pub(super) mod managed;

pub use export::*;
pub use import::*;
