//! The C interface: the only `extern "C"` of the library, one file for each noun.
#![allow(unsafe_code)]
#![allow(non_camel_case_types)]

mod arguments;
pub mod buffer;
mod cancel;
pub mod device;
pub mod dlpack;
pub mod error;
#[cfg(feature = "forced-panics")]
pub mod forced;
#[doc(hidden)]
pub mod handle;
pub mod offloader;
pub mod parameter;
pub mod plan;
pub mod quantizer;
pub mod safetensors;
pub mod version;
pub mod view;
