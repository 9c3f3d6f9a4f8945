//! Locks for ThreadSanitizer, in place of the standard library's: that one is compiled without the
//! sanitizer, so that what its locks order would look like races. The sanitizer knows those of the C
//! library. `src/primitives.rs` takes this file in with `--cfg weighbridge_pthread`, and only then, and
//! with it `references.rs` and `threads.rs`.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, TryLockError, TryLockResult};
use std::time::Duration;

/// A lock of the C library, of one kind.
macro_rules! raw {
    ($name:ident, $type:ident, $initial:ident, $destroy:ident) => {
        struct $name(UnsafeCell<libc::$type>);

        impl $name {
            const fn new() -> Self {
                Self(UnsafeCell::new(libc::$initial))
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                unsafe { libc::$destroy(self.0.get()) };
            }
        }
    };
}

raw!(RawMutex, pthread_mutex_t, PTHREAD_MUTEX_INITIALIZER, pthread_mutex_destroy);
raw!(RawRwLock, pthread_rwlock_t, PTHREAD_RWLOCK_INITIALIZER, pthread_rwlock_destroy);
raw!(RawCondvar, pthread_cond_t, PTHREAD_COND_INITIALIZER, pthread_cond_destroy);

/// As `std::sync::Mutex`; never poisoned.
pub struct Mutex<T> {
    raw: RawMutex,
    value: UnsafeCell<T>,
}

unsafe impl<T: Send> Send for Mutex<T> {}
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self { raw: RawMutex::new(), value: UnsafeCell::new(value) }
    }

    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        unsafe { libc::pthread_mutex_lock(self.raw.0.get()) };
        Ok(MutexGuard(self))
    }

    pub fn into_inner(self) -> LockResult<T> {
        Ok(self.value.into_inner())
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

pub struct MutexGuard<'a, T>(&'a Mutex<T>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        unsafe { libc::pthread_mutex_unlock(self.0.raw.0.get()) };
    }
}

/// As `std::sync::Condvar`.
pub struct Condvar(RawCondvar);

unsafe impl Send for Condvar {}
unsafe impl Sync for Condvar {}

impl Condvar {
    pub const fn new() -> Self {
        Self(RawCondvar::new())
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        unsafe { libc::pthread_cond_wait(self.0.0.get(), guard.0.raw.0.get()) };
        Ok(guard)
    }

    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        const SECOND: i64 = 1_000_000_000;
        unsafe {
            let mut until = std::mem::zeroed::<libc::timespec>();
            libc::clock_gettime(libc::CLOCK_REALTIME, &mut until);
            let nanoseconds = until.tv_nsec + i64::from(timeout.subsec_nanos());
            let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
            until.tv_sec =
                until.tv_sec.saturating_add(seconds).saturating_add(nanoseconds / SECOND);
            until.tv_nsec = nanoseconds % SECOND;
            libc::pthread_cond_timedwait(self.0.0.get(), guard.0.raw.0.get(), &until);
        }
        Ok((guard, ()))
    }

    pub fn notify_one(&self) {
        unsafe { libc::pthread_cond_signal(self.0.0.get()) };
    }

    pub fn notify_all(&self) {
        unsafe { libc::pthread_cond_broadcast(self.0.0.get()) };
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

/// As `std::sync::RwLock`; never poisoned.
pub struct RwLock<T> {
    raw: RawRwLock,
    value: UnsafeCell<T>,
}

unsafe impl<T: Send> Send for RwLock<T> {}
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        Self { raw: RawRwLock::new(), value: UnsafeCell::new(value) }
    }

    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        unsafe { libc::pthread_rwlock_rdlock(self.raw.0.get()) };
        Ok(RwLockReadGuard(self))
    }

    pub fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        match unsafe { libc::pthread_rwlock_tryrdlock(self.raw.0.get()) } {
            0 => Ok(RwLockReadGuard(self)),
            _ => Err(TryLockError::WouldBlock),
        }
    }

    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        unsafe { libc::pthread_rwlock_wrlock(self.raw.0.get()) };
        Ok(RwLockWriteGuard(self))
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RwLock")
    }
}

pub struct RwLockReadGuard<'a, T>(&'a RwLock<T>);

pub struct RwLockWriteGuard<'a, T>(&'a RwLock<T>);

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        unsafe { libc::pthread_rwlock_unlock(self.0.raw.0.get()) };
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        unsafe { libc::pthread_rwlock_unlock(self.0.raw.0.get()) };
    }
}
