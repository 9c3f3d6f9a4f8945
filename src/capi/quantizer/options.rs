//! Options of quantization.

use std::ffi::c_void;

use crate::capi::arguments::Input;
use crate::capi::enumeration::{flag, one_of};
use crate::capi::progress::{Reporter, wb_progress};
use crate::capi::structs::{c_struct, read_struct};
use crate::error::Result;
use crate::tensor::dtype::{Dtype, WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E8M0, WB_DTYPE_F32, wb_dtype};
use crate::tensor::fp8::{Fp8Format, ScaleType};

/// Options of quantization.
#[repr(C)]
pub struct wb_quantize_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// WB_DTYPE_F8_E4M3FN or WB_DTYPE_F8_E5M2; 0 for WB_DTYPE_F8_E4M3FN.
    pub format: wb_dtype,
    /// WB_DTYPE_F32, or WB_DTYPE_F8_E8M0 for powers of two; 0 for WB_DTYPE_F32.
    pub scale_dtype: wb_dtype,
    /// 1 if the caller gives the scales; 0 if they are computed.
    pub use_given_scales: i32,
    /// Rows of the last dimension but one that share a scale; 0 for all.
    pub block_rows: u64,
    /// Columns of the last dimension that share a scale; 0 for all.
    pub block_cols: u64,
    /// 1 if NaN and infinity fail with WB_ERR_NOT_FINITE.
    pub reject_nonfinite: i32,
    /// Must be zero.
    pub reserved0: u32,
    /// Bytes available for scales, to be checked; 0 for no check.
    pub scale_bytes: u64,
    /// Receives progress, and may cancel; may be NULL.
    pub progress: wb_progress,
    /// Argument of `progress`.
    pub progress_user: *mut c_void,
    /// Must be zero.
    pub reserved: [u64; 4],
}

c_struct!(wb_quantize_options, reserved0, reserved);

/// A caller's options, and whom to report progress to.
pub(in crate::capi) struct QuantizeRequest {
    pub format: Fp8Format,
    pub scale_type: ScaleType,
    pub use_given_scales: bool,
    pub block: (u64, u64),
    pub reject_nonfinite: bool,
    pub scale_bytes: u64,
    pub reporter: Reporter,
}

impl Input<QuantizeRequest> for *const wb_quantize_options {
    unsafe fn convert(self, _: &str) -> Result<QuantizeRequest> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self) }?;
        let format = if given.format == 0 { WB_DTYPE_F8_E4M3FN } else { given.format };
        let scale_types = [
            (0, ScaleType::F32),
            (WB_DTYPE_F32, ScaleType::F32),
            (WB_DTYPE_F8_E8M0, ScaleType::E8m0),
        ];
        Ok(QuantizeRequest {
            format: Fp8Format::of(Dtype::from_code(format)?)?,
            scale_type: one_of(given.scale_dtype, "scale_dtype", &scale_types)?,
            use_given_scales: flag(given.use_given_scales, "use_given_scales")?,
            block: (given.block_rows, given.block_cols),
            reject_nonfinite: flag(given.reject_nonfinite, "reject_nonfinite")?,
            scale_bytes: given.scale_bytes,
            // SAFETY: the contract of mod.rs.
            reporter: unsafe { Reporter::new(given.progress, given.progress_user) },
        })
    }
}
