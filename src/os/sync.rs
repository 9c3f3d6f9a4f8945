//! Locks, references and threads, and the one rule for locks: a panic while one is held does not
//! poison it. Code that changes several things under a lock keeps them valid at every point where
//! it can panic.
//!
//! With `--cfg loom`, as tests/models builds the library, locks, references and counters are
//! loom's, which tries every order of events.

use std::sync::PoisonError;
pub use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use std::thread;
use std::time::Duration;

#[cfg(loom)]
pub use loom::thread::ThreadId;
#[cfg(not(loom))]
pub use std::thread::ThreadId;

#[cfg(loom)]
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard, atomic::AtomicU64};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, atomic::AtomicU64};

#[cfg(not(loom))]
pub use std::sync::Weak;

/// A reference that does not keep its object alive. Loom has none: there it is like any other.
#[cfg(loom)]
pub struct Weak<T>(Arc<T>);

#[cfg(loom)]
impl<T> Weak<T> {
    /// The object.
    pub fn upgrade(&self) -> Option<Arc<T>> {
        Some(self.0.clone())
    }
}

/// A reference that does not keep its object alive.
pub fn downgrade<T>(object: &Arc<T>) -> Weak<T> {
    #[cfg(loom)]
    return Weak(object.clone());
    #[cfg(not(loom))]
    return Arc::downgrade(object);
}

/// The calling thread.
pub fn thread_id() -> ThreadId {
    #[cfg(loom)]
    return loom::thread::current().id();
    #[cfg(not(loom))]
    return thread::current().id();
}

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

/// When a wait ends at the latest.
pub struct Deadline {
    #[cfg(not(loom))]
    at: std::time::Instant,
    /// Loom has no time: a short wait is over at its second look at the clock, a long one never.
    #[cfg(loom)]
    left: std::cell::Cell<Option<Duration>>,
}

impl Deadline {
    /// The end of a wait that begins now.
    pub fn after(timeout: Duration) -> Self {
        #[cfg(not(loom))]
        return Self { at: std::time::Instant::now() + timeout };
        #[cfg(loom)]
        return Self { left: std::cell::Cell::new(Some(timeout)) };
    }

    /// The time that is left; `None` once none is.
    pub fn left(&self) -> Option<Duration> {
        #[cfg(not(loom))]
        let left = self.at.checked_duration_since(std::time::Instant::now());
        #[cfg(loom)]
        let left = self.left.get();
        #[cfg(loom)]
        self.left.set(left.filter(|left| is_long(*left)));
        left.filter(|left| !left.is_zero())
    }
}

/// Whether loom lets a wait of this time end by nothing but a notification, so that a missing
/// notification is found. A shorter one can end at any moment.
#[cfg(loom)]
fn is_long(time: Duration) -> bool {
    time >= Duration::from_secs(1)
}

/// Waits for the condition and releases the lock meanwhile.
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// The same for at most `time`; `guard` is of `mutex`.
pub fn wait_timeout<'a, T>(
    condition: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    #[cfg(loom)]
    if !is_long(time) {
        drop(guard);
        loom::thread::yield_now();
        return lock(mutex);
    }
    let _ = mutex;
    condition.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

/// Panics that tests force: at the start of every exported function, and with every lock held.
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

        /// Makes this thread panic once, at its point number `number`.
        pub fn arm(number: u32) {
            LEFT.set(Some(number));
        }

        /// Cancels the panic. Returns whether it had not occurred.
        pub fn disarm() -> bool {
            LEFT.take().is_some()
        }

        /// A point at which tests can force a panic.
        pub fn point() {
            match LEFT.get() {
                Some(0) => {
                    LEFT.set(None);
                    // As panic!, without output on standard error.
                    resume_unwind(Box::new("forced by a test"));
                }
                left => LEFT.set(left.map(|left| left - 1)),
            }
        }
    }
}
