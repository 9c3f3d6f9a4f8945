//! Types, shapes and strides, DLPack's structures, safetensors headers: pure, no memory is touched.

pub mod dlpack;
pub mod dtype;
pub mod fp8;
pub mod layout;
pub mod safetensors;
pub mod scale_grid;

pub use dtype::Dtype;
pub use layout::Layout;
