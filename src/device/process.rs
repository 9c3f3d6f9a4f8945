//! Which process a device was opened in.

use std::process;

use crate::error::{Result, fail};
use crate::status::WB_ERR_FORKED;

/// Remembers the process that made it.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// This process.
    pub fn this() -> Self {
        Self(process::id())
    }

    /// Whether this is still the process that made it, and no forked child.
    pub fn is_this(&self) -> bool {
        self.0 == process::id()
    }

    /// `WB_ERR_FORKED` in a forked child.
    pub fn check(&self) -> Result<()> {
        if self.is_this() {
            return Ok(());
        }
        fail!(
            WB_ERR_FORKED,
            "the device was opened by process {} and this is its child {}: open devices after \
             fork, or start workers with spawn",
            self.0,
            process::id()
        )
    }
}
