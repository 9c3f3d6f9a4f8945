#![doc = include_str!("conventions.md")]
//!
//! # Safety
//!
//! One contract holds for every `extern "C"` function, and the `SAFETY` comments of this module
//! refer to it:
//!
//! - a pointer is NULL or valid for the use that the function's comment describes;
//! - a handle is NULL or alive, and a reference that was dropped is not used again;
//! - a struct has the size that it begins with, and what it points to is as its comments say;
//! - a string ends in NUL;
//! - memory at an address stays mapped, and is not written by others, until the work that the call
//!   starts with it is done;
//! - a callback may be called with its `user` pointer, on the threads that its type names, and
//!   returns.
#![allow(unsafe_code)]
#![allow(non_camel_case_types)]
// The contract is above, once.
#![allow(clippy::missing_safety_doc)]

mod address;
pub mod arbiter;
mod arguments;
pub mod buffer;
mod call;
mod cancel;
pub mod codec;
pub mod device;
pub mod dlpack;
mod enumeration;
pub mod error;
pub mod experts;
#[cfg(feature = "forced-panics")]
pub mod forced;
#[doc(hidden)]
pub mod handle;
pub mod log;
pub mod offloader;
pub mod parameter;
pub mod plan;
pub mod progress;
pub mod python;
pub mod quantizer;
pub mod safetensors;
pub mod status;
mod structs;
pub mod tristate;
pub mod version;
pub mod view;
