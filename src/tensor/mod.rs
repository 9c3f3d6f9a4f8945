//! Element types, layouts, DLPack's structs, safetensors headers, FP8 formats, sizes of compressed tensors: pure, touches no
//! memory.

pub mod coded;
pub mod dlpack;
pub mod dtype;
pub mod fp8;
#[cfg(test)]
pub mod fp8_reference;
pub mod layout;
mod opaque;
pub mod safetensors;
pub mod scale_grid;
