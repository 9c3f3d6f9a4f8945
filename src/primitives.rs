//! Locks and shared references: those of the standard library. What threads do to each other is
//! written against this module, so that checkers can put their own in their place: the models
//! (tests/models) locks that try every order of events, ThreadSanitizer (tests/checkers) such as it
//! knows.

pub use std::sync::Arc;
#[cfg(not(weighbridge_pthread))]
pub use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

#[cfg(weighbridge_pthread)]
#[allow(missing_docs)]
#[path = "../tests/checkers/pthread.rs"]
mod pthread;
#[cfg(weighbridge_pthread)]
pub use pthread::*;
