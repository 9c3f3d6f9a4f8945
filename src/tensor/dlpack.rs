//! The structs of DLPack 1.x. Source: the DLPack specification, `dlpack.h` of version 1.1.

use std::ffi::c_void;

/// The exported version. An import of another major version fails.
pub const VERSION: DLPackVersion = DLPackVersion { major: 1, minor: 1 };
/// `kDLCPU`: host memory.
pub const CPU: i32 = 1;
/// `kDLCUDA`: memory that a CUDA device accesses.
pub const CUDA: i32 = 2;
/// `DLPACK_FLAG_BITMASK_READ_ONLY`: the memory must not be written.
pub const FLAG_READ_ONLY: u64 = 1;

/// Version of the structs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DLPackVersion {
    /// Changes when the structs become incompatible.
    pub major: u32,
    /// Changes when something is added.
    pub minor: u32,
}

/// Kind and ordinal of a device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DLDevice {
    /// [`CPU`], [`CUDA`] or another `DLDeviceType`.
    pub device_type: i32,
    /// Ordinal among the devices of this type.
    pub device_id: i32,
}

/// Type of an element: `lanes` values of `bits` bits.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DLDataType {
    /// A `DLDataTypeCode`: integer, float and so on.
    pub code: u8,
    /// Bits of one value.
    pub bits: u8,
    /// Values in one element.
    pub lanes: u16,
}

/// A tensor in memory that its producer owns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DLTensor {
    /// Address of the first byte, before `byte_offset`.
    pub data: *mut c_void,
    /// The device that `data` is an address of.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: DLDataType,
    /// `ndim` sizes, in elements.
    pub shape: *mut i64,
    /// `ndim` strides in elements; NULL means contiguous.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

/// A tensor with its deleter, as of DLPack 0.x.
#[repr(C)]
pub struct DLManagedTensor {
    /// The tensor.
    pub dl_tensor: DLTensor,
    /// Private to the producer.
    pub manager_ctx: *mut c_void,
    /// Frees the tensor and this struct; can be NULL.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// A tensor with its deleter, as of DLPack 1.x.
#[repr(C)]
pub struct DLManagedTensorVersioned {
    /// Version of the structs.
    pub version: DLPackVersion,
    /// Private to the producer.
    pub manager_ctx: *mut c_void,
    /// Frees the tensor and this struct; can be NULL.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    /// [`FLAG_READ_ONLY`] and other flags.
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
