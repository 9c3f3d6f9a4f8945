//! Weights under a budget: what leaves the device, where it is kept, and what carries it back in time.
//!
//! A [`plan`] says which parameter goes where and why before anything is allocated. An [`offloader`] is
//! a plan that was committed: its bytes lie in one arena of host memory, and a [`schedule`] copies them
//! into slots on the device, or lets the device read them in place.

mod draft;
mod fill;
mod keeping;
pub mod link;
mod mark;
pub mod offloader;
pub mod order;
mod own;
pub mod parameter;
pub mod plan;
mod planner;
pub mod quantize;
pub mod reason;
mod reconcile;
mod replace;
pub mod report;
mod room;
pub mod schedule;
mod seats;
mod selector;
mod slots;
mod state;
mod transfer;
mod waits;
