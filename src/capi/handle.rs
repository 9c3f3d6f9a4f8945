//! Handles: reference-counted objects that C holds by a pointer to an opaque type. A debug build
//! knows which are alive.

use crate::error::{Result, fail};
use crate::os::sync::Arc;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// A type of which C sees pointers only.
pub trait Opaque: Sized {
    /// What such a pointer points to.
    type Object;
    /// The name in C.
    const NAME: &'static str;
}

/// Implements [`Opaque`].
macro_rules! opaque {
    ($name:ident, $object:ty) => {
        impl $crate::capi::handle::Opaque for $name {
            type Object = $object;
            const NAME: &'static str = stringify!($name);
        }
    };
}
pub(super) use opaque;

/// Gives a reference to C.
pub fn give<O: Opaque>(object: Arc<O::Object>) -> *mut O {
    alive::add(Arc::as_ptr(&object) as usize, O::NAME);
    Arc::into_raw(object).cast_mut().cast()
}

/// The object behind a handle.
///
/// # Safety
/// `handle` is NULL or alive.
pub unsafe fn borrow<'a, O: Opaque>(handle: *const O) -> Result<&'a O::Object> {
    if handle.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the {} is NULL", O::NAME);
    }
    alive::check(handle as usize, O::NAME)?;
    // SAFETY: the pointer came from Arc::into_raw, and a reference of C keeps the object alive.
    Ok(unsafe { &*handle.cast() })
}

/// A reference of the library's own to the object behind a handle.
///
/// # Safety
/// As for [`borrow`].
pub unsafe fn share<O: Opaque>(handle: *const O) -> Result<Arc<O::Object>> {
    // SAFETY: the pointer came from Arc::into_raw; the count is raised before it is owned twice.
    unsafe {
        let object: *const O::Object = borrow(handle)?;
        Arc::increment_strong_count(object);
        Ok(Arc::from_raw(object))
    }
}

/// Adds a reference of C.
///
/// # Safety
/// As for [`borrow`].
pub unsafe fn retain<O: Opaque>(handle: *const O) -> Result<()> {
    // SAFETY: as above.
    give::<O>(unsafe { share(handle) }?);
    Ok(())
}

/// Takes a reference back from C; none for NULL.
///
/// # Safety
/// As for [`borrow`]; C does not use the reference again.
pub unsafe fn take<O: Opaque>(handle: *const O) -> Result<Option<Arc<O::Object>>> {
    if handle.is_null() {
        return Ok(None);
    }
    alive::check(handle as usize, O::NAME)?;
    alive::remove(handle as usize);
    // SAFETY: the pointer came from give(), whose reference this is.
    Ok(Some(unsafe { Arc::from_raw(handle.cast()) }))
}

/// The handles that C holds, with the number of references; a debug build rejects all others.
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
        /// Handles of the parent, which a forked child may use, are not in its table.
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
            None => {
                fail!(WB_ERR_HANDLE, "{handle:#x} is not a live {name}: was it released too often?")
            }
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
