//! Locks and shared references: those of the standard library. What threads do to each other with them
//! is written against this module, so that the models (tests/models) run the same sources over locks
//! and references that try every order of events.

pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
