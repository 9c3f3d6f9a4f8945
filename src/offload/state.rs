//! The state of an offloader: its parameters and the memory that backs them.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::offload::addresses::Addresses;
use crate::offload::backing::{Backing, Encoding, HostUnit, HostUse, Kept, ParameterState};
use crate::offload::expert_table::ExpertCaches;
use crate::offload::host_memory::HostMemory;
use crate::offload::moves::Resize;
use crate::offload::parameter_table::ParameterTable;

use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit, EncodedPart};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::plan::parameter::TransferMode;
use crate::status::WB_ERR_OUT_OF_RANGE;

/// The state of an offloader, behind one lock.
pub struct OffloadState {
    pub parameters: ParameterTable,
    /// Why the parameters of each storage are in memory of the offloader and not in that of their
    /// sources; empty if that was not asked for, or is so.
    pub store_reasons: Vec<std::sync::Arc<CStr>>,
    /// An empty text.
    pub no_reason: std::sync::Arc<CStr>,
    /// The numbers of every layout that an info has shown: C may read them as long as this lives.
    pub shown_dims: HashSet<std::sync::Arc<[i64]>>,
    pub host: HostMemory,
    /// Names of the groups.
    pub groups: std::sync::Arc<[String]>,
    /// Indexes of the groups by name.
    pub group_of: HashMap<String, usize>,
    /// Groups with prefetched units, in the order of a step.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at the same time.
    pub depth: usize,
    /// Whether the last groups of a step are followed by the first ones of the next.
    pub wraps: bool,
    /// Bytes of slots for prefetched units; those of on-demand units follow.
    pub ring_bytes: u64,
    /// The memory of all slots; with fixed addresses only a range of addresses, which are not used.
    pub slots: Option<Arc<DeviceMemory>>,
    /// The memory of all blocks that the device keeps compressed. It is held as long as the offloader.
    pub kept: Option<Arc<DeviceMemory>>,
    /// What compressed the bytes of the commit.
    pub encoded_by: EncodedBy,
    /// Where the offloader was last resized to. Dropped before the addresses: a thread may copy from them.
    pub resize: Option<Resize>,
    /// Fixed addresses, if the plan has them.
    pub addresses: Option<Addresses>,
    /// With fixed addresses, the groups of each resident unit. The schedule has them after the others.
    pub resident_units: Vec<Vec<usize>>,
    /// Caches of experts that are parameters.
    pub expert_caches: ExpertCaches,
    /// Peaks of the bytes held.
    pub peak: HeldBytes,
    /// Incremented whenever an address has changed.
    pub generation: u64,
}

/// Bytes that a commit has compressed, by what compressed them.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodedBy {
    /// Kernels of the device.
    pub device: u64,
    /// Cores of the host.
    pub host: u64,
}

/// Bytes of memory held, including padding and free space.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeldBytes {
    /// Address space of host memory.
    pub mapped_bytes: u64,
    /// Device memory for slots.
    pub slot_bytes: u64,
}

impl OffloadState {
    /// The index of a parameter by its name.
    pub fn find(&self, name: &str) -> Result<usize> {
        self.parameters.find(name)
    }

    /// A parameter by its index.
    pub fn parameter(&self, index: usize) -> Result<&ParameterState> {
        check_index("parameter", index, self.parameters.len())?;
        Ok(&self.parameters[index])
    }

    /// Removes a parameter. The last one gets its index.
    pub fn remove_parameter(&mut self, at: usize) {
        self.remove_from_block(at);
        self.parameters.remove(at);
        let last = self.parameters.len();
        if let Some(ParameterState { backing: Backing::Block { block, .. }, .. }) =
            self.parameters.get(at)
        {
            self.host.rename_parameter(*block, last, at);
        }
    }

    /// Takes a parameter out of its block, if it is in one. It must get another backing, or be
    /// removed.
    pub fn remove_from_block(&mut self, at: usize) {
        let Backing::Block { block, .. } = self.parameters[at].backing else { return };
        let end = |member: &usize| match self.parameters[*member].backing {
            Backing::Block { offset, .. } => offset + self.parameters[*member].layout.span_bytes(),
            _ => 0,
        };
        let members = self.host.blocks()[block].parameters.iter();
        let bytes = members.filter(|member| **member != at).map(end).max().unwrap_or(0);
        self.host.leave_block(block, at, bytes);
    }

    /// Notes that a parameter's bytes are those of a source.
    pub fn note_filled(&mut self, at: usize) {
        if let Backing::Block { block, .. } = self.parameters[at].backing {
            self.host.note_filled(block);
        }
    }

    /// The input of the schedule.
    pub fn arrangement(&self) -> Arrangement {
        let resident = |groups: &Vec<usize>| CarriedUnit {
            host: Span::EMPTY,
            encoded: Vec::new(),
            slot: None,
            target: None,
            prefetched: false,
            groups: groups.clone(),
        };
        let units = (0..self.host.units().len()).map(|unit| self.carried_unit(unit));
        Arrangement {
            units: units.chain(self.resident_units.iter().map(resident)).collect(),
            groups: self.groups.clone(),
            ring: self.ring.clone(),
            depth: self.depth,
        }
    }

    /// The compressed blocks of a unit, whose memory the device reads: no others are compressed.
    fn encoded_parts(&self, unit: usize) -> Vec<EncodedPart> {
        let part = |at: usize| {
            let block = &self.host.blocks()[at];
            let Encoding { coded, decoded_bytes, .. } = block.encoding?;
            let (offset, capacity) = (block.offset as usize, block.capacity as usize);
            let host = block.place(&self.host.units()[unit]);
            let kept = block.kept.as_ref().map(Kept::span);
            let on_device = kept.or_else(|| self.on_device(at))?;
            let kept = kept.is_some();
            Some(EncodedPart { offset, capacity, host, on_device, kept, coded, decoded_bytes })
        };
        self.host.blocks_in(unit).filter_map(part).collect()
    }

    /// A unit for the schedule. No group uses one without memory.
    pub fn carried_unit(&self, unit: usize) -> CarriedUnit {
        let extent = self.host.extent(unit, None) as usize;
        let (groups, encoded) = match self.host.is_vacant(unit) {
            true => (Vec::new(), Vec::new()),
            false => (self.host.units()[unit].groups.clone(), self.encoded_parts(unit)),
        };
        let unit = &self.host.units()[unit];
        let slots = self.slots.as_ref().map(|slots| slots.span());
        let slot = unit.slot_offset.zip(slots);
        CarriedUnit {
            host: unit.region.part(0, extent),
            encoded,
            slot: slot.map(|(offset, slots)| slots.part(offset as usize, extent)),
            target: unit.range.as_ref().map(|range| range.span().part(0, extent)),
            prefetched: unit.transfer_mode == TransferMode::Prefetch,
            groups,
        }
    }

    /// How a parameter is transferred; `None` for a resident one.
    pub fn transfer_mode(&self, parameter: &ParameterState) -> Option<TransferMode> {
        match parameter.backing {
            Backing::Block { block, .. } => Some(self.host.unit_of(block).transfer_mode),
            Backing::Unbacked(HostUse { transfer_mode, .. }) => Some(transfer_mode),
            _ => None,
        }
    }

    /// Host and device addresses of a parameter's first element.
    pub fn element_addresses(&self, parameter: &ParameterState) -> (Option<u64>, Option<u64>) {
        let element = |first_byte: u64| first_byte + parameter.layout.bytes_before();
        let (host, device) = self.byte_addresses(parameter);
        (host.map(element), device.map(element))
    }

    /// Host and device addresses of a parameter's lowest byte. Compressed bytes have no host address.
    pub fn byte_addresses(&self, parameter: &ParameterState) -> (Option<u64>, Option<u64>) {
        match &parameter.backing {
            _ if parameter.incomplete => (None, None),
            Backing::Missing | Backing::Unbacked(_) => (None, None),
            Backing::Borrowed(span) => (None, Some(span.start() as u64)),
            Backing::Owned { memory, offset } => {
                (None, Some(memory.span().start() as u64 + offset))
            }
            Backing::Block { block, offset } => {
                let unit = self.host.unit_of(*block);
                let block = &self.host.blocks()[*block];
                let at = block.offset + offset;
                let device = self.device_address(unit).map(|start| start + at);
                let host = unit.region.start() as u64 + at;
                (block.encoding.is_none().then_some(host), device)
            }
        }
    }

    /// The device address of a unit: of its host memory if it is zero-copy, otherwise of its slot.
    pub fn device_address(&self, unit: &HostUnit) -> Option<u64> {
        if unit.transfer_mode == TransferMode::ZeroCopy {
            return unit.buffer.device_address().map(|start| start + unit.offset_in_buffer());
        }
        if let Some(range) = &unit.range {
            return Some(range.span().start() as u64);
        }
        let slots = self.slots.as_ref()?.span().start() as u64;
        Some(slots + unit.slot_offset?)
    }

    /// Where a parameter's bytes are, if they are in memory of the offloader and not compressed.
    pub fn own_location(&self, at: usize) -> Option<Location> {
        let parameter = &self.parameters[at];
        let bytes = parameter.layout.span_bytes() as usize;
        match &parameter.backing {
            Backing::Block { block, offset } => {
                let region = self.host.unit_of(*block).region;
                let block = &self.host.blocks()[*block];
                if block.encoding.is_some_and(|encoding| encoding.encoded_bytes > 0) {
                    return None;
                }
                Some(Location::host(region.part((block.offset + offset) as usize, bytes)))
            }
            Backing::Owned { memory, offset } => {
                let buffer = self.addresses.as_ref().and_then(|all| all.buffer_of(memory));
                Some(match buffer {
                    Some(buffer) => Location::host(buffer.data().part(*offset as usize, bytes)),
                    None => Location::device(memory.span().part(*offset as usize, bytes)),
                })
            }
            Backing::Borrowed(_) | Backing::Missing | Backing::Unbacked(_) => None,
        }
    }

    /// The groups that use a parameter's bytes, or bytes that are copied with them.
    pub fn groups_using(&self, at: usize) -> Vec<usize> {
        let parameter = &self.parameters[at];
        match &parameter.backing {
            Backing::Block { block, .. } => self.host.unit_of(*block).groups.clone(),
            Backing::Unbacked(HostUse { groups, .. }) => groups.clone(),
            Backing::Owned { .. } => {
                let tied = self.parameters.resident_ties(at).into_iter();
                [at].into_iter().chain(tied).map(|at| self.parameters[at].group).collect()
            }
            Backing::Borrowed(_) | Backing::Missing => vec![parameter.group],
        }
    }
}

/// Fails with `WB_ERR_OUT_OF_RANGE` for an index that is not below `count`.
pub fn check_index(what: &str, index: usize, count: usize) -> Result<()> {
    if index >= count {
        fail!(WB_ERR_OUT_OF_RANGE, "asked for {what} {index}; there are {count}");
    }
    Ok(())
}
