//! Loom's locks and references under the names of the library's `primitives`. A timed wait differs: loom
//! knows no time, so a short one may end at any moment, and a long one ends only when it is woken,
//! which shows a wake-up that is missing.

use std::ops::{Deref, DerefMut};
use std::sync::LockResult;
use std::time::Duration;

pub use loom::sync::Arc;
// What no model is about.
pub use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Waits that are longer than any that the library uses to look again.
const LONG: Duration = Duration::from_secs(1);

/// A lock.
pub struct Mutex<T>(loom::sync::Mutex<T>);

/// The lock while it is held; remembers which, so that a wait can let go of it.
pub struct MutexGuard<'a, T> {
    held: Option<loom::sync::MutexGuard<'a, T>>,
    lock: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    fn hold(&self) -> MutexGuard<'_, T> {
        let held = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { held: Some(held), lock: self }
    }

    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(self.hold())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.held.as_ref().expect("held outside of waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("held outside of waits")
    }
}

/// A signal.
pub struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    pub fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let held = guard.held.take().expect("held outside of waits");
        guard.held = Some(self.0.wait(held).unwrap_or_else(|poisoned| poisoned.into_inner()));
        Ok(guard)
    }

    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        if timeout > LONG {
            return Ok((self.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner()), ()));
        }
        let lock = guard.lock;
        drop(guard);
        loom::thread::yield_now();
        Ok((lock.hold(), ()))
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
