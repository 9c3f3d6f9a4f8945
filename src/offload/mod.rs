//! Weights under a budget.

pub mod fill;
mod mark;
pub mod schedule;
pub mod transfer;
mod waits;
