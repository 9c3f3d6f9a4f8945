//! The input of a schedule: units, groups and the ring.

use std::sync::Arc;

use crate::device::owned::DeviceMemory;
use crate::memory::staging::Staging;
use crate::os::span::Span;
use crate::tensor::coded::CodedType;

/// Bytes of a unit that are compressed in host memory.
#[derive(Debug, Clone, Copy)]
pub struct EncodedPart {
    /// Offset in the slot, and in the unit's host memory if they are there.
    pub offset: usize,
    /// Bytes that it takes there.
    pub capacity: usize,
    /// Where they are in host memory: in the unit's, or as a source has them elsewhere.
    pub host: Span,
    /// The memory from which the device decodes them: the same host memory at the device's addresses, or
    /// device memory.
    pub on_device: Span,
    /// Whether that is device memory, where the device keeps them.
    pub kept: bool,
    /// The type as which they are compressed.
    pub coded: CodedType,
    /// Bytes that they are decoded to.
    pub decoded_bytes: u64,
}

/// Host memory that is copied as one into its slot.
#[derive(Debug, Clone)]
pub struct CarriedUnit {
    /// Its bytes in host memory, as far as they are not compressed elsewhere.
    pub host: Span,
    /// Those that are compressed, by their offsets.
    pub encoded: Vec<EncodedPart>,
    /// Its slot, of as many bytes; `None` for a unit that is never copied: a zero-copy one, or one that
    /// is resident whenever steps run.
    pub slot: Option<Span>,
    /// Where it is copied to, if that is not the address of its slot: with fixed addresses slots only
    /// say which units share memory.
    pub target: Option<Span>,
    /// Whether it is copied before its group is acquired; otherwise it is copied on demand.
    pub prefetched: bool,
    /// The groups that use it.
    pub groups: Vec<usize>,
}

impl CarriedUnit {
    /// Whether the device keeps all of it compressed, so that nothing crosses the link.
    pub fn is_kept(&self) -> bool {
        let kept = self.encoded.iter().filter(|part| part.kept).map(|part| part.capacity);
        let end = self.encoded.last().map_or(0, |part| part.offset + part.capacity);
        !self.encoded.is_empty() && kept.sum::<usize>() == end.max(self.host.bytes())
    }
}

/// All that a schedule works on.
#[derive(Debug, Clone, Default)]
pub struct Arrangement {
    /// All units.
    pub units: Vec<CarriedUnit>,
    /// Names of the groups, for messages.
    pub groups: Arc<[String]>,
    /// Groups with prefetched units, in the order of a step.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at the same time.
    pub depth: usize,
}

/// Memory through which bytes pass to slots.
#[derive(Default)]
pub struct Passages {
    /// Of pageable host memory.
    pub staging: Option<Staging>,
    /// Of compressed bytes.
    pub windows: Option<Arc<DeviceMemory>>,
}
