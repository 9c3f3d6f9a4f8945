//! `wb_quantizer`: quantizes tensors to FP8 and dequantizes them.

pub mod handle;
pub mod options;
pub mod tensor;

pub use handle::*;
pub use options::*;
pub use tensor::*;
