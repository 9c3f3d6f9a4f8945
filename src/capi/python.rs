//! For bindings of Python: the destructor of DLPack capsules, and owners of memory that the binding
//! releases. An extension, not part of weighbridge.h.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::capi::call::guard;
use crate::capi::dlpack::managed::Managed;
use crate::capi::error::wb_error;
use crate::error::fail;
use crate::status::{WB_ERR_INVALID_ARGUMENT, wb_status};
use crate::tensor::dlpack::{DLManagedTensor, DLManagedTensorVersioned};

type IsValid = unsafe extern "C" fn(capsule: *mut c_void, name: *const c_char) -> c_int;
type GetPointer = unsafe extern "C" fn(capsule: *mut c_void, name: *const c_char) -> *mut c_void;

/// CPython's PyCapsule_IsValid.
pub type wb_capsule_is_valid =
    Option<unsafe extern "C" fn(capsule: *mut c_void, name: *const c_char) -> c_int>;
/// CPython's PyCapsule_GetPointer.
pub type wb_capsule_get_pointer =
    Option<unsafe extern "C" fn(capsule: *mut c_void, name: *const c_char) -> *mut c_void>;

static IS_VALID: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static GET_POINTER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Passes two functions of CPython to the library, which is not linked to Python. To be called
/// once, before wb_python_capsule_destroy is used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_python_capsule_setup(
    is_valid: wb_capsule_is_valid,
    get_pointer: wb_capsule_get_pointer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        let (Some(is_valid), Some(get_pointer)) = (is_valid, get_pointer) else {
            fail!(WB_ERR_INVALID_ARGUMENT, "PyCapsule_IsValid or PyCapsule_GetPointer is NULL")
        };
        IS_VALID.store(is_valid as *mut c_void, Ordering::Release);
        GET_POINTER.store(get_pointer as *mut c_void, Ordering::Release);
        Ok(())
    })
}

/// The destructor of a "dltensor" or "dltensor_versioned" capsule, for PyCapsule_New: deletes the
/// tensor if no consumer took it. CPython calls it with the interpreter's lock held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_python_capsule_destroy(capsule: *mut c_void) {
    let is_valid = IS_VALID.load(Ordering::Acquire);
    let get_pointer = GET_POINTER.load(Ordering::Acquire);
    if capsule.is_null() || is_valid.is_null() || get_pointer.is_null() {
        return;
    }
    // SAFETY: wb_python_capsule_setup stored functions of these types. The capsule is alive during
    // its destructor, and a consumer that took the tensor renamed it: a name that is still valid
    // means that it is still there.
    unsafe {
        let is_valid = std::mem::transmute::<*mut c_void, IsValid>(is_valid);
        let get_pointer = std::mem::transmute::<*mut c_void, GetPointer>(get_pointer);
        let (old, new) = (c"dltensor".as_ptr(), c"dltensor_versioned".as_ptr());
        if is_valid(capsule, old) != 0 {
            DLManagedTensor::delete(get_pointer(capsule, old).cast());
        } else if is_valid(capsule, new) != 0 {
            DLManagedTensorVersioned::delete(get_pointer(capsule, new).cast());
        }
    }
}

/// The deleter of memory whose owner is a Python object: notes that the library does not use the
/// memory any more, for wb_python_owners_take. A Python function could not be called on any thread,
/// without the interpreter's lock, also after the interpreter has ended.
///
/// `owner` is a block of memory that begins with two pointers: one that this function overwrites,
/// and the address of the list that the owner is added to, which must stay valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_python_owner_release(owner: *mut c_void) {
    if owner.is_null() {
        return;
    }
    let link: *mut *mut c_void = owner.cast();
    // SAFETY: the contract above: two pointers, of which the second is that of a list, whose only
    // other users are these two functions.
    unsafe {
        let list = AtomicPtr::from_ptr((*link.add(1)).cast());
        let mut first = list.load(Ordering::Relaxed);
        loop {
            *link = first;
            match list.compare_exchange_weak(first, owner, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => first = other,
            }
        }
    }
}

/// Takes all owners that wb_python_owner_release added to a list. Returns the last one added, or
/// NULL; the first pointer of each is the one before. Any thread may call it, without waiting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_python_owners_take(list: *mut *mut c_void) -> *mut c_void {
    if list.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: the list's only other user is the function above.
    unsafe { AtomicPtr::from_ptr(list) }.swap(ptr::null_mut(), Ordering::Acquire)
}
