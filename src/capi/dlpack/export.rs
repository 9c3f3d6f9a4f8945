//! Views that become tensors of DLPack.

use std::ffi::c_void;

use crate::capi::arguments::Output;
use crate::capi::call::call;
use crate::capi::dlpack::managed::Managed;
use crate::capi::error::wb_error;
use crate::capi::view::handle::wb_view;
use crate::error::{Result, fail};
use crate::memory::view::{Accessor, View};
use crate::os::sync::Arc;
use crate::status::{WB_ERR_DLPACK, WB_ERR_INVALID_ARGUMENT, wb_status};
use crate::tensor::dlpack::{
    CPU, CUDA, DLDevice, DLManagedTensor, DLManagedTensorVersioned, DLTensor,
};

/// The tensor of a view; it points to the view's own shape and strides.
fn tensor_of(view: &View) -> DLTensor {
    let (layout, capabilities) = (view.layout(), view.device().capabilities());
    let (device_type, device_id, address) = match view.accessor() {
        Accessor::Device if capabilities.cuda => {
            (CUDA, capabilities.ordinal, view.device_address().unwrap_or(0) as usize)
        }
        _ => (CPU, 0, view.address()),
    };
    DLTensor {
        data: address as *mut c_void,
        device: DLDevice { device_type, device_id },
        ndim: layout.ndim() as i32,
        dtype: layout.dtype().dlpack(),
        shape: layout.shape().as_ptr().cast_mut(),
        strides: layout.strides().as_ptr().cast_mut(),
        byte_offset: 0,
    }
}

/// A place for an exported tensor.
struct Exported<M>(*mut *mut M);

impl<M: Managed> Output for Exported<M> {
    type Value = Arc<View>;

    unsafe fn check(&self, name: &str) -> Result<()> {
        if self.0.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "the output {name} is NULL");
        }
        Ok(())
    }

    unsafe fn store(self, view: Arc<View>) {
        let (tensor, read_only) = (tensor_of(&view), view.is_read_only());
        let context = Arc::into_raw(view).cast_mut().cast();
        let managed = Box::new(M::wrap(tensor, context, read_only));
        // SAFETY: it was checked.
        unsafe { *self.0 = Box::into_raw(managed) };
    }
}

/// Exports a view as a DLManagedTensor: kDLCUDA for a view for a CUDA device, otherwise kDLCPU.
///
/// The tensor holds a reference to the view until its deleter is called, which may be on any
/// thread. No stream is waited for, since the library queues no work of its own on the memory.
/// Fails with WB_ERR_DLPACK for read-only memory, because this kind of tensor cannot say that it
/// must not be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_to_dlpack(
    view: *const wb_view,
    tensor: *mut *mut DLManagedTensor,
    error: *mut wb_error,
) -> wb_status {
    let tensor = Exported(tensor);
    call!(error, |view: Arc<View>| -> tensor {
        if view.is_read_only() {
            fail!(
                WB_ERR_DLPACK,
                "asked to export read-only memory as a tensor of DLPack before 1.0, which has no \
                 read-only flag, so that a consumer would write into it: use \
                 wb_view_to_dlpack_versioned or, for a consumer that never writes, \
                 wb_view_to_dlpack_for_reading, or copy with wb_view_copy_from"
            );
        }
        Ok(view)
    })
}

/// As wb_view_to_dlpack, also for read-only memory: for a consumer that never writes, such as JAX.
///
/// The tensor cannot say that it must not be written. A write would end the process, or fail on the
/// device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_to_dlpack_for_reading(
    view: *const wb_view,
    tensor: *mut *mut DLManagedTensor,
    error: *mut wb_error,
) -> wb_status {
    let tensor = Exported(tensor);
    call!(error, |view: Arc<View>| -> tensor { Ok(view) })
}

/// As wb_view_to_dlpack, as a DLManagedTensorVersioned, which has a read-only flag. Consumers must
/// heed it; PyTorch and CuPy do not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_to_dlpack_versioned(
    view: *const wb_view,
    tensor: *mut *mut DLManagedTensorVersioned,
    error: *mut wb_error,
) -> wb_status {
    let tensor = Exported(tensor);
    call!(error, |view: Arc<View>| -> tensor { Ok(view) })
}
