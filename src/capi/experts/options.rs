//! What an expert cache is made of.

use std::ffi::{c_char, c_void};

use crate::cache::cache::CacheOptions;
use crate::cache::calls::RouteOptions;
use crate::cache::experts::ExpertTensor;
use crate::capi::address::Address;
use crate::capi::arguments::Input;
use crate::capi::buffer::handle::wb_buffer;
use crate::capi::handle::share;
use crate::capi::structs::{c_struct, elements, read_struct};
use crate::capi::view::layout::{GivenLayout, wb_layout};
use crate::error::{Result, fail};
use crate::offload::expert_table::ExpertParameter;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// One expert tensor of one layer: weights, scales or zero points, of any type.
#[repr(C)]
pub struct wb_expert_tensor {
    /// Size of the struct; in an array, the same in each.
    pub struct_size: u32,
    /// Must be zero.
    pub reserved0: u32,
    /// The layer; they count from 0 without a gap.
    pub layer: u64,
    /// The name, such as "w13": the same in every layer.
    pub name: *const c_char,
    /// Type, shape and strides. The first dimension counts the experts of the layer, at most 4096;
    /// the others are an expert, which is contiguous. Its offset counts from the start of `buffer`.
    /// Experts at multiples of 16 bytes are gathered fastest.
    pub layout: *const wb_layout,
    /// The memory, mapped for the device. The cache keeps a reference.
    pub buffer: *const wb_buffer,
    /// For wb_expert_cache_new_for_offloader the name of the parameter, which has the layout and
    /// the memory: `layout` and `buffer` are NULL. Otherwise NULL.
    pub parameter: *const c_char,
    /// Must be zero.
    pub reserved: [u64; 1],
}

c_struct!(wb_expert_tensor, reserved0, reserved);

/// An array of expert tensors, and how many there are.
impl Input<Vec<ExpertTensor>> for (*const wb_expert_tensor, u64) {
    unsafe fn convert(self, name: &str) -> Result<Vec<ExpertTensor>> {
        let (first, count) = self;
        let mut tensors = Vec::new();
        // SAFETY: the contract of mod.rs.
        unsafe {
            for element in elements(first, count, name) {
                let given = read_struct(element?)?;
                let name: &str = given.name.convert("tensor.name")?;
                if !given.parameter.is_null() {
                    fail!(
                        WB_ERR_INVALID_ARGUMENT,
                        "tensor {name:?} names a parameter; parameters are in an offloader: call \
                         wb_expert_cache_new_for_offloader"
                    );
                }
                let layout: GivenLayout = given.layout.convert("tensor.layout")?;
                let GivenLayout { layout, offset_bytes: offset } = layout;
                let buffer = share(given.buffer)?;
                let (layer, name) = (given.layer, name.to_owned());
                tensors.push(ExpertTensor { layer, name, layout, offset, buffer });
            }
        }
        Ok(tensors)
    }
}

/// The same for tensors that are parameters of an offloader.
impl Input<Vec<ExpertParameter>> for (*const wb_expert_tensor, u64) {
    unsafe fn convert(self, name: &str) -> Result<Vec<ExpertParameter>> {
        let (first, count) = self;
        let mut tensors = Vec::new();
        // SAFETY: the contract of mod.rs.
        unsafe {
            for element in elements(first, count, name) {
                let given = read_struct(element?)?;
                let name: &str = given.name.convert("tensor.name")?;
                if !given.layout.is_null() || !given.buffer.is_null() {
                    fail!(
                        WB_ERR_INVALID_ARGUMENT,
                        "tensor {name:?} has a layout or a buffer; its parameter has them: leave both NULL"
                    );
                }
                let parameter: &str = given.parameter.convert("tensor.parameter")?;
                let (layer, name, parameter) = (given.layer, name.into(), parameter.into());
                tensors.push(ExpertParameter { layer, name, parameter });
            }
        }
        Ok(tensors)
    }
}

/// Options of an expert cache. One of `slots` and `device_bytes` is not 0, but for
/// wb_expert_cache_new_for_offloader, where both may be.
#[repr(C)]
pub struct wb_expert_cache_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// Batches in flight at a time, at most 16; 0 for 1. See wb_expert_cache_route.
    pub lanes: u32,
    /// Number of slots, at most the number of experts of all layers.
    pub slots: u64,
    /// Bytes of device memory for slots and state together: a ceiling, which the number of slots
    /// follows from.
    pub device_bytes: u64,
    /// Device memory for the slots, at a multiple of 256 bytes, which the caller keeps until the
    /// cache and its views are released; NULL to allocate it.
    pub memory: *mut c_void,
    /// Bytes at `memory`, at least the `slot_bytes` of wb_expert_cache_measure.
    pub memory_bytes: u64,
    /// Must be zero.
    pub reserved: [u64; 4],
}

c_struct!(wb_expert_cache_options, reserved);

impl Input<CacheOptions> for *const wb_expert_cache_options {
    unsafe fn convert(self, _: &str) -> Result<CacheOptions> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self) }?;
        let memory = Address(given.memory as u64);
        if memory.is_null() && given.memory_bytes > 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "memory_bytes is {}, and memory is NULL: give both, or neither",
                given.memory_bytes
            );
        }
        let memory = match memory.is_null() {
            true => None,
            false => Some(memory.span(given.memory_bytes, "the memory for slots")?),
        };
        let (slots, device_bytes) = (given.slots, given.device_bytes);
        let lanes = given.lanes.max(1);
        Ok(CacheOptions { slots, device_bytes, lanes, memory, piece: None })
    }
}

/// The size of an expert cache.
#[repr(C)]
pub struct wb_expert_cache_size {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Number of slots.
    pub slots: u64,
    /// Bytes of device memory for the slots of all tensors, with padding between tensors.
    pub slot_bytes: u64,
    /// Bytes of device memory for the state, which is always the library's.
    pub state_bytes: u64,
}

c_struct!(wb_expert_cache_size);

/// Options of wb_expert_cache_route.
#[repr(C)]
pub struct wb_expert_route_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// The lane of the call, below the `lanes` of the cache.
    pub lane: u32,
    /// The pass, below `passes`.
    pub pass: u32,
    /// Number of passes that the layer is computed in; 0 for 1.
    pub passes: u32,
}

c_struct!(wb_expert_route_options);

impl Input<RouteOptions> for *const wb_expert_route_options {
    unsafe fn convert(self, _: &str) -> Result<RouteOptions> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self) }?;
        Ok(RouteOptions { lane: given.lane, pass: given.pass, passes: given.passes.max(1) })
    }
}
