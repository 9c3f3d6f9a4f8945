//! Views: typed, shaped, strided windows into memory.

use std::ffi::c_void;

use crate::capi::address::Address;
use crate::capi::buffer::handle::wb_buffer;
use crate::capi::buffer::options::{BufferRequest, wb_buffer_options};
use crate::capi::call::{call, release, release_after, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::capi::view::layout::{GivenLayout, wb_accessor, wb_layout};
use crate::device::device::Device;
use crate::memory::buffer::Buffer;
use crate::memory::view::{Accessor, View};
use crate::os::sync::Arc;
use crate::status::wb_status;

/// A typed, shaped, strided window into memory, which it holds alive.
pub struct wb_view {
    _opaque: [u8; 0],
}

opaque!(wb_view, View);

/// Creates a view of a buffer, without a copy. The layout's offset counts from the start of the
/// buffer.
///
/// Fails with WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_MAPPED, WB_ERR_OVERFLOW or WB_ERR_FILE_TRUNCATED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_new(
    buffer: *const wb_buffer,
    layout: *const wb_layout,
    accessor: wb_accessor,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |buffer: Arc<Buffer>, layout: GivenLayout, accessor: Accessor| -> view {
        View::new(buffer, layout.layout, layout.offset_bytes, accessor)
    })
}

/// Copies a tensor in host memory, with its strides and gaps, into a new buffer and creates a view
/// of that. The layout's offset counts from `data`, which is not needed after the call. Fails as
/// wb_buffer_alloc and wb_view_new do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_copy_from(
    device: *const wb_device,
    data: *const c_void,
    layout: *const wb_layout,
    accessor: wb_accessor,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>,
                  data: Address,
                  layout: GivenLayout,
                  accessor: Accessor,
                  options: BufferRequest|
     -> view {
        let GivenLayout { layout, offset_bytes } = layout;
        let span = data.tensor(&layout, offset_bytes, "the tensor at data")?;
        options.run(|options, progress| {
            View::copy_from(&device, span, layout, accessor, options, progress)
        })
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_retain(view: *const wb_view) {
    retain!(view)
}

/// Drops a reference. If it was the last one to the view and to its buffer, the memory is freed as
/// by wb_buffer_release.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_release(view: *mut wb_view) {
    release!(view)
}

/// Drops a reference once the work queued on `stream` now has run; as wb_buffer_release_after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_release_after(
    view: *mut wb_view,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    release_after!(view, stream, error, View::device)
}
