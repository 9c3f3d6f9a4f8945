//! Memory that threads use by turns, each while it works on a part.

use crate::error::Result;
use crate::os::mapping::Mapping;
use crate::os::span::Span;
use crate::os::sync::{self, Mutex};

/// Memory of one size, for as many threads as work at the same time.
pub struct Scratch {
    bytes: usize,
    idle: Mutex<Vec<Mapping>>,
}

impl Scratch {
    /// No memory yet.
    pub fn new(bytes: usize) -> Self {
        Self { bytes, idle: Mutex::new(Vec::new()) }
    }

    /// Works with memory that no other thread uses meanwhile. It has any contents.
    pub fn with<T>(&self, work: impl FnOnce(Span) -> Result<T>) -> Result<T> {
        let idle = sync::lock(&self.idle).pop();
        let memory = match idle {
            Some(memory) => memory,
            None => Mapping::anonymous(self.bytes)?,
        };
        let done = work(memory.span().part(0, self.bytes));
        sync::lock(&self.idle).push(memory);
        done
    }
}
