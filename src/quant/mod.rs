//! Quantizes tensors to FP8 and dequantizes them, through staging memory of bounded size.

pub mod arriving;
pub mod chunking;
mod gather;
mod passes;
mod pipeline;
pub mod quantizer;
mod rows;
pub mod task;
#[cfg(test)]
mod tests;
mod workspace;
