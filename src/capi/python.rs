//! For bindings of Python: the destructor of DLPack capsules. An extension, not part of
//! weighbridge.h.

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
