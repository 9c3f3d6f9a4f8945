//! The operating system: memory, limits, threads and processes. Independent of devices.
#![allow(unsafe_code)]

pub mod beside;
pub mod bytes;
pub mod cgroup;
pub mod environment;
pub mod float_modes;
pub mod in_order;
pub mod log;
pub mod mapping;
pub mod memlock;
pub mod page;
pub mod parallel;
pub mod proc_maps;
pub mod process;
pub mod reservation;
pub mod span;
pub mod sync;
