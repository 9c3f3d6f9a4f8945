//! Quantizers: tensors to FP8 and back, in staging memory of bounded size.

use crate::capi::call::{call, release, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::device::device::Device;
use crate::os::sync::Arc;
use crate::quant::quantizer::Quantizer;
use crate::status::wb_status;

/// Bytes of staging memory if the caller gives none.
const STAGING_BYTES: u64 = 128 << 20;

/// Quantizes tensors to FP8 and dequantizes them, one at a time, in staging memory of bounded size.
pub struct wb_quantizer {
    _opaque: [u8; 0],
}

opaque!(wb_quantizer, Quantizer);

/// Creates a quantizer that uses at most `staging_bytes` bytes of device memory (0 for 128 MiB),
/// which it keeps for the next tensor; none on the host device. Fails as wb_buffer_alloc and
/// wb_device_alloc do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_new(
    device: *const wb_device,
    staging_bytes: u64,
    quantizer: *mut *mut wb_quantizer,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>| -> quantizer {
        Quantizer::new(&device, if staging_bytes == 0 { STAGING_BYTES } else { staging_bytes })
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_retain(quantizer: *const wb_quantizer) {
    retain!(quantizer)
}

/// Drops a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_quantizer_release(quantizer: *mut wb_quantizer) {
    release!(quantizer)
}
