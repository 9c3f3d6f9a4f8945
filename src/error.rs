//! The one error type: a status, the driver's own code, and a message that says what was asked,
//! what was found and what to do.

use std::fmt::Display;
use std::io;

use crate::status::wb_status;

/// What every fallible function of the library gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure as the C interface reports it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// One of `WB_ERR_*`.
    pub status: wb_status,
    /// The CUDA driver's code, the `errno` of the system call, or 0.
    pub code: i32,
    /// What was asked, what was found, what to do.
    pub message: String,
}

impl Error {
    /// An error of the library's own finding.
    pub fn new(status: wb_status, message: impl Into<String>) -> Self {
        Self { status, code: 0, message: message.into() }
    }

    /// What a system call answered, with its name and its `errno`.
    pub fn system(
        status: wb_status,
        message: impl Display,
        call: &str,
        answer: &io::Error,
    ) -> Self {
        Self::new(status, format!("{message} ({call}: {answer})"))
            .with_code(answer.raw_os_error().unwrap_or(0))
    }

    /// The same error with the code that the driver or the kernel gave.
    #[must_use]
    pub fn with_code(mut self, code: i32) -> Self {
        self.code = code;
        self
    }
}

/// Returns early with an [`Error`]: `fail!(WB_ERR_NULL, "{what} is NULL")`.
macro_rules! fail {
    ($status:expr, $($message:tt)+) => {
        return Err($crate::error::Error::new($status, format!($($message)+)))
    };
}
pub(crate) use fail;

/// Bytes as people read them, exact where that is short: `4096 bytes`, `6.0 GiB (6442450944 bytes)`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= 10 * unit || (bytes >= *unit && *unit > 1 << 10)) {
        Some((name, unit)) => format!("{:.1} {name} ({bytes} bytes)", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}
