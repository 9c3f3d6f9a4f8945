//! Quantization to 8-bit floats as a stream of bounded size, whatever the tensor's.

mod chunking;
mod pipeline;
pub mod quantizer;
#[cfg(test)]
pub mod reference;
pub mod task;
#[cfg(test)]
mod tests;
mod workspace;
