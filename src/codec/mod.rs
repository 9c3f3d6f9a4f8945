//! Compresses weights without loss. docs/codec.md defines the format; the work is done by the kernels
//! of `kernels/codec.c` and `kernels/codec.cu`.

pub mod format;
#[cfg(test)]
mod hostile_tests;
pub mod in_memory;
pub mod queue;
#[cfg(test)]
pub mod reference;
#[cfg(test)]
mod tests;
