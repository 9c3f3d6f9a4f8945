//! The error type: a status, the code of the driver or the system call, and a message that says
//! what was asked, what was found and what to do.

use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::status::{WB_ERR_INTERNAL, WB_ERR_NOT_FOUND, WB_ERR_OUT_OF_MEMORY, wb_status};

/// The result of every fallible function of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The numbering that an error's code belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeDomain {
    /// There is no code.
    None,
    /// `errno` of a system call.
    Errno,
    /// `CUresult` of the CUDA driver.
    Cuda,
}

/// A failure, as the C interface reports it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// One of `WB_ERR_*`.
    pub status: wb_status,
    /// The code that the driver or the system call returned; 0 if there is none.
    pub code: i32,
    /// Which numbering `code` belongs to.
    pub domain: CodeDomain,
    /// What was asked, what was found, what to do.
    pub message: String,
}

impl Error {
    /// An error that the library itself found: without a code.
    pub fn new(status: wb_status, message: impl Into<String>) -> Self {
        Self { status, code: 0, domain: CodeDomain::None, message: message.into() }
    }

    /// The error for a name that none of `count` objects has, which the function `lists` lists.
    pub fn not_found(noun: &str, name: &str, count: usize, lists: &str) -> Self {
        let message = format!("there is no {noun} {name:?} among {count}: {lists} lists them");
        Self::new(WB_ERR_NOT_FOUND, message)
    }

    /// The error of a system call, with its name and its `errno`.
    pub fn system(status: wb_status, message: impl Display, call: &str, error: &io::Error) -> Self {
        let this = Self::new(status, format!("{message} ({call}: {error})"));
        match error.raw_os_error() {
            Some(errno) => this.with_code(CodeDomain::Errno, errno),
            None => this,
        }
    }

    /// The same error, of one element of an array.
    pub fn of_element(mut self, array: &str, at: usize) -> Self {
        self.message = format!("{array}[{at}]: {}", self.message);
        self
    }

    /// The same error with a code.
    #[must_use]
    pub fn with_code(mut self, domain: CodeDomain, code: i32) -> Self {
        (self.domain, self.code) = (domain, code);
        self
    }
}

/// Returns early with an [`Error`]: `fail!(WB_ERR_INVALID_ARGUMENT, "{what} is NULL")`.
macro_rules! fail {
    ($status:expr, $($message:tt)+) => {
        return Err($crate::error::Error::new($status, format!($($message)+)))
    };
}
pub(crate) use fail;

/// Runs `body` and turns a panic in it into `WB_ERR_INTERNAL`. No panic passes the C interface, a
/// thread of the library, a destructor, or code that must be followed by a cleanup.
pub(crate) fn catch_panic<R>(body: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        let message = format!("a defect of weighbridge, please report it: {text}");
        // Dropping the payload can panic, too; that second payload is leaked.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload))).map_err(std::mem::forget);
        Err(Error::new(WB_ERR_INTERNAL, message))
    })
}

/// The error for a thread that could not be started.
pub(crate) fn thread_error(what: &str, error: &io::Error) -> Error {
    let message = format!(
        "asked for a thread ({what}); the kernel refused it: raise RLIMIT_NPROC (ulimit -u), the control \
         group's pids.max or the memory limits, or run fewer threads"
    );
    Error::system(WB_ERR_OUT_OF_MEMORY, message, "pthread_create", error)
}

/// Formats a number of bytes: `4096 bytes`, `6.0 GiB (6442450944 bytes)`.
pub(crate) fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= 10 * unit || (bytes >= *unit && *unit > 1 << 10)) {
        Some((name, unit)) => format!("{:.1} {name} ({bytes} bytes)", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}
