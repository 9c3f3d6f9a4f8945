//! An offloader's parameters by their index: their properties, and views of them.

use std::ffi::CStr;

use crate::error::{Error, Result, fail};
use crate::memory::view::{Accessor, View};
use crate::offload::address_state::AddressState;
use crate::offload::backing::{Backing, Encoding};
use crate::offload::offloader::Offloader;
use crate::offload::schedule::schedule::no_slots;
use crate::offload::state::OffloadState;
use crate::os::sync::Arc;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::Plan;
use crate::status::{WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE};
use crate::tensor::layout::Layout;

/// The properties of a parameter.
#[derive(Debug, Clone)]
pub struct ParameterInfo {
    /// The name; its address stays the same until the parameter is removed.
    pub name: std::sync::Arc<CStr>,
    /// Type, shape and strides; the numbers live as long as the offloader.
    pub layout: Layout,
    /// Index of its group.
    pub group: usize,
    /// How it is transferred; `None` for a resident parameter.
    pub transfer_mode: Option<TransferMode>,
    /// Device address of the first element: valid always, or, for a parameter that has a slot,
    /// while its group is acquired.
    pub device_address: Option<u64>,
    /// Whether the memory at `device_address` belongs to the offloader.
    pub owned: bool,
    /// Host address of the first element of an offloaded parameter whose bytes are not compressed.
    pub host_address: Option<u64>,
    /// Bytes that it is compressed to in host memory, with those that it is tied to; 0 if it is not.
    pub encoded_bytes: u64,
    /// Bytes that are on the device now, in memory of their own or of the engine.
    pub resident_bytes: u64,
    /// What is behind `device_address`.
    pub address_state: AddressState,
    /// Bytes of device memory in which the device keeps it so; 0 if it does not.
    pub device_encoded_bytes: u64,
    /// Why it does not, though the plan has it so; empty otherwise.
    pub kept_reason: &'static CStr,
    /// Whether its host memory is in the buffer of its source.
    pub in_source: bool,
    /// Why it is not, though the plan allows it; empty otherwise. Lives as long as the offloader.
    pub store_reason: std::sync::Arc<CStr>,
}

impl ParameterInfo {
    fn new(plan: &Plan, state: &mut OffloadState, index: usize) -> Self {
        // A replacement drops the parameter's layout, while C may still read its shape.
        let layout = state.parameters[index].layout.clone().shared_in(&mut state.shown_dims);
        let state = &*state;
        let parameter = &state.parameters[index];
        let in_source = match parameter.backing {
            Backing::Block { block, .. } => {
                state.host.blocks()[block].in_source(state.host.unit_of(block))
            }
            _ => false,
        };
        let asked = match parameter.storage {
            Some(storage) => state.store_reasons[storage].clone(),
            None => state.no_reason.clone(),
        };
        let store_reason = if in_source { state.no_reason.clone() } else { asked };
        let is_kept = parameter.storage.is_some_and(|at| plan.storages[at].kept_bytes > 0);
        let (device_encoded_bytes, kept_reason) = state.kept_of(index, is_kept);
        let (host_address, device_address) = state.element_addresses(parameter);
        let ranges = state.ranges_on_device(index).into_iter();
        let resident_bytes = ranges.map(|(start, end)| end - start).sum();
        let owned = matches!(parameter.backing, Backing::Block { .. } | Backing::Owned { .. });
        Self {
            name: parameter.name.clone(),
            group: parameter.group,
            transfer_mode: match state.in_pieces(index) && resident_bytes < layout.span_bytes() {
                true => Some(TransferMode::ZeroCopy),
                false => state.transfer_mode(parameter),
            },
            resident_bytes,
            address_state: state.address_state(parameter),
            device_address,
            owned: owned && device_address.is_some(),
            host_address,
            encoded_bytes: state.encoding_of(index).map_or(0, |encoding| encoding.encoded_bytes),
            device_encoded_bytes,
            kept_reason,
            in_source,
            store_reason,
            layout,
        }
    }
}

impl Offloader {
    /// The index of a parameter by its name, valid until a parameter is removed.
    pub fn find_parameter(&self, name: &str) -> Result<usize> {
        self.state()?.find(name)
    }

    /// The properties of the parameter at an index.
    pub fn parameter_info(&self, index: usize) -> Result<ParameterInfo> {
        let mut state = self.state()?;
        state.parameter(index)?;
        Ok(ParameterInfo::new(self.plan(), &mut state, index))
    }

    /// The properties of `count` parameters from index `first` on, all at the same moment.
    pub fn parameter_infos(&self, first: usize, count: usize) -> Result<Vec<ParameterInfo>> {
        let mut state = self.state()?;
        let all = state.parameters.len();
        let Some(end) = first.checked_add(count).filter(|end| *end <= all) else {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for {count} parameters from parameter {first} on; there are {all}"
            );
        };
        Ok((first..end).map(|index| ParameterInfo::new(self.plan(), &mut state, index)).collect())
    }

    /// A device view of a parameter: of its host memory if it is zero-copy, of its slot, or of
    /// device memory of the offloader. A slot holds the parameter while its group is acquired.
    pub fn view(&self, index: usize) -> Result<Arc<View>> {
        let state = self.state()?;
        let parameter = state.parameter(index)?;
        let (name, layout) = (parameter.name(), parameter.layout.clone());
        let bytes_before = layout.bytes_before();
        match &parameter.backing {
            _ if parameter.incomplete => Err(unbacked(name)),
            Backing::Owned { memory, offset } => {
                View::of_device(memory.clone(), layout, offset + bytes_before)
            }
            Backing::Block { block, offset } => {
                let unit = state.host.unit_of(*block);
                let block = &state.host.blocks()[*block];
                let at = block.offset + offset + bytes_before;
                if unit.transfer_mode == TransferMode::ZeroCopy || layout.span_bytes() == 0 {
                    let at = unit.offset_in_buffer() + at;
                    return View::new(unit.buffer.clone(), layout, at, Accessor::Device);
                }
                if let Some(range) = &unit.range {
                    return View::of_device(range.clone(), layout, at);
                }
                match (unit.slot_offset, &state.slots) {
                    (Some(slot), Some(slots)) => View::of_device(slots.clone(), layout, slot + at),
                    _ => Err(no_slots()),
                }
            }
            Backing::Borrowed(_) => fail!(
                WB_ERR_NOT_SUPPORTED,
                "parameter {name:?} is resident in memory of the engine: use that tensor"
            ),
            Backing::Missing => fail!(
                WB_ERR_NOT_FOUND,
                "parameter {name:?} is resident and was given no source: replace it with one first"
            ),
            Backing::Unbacked(_) => Err(unbacked(name)),
        }
    }

    /// A view of an offloaded parameter's host memory, to read, save or edit it in place.
    pub fn host_view(&self, index: usize, accessor: Accessor) -> Result<Arc<View>> {
        let state = self.state()?;
        let parameter = state.parameter(index)?;
        let name = parameter.name();
        let (block, offset) = match parameter.backing {
            _ if parameter.incomplete => return Err(unbacked(name)),
            Backing::Block { block, offset } => (block, offset),
            Backing::Unbacked(_) => return Err(unbacked(name)),
            _ if state.in_pieces(index) => fail!(
                WB_ERR_NOT_FOUND,
                "asked for a view of parameter {name:?} in host memory; it is in pieces, of which some may be \
                 on the device: read it with wb_offloader_read_parameter"
            ),
            _ => fail!(
                WB_ERR_NOT_FOUND,
                "parameter {name:?} is resident: there is no copy of it in host memory"
            ),
        };
        let unit = state.host.unit_of(block);
        let block = &state.host.blocks()[block];
        if let Some(Encoding { decoded_bytes, encoded_bytes, .. }) = block.encoding {
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "asked for a view of parameter {name:?} in host memory, where its {decoded_bytes} bytes \
                 are compressed to {encoded_bytes}: read them with wb_offloader_read_parameter, or leave \
                 the parameter out of wb_plan_options.compress"
            );
        }
        let layout = parameter.layout.clone();
        let at = unit.offset_in_buffer() + block.offset + offset + layout.bytes_before();
        View::new(unit.buffer.clone(), layout, at, accessor)
    }
}

fn unbacked(name: &str) -> Error {
    let message =
        format!("parameter {name:?} has no bytes, since its replacement failed: replace it again");
    Error::new(WB_ERR_NOT_FOUND, message)
}
