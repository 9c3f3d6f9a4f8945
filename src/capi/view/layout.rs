//! Type, shape and strides of a tensor, and who accesses it.

use std::ffi::c_char;
use std::ptr;

use crate::capi::arguments::Input;
use crate::capi::enumeration::c_enum;
use crate::capi::structs::{CStruct, c_struct, read_struct};
use crate::error::{Result, fail};
use crate::memory::view::Accessor;
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::dtype::{Dtype, WB_DTYPE_OPAQUE, wb_dtype};
use crate::tensor::layout::{Layout, MAX_NDIM};

/// Who accesses the memory of a view.
pub type wb_accessor = i32;
/// The device; the memory must be mapped for it.
pub const WB_ACCESSOR_DEVICE: wb_accessor = 0;
/// The host only.
pub const WB_ACCESSOR_HOST: wb_accessor = 1;

c_enum!(Accessor { WB_ACCESSOR_DEVICE => Device, WB_ACCESSOR_HOST => Host });

/// Type, shape and strides of a tensor.
#[repr(C)]
pub struct wb_layout {
    /// Size of the struct.
    pub struct_size: u32,
    /// The element type.
    pub dtype: wb_dtype,
    /// Number of dimensions, at most 64; 0 for a scalar.
    pub ndim: i32,
    /// Must be zero.
    pub reserved0: u32,
    /// `ndim` sizes in elements.
    pub shape: *const i64,
    /// `ndim` strides in elements, of any sign; NULL for contiguous in row-major order.
    pub strides: *const i64,
    /// Bytes from the start of the memory to the first element.
    pub offset_bytes: u64,
    /// The name of a WB_DTYPE_OPAQUE, such as "q4_K": 1 to 63 bytes, not one of a WB_DTYPE_*; NULL
    /// for all other types.
    pub dtype_name: *const c_char,
    /// Elements of the last dimension that a block of a WB_DTYPE_OPAQUE holds, such as 256. The
    /// last dimension must be a multiple. 0 for all other types.
    pub block_elements: u32,
    /// Bytes of such a block, such as 144; 0 for all other types.
    pub block_bytes: u32,
}

c_struct!(wb_layout, reserved0);

/// A caller's layout.
pub(in crate::capi) struct GivenLayout {
    pub layout: Layout,
    pub offset_bytes: u64,
}

impl Input<GivenLayout> for *const wb_layout {
    unsafe fn convert(self, name: &str) -> Result<GivenLayout> {
        if self.is_null() {
            fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL");
        }
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self) }?;
        // SAFETY: the contract of mod.rs.
        let dtype = unsafe { dtype_of(&given, name) }?;
        // SAFETY: the contract of mod.rs.
        let layout = unsafe { layout_from(dtype, given.ndim, given.shape, given.strides) }?;
        Ok(GivenLayout { layout, offset_bytes: given.offset_bytes })
    }
}

/// Elements and bytes of a block, as infos have them: 0 unless the type is opaque.
pub(in crate::capi) fn block_of(dtype: Dtype) -> (u32, u32) {
    match dtype.is_opaque() {
        true => (dtype.block_elements(), dtype.bytes() as u32),
        false => (0, 0),
    }
}

/// A layout as C reads it, while the layout is alive.
pub(in crate::capi) fn layout_to_c(layout: &Layout) -> wb_layout {
    let dtype = layout.dtype();
    let (block_elements, block_bytes) = block_of(dtype);
    let dtype_name = if dtype.is_opaque() { dtype.c_name().as_ptr() } else { ptr::null() };
    wb_layout {
        dtype: dtype.code(),
        ndim: layout.ndim() as i32,
        shape: layout.shape().as_ptr(),
        strides: ptr::null(),
        dtype_name,
        block_elements,
        block_bytes,
        ..CStruct::init()
    }
}

/// The element type of a layout.
///
/// # Safety
/// `given` keeps the contract of mod.rs.
unsafe fn dtype_of(given: &wb_layout, name: &str) -> Result<Dtype> {
    if given.dtype == WB_DTYPE_OPAQUE {
        // SAFETY: the promise above.
        let named: &str = unsafe { given.dtype_name.convert(&format!("{name}.dtype_name")) }?;
        return Dtype::opaque(named, given.block_elements, given.block_bytes);
    }
    if !given.dtype_name.is_null() || given.block_elements > 0 || given.block_bytes > 0 {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{name}.dtype is {}, and {name} names a type or has the size of its blocks: leave both \
             zero, or give WB_DTYPE_OPAQUE",
            given.dtype
        );
    }
    Dtype::from_code(given.dtype)
}

/// A layout from `ndim` sizes and strides.
///
/// # Safety
/// The pointers are NULL or valid for `ndim` numbers.
pub(in crate::capi) unsafe fn layout_from(
    dtype: Dtype,
    ndim: i32,
    shape: *const i64,
    strides: *const i64,
) -> Result<Layout> {
    let count = match usize::try_from(ndim) {
        Ok(0) => return Layout::new(dtype, &[], None),
        Ok(count) if count <= MAX_NDIM => count,
        _ => {
            fail!(WB_ERR_INVALID_ARGUMENT, "the layout has {ndim} dimensions; 0 to 64 are allowed")
        }
    };
    let numbers = |from: *const i64| {
        // SAFETY: not NULL, and the promise above.
        (!from.is_null()).then(|| unsafe { std::slice::from_raw_parts(from, count) })
    };
    let Some(shape) = numbers(shape) else {
        fail!(WB_ERR_INVALID_ARGUMENT, "the shape of {ndim} dimensions is NULL")
    };
    Layout::new(dtype, shape, numbers(strides))
}
