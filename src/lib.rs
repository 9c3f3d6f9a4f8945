//! weighbridge carries model weights over the link between host memory and an accelerator.
//!
//! The public interface is the C one, of [`capi`] and the headers in `include/`. The floors from top
//! to bottom: [`capi`]; [`offload`] commits a plan and carries its groups, [`cache`] keeps experts of a
//! mixture in slots; [`plan`], [`quant`]
//! and [`codec`] place, quantize and compress parameters; [`memory`] holds buffers and views; [`device`] is CUDA or the host;
//! [`os`] and [`tensor`] know nothing of devices. Each uses only those below it. ARCHITECTURE.md is
//! the map.

#[cfg(not(target_os = "linux"))]
compile_error!("weighbridge is for Linux only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("weighbridge is for 64-bit machines only");
#[cfg(panic = "abort")]
compile_error!(
    "panic = \"abort\" would let a defect here end the engine's process: use \"unwind\""
);

pub mod cache;
pub mod capi;
pub mod codec;
pub mod device;
pub mod error;
pub mod memory;
pub mod offload;
pub mod os;
pub mod plan;
pub mod quant;
pub mod status;
pub mod tensor;
