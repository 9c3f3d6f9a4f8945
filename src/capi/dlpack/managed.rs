//! Both kinds of managed tensor of DLPack, as far as they are alike.

use std::ffi::c_void;

use crate::capi::call::guard_void;
use crate::error::{Result, fail};
use crate::memory::deferred;
use crate::memory::view::View;
use crate::os::sync::Arc;
use crate::status::WB_ERR_DLPACK;
use crate::tensor::dlpack::{
    DLManagedTensor, DLManagedTensorVersioned, DLTensor, FLAG_READ_ONLY, VERSION,
};

/// A managed tensor.
pub(in crate::capi) trait Managed: Sized {
    /// A tensor that this library exports; [`release`] is its deleter.
    fn wrap(tensor: DLTensor, view: *mut c_void, read_only: bool) -> Self;
    fn context(&self) -> *mut c_void;
    fn tensor(&self) -> &DLTensor;
    fn read_only(&self) -> bool;
    /// Fails for a version that this library does not know.
    fn check_version(&self) -> Result<()>;
    /// Calls the deleter, if there is one.
    ///
    /// # Safety
    /// `managed` is alive and not used again.
    unsafe fn delete(managed: *mut Self);
}

/// The methods whose bodies are the same.
macro_rules! alike {
    () => {
        fn context(&self) -> *mut c_void {
            self.manager_ctx
        }
        fn tensor(&self) -> &DLTensor {
            &self.dl_tensor
        }
        unsafe fn delete(managed: *mut Self) {
            // SAFETY: the promise of the trait.
            unsafe {
                if let Some(deleter) = (*managed).deleter {
                    deleter(managed);
                }
            }
        }
    };
}

impl Managed for DLManagedTensor {
    alike!();
    fn wrap(dl_tensor: DLTensor, manager_ctx: *mut c_void, _: bool) -> Self {
        Self { dl_tensor, manager_ctx, deleter: Some(release::<Self>) }
    }
    fn read_only(&self) -> bool {
        false
    }
    fn check_version(&self) -> Result<()> {
        Ok(())
    }
}

impl Managed for DLManagedTensorVersioned {
    alike!();
    fn wrap(dl_tensor: DLTensor, manager_ctx: *mut c_void, read_only: bool) -> Self {
        let flags = if read_only { FLAG_READ_ONLY } else { 0 };
        Self { version: VERSION, manager_ctx, deleter: Some(release::<Self>), flags, dl_tensor }
    }
    fn read_only(&self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }
    fn check_version(&self) -> Result<()> {
        let (major, minor) = (self.version.major, self.version.minor);
        if major != VERSION.major {
            fail!(
                WB_ERR_DLPACK,
                "the tensor is of DLPack {major}.{minor}; this library supports {}.x",
                VERSION.major
            );
        }
        Ok(())
    }
}

/// The deleter of exported tensors. It is native code for any thread, with or without an
/// interpreter.
///
/// A consumer may call it while its own kernels are queued, and on a thread that must not wait for
/// the device. Unless the device is known to be idle, the reference is therefore dropped on the
/// library's thread, which waits for the kernels: unregistering does, and where the device sees
/// memory that is not registered, the buffer does before it frees the memory.
///
/// # Safety
/// `managed` was exported by this library and is not used again.
unsafe extern "C" fn release<M: Managed>(managed: *mut M) {
    guard_void(|| {
        // SAFETY: export() gave up the box and one reference to the view.
        let view = unsafe {
            let managed = Box::from_raw(managed);
            Arc::from_raw(managed.context().cast::<View>().cast_const())
        };
        let device = view.device().clone();
        if !device.backend().is_idle() {
            deferred::drop_after(None, Box::new(view), &device);
        }
        Ok(())
    });
}
