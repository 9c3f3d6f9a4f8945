//! Safetensors files: tensors by name and index over one buffer.

use std::ffi::c_char;
use std::path::Path;
use std::ptr;

use crate::capi::buffer::handle::wb_buffer;
use crate::capi::buffer::options::{BufferRequest, wb_buffer_options};
use crate::capi::call::{call, call_value, release, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::capi::structs::{CStruct, c_struct};
use crate::capi::view::handle::wb_view;
use crate::capi::view::layout::wb_accessor;
use crate::device::device::Device;
use crate::memory::safetensors_file::SafetensorsFile;
use crate::memory::view::Accessor;
use crate::os::sync::Arc;
use crate::status::wb_status;
use crate::tensor::dtype::wb_dtype;

/// An open safetensors file.
pub struct wb_safetensors {
    _opaque: [u8; 0],
}

opaque!(wb_safetensors, SafetensorsFile);

/// Properties of a tensor of a file.
#[repr(C)]
pub struct wb_safetensors_tensor_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// The element type; 0 for a type of the file that has no WB_DTYPE_*.
    pub dtype: wb_dtype,
    /// Number of dimensions.
    pub ndim: i32,
    /// Zero.
    pub reserved0: u32,
    /// The name.
    pub name: *const c_char,
    /// `ndim` sizes in elements; NULL if dtype is 0.
    pub shape: *const i64,
    /// Bytes from the start of the file, and of its buffer.
    pub offset_bytes: u64,
    /// Bytes of the data.
    pub bytes: u64,
}

c_struct!(wb_safetensors_tensor_info);

/// Opens a safetensors file: checks its header and maps the whole file as wb_buffer_map_file does.
/// Fails with WB_ERR_FORMAT or WB_ERR_FILE_TRUNCATED, and as wb_buffer_map_file does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_open(
    device: *const wb_device,
    path: *const c_char,
    options: *const wb_buffer_options,
    file: *mut *mut wb_safetensors,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>, path: &Path, options: BufferRequest| -> file {
        options.run(|options, progress| SafetensorsFile::open(&device, path, options, progress))
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_retain(file: *const wb_safetensors) {
    retain!(file)
}

/// Drops a reference. Views hold the buffer, not the file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_release(file: *mut wb_safetensors) {
    release!(file)
}

/// Returns the number of tensors, which are in the order of their data, or 0 if `file` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_tensor_count(file: *const wb_safetensors) -> u64 {
    call_value!(0, |file: &SafetensorsFile| file.tensors().len() as u64)
}

/// Returns the JSON text of the header, with the file's metadata, or NULL if `file` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_header(file: *const wb_safetensors) -> *const c_char {
    call_value!(ptr::null(), |file: &SafetensorsFile| file.json().as_ptr())
}

/// Fills `info` with the properties of tensor `index`. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_tensor_info(
    file: *const wb_safetensors,
    index: u64,
    info: *mut wb_safetensors_tensor_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &SafetensorsFile| -> info {
        file.tensor(index).map(|(tensor, name)| {
            let layout = tensor.layout.as_ref();
            wb_safetensors_tensor_info {
                dtype: layout.map_or(0, |layout| layout.dtype().code()),
                ndim: layout.map_or(0, |layout| layout.ndim() as i32),
                name: name.as_ptr(),
                shape: layout.map_or(ptr::null(), |layout| layout.shape().as_ptr()),
                offset_bytes: tensor.offset,
                bytes: tensor.bytes,
                ..CStruct::init()
            }
        })
    })
}

/// Gets the index of the tensor with a name. Fails with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_find_tensor(
    file: *const wb_safetensors,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &SafetensorsFile, name: &str| -> index { file.find(name) })
}

/// Creates a view of a tensor in the file's buffer, without a copy. Fails with WB_ERR_UNALIGNED
/// unless its address is a multiple of `alignment` bytes (0 or 1 for any), with
/// WB_ERR_NOT_SUPPORTED for a type without WB_DTYPE_*, and as wb_view_new does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_view(
    file: *const wb_safetensors,
    index: u64,
    accessor: wb_accessor,
    alignment: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &SafetensorsFile, accessor: Accessor| -> view {
        file.view(index, accessor, alignment)
    })
}

/// As wb_safetensors_get_view, but copies a tensor that is not aligned into memory of its own, for
/// which `options` are; `copied` receives 1 for a copy, otherwise 0.
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
    call!(error, |file: &SafetensorsFile,
                  accessor: Accessor,
                  options: BufferRequest|
     -> (view, copied) {
        options.run(|options, progress| {
            let (view, copied) = file.load(index, accessor, alignment, options, progress)?;
            Ok((view, copied.into()))
        })
    })
}

/// Gets the buffer over the whole file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_buffer(
    file: *const wb_safetensors,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &SafetensorsFile| -> buffer { Ok(file.buffer().clone()) })
}
