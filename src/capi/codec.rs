//! The codec: values compressed without loss, in host memory and on devices.

use std::ffi::c_void;

use crate::capi::address::Address;
use crate::capi::arguments::Input;
use crate::capi::call::call;
use crate::capi::device::handle::wb_device;
use crate::capi::enumeration::flag;
use crate::capi::error::wb_error;
use crate::capi::structs::{CStruct, Optional, c_struct};
use crate::codec::format::Info;
use crate::codec::queue::Encoded;
use crate::codec::{in_memory, queue};
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::Result;
use crate::status::wb_status;
use crate::tensor::coded::{CodedType, tiles};
use crate::tensor::dtype::{Dtype, wb_dtype};

/// Bytes of decoded values that are compressed together: ranges are decoded in multiples of it.
pub const WB_CODEC_TILE_BYTES: u64 = 8192;

/// What compressed bytes hold.
#[repr(C)]
pub struct wb_codec_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// Type of the values.
    pub dtype: wb_dtype,
    /// Bytes of the values.
    pub decoded_bytes: u64,
    /// Compressed bytes; estimated by wb_codec_measure if it looks at a part of the tiles.
    pub encoded_bytes: u64,
    /// Number of tiles.
    pub tiles: u64,
    /// Tiles that are stored unchanged, since compressed they would be larger.
    pub raw_tiles: u64,
    /// Tiles of one value, which take no bytes.
    pub constant_tiles: u64,
}

c_struct!(wb_codec_info);

impl From<Info> for wb_codec_info {
    fn from(info: Info) -> Self {
        Self {
            dtype: info.coded.code(),
            decoded_bytes: info.decoded_bytes,
            encoded_bytes: info.encoded_bytes,
            tiles: tiles(info.decoded_bytes),
            raw_tiles: info.raw_tiles,
            constant_tiles: info.constant_tiles,
            ..CStruct::init()
        }
    }
}

impl Input<CodedType> for wb_dtype {
    unsafe fn convert(self, _: &str) -> Result<CodedType> {
        CodedType::of(Dtype::from_code(self)?)
    }
}

/// A number of threads.
struct Threads(usize);

impl Input<Threads> for u32 {
    unsafe fn convert(self, _: &str) -> Result<Threads> {
        Ok(Threads(self as usize))
    }
}

/// A number of bytes or of tiles.
impl Input<u64> for u64 {
    unsafe fn convert(self, _: &str) -> Result<u64> {
        Ok(self)
    }
}

/// A flag.
struct Flag(bool);

impl Input<Flag> for i32 {
    unsafe fn convert(self, name: &str) -> Result<Flag> {
        flag(self, name).map(Flag)
    }
}

/// Gets the largest size that `decoded_bytes` bytes of values can be compressed to: 0.2 % and 95
/// bytes more, if no value can be compressed. Memory for compressed bytes must have as many.
///
/// `dtype` is WB_DTYPE_BF16, WB_DTYPE_F16, WB_DTYPE_F32, WB_DTYPE_F8_E4M3FN or WB_DTYPE_F8_E5M2,
/// for this function and all others. Fails with WB_ERR_NOT_SUPPORTED for other types, with
/// WB_ERR_INVALID_ARGUMENT for a part of a value, and with WB_ERR_OUT_OF_RANGE for more than 2^36
/// bytes. Takes no lock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_get_max_bytes(
    dtype: wb_dtype,
    decoded_bytes: u64,
    max_bytes: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |dtype: CodedType, decoded_bytes: u64| -> max_bytes {
        dtype.max_bytes(decoded_bytes)
    })
}

/// Fills `info` with what the compressed bytes at `encoded`, in host memory, hold. Checks header
/// and directory: what a device may then be given. `available_bytes` may be more than there are
/// compressed bytes. Fails with WB_ERR_DAMAGED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_get_info(
    encoded: *const c_void,
    available_bytes: u64,
    info: *mut wb_codec_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |encoded: Address, available_bytes: u64| -> info {
        let encoded = encoded.span(available_bytes, "the compressed bytes")?;
        in_memory::inspect(encoded).map(Into::into)
    })
}

/// Fills `info` with what `bytes` bytes of values at `source`, in host memory, would be compressed
/// to. Looks at `most_tiles` tiles, evenly spread, and estimates the others; 0 looks at all and is
/// exact. Uses memory for twice as many bytes as it looks at. Fails as wb_codec_get_max_bytes does,
/// and with WB_ERR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_measure(
    dtype: wb_dtype,
    source: *const c_void,
    bytes: u64,
    most_tiles: u64,
    info: *mut wb_codec_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |dtype: CodedType, source: Address, bytes: u64, most_tiles: u64| -> info {
        let source = source.span(bytes, "the source")?;
        in_memory::measure(dtype, source, most_tiles).map(Into::into)
    })
}

/// Compresses `bytes` bytes of values at `source` to `target`, both in host memory and at any
/// address. `target_bytes` must be what wb_codec_get_max_bytes says, or more. All encoders of
/// the library write the same bytes.
///
/// Works on `threads` threads, the calling one included; 0 for as many as there are processors, at
/// most 32. The memory must not overlap. `info` may be NULL. Fails as wb_codec_get_max_bytes does,
/// and with WB_ERR_OUT_OF_RANGE if the target is too small.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_encode(
    dtype: wb_dtype,
    source: *const c_void,
    bytes: u64,
    target: *mut c_void,
    target_bytes: u64,
    threads: u32,
    info: *mut wb_codec_info,
    error: *mut wb_error,
) -> wb_status {
    let info = Optional(info);
    call!(error, |dtype: CodedType,
                  source: Address,
                  bytes: u64,
                  target: Address,
                  target_bytes: u64,
                  threads: Threads|
     -> info {
        let source = source.span(bytes, "the source")?;
        let target = target.span(target_bytes, "the target")?;
        in_memory::encode(dtype, source, target, threads.0).map(Into::into)
    })
}

/// Decompresses `bytes` bytes of values from byte `offset` on, from `encoded` to `target`, both in
/// host memory and at any address. Range and memory are whole tiles of WB_CODEC_TILE_BYTES, except
/// that a range may end with the values. `available_bytes` may be more than there are compressed
/// bytes. With `verify`, checksums are compared.
///
/// Threads are those of wb_codec_encode. `info` may be NULL, and is that of all values. Whatever
/// the compressed bytes contain, nothing outside of them is read. Fails with WB_ERR_DAMAGED, after
/// which the contents of `target` are undefined, and for other ranges with WB_ERR_INVALID_ARGUMENT
/// or WB_ERR_UNALIGNED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_decode(
    encoded: *const c_void,
    available_bytes: u64,
    offset: u64,
    target: *mut c_void,
    bytes: u64,
    verify: i32,
    threads: u32,
    info: *mut wb_codec_info,
    error: *mut wb_error,
) -> wb_status {
    let info = Optional(info);
    call!(error, |encoded: Address,
                  available_bytes: u64,
                  offset: u64,
                  target: Address,
                  bytes: u64,
                  verify: Flag,
                  threads: Threads|
     -> info {
        let encoded = encoded.span(available_bytes, "the compressed bytes")?;
        let target = target.span(bytes, "the target")?;
        in_memory::decode(encoded, offset, target, verify.0, threads.0).map(Into::into)
    })
}

/// Queues compressing values, as wb_codec_encode does, on a device. `source` and `target` are
/// addresses of the device, such as of mapped host memory, at multiples of 16. The number of
/// compressed bytes is then in the header, which wb_codec_get_info reads.
///
/// Stream order: runs after the work queued on `stream`; the memory must stay valid until it has
/// run. Allocates nothing and waits for nothing, except that the first call of a device loads the
/// kernels. Capturable. Fails as wb_codec_encode does, and with WB_ERR_UNALIGNED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_queue_encode(
    device: *const wb_device,
    dtype: wb_dtype,
    source: *const c_void,
    bytes: u64,
    target: *mut c_void,
    target_bytes: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device,
                  dtype: CodedType,
                  source: Address,
                  bytes: u64,
                  target: Address,
                  target_bytes: u64,
                  stream: Stream| {
        let source = source.span(bytes, "the source")?;
        let target = target.span(target_bytes, "the target")?;
        queue::encode(device, dtype, source, target, stream)
    })
}

/// Queues decompressing `bytes` bytes of values from byte `offset` on, as wb_codec_decode does, on
/// a device. `encoded` and `target` are addresses of the device, such as of mapped host memory, at
/// multiples of 16. `available_bytes` is the memory at `encoded`, and `decoded_bytes` the bytes of
/// all values.
///
/// The kernel reads the header when it runs, so that a captured call decodes the bytes of the time
/// of the replay, with the same type and the same number of values. It reads within
/// `available_bytes` and writes within `bytes`, whatever the compressed bytes contain; of damaged
/// ones the contents of `target` are undefined, which wb_codec_queue_verify finds. Stream order as
/// for wb_codec_queue_encode. Capturable. Fails with WB_ERR_INVALID_ARGUMENT, WB_ERR_UNALIGNED,
/// WB_ERR_NOT_SUPPORTED or WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_queue_decode(
    device: *const wb_device,
    dtype: wb_dtype,
    encoded: *const c_void,
    available_bytes: u64,
    decoded_bytes: u64,
    offset: u64,
    target: *mut c_void,
    bytes: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device,
                  dtype: CodedType,
                  encoded: Address,
                  available_bytes: u64,
                  decoded_bytes: u64,
                  offset: u64,
                  target: Address,
                  bytes: u64,
                  stream: Stream| {
        let span = encoded.span(available_bytes, "the compressed bytes")?;
        let target = target.span(bytes, "the target")?;
        queue::decode(device, dtype, Encoded { span, decoded_bytes }, offset, target, stream)
    })
}

/// Queues comparing the checksums of `bytes` bytes of decoded values, which begin at byte `offset`
/// of all, with those of the compressed bytes. The number of tiles that differ is added to the
/// 64-bit integer at `mismatches`, which the caller has set, in memory of the device. Otherwise as
/// wb_codec_queue_decode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_codec_queue_verify(
    device: *const wb_device,
    encoded: *const c_void,
    available_bytes: u64,
    decoded_bytes: u64,
    offset: u64,
    decoded: *const c_void,
    bytes: u64,
    mismatches: *mut c_void,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: &Device,
                  encoded: Address,
                  available_bytes: u64,
                  decoded_bytes: u64,
                  offset: u64,
                  decoded: Address,
                  bytes: u64,
                  mismatches: Address,
                  stream: Stream| {
        let span = encoded.span(available_bytes, "the compressed bytes")?;
        let decoded = decoded.span(bytes, "the decoded values")?;
        let mismatches = mismatches.span(8, "the count of mismatches")?;
        let encoded = Encoded { span, decoded_bytes };
        queue::verify(device, encoded, offset, decoded, mismatches, stream)
    })
}
