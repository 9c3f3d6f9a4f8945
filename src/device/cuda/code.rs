//! The driver's error codes, and the handling of errors by their code. Source: the CUDA driver API,
//! `CUresult`.

use crate::error::Result;
use crate::os::log;
use crate::status::{
    WB_ERR_ALREADY_REGISTERED, WB_ERR_CAPTURING, WB_ERR_DEVICE_MEMORY, WB_ERR_DRIVER,
    WB_ERR_DRIVER_TOO_OLD, WB_ERR_FORKED, WB_ERR_NO_DEVICE, WB_ERR_NOT_SUPPORTED,
    WB_ERR_OUT_OF_MEMORY, wb_status,
};

pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
/// Of cuInit and all later calls in a forked child whose parent has initialised CUDA.
pub const NOT_INITIALIZED: i32 = 3;
pub const DEINITIALIZED: i32 = 4;
pub const NO_DEVICE: i32 = 100;
pub const INVALID_DEVICE: i32 = 101;
pub const INVALID_CONTEXT: i32 = 201;
pub const OPERATING_SYSTEM: i32 = 304;
pub const NOT_READY: i32 = 600;
pub const CONTEXT_IS_DESTROYED: i32 = 709;
pub const HOST_MEMORY_ALREADY_REGISTERED: i32 = 712;
pub const NOT_PERMITTED: i32 = 800;
pub const NOT_SUPPORTED: i32 = 801;
pub const CAPTURE_FIRST: i32 = 900;
pub const CAPTURE_LAST: i32 = 908;

/// The status of a code that a function of the driver returned.
pub fn status(symbol: &str, code: i32) -> wb_status {
    match code {
        OUT_OF_MEMORY if symbol.starts_with("cuMemHost") => WB_ERR_OUT_OF_MEMORY,
        OUT_OF_MEMORY => WB_ERR_DEVICE_MEMORY,
        NOT_INITIALIZED => WB_ERR_FORKED,
        NO_DEVICE | INVALID_DEVICE => WB_ERR_NO_DEVICE,
        HOST_MEMORY_ALREADY_REGISTERED => WB_ERR_ALREADY_REGISTERED,
        NOT_SUPPORTED => WB_ERR_NOT_SUPPORTED,
        CAPTURE_FIRST..=CAPTURE_LAST => WB_ERR_CAPTURING,
        _ => WB_ERR_DRIVER,
    }
}

/// Whether a code means that the driver has shut down or the context was destroyed.
pub fn is_lost(code: i32) -> bool {
    matches!(code, DEINITIALIZED | INVALID_CONTEXT | CONTEXT_IS_DESTROYED)
}

/// The result of a release, which succeeds on a lost context: the driver has released everything.
pub fn unless_lost(result: Result<()>) -> Result<()> {
    result.or_else(|error| if is_lost(error.code) { Ok(()) } else { Err(error) })
}

/// Logs an error of a release.
pub fn log_unless_lost(result: Result<()>) {
    if let Err(error) = unless_lost(result) {
        log::record(&error);
    }
}

/// `None` if the driver does not support the call; other errors stay errors.
pub fn if_supported<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status == WB_ERR_DRIVER_TOO_OLD => Ok(None),
        Err(error) => match error.code {
            INVALID_VALUE | OPERATING_SYSTEM | NOT_PERMITTED | NOT_SUPPORTED => Ok(None),
            _ => Err(error),
        },
    }
}
