//! Locks, and the one rule for them: a panic in a thread that holds one does not make what is behind it
//! unusable for ever. Code that changes several things under a lock leaves them as they may stay at
//! every point where it can panic.

use std::sync::PoisonError;
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use std::thread;
use std::time::Duration;

/// Takes the lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    forced::point();
    guard
}

/// Takes the lock for reading.
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    let guard = lock.read().unwrap_or_else(PoisonError::into_inner);
    forced::point();
    guard
}

/// Takes the lock for writing.
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    let guard = lock.write().unwrap_or_else(PoisonError::into_inner);
    forced::point();
    guard
}

/// Waits for the condition, the lock given up meanwhile.
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// The same, for a time at most.
pub fn wait_timeout<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    condition.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

/// Panics that tests force: where an exported function begins, and with every lock held.
pub mod forced {
    #[cfg(not(feature = "forced-panics"))]
    /// A point at which tests can force a panic.
    #[inline(always)]
    pub fn point() {}

    #[cfg(feature = "forced-panics")]
    pub use on_purpose::{arm, disarm, point};

    #[cfg(feature = "forced-panics")]
    mod on_purpose {
        use std::cell::Cell;
        use std::panic::resume_unwind;

        thread_local! {
            static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        }

        /// This thread panics at its point number `number`, once.
        pub fn arm(number: u32) {
            LEFT.set(Some(number));
        }

        /// Whether it is still to come; it no longer does.
        pub fn disarm() -> bool {
            LEFT.take().is_some()
        }

        /// A point at which tests can force a panic.
        pub fn point() {
            match LEFT.get() {
                Some(0) => {
                    LEFT.set(None);
                    // As panic!, without a word on standard error.
                    resume_unwind(Box::new("forced by a test"));
                }
                left => LEFT.set(left.map(|left| left - 1)),
            }
        }
    }
}
