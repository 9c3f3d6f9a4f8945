//! A parameter of an offloader, and the memory that backs it.

use std::ffi::{CStr, CString};

use crate::device::owned::DeviceMemory;
use crate::memory::buffer::Buffer;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{QuantizedParameter, TransferMode};
use crate::tensor::layout::Layout;

/// The state of a parameter.
pub struct ParameterState {
    /// The name, at an address that stays the same until the parameter is removed.
    pub name: std::sync::Arc<CStr>,
    /// Index of its group.
    pub group: usize,
    pub layout: Layout,
    pub backing: Backing,
    /// Index of its storage in the plan; `None` for a parameter that was added later.
    pub storage: Option<usize>,
    /// Its full-precision source, if it is kept in FP8.
    pub quantized: Option<std::sync::Arc<QuantizedParameter>>,
}

impl ParameterState {
    /// The name as text.
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }
}

/// A name for C. Names come from C, or from text without NUL.
pub fn c_name(name: &str) -> std::sync::Arc<CStr> {
    CString::new(name).unwrap_or_default().into()
}

/// The memory that holds a parameter's bytes.
#[derive(Clone)]
pub enum Backing {
    /// Offloaded, in a block of host memory.
    Block { block: usize, offset: u64 },
    /// Resident, in device memory of the engine.
    Borrowed(Span),
    /// Resident, in device memory of the offloader.
    Owned { memory: Arc<DeviceMemory>, offset: u64 },
    /// Resident, without bytes: it was given no source, or its replacement failed.
    Missing,
    /// Offloaded, without bytes, since its replacement failed. The next one finds host memory for
    /// this use.
    Unbacked(HostUse),
}

/// Which groups use host memory, and how it is transferred.
#[derive(Clone, PartialEq, Eq)]
pub struct HostUse {
    pub groups: Vec<usize>,
    pub transfer_mode: TransferMode,
}

/// Host memory of one parameter, or of several that are tied.
pub struct Block {
    /// Index of its unit.
    pub unit: usize,
    /// Offset in the unit.
    pub offset: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// Bytes that no other block may use: `bytes` rounded up, or more once a tied parameter has
    /// left.
    pub capacity: u64,
    /// Whether its bytes are those of a source; otherwise the memory is as it was allocated.
    pub filled: bool,
    /// Indexes of its parameters. A block without any is free, and its entry is used again.
    pub parameters: Vec<usize>,
}

/// Host memory that is copied as one, as far as its blocks reach.
pub struct HostUnit {
    pub buffer: Arc<Buffer>,
    /// Its part of the buffer.
    pub region: Span,
    /// Whether that is where the sources were: memory that others may use, and that is not written.
    pub in_source: bool,
    pub transfer_mode: TransferMode,
    /// The groups that use it.
    pub groups: Vec<usize>,
    /// Offset of its slot in the slots; `None` if it has no slot.
    pub slot_offset: Option<u64>,
}

impl HostUnit {
    /// Offset in the buffer.
    pub fn offset_in_buffer(&self) -> u64 {
        (self.region.start() - self.buffer.data().start()) as u64
    }
}
