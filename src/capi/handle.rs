//! Handles: reference-counted objects as C holds them. A debug build knows which are alive.

use crate::error::{Result, fail};
use crate::os::sync::Arc;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// An object that C holds by a pointer to an opaque type.
pub trait Handle {
    /// The opaque type.
    type Opaque;
    /// Its name in C.
    const NAME: &'static str;
}

/// Hands a reference to C.
pub fn give<T: Handle>(object: Arc<T>) -> *mut T::Opaque {
    alive::add(Arc::as_ptr(&object) as usize, T::NAME);
    Arc::into_raw(object).cast_mut().cast()
}

/// Looks at the object behind a handle.
///
/// # Safety
/// `handle` is NULL or was given out and not released for the last time.
pub unsafe fn borrow<'a, T: Handle>(handle: *const T::Opaque) -> Result<&'a T> {
    if handle.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the {} is NULL", T::NAME);
    }
    alive::check(handle as usize, T::NAME)?;
    // SAFETY: the pointer came from Arc::into_raw and a reference of C's keeps the object.
    Ok(unsafe { &*handle.cast::<T>() })
}

/// A reference of the library's own to the object behind a handle.
///
/// # Safety
/// As for [`borrow`].
pub unsafe fn share<T: Handle>(handle: *const T::Opaque) -> Result<Arc<T>> {
    // SAFETY: the caller's promise.
    let object: *const T = unsafe { borrow::<T>(handle) }?;
    // SAFETY: the pointer came from Arc::into_raw; the count is raised before it is owned twice.
    unsafe {
        Arc::increment_strong_count(object);
        Ok(Arc::from_raw(object))
    }
}

/// Adds a reference of C's.
///
/// # Safety
/// As for [`borrow`].
pub unsafe fn retain<T: Handle>(handle: *const T::Opaque) -> Result<()> {
    // SAFETY: the caller's promise.
    give(unsafe { share::<T>(handle) }?);
    Ok(())
}

/// Takes a reference of C's back; NULL is let through.
///
/// # Safety
/// As for [`borrow`]; the reference is not used again.
pub unsafe fn take<T: Handle>(handle: *const T::Opaque) -> Result<Option<Arc<T>>> {
    if handle.is_null() {
        return Ok(None);
    }
    alive::check(handle as usize, T::NAME)?;
    alive::remove(handle as usize);
    // SAFETY: the pointer came from give(), whose reference this is.
    Ok(Some(unsafe { Arc::from_raw(handle.cast::<T>()) }))
}

/// Which handles C holds, and how many references: a debug build refuses all others.
#[cfg(all(debug_assertions, not(loom)))]
mod alive {
    use crate::error::{Result, fail};
    use crate::os::process::PerProcess;
    use crate::os::sync;
    use crate::os::sync::{Mutex, MutexGuard};
    use crate::status::WB_ERR_HANDLE;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Alive {
        /// In a forked child handles of its parent may come, which are not in its table.
        inherited: bool,
        table: Mutex<HashMap<usize, (&'static str, usize)>>,
    }

    fn alive() -> &'static Alive {
        static ALIVE: PerProcess<Alive> = PerProcess::new();
        ALIVE.get(|parent| Alive { inherited: parent.is_some(), ..Alive::default() })
    }

    fn table() -> MutexGuard<'static, HashMap<usize, (&'static str, usize)>> {
        sync::lock(&alive().table)
    }

    pub fn add(handle: usize, name: &'static str) {
        table().entry(handle).or_insert((name, 0)).1 += 1;
    }

    pub fn check(handle: usize, name: &'static str) -> Result<()> {
        match table().get(&handle) {
            Some((kind, _)) if *kind == name => Ok(()),
            _ if alive().inherited => Ok(()),
            Some((kind, _)) => fail!(WB_ERR_HANDLE, "{handle:#x} is a {kind}, not a {name}"),
            None => fail!(WB_ERR_HANDLE, "{handle:#x} is no live {name}: released too often?"),
        }
    }

    pub fn remove(handle: usize) {
        let mut table = table();
        if let Some((_, count)) = table.get_mut(&handle) {
            *count -= 1;
            if *count == 0 {
                table.remove(&handle);
            }
        }
    }
}

#[cfg(any(not(debug_assertions), loom))]
mod alive {
    use crate::error::Result;

    pub fn add(_: usize, _: &'static str) {}
    pub fn check(_: usize, _: &'static str) -> Result<()> {
        Ok(())
    }
    pub fn remove(_: usize) {}
}
