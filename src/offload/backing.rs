//! A parameter of an offloader, and the memory that backs it.

use std::ffi::{CStr, CString};

use crate::device::owned::DeviceMemory;
use crate::memory::buffer::Buffer;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::{QuantizedParameter, TransferMode};
use crate::plan::plan::ALIGNMENT;
use crate::tensor::coded::CodedType;
use crate::tensor::layout::Layout;

/// The state of a parameter.
pub struct ParameterState {
    /// The name, at an address that stays the same until the parameter is removed.
    pub name: std::sync::Arc<CStr>,
    /// Index of its group.
    pub group: usize,
    pub layout: Layout,
    pub backing: Backing,
    /// With fixed addresses: whether its replacement failed, so that its memory has no bytes of it until
    /// the next one.
    pub incomplete: bool,
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

/// How the bytes of a block are compressed. Type and decoded bytes stay when they are replaced, since a
/// graph may decode them: any bytes can be compressed as any type.
#[derive(Clone, Copy)]
pub struct Encoding {
    pub coded: CodedType,
    /// Bytes that were compressed: those of the block when it was made.
    pub decoded_bytes: u64,
    /// Compressed bytes; 0 before they are compressed for the first time.
    pub encoded_bytes: u64,
}

impl Encoding {
    /// The encoding of a new block, if it has one.
    pub fn of_new(coded: Option<CodedType>, bytes: u64) -> Option<Self> {
        coded.map(|coded| Self { coded, decoded_bytes: bytes, encoded_bytes: 0 })
    }
}

/// Device memory for the compressed bytes of a block. It stays at its address as long as the block has its
/// size: graphs read it.
#[derive(Clone)]
pub struct Kept {
    pub memory: Arc<DeviceMemory>,
    pub offset: u64,
    pub bytes: u64,
}

impl Kept {
    /// The memory.
    pub fn span(&self) -> Span {
        self.memory.span().part(self.offset as usize, self.bytes as usize)
    }
}

/// Compressed bytes of a block that are apart from its unit.
#[derive(Clone)]
pub struct Apart {
    pub buffer: Arc<Buffer>,
    pub span: Span,
    pub kind: ApartKind,
}

/// The memory of compressed bytes that are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApartKind {
    /// The buffer of their source. They are not written.
    Source,
    /// The arena, in as many bytes as their source has. They are not written either.
    Arena,
    /// A buffer of the offloader, with space for any bytes of the block.
    Own,
}

impl Apart {
    /// The same bytes at the device's addresses, if it has such.
    pub fn on_device(&self) -> Option<Span> {
        self.buffer.device_part(self.span)
    }

    /// Those of them that a budget of host memory counts.
    pub fn counted_bytes(&self) -> u64 {
        (self.span.bytes() as u64).next_multiple_of(ALIGNMENT)
    }
}

/// Host memory of one parameter, or of several that are tied.
pub struct Block {
    /// Index of its unit.
    pub unit: usize,
    /// Offset in the unit, in host memory and in its slot.
    pub offset: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// Bytes that no other block may use, as [`capacity`](crate::plan::plan::capacity) says, or
    /// more once a tied parameter has left.
    pub capacity: u64,
    /// How they are compressed, if they are.
    pub encoding: Option<Encoding>,
    /// Where they are, if not at their offset in the unit.
    pub apart: Option<Apart>,
    /// Device memory from which they are decoded, if the device keeps them.
    pub kept: Option<Kept>,
    /// Whether its bytes are those of a source; otherwise the memory is as it was allocated.
    pub filled: bool,
    /// Indexes of its parameters. A block without any is free, and its entry is used again.
    pub parameters: Vec<usize>,
}

/// Host memory that is copied as one, as far as its blocks reach.
pub struct HostUnit {
    pub buffer: Arc<Buffer>,
    /// Its part of the buffer. Blocks that are apart from it may follow after it.
    pub region: Span,
    /// Whether that is where the sources were: memory that others may use, and that is not written.
    pub in_source: bool,
    pub transfer_mode: TransferMode,
    /// The groups that use it.
    pub groups: Vec<usize>,
    /// Offset of its slot in the slots; `None` if it has no slot.
    pub slot_offset: Option<u64>,
    /// Its addresses on the device, if they are fixed: slots then only say which units share memory.
    pub range: Option<Arc<DeviceMemory>>,
}

impl Block {
    /// Where its bytes are in host memory; `unit` is its unit.
    pub fn place(&self, unit: &HostUnit) -> Span {
        match &self.apart {
            Some(apart) => apart.span,
            None => unit.region.part(self.offset as usize, self.capacity as usize),
        }
    }

    /// Whether its bytes are those of a source in memory that is not written.
    pub fn is_as_given(&self, unit: &HostUnit) -> bool {
        self.apart.as_ref().map_or(unit.in_source, |apart| apart.kind != ApartKind::Own)
    }

    /// Whether its bytes are in the buffer of its source.
    pub fn in_source(&self, unit: &HostUnit) -> bool {
        self.apart.as_ref().map_or(unit.in_source, |apart| apart.kind == ApartKind::Source)
    }

    /// Bytes of device memory in which its compressed bytes are; 0 if there is none, or they do not fit.
    pub fn device_encoded_bytes(&self) -> u64 {
        let encoded = self.encoding.map_or(0, |encoding| encoding.encoded_bytes);
        self.kept.as_ref().map_or(0, |kept| if encoded <= kept.bytes { kept.bytes } else { 0 })
    }

    /// Bytes in host memory that belong to it: compressed ones, if they are.
    pub fn stored_bytes(&self) -> u64 {
        self.encoding.map_or(self.bytes, |encoding| encoding.encoded_bytes)
    }
}

impl HostUnit {
    /// Offset in the buffer.
    pub fn offset_in_buffer(&self) -> u64 {
        (self.region.start() - self.buffer.data().start()) as u64
    }
}
