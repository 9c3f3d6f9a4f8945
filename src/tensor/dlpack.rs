//! DLPack's structures, as its interface (1.x) lays them out.
//! Source: the DLPack specification, `dlpack.h` of version 1.1.

use std::ffi::c_void;

/// The version that is exported; an import of another major version is refused.
pub const VERSION: DLPackVersion = DLPackVersion { major: 1, minor: 1 };
/// Ordinary host memory.
pub const CPU: i32 = 1;
/// Memory that a CUDA device can read by its pointer.
pub const CUDA: i32 = 2;
/// The memory must not be written.
pub const FLAG_READ_ONLY: u64 = 1;

/// Version of the structures.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DLPackVersion {
    /// A change breaks the structures.
    pub major: u32,
    /// A change adds to them.
    pub minor: u32,
}

/// Kind and ordinal of a device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DLDevice {
    /// [`CPU`], [`CUDA`] or another of DLPack's numbers.
    pub device_type: i32,
    /// Ordinal among the devices of that kind.
    pub device_id: i32,
}

/// Type of an element: `lanes` values of `bits` bits.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DLDataType {
    /// Integer, float and so on, by DLPack's numbers.
    pub code: u8,
    /// Bits of one value.
    pub bits: u8,
    /// Values in one element.
    pub lanes: u16,
}

/// A tensor that somebody else owns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DLTensor {
    /// Address of the first byte, before `byte_offset`.
    pub data: *mut c_void,
    /// Where the address counts.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: DLDataType,
    /// `ndim` sizes.
    pub shape: *mut i64,
    /// `ndim` strides in elements; NULL means contiguous.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

/// A tensor with its deleter, as DLPack had it before version 1.
#[repr(C)]
pub struct DLManagedTensor {
    /// The tensor.
    pub dl_tensor: DLTensor,
    /// The maker's own.
    pub manager_ctx: *mut c_void,
    /// Frees everything; NULL where there is nothing to free.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// A tensor with its deleter, version and flags.
#[repr(C)]
pub struct DLManagedTensorVersioned {
    /// Of the structures; always first.
    pub version: DLPackVersion,
    /// The maker's own.
    pub manager_ctx: *mut c_void,
    /// Frees everything; NULL where there is nothing to free.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    /// [`FLAG_READ_ONLY`] and others.
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DLTensor,
}

const _: () = {
    assert!(size_of::<DLTensor>() == 48);
    assert!(size_of::<DLManagedTensor>() == 64);
    assert!(size_of::<DLManagedTensorVersioned>() == 80);
    assert!(std::mem::offset_of!(DLManagedTensorVersioned, dl_tensor) == 32);
};
