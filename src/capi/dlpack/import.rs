//! Tensors of DLPack that become views.

use crate::capi::address::Address;
use crate::capi::arguments::Input;
use crate::capi::buffer::options::{BufferRequest, wb_buffer_options};
use crate::capi::call::call;
use crate::capi::device::handle::wb_device;
use crate::capi::dlpack::managed::Managed;
use crate::capi::error::wb_error;
use crate::capi::view::handle::wb_view;
use crate::capi::view::layout::{layout_from, wb_accessor};
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions, Deleter};
use crate::memory::view::{Accessor, View};
use crate::os::span::Span;
use crate::os::sync;
use crate::os::sync::{Arc, Mutex};
use crate::status::{WB_ERR_DLPACK, WB_ERR_INVALID_ARGUMENT, wb_status};
use crate::tensor::dlpack::{CPU, DLManagedTensor, DLManagedTensorVersioned};
use crate::tensor::dtype::Dtype;
use crate::tensor::layout::Layout;

/// A tensor in host memory whose ownership another library transfers.
struct Imported {
    layout: Layout,
    span: Span,
    read_only: bool,
    delete: Deleter,
}

impl<M: Managed> Input<Imported> for *mut M {
    unsafe fn convert(self, name: &str) -> Result<Imported> {
        // SAFETY: the contract of mod.rs.
        let Some(managed) = (unsafe { self.as_ref() }) else {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL")
        };
        managed.check_version()?;
        let tensor = managed.tensor();
        if tensor.device.device_type != CPU {
            fail!(
                WB_ERR_DLPACK,
                "the tensor is on DLPack device {}:{}; only host memory (kDLCPU) can be registered",
                tensor.device.device_type,
                tensor.device.device_id
            );
        }
        let dtype = Dtype::from_dlpack(tensor.dtype)?;
        // SAFETY: the contract of mod.rs.
        let layout = unsafe { layout_from(dtype, tensor.ndim, tensor.shape, tensor.strides) }?;
        let span =
            Address(tensor.data as u64).tensor(&layout, tensor.byte_offset, "the tensor's data")?;
        let address = self as usize;
        // SAFETY: the contract of mod.rs; the tensor is the library's once this is called.
        let delete: Deleter = Box::new(move || unsafe { M::delete(address as *mut M) });
        Ok(Imported { layout, span, read_only: managed.read_only(), delete })
    }
}

/// Registers the tensor's memory and creates a view of it. After an error the caller keeps it.
fn import(
    device: &Arc<Device>,
    tensor: Imported,
    accessor: Accessor,
    request: &BufferRequest,
) -> Result<Arc<View>> {
    let Imported { layout, span, read_only, delete } = tensor;
    let offset = layout.bytes_before();
    if span.bytes() == 0 {
        let options = BufferOptions { read_only, ..request.options };
        let view = View::new(Buffer::alloc(device, 0, &options, &mut None)?, layout, 0, accessor)?;
        delete();
        return Ok(view);
    }
    // The buffer calls what is in here when its memory is not used any more: nothing until the view
    // exists.
    let armed = Arc::new(Mutex::new(None::<Deleter>));
    let buffers_own = armed.clone();
    let mut owner: Option<Deleter> = Some(Box::new(move || {
        let delete = sync::lock(&buffers_own).take();
        if let Some(delete) = delete {
            delete();
        }
    }));
    let buffer = request.run(|options, progress| {
        let options = BufferOptions { read_only, ..*options };
        Buffer::register(device, span, &options, &mut owner, progress)
    })?;
    let view = View::new(buffer, layout, offset, accessor)?;
    *sync::lock(&armed) = Some(delete);
    Ok(view)
}

/// Registers the host memory of a DLManagedTensor and creates a view of it.
///
/// On success the tensor belongs to the view's buffer, which calls its deleter once, on any thread,
/// when nothing uses the memory any more; after an error the caller keeps it. Fails with
/// WB_ERR_DLPACK, and as wb_buffer_register and wb_view_new do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_from_dlpack(
    device: *const wb_device,
    tensor: *mut DLManagedTensor,
    accessor: wb_accessor,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>,
                  tensor: Imported,
                  accessor: Accessor,
                  options: BufferRequest|
     -> view { import(&device, tensor, accessor, &options) })
}

/// As wb_view_from_dlpack, for a DLManagedTensorVersioned, whose read-only flag is kept.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_from_dlpack_versioned(
    device: *const wb_device,
    tensor: *mut DLManagedTensorVersioned,
    accessor: wb_accessor,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>,
                  tensor: Imported,
                  accessor: Accessor,
                  options: BufferRequest|
     -> view { import(&device, tensor, accessor, &options) })
}
