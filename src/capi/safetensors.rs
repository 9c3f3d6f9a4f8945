//! `wb_safetensors`: a file's tensors, by name, over one buffer.

use std::ffi::c_char;
use std::ptr;

use crate::capi::arguments::{Sized32, check_output, text, write_struct};
use crate::capi::buffer::{wb_buffer, wb_buffer_options, with_options};
use crate::capi::device::wb_device;
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::handle::Handle;
use crate::capi::view::{wb_accessor, wb_view};
use crate::capi::{arguments, handle, view};
use crate::device::device::Device;
use crate::memory::safetensors_file::SafetensorsFile;
use crate::status::wb_status;
use crate::tensor::dtype::wb_dtype;

/// An open safetensors file.
pub struct wb_safetensors {
    _opaque: [u8; 0],
}

impl Handle for SafetensorsFile {
    type Opaque = wb_safetensors;
    const NAME: &'static str = "wb_safetensors";
}

/// A tensor of a file. Begin with WB_SAFETENSORS_TENSOR_INFO_INIT.
#[repr(C)]
pub struct wb_safetensors_tensor_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// A WB_DTYPE_*; 0 for a type of the file that has none.
    pub dtype: wb_dtype,
    /// Number of dimensions.
    pub ndim: i32,
    /// 0.
    pub reserved0: u32,
    /// Its name, ending in NUL; the file's own, alive as long as it.
    pub name: *const c_char,
    /// `ndim` sizes in elements; the file's own, alive as long as it. NULL where dtype is 0.
    pub shape: *const i64,
    /// Bytes from the beginning of the file, and so of its buffer.
    pub offset_bytes: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_safetensors_tensor_info {
    const NAME: &'static str = "wb_safetensors_tensor_info";
}

/// Opens a safetensors file: reads and checks its header, then maps the whole file as wb_buffer_map_file
/// does. `options` may be NULL.
///
/// Ownership: one reference. Any thread. Errors: WB_ERR_FORMAT, WB_ERR_FILE_TRUNCATED, those of
/// wb_buffer_map_file.
///
/// # Safety
/// Pointers are NULL or valid; `path` ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_open(
    device: *const wb_device,
    path: *const c_char,
    options: *const wb_buffer_options,
    file: *mut *mut wb_safetensors,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(file, "file")?;
        // SAFETY: the caller's promise.
        let (device, path) = unsafe { (handle::share::<Device>(device)?, arguments::path(path)?) };
        // SAFETY: the caller's promise.
        let opened = unsafe {
            with_options(options, |options, progress| {
                SafetensorsFile::open(&device, path, options, progress)
            })
        }?;
        // SAFETY: not NULL.
        unsafe { *file = handle::give(opened) };
        Ok(())
    })
}

/// Adds a reference. Any thread.
///
/// # Safety
/// `file` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_retain(file: *const wb_safetensors) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<SafetensorsFile>(file) });
}

/// Drops a reference. Views hold the file's buffer, so it may go before them. Any thread.
///
/// # Safety
/// `file` is NULL or alive, and this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_release(file: *mut wb_safetensors) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<SafetensorsFile>(file) }.map(drop));
}

/// Number of tensors; 0 for NULL. They are in the order of their data. Any thread.
///
/// # Safety
/// `file` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_tensor_count(file: *const wb_safetensors) -> u64 {
    let mut count = 0;
    guard(ptr::null_mut(), || {
        // SAFETY: the caller's promise.
        count = unsafe { handle::borrow::<SafetensorsFile>(file) }?.tensors().len() as u64;
        Ok(())
    });
    count
}

/// The header's JSON text, ending in NUL, with the file's own metadata; NULL for NULL. The file's
/// own, alive as long as it. Any thread.
///
/// # Safety
/// `file` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_header(file: *const wb_safetensors) -> *const c_char {
    let mut json = ptr::null();
    guard(ptr::null_mut(), || {
        // SAFETY: the caller's promise.
        json = unsafe { handle::borrow::<SafetensorsFile>(file) }?.json().as_ptr();
        Ok(())
    });
    json
}

/// Answers what the tensor at an index is. Any thread. Errors: WB_ERR_OUT_OF_RANGE.
///
/// # Safety
/// `file` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_tensor_info(
    file: *const wb_safetensors,
    index: u64,
    info: *mut wb_safetensors_tensor_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let (tensor, name) = unsafe { handle::borrow::<SafetensorsFile>(file) }?.tensor(index)?;
        let layout = tensor.layout.as_ref();
        let described = wb_safetensors_tensor_info {
            struct_size: size_of::<wb_safetensors_tensor_info>() as u32,
            dtype: layout.map_or(0, |layout| layout.dtype().code()),
            ndim: layout.map_or(0, |layout| layout.ndim() as i32),
            reserved0: 0,
            name: name.as_ptr(),
            shape: layout.map_or(ptr::null(), |layout| layout.shape().as_ptr()),
            offset_bytes: tensor.offset,
            bytes: tensor.bytes,
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// The index of the tensor of a name. Any thread. Errors: WB_ERR_NOT_FOUND.
///
/// # Safety
/// `file` is NULL or alive; `name` is NULL or ends in NUL; `index` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_find_tensor(
    file: *const wb_safetensors,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(index, "index")?;
        // SAFETY: the caller's promise.
        let (file, name) =
            unsafe { (handle::borrow::<SafetensorsFile>(file)?, text(name, "name")?) };
        let found = file.find(name)?;
        // SAFETY: not NULL.
        unsafe { *index = found };
        Ok(())
    })
}

/// A view of a tensor where it lies in the file's buffer. It aliases, or fails; `alignment` is the
/// one in bytes that its address must have, 0 or 1 for any.
///
/// Ownership: one reference; the view holds the buffer. Any thread. Errors: WB_ERR_UNALIGNED,
/// WB_ERR_NOT_SUPPORTED for a type without WB_DTYPE_*, those of wb_view_new.
///
/// # Safety
/// `file` is NULL or alive; `view` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_view(
    file: *const wb_safetensors,
    index: u64,
    accessor: wb_accessor,
    alignment: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(view, "view")?;
        // SAFETY: the caller's promise.
        let file = unsafe { handle::borrow::<SafetensorsFile>(file) }?;
        let made = file.view(index, view::accessor(accessor)?, alignment)?;
        // SAFETY: not NULL.
        unsafe { *view = handle::give(made) };
        Ok(())
    })
}

/// A view of a tensor where it lies if it is aligned, else of a copy in memory of its own; `copied`
/// receives 1 for a copy, else 0. `options`, for the copy, may be NULL.
///
/// Ownership: one reference. Any thread. Errors: those of wb_safetensors_get_view but WB_ERR_UNALIGNED,
/// and of wb_buffer_alloc.
///
/// # Safety
/// `file` is NULL or alive; other pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_load_view(
    file: *const wb_safetensors,
    index: u64,
    accessor: wb_accessor,
    alignment: u64,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    copied: *mut i32,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(view, "view")?;
        check_output(copied, "copied")?;
        // SAFETY: the caller's promise.
        let file = unsafe { handle::borrow::<SafetensorsFile>(file) }?;
        let accessor = view::accessor(accessor)?;
        // SAFETY: the caller's promise.
        let (made, is_copy) = unsafe {
            with_options(options, |options, progress| {
                file.load(index, accessor, alignment, options, progress)
            })
        }?;
        // SAFETY: not NULL.
        unsafe {
            *view = handle::give(made);
            *copied = is_copy.into();
        }
        Ok(())
    })
}

/// The buffer over the whole file.
///
/// Ownership: adds a reference, given back with wb_buffer_release. Any thread.
///
/// # Safety
/// `file` is NULL or alive; `buffer` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_buffer(
    file: *const wb_safetensors,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(buffer, "buffer")?;
        // SAFETY: the caller's promise.
        let held = unsafe { handle::borrow::<SafetensorsFile>(file) }?.buffer().clone();
        // SAFETY: not NULL.
        unsafe { *buffer = handle::give(held) };
        Ok(())
    })
}
