//! DLPack: views out, tensors in, and the capsule that Python wraps around them.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::capi::arguments::check_output;
use crate::capi::buffer::{wb_buffer_options, with_options};
use crate::capi::device::wb_device;
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::view::{checked_layout, wb_accessor, wb_view};
use crate::capi::{handle, view};
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions, Deleter};
use crate::memory::deferred;
use crate::memory::view::{Accessor, View};
use crate::os::parallel::Progress;
use crate::os::sync;
use crate::os::sync::{Arc, Mutex};
use crate::status::{WB_ERR_DLPACK, WB_ERR_INVALID_ARGUMENT, wb_status};
use crate::tensor::dlpack::{
    CPU, CUDA, DLDevice, DLManagedTensor, DLManagedTensorVersioned, DLTensor, FLAG_READ_ONLY,
    VERSION,
};
use crate::tensor::dtype::Dtype;

/// The tensor that shows a view; it points into the view's own shape and strides.
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

/// Both kinds of managed tensor, as far as they are alike.
trait Managed: Sized {
    fn wrap(tensor: DLTensor, context: *mut c_void, read_only: bool) -> Self;
    fn context(&self) -> *mut c_void;
    fn tensor(&self) -> &DLTensor;
    fn read_only(&self) -> bool;
    fn check_version(&self) -> Result<()>;
    /// Calls the maker's deleter, if there is one.
    ///
    /// # Safety
    /// `managed` is alive and not used again.
    unsafe fn delete(managed: *mut Self);
}

impl Managed for DLManagedTensor {
    fn wrap(dl_tensor: DLTensor, manager_ctx: *mut c_void, _: bool) -> Self {
        Self { dl_tensor, manager_ctx, deleter: Some(release::<Self>) }
    }
    fn context(&self) -> *mut c_void {
        self.manager_ctx
    }
    fn tensor(&self) -> &DLTensor {
        &self.dl_tensor
    }
    fn read_only(&self) -> bool {
        false
    }
    fn check_version(&self) -> Result<()> {
        Ok(())
    }
    unsafe fn delete(managed: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(deleter) = (*managed).deleter {
                deleter(managed);
            }
        }
    }
}

impl Managed for DLManagedTensorVersioned {
    fn wrap(dl_tensor: DLTensor, manager_ctx: *mut c_void, read_only: bool) -> Self {
        let flags = if read_only { FLAG_READ_ONLY } else { 0 };
        let deleter = Some(release::<Self> as unsafe extern "C" fn(*mut Self));
        Self { version: VERSION, manager_ctx, deleter, flags, dl_tensor }
    }
    fn context(&self) -> *mut c_void {
        self.manager_ctx
    }
    fn tensor(&self) -> &DLTensor {
        &self.dl_tensor
    }
    fn read_only(&self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }
    fn check_version(&self) -> Result<()> {
        if self.version.major != VERSION.major {
            fail!(
                WB_ERR_DLPACK,
                "the tensor is of DLPack {}.{}; this library takes {}.x",
                self.version.major,
                self.version.minor,
                VERSION.major
            );
        }
        Ok(())
    }
    unsafe fn delete(managed: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(deleter) = (*managed).deleter {
                deleter(managed);
            }
        }
    }
}

/// The deleter of what is exported: native, for any thread, with or without an interpreter.
///
/// A consumer calls it with kernels of its own still queued, and on any thread, where waiting for
/// the device would stall it: so on a CUDA device the reference goes on the library's thread. There the
/// kernels are waited for: by unregistering, and where the device sees memory that is not registered, by
/// the buffer itself before its memory goes.
///
/// # Safety
/// `managed` was exported here and is not used again.
unsafe extern "C" fn release<M: Managed>(managed: *mut M) {
    guard_void(|| {
        // SAFETY: export() made both boxes' worth of ownership, once.
        let (managed, view) = unsafe {
            let managed = Box::from_raw(managed);
            let view = Arc::from_raw(managed.context().cast::<View>().cast_const());
            (managed, view)
        };
        drop(managed);
        let device = view.device().clone();
        if device.capabilities().cuda {
            deferred::drop_after(None, Box::new(view), &device);
        }
        Ok(())
    });
}

/// # Safety
/// As for the exported functions below.
unsafe fn export<M: Managed>(view: *const wb_view, tensor: *mut *mut M) -> Result<()> {
    check_output(tensor, "tensor")?;
    // SAFETY: the caller's promise.
    let view = unsafe { handle::share::<View>(view) }?;
    let shown = tensor_of(&view);
    let read_only = view.is_read_only();
    let context = Arc::into_raw(view).cast_mut().cast();
    // SAFETY: not NULL.
    unsafe { *tensor = Box::into_raw(Box::new(M::wrap(shown, context, read_only))) };
    Ok(())
}

/// Exports a view as a DLManagedTensor: kDLCUDA for a view from a CUDA device, else kDLCPU.
///
/// Ownership: the tensor holds a reference to the view until its deleter is called, on any thread.
/// No stream is waited for: the library queues no work on the memory itself. Any thread.
///
/// # Safety
/// `view` is NULL or alive; `tensor` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_to_dlpack(
    view: *const wb_view,
    tensor: *mut *mut DLManagedTensor,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { export(view, tensor) })
}

/// Exports a view as a DLManagedTensorVersioned, with the read-only flag where it is so; as
/// wb_view_to_dlpack otherwise.
///
/// # Safety
/// `view` is NULL or alive; `tensor` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_to_dlpack_versioned(
    view: *const wb_view,
    tensor: *mut *mut DLManagedTensorVersioned,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { export(view, tensor) })
}

/// # Safety
/// As for the exported functions below.
unsafe fn import<M: Managed>(
    device: *const wb_device,
    managed: *mut M,
    accessor: wb_accessor,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
) -> Result<()> {
    check_output(view, "view")?;
    // SAFETY: the caller's promise.
    let device = unsafe { handle::share::<Device>(device) }?;
    // SAFETY: the caller's promise.
    let Some(given) = (unsafe { managed.as_ref() }) else {
        fail!(WB_ERR_INVALID_ARGUMENT, "tensor is NULL")
    };
    given.check_version()?;
    let accessor = view::accessor(accessor)?;
    let read_only = given.read_only();
    // SAFETY: the caller's promise.
    let made = unsafe {
        with_options(options, |options, progress| {
            let options = BufferOptions { read_only, ..*options };
            import_tensor(&device, managed, given.tensor(), accessor, &options, progress)
        })
    }?;
    // SAFETY: not NULL.
    unsafe { *view = handle::give(made) };
    Ok(())
}

/// # Safety
/// The tensor is well formed and its memory stays until the deleter is called.
unsafe fn import_tensor<M: Managed>(
    device: &Arc<Device>,
    managed: *mut M,
    tensor: &DLTensor,
    accessor: Accessor,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<Arc<View>> {
    if tensor.device.device_type != CPU {
        fail!(
            WB_ERR_DLPACK,
            "the tensor is on DLPack device {}:{}; only host memory (kDLCPU) can be registered",
            tensor.device.device_type,
            tensor.device.device_id
        );
    }
    let dtype = Dtype::from_dlpack(tensor.dtype)?;
    // SAFETY: the tensor is well formed.
    let layout = unsafe { checked_layout(dtype, tensor.ndim, tensor.shape, tensor.strides) }?;
    // SAFETY: its memory stays (see above).
    let span = unsafe { view::source(tensor.data, &layout, tensor.byte_offset) }?;
    let address = managed as usize;
    // SAFETY: the deleter is called once, by whoever holds the owner last.
    let delete: Deleter = Box::new(move || unsafe { M::delete(address as *mut M) });
    let offset = layout.bytes_before();
    if span.bytes() == 0 {
        let view = View::new(Buffer::alloc(device, 0, options, &mut None)?, layout, 0, accessor)?;
        delete();
        return Ok(view);
    }
    // The deleter joins the buffer only once the view is made: after an error the tensor is still
    // the caller's.
    let armed = Arc::new(Mutex::new(None::<Deleter>));
    let theirs = armed.clone();
    let mut owner: Option<Deleter> = Some(Box::new(move || {
        let delete = sync::lock(&theirs).take();
        if let Some(delete) = delete {
            delete();
        }
    }));
    let buffer = Buffer::register(device, span, options, &mut owner, progress)?;
    let view = View::new(buffer, layout, offset, accessor)?;
    *sync::lock(&armed) = Some(delete);
    Ok(view)
}

/// Registers the host memory of a DLManagedTensor and gives a view of it. `options` may be NULL.
///
/// Ownership: on success the tensor belongs to the view's buffer, which calls its deleter once when
/// nothing uses the memory any more, on any thread; on failure it is still the caller's. Any thread.
/// Errors: WB_ERR_DLPACK, those of wb_buffer_register and of wb_view_new.
///
/// # Safety
/// Pointers are NULL or valid, and the tensor is well formed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_from_dlpack(
    device: *const wb_device,
    tensor: *mut DLManagedTensor,
    accessor: wb_accessor,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { import(device, tensor, accessor, options, view) })
}

/// As wb_view_from_dlpack, for a DLManagedTensorVersioned; its read-only flag is kept.
///
/// # Safety
/// Pointers are NULL or valid, and the tensor is well formed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_from_dlpack_versioned(
    device: *const wb_device,
    tensor: *mut DLManagedTensorVersioned,
    accessor: wb_accessor,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    // SAFETY: the caller's promise.
    guard(error, || unsafe { import(device, tensor, accessor, options, view) })
}

/// CPython's PyCapsule_IsValid.
pub type wb_capsule_is_valid =
    Option<unsafe extern "C" fn(capsule: *mut c_void, name: *const c_char) -> c_int>;
/// CPython's PyCapsule_GetPointer.
pub type wb_capsule_get_pointer =
    Option<unsafe extern "C" fn(capsule: *mut c_void, name: *const c_char) -> *mut c_void>;

static IS_VALID: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static GET_POINTER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Tells the library CPython's two functions that wb_python_capsule_destroy needs: the library is
/// not linked to Python. For Python bindings, once, before the first capsule. Any thread.
///
/// # Safety
/// The functions are CPython's own.
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

/// The destructor of a "dltensor" or "dltensor_versioned" capsule: frees a tensor that no consumer
/// took. To be given to PyCapsule_New; called by CPython, with the interpreter's lock.
///
/// # Safety
/// `capsule` is a PyCapsule, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_python_capsule_destroy(capsule: *mut c_void) {
    let is_valid = IS_VALID.load(Ordering::Acquire);
    let get_pointer = GET_POINTER.load(Ordering::Acquire);
    if capsule.is_null() || is_valid.is_null() || get_pointer.is_null() {
        return;
    }
    // SAFETY: wb_python_capsule_setup stored functions of exactly these types.
    let (is_valid, get_pointer) = unsafe {
        (
            std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
            >(is_valid),
            std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void,
            >(get_pointer),
        )
    };
    // SAFETY: the capsule is alive during its destructor; a consumer that took the tensor renamed
    // it, so a name that is still valid means that the tensor is still in it.
    unsafe {
        let (old, new) = (c"dltensor".as_ptr(), c"dltensor_versioned".as_ptr());
        if is_valid(capsule, old) != 0 {
            DLManagedTensor::delete(get_pointer(capsule, old).cast());
        } else if is_valid(capsule, new) != 0 {
            DLManagedTensorVersioned::delete(get_pointer(capsule, new).cast());
        }
    }
}
