//! The state of an offloader: its parameters and the memory that backs them.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use crate::device::backend::Location;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::offload::backing::{Backing, HostUnit, HostUse, ParameterState};
use crate::offload::host_memory::HostMemory;
use crate::offload::parameter_table::ParameterTable;
use crate::offload::schedule::arrangement::{Arrangement, CarriedUnit};
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
    pub groups: Vec<String>,
    /// Indexes of the groups by name.
    pub group_of: HashMap<String, usize>,
    /// Groups with prefetched units, in the order of a step.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at the same time.
    pub depth: usize,
    /// The memory of all slots.
    pub slots: Option<Arc<DeviceMemory>>,
    /// Peaks of the bytes held.
    pub peak: HeldBytes,
    /// Incremented whenever an address has changed.
    pub generation: u64,
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
        let slots = self.slots.as_ref().map(|slots| slots.span());
        let unit = |(unit, extent): (&HostUnit, u64)| CarriedUnit {
            host: unit.region.part(0, extent as usize),
            slot: unit
                .slot_offset
                .zip(slots)
                .map(|(offset, slots)| slots.part(offset as usize, extent as usize)),
            prefetched: unit.transfer_mode == TransferMode::Prefetch,
            groups: unit.groups.clone(),
        };
        Arrangement {
            units: self.host.units().iter().zip(self.host.extents(None)).map(unit).collect(),
            groups: self.groups.clone(),
            ring: self.ring.clone(),
            depth: self.depth,
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

    /// Host and device addresses of a parameter's lowest byte.
    pub fn byte_addresses(&self, parameter: &ParameterState) -> (Option<u64>, Option<u64>) {
        match &parameter.backing {
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
                (Some(unit.region.start() as u64 + at), device)
            }
        }
    }

    /// The device address of a unit: of its host memory if it is zero-copy, otherwise of its slot.
    pub fn device_address(&self, unit: &HostUnit) -> Option<u64> {
        if unit.transfer_mode == TransferMode::ZeroCopy {
            return unit.buffer.device_address().map(|start| start + unit.offset_in_buffer());
        }
        let slots = self.slots.as_ref()?.span().start() as u64;
        Some(slots + unit.slot_offset?)
    }

    /// Where a parameter's bytes are, if they are in memory of the offloader.
    pub fn own_location(&self, at: usize) -> Option<Location> {
        let parameter = &self.parameters[at];
        let bytes = parameter.layout.span_bytes() as usize;
        match &parameter.backing {
            Backing::Block { block, offset } => {
                let region = self.host.unit_of(*block).region;
                let block = &self.host.blocks()[*block];
                Some(Location::host(region.part((block.offset + offset) as usize, bytes)))
            }
            Backing::Owned { memory, offset } => {
                Some(Location::device(memory.span().part(*offset as usize, bytes)))
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
