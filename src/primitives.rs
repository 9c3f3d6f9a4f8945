//! Locks, shared references and threads: those of the standard library. What threads do to each other is
//! written against this module, so that checkers can put their own in their place: the models
//! (tests/models) such as try every order of events, ThreadSanitizer (tests/checkers) such as it
//! knows.

#[cfg(not(weighbridge_pthread))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(weighbridge_pthread))]
pub use std::thread;

#[cfg(weighbridge_pthread)]
#[allow(missing_docs)]
#[path = "../tests/checkers/pthread.rs"]
mod pthread;
#[cfg(weighbridge_pthread)]
#[allow(missing_docs)]
#[path = "../tests/checkers/references.rs"]
mod references;
#[cfg(weighbridge_pthread)]
#[allow(missing_docs)]
#[path = "../tests/checkers/threads.rs"]
pub mod thread;
#[cfg(weighbridge_pthread)]
pub use {pthread::*, references::*};
