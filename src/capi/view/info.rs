//! What a view shows.

use std::ffi::c_void;

use crate::capi::buffer::handle::wb_buffer;
use crate::capi::call::call;
use crate::capi::enumeration::Enumeration;
use crate::capi::error::wb_error;
use crate::capi::structs::{CStruct, c_struct};
use crate::capi::view::handle::wb_view;
use crate::capi::view::layout::wb_accessor;
use crate::error::fail;
use crate::memory::view::View;
use crate::status::{WB_ERR_NOT_FOUND, wb_status};
use crate::tensor::dtype::wb_dtype;

/// Properties of a view.
#[repr(C)]
pub struct wb_view_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// The element type.
    pub dtype: wb_dtype,
    /// Number of dimensions.
    pub ndim: i32,
    /// Who accesses the memory.
    pub accessor: wb_accessor,
    /// 1 if the elements must not be written.
    pub read_only: i32,
    /// Zero.
    pub reserved0: u32,
    /// Host address of the first element; NULL in a buffer of 0 bytes and in memory of a CUDA
    /// device.
    pub data: *mut c_void,
    /// Device address of the first element; NULL for WB_ACCESSOR_HOST.
    pub device_address: *mut c_void,
    /// `ndim` sizes in elements.
    pub shape: *const i64,
    /// `ndim` strides in elements.
    pub strides: *const i64,
    /// Number of elements.
    pub elements: u64,
    /// Bytes from the lowest element to the end of the highest, gaps included.
    pub span_bytes: u64,
}

c_struct!(wb_view_info);

/// Fills `info` with the view's properties.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_get_info(
    view: *const wb_view,
    info: *mut wb_view_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |view: &View| -> info {
        let layout = view.layout();
        Ok(wb_view_info {
            dtype: layout.dtype().code(),
            ndim: layout.ndim() as i32,
            accessor: view.accessor().code(),
            read_only: view.is_read_only().into(),
            data: view.address() as *mut c_void,
            device_address: view.device_address().unwrap_or(0) as *mut c_void,
            shape: layout.shape().as_ptr(),
            strides: layout.strides().as_ptr(),
            elements: layout.elements(),
            span_bytes: layout.span_bytes(),
            ..CStruct::init()
        })
    })
}

/// Gets the buffer that the view is of. Fails with WB_ERR_NOT_FOUND for a view of device memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_get_buffer(
    view: *const wb_view,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |view: &View| -> buffer {
        match view.buffer() {
            Some(buffer) => Ok(buffer.clone()),
            None => {
                fail!(WB_ERR_NOT_FOUND, "the view is of device memory, which is not a wb_buffer")
            }
        }
    })
}
