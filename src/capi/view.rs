//! `wb_view`: a typed, shaped, strided window into a buffer.

use std::ffi::c_void;

use crate::capi::arguments::{Sized32, check_output, one_of, read_struct, write_struct};
use crate::capi::buffer::{wb_buffer, wb_buffer_options, with_options};
use crate::capi::device::wb_device;
use crate::capi::error::{guard, guard_void, wb_error};
use crate::capi::handle;
use crate::capi::handle::Handle;
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::memory::deferred;
use crate::memory::view::{Accessor, View};
use crate::os::span::Span;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FOUND, wb_status};
use crate::tensor::dtype::wb_dtype;
use crate::tensor::{Dtype, Layout};

/// A typed, shaped, strided window into a buffer, which it holds alive.
pub struct wb_view {
    _opaque: [u8; 0],
}

impl Handle for View {
    type Opaque = wb_view;
    const NAME: &'static str = "wb_view";
}

/// Who looks through a view.
pub type wb_accessor = i32;
/// The device; the buffer must be mapped for it.
pub const WB_ACCESSOR_DEVICE: wb_accessor = 0;
/// The host only.
pub const WB_ACCESSOR_HOST: wb_accessor = 1;

pub(super) fn accessor(value: wb_accessor) -> Result<Accessor> {
    one_of(
        value,
        "accessor",
        &[(WB_ACCESSOR_DEVICE, Accessor::Device), (WB_ACCESSOR_HOST, Accessor::Host)],
    )
}

/// Type, shape and strides of a tensor. Begin with WB_LAYOUT_INIT.
#[repr(C)]
pub struct wb_layout {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// A WB_DTYPE_*.
    pub dtype: wb_dtype,
    /// Number of dimensions, at most 64; 0 for a scalar.
    pub ndim: i32,
    /// 0.
    pub reserved0: u32,
    /// `ndim` sizes in elements.
    pub shape: *const i64,
    /// `ndim` strides in elements, of any sign; NULL for contiguous in row-major order.
    pub strides: *const i64,
    /// Bytes from the start of the memory to the first element.
    pub offset_bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_layout {
    const NAME: &'static str = "wb_layout";
}

/// What a view is. Begin with WB_VIEW_INFO_INIT.
#[repr(C)]
pub struct wb_view_info {
    /// Bytes of the struct.
    pub struct_size: u32,
    /// A WB_DTYPE_*.
    pub dtype: wb_dtype,
    /// Number of dimensions.
    pub ndim: i32,
    /// A wb_accessor.
    pub accessor: wb_accessor,
    /// 1 when the elements must not be written.
    pub read_only: i32,
    /// 0.
    pub reserved0: u32,
    /// The host's address of the first element; NULL in a buffer of no bytes, and in memory that only a
    /// CUDA device sees.
    pub data: *mut c_void,
    /// The device's address of the first element; NULL for a view of the host only.
    pub device_address: *mut c_void,
    /// `ndim` sizes in elements; the view's own, alive as long as it.
    pub shape: *const i64,
    /// `ndim` strides in elements; the view's own, alive as long as it.
    pub strides: *const i64,
    /// Number of elements.
    pub elements: u64,
    /// Bytes from the lowest to the end of the highest element, gaps included.
    pub span_bytes: u64,
}

// SAFETY: repr(C), begins with its size; numbers and pointers.
unsafe impl Sized32 for wb_view_info {
    const NAME: &'static str = "wb_view_info";
}

/// Checks a caller's layout; the offset in bytes comes beside it.
///
/// # Safety
/// `given` is NULL or valid for the size that it begins with, its pointers for `ndim` numbers.
pub(super) unsafe fn layout(given: *const wb_layout) -> Result<(Layout, u64)> {
    if given.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the layout is NULL");
    }
    let empty = wb_layout {
        struct_size: size_of::<wb_layout>() as u32,
        dtype: 0,
        ndim: 0,
        reserved0: 0,
        shape: std::ptr::null(),
        strides: std::ptr::null(),
        offset_bytes: 0,
    };
    // SAFETY: the caller's promise.
    let given = unsafe { read_struct(given, empty) }?;
    if given.reserved0 != 0 {
        fail!(WB_ERR_INVALID_ARGUMENT, "wb_layout.reserved0 is not 0");
    }
    let dtype = Dtype::from_code(given.dtype)?;
    // SAFETY: the caller's promise.
    let layout = unsafe { checked_layout(dtype, given.ndim, given.shape, given.strides) }?;
    Ok((layout, given.offset_bytes))
}

/// A layout from `ndim` and pointers to as many sizes and strides.
///
/// # Safety
/// The pointers are NULL or valid for `ndim` numbers.
pub(super) unsafe fn checked_layout(
    dtype: Dtype,
    ndim: i32,
    shape: *const i64,
    strides: *const i64,
) -> Result<Layout> {
    let count = match usize::try_from(ndim) {
        Ok(count) if count <= crate::tensor::layout::MAX_NDIM => count,
        _ => fail!(WB_ERR_INVALID_ARGUMENT, "{ndim} dimensions; 0 to 64 are taken"),
    };
    if count == 0 {
        return Layout::new(dtype, &[], None);
    }
    if shape.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the shape of {ndim} dimensions is NULL");
    }
    // SAFETY: not NULL, and the caller's promise.
    let shape = unsafe { std::slice::from_raw_parts(shape, count) };
    // SAFETY: not NULL, and the caller's promise.
    let strides =
        (!strides.is_null()).then(|| unsafe { std::slice::from_raw_parts(strides, count) });
    Layout::new(dtype, shape, strides)
}

/// Makes a view of a buffer. It aliases, or fails: it never copies.
///
/// Ownership: one reference; the view holds the buffer. Any thread.
/// Errors: WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_MAPPED, WB_ERR_OVERFLOW, WB_ERR_INVALID_ARGUMENT,
/// WB_ERR_INVALID_ARGUMENT, WB_ERR_FILE_TRUNCATED.
///
/// # Safety
/// Pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_new(
    buffer: *const wb_buffer,
    layout: *const wb_layout,
    accessor: wb_accessor,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(view, "view")?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { handle::share::<Buffer>(buffer) }?;
        // SAFETY: the caller's promise.
        let (layout, offset) = unsafe { self::layout(layout) }?;
        let made = View::new(buffer, layout, offset, self::accessor(accessor)?)?;
        // SAFETY: not NULL.
        unsafe { *view = handle::give(made) };
        Ok(())
    })
}

/// Copies a tensor of the caller, its strides and gaps included, into a new buffer and gives a view
/// of that. `data` is where the layout's offset counts from. `options` may be NULL.
///
/// Ownership: one reference; the view holds the new buffer. The copy is done when the call returns.
/// Any thread. Errors: those of wb_buffer_alloc and wb_view_new.
///
/// # Safety
/// The tensor's bytes may be read during the call.
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
    guard(error, || {
        check_output(view, "view")?;
        // SAFETY: the caller's promise.
        let device = unsafe { handle::share::<Device>(device) }?;
        // SAFETY: the caller's promise.
        let (layout, offset) = unsafe { self::layout(layout) }?;
        let accessor = self::accessor(accessor)?;
        // SAFETY: the caller's promise.
        let span = unsafe { source(data, &layout, offset) }?;
        // SAFETY: the caller's promise.
        let made = unsafe {
            with_options(options, |options, progress| {
                View::copy_from(&device, span, layout, accessor, options, progress)
            })
        }?;
        // SAFETY: not NULL.
        unsafe { *view = handle::give(made) };
        Ok(())
    })
}

/// The bytes that a caller's tensor spans.
///
/// # Safety
/// They may be read as long as the span is used.
pub(super) unsafe fn source(data: *const c_void, layout: &Layout, offset: u64) -> Result<Span> {
    let bytes = layout.span_bytes();
    if bytes == 0 {
        return Ok(Span::EMPTY);
    }
    if data.is_null() {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the data (source) is NULL and the tensor spans {bytes} bytes"
        );
    }
    let start = (data as u64)
        .checked_add(offset)
        .and_then(|first| first.checked_sub(layout.bytes_before()));
    // SAFETY: the caller's promise.
    match start.and_then(|start| unsafe { Span::checked(start, bytes) }) {
        Some(span) => Ok(span),
        None => fail!(
            crate::status::WB_ERR_OVERFLOW,
            "a tensor of {bytes} bytes at {data:p} and offset {offset} goes past the last address"
        ),
    }
}

/// Adds a reference. Any thread.
///
/// # Safety
/// `view` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_retain(view: *const wb_view) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::retain::<View>(view) });
}

/// Drops a reference; the last of a buffer's views and references gives the memory back, at once and
/// on this thread. Any thread. What a stream may still use goes with wb_view_release_after.
///
/// # Safety
/// `view` is NULL or alive, and this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_release(view: *mut wb_view) {
    // SAFETY: the caller's promise.
    guard_void(|| unsafe { handle::take::<View>(view) }.map(drop));
}

/// Drops a reference once what is queued on `stream` now has run; nobody waits for it. On failure
/// the reference is still the caller's.
///
/// Stream order: behind what is queued. Any thread. Errors: WB_ERR_CAPTURING, WB_ERR_FORKED,
/// WB_ERR_DRIVER, WB_ERR_INVALID_ARGUMENT for a stream of the host device that is none.
///
/// # Safety
/// `view` is NULL or alive, and after success this reference is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_release_after(
    view: *mut wb_view,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let device = unsafe { handle::borrow::<View>(view) }?.device().clone();
        let event = device.mark(Stream(stream as usize))?;
        deferred::start()?;
        // SAFETY: the caller's promise.
        let reference = unsafe { handle::take::<View>(view) }?;
        deferred::drop_after(Some(event), Box::new(reference), &device);
        Ok(())
    })
}

/// Answers what a view is. Any thread.
///
/// # Safety
/// `view` is NULL or alive; `info` is NULL or valid for the size that it begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_get_info(
    view: *const wb_view,
    info: *mut wb_view_info,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        // SAFETY: the caller's promise.
        let view = unsafe { handle::borrow::<View>(view) }?;
        let layout = view.layout();
        let described = wb_view_info {
            struct_size: size_of::<wb_view_info>() as u32,
            dtype: layout.dtype().code(),
            ndim: layout.ndim() as i32,
            accessor: match view.access() {
                Accessor::Device => WB_ACCESSOR_DEVICE,
                Accessor::Host => WB_ACCESSOR_HOST,
            },
            read_only: view.is_read_only().into(),
            reserved0: 0,
            data: view.address() as *mut c_void,
            device_address: view.device_address().unwrap_or(0) as *mut c_void,
            shape: layout.shape().as_ptr(),
            strides: layout.strides().as_ptr(),
            elements: layout.elements(),
            span_bytes: layout.span_bytes(),
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(info, &described) }
    })
}

/// The buffer that a view looks into; WB_ERR_NOT_FOUND for a view of device memory.
///
/// Ownership: adds a reference, given back with wb_buffer_release. Any thread.
///
/// # Safety
/// `view` is NULL or alive; `buffer` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_view_get_buffer(
    view: *const wb_view,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    guard(error, || {
        check_output(buffer, "buffer")?;
        // SAFETY: the caller's promise.
        let Some(held) = unsafe { handle::borrow::<View>(view) }?.buffer().cloned() else {
            fail!(WB_ERR_NOT_FOUND, "the view looks into device memory, which is no wb_buffer")
        };
        // SAFETY: not NULL.
        unsafe { *buffer = handle::give(held) };
        Ok(())
    })
}
