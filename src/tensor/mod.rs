//! Types, shapes and strides, DLPack's structures, safetensors headers: pure, no memory is touched.

pub mod dlpack;
pub mod dtype;
pub mod layout;
pub mod safetensors;

pub use dtype::Dtype;
pub use layout::Layout;
