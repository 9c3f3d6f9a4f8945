//! Weights under a budget.

mod mark;
pub mod schedule;
pub mod transfer;
mod waits;
