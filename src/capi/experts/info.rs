//! What an expert cache is, and what it has done.

use std::ffi::{c_char, c_void};

use crate::cache::cache::ExpertCache;
use crate::cache::counters::ExpertCounters;
use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::experts::handle::wb_expert_cache;
use crate::capi::structs::{CStruct, c_struct};
use crate::capi::view::handle::wb_view;
use crate::capi::view::layout::block_of;
use crate::plan::experts::predicted_hit_rate;
use crate::status::wb_status;
use crate::tensor::dtype::wb_dtype;

/// Properties of an expert cache.
#[repr(C)]
pub struct wb_expert_cache_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// Number of lanes.
    pub lanes: u32,
    /// Number of layers.
    pub layers: u64,
    /// Number of expert tensors of a layer; their indexes are smaller.
    pub tensors: u64,
    /// Number of experts of all layers.
    pub experts: u64,
    /// Bytes of an expert, of all its tensors.
    pub expert_bytes: u64,
    /// Slots in use.
    pub slots: u64,
    /// Slots that there is memory for; 0 while an offloader with fixed addresses is asleep.
    pub capacity: u64,
    /// Bytes of device memory of the slots.
    pub slot_bytes: u64,
    /// Bytes of device memory of the state.
    pub state_bytes: u64,
    /// The first dimension of the slots' tensors: `capacity`, or with fixed addresses `experts`.
    pub most_slots: u64,
    /// The hit rate that is predicted of the slots in use, as in wb_plan_info: `slots` of
    /// `experts`. That of wb_expert_cache_get_stats is `hits` of `hits + misses`.
    pub predicted_hit_rate: f64,
}

c_struct!(wb_expert_cache_info);

/// Fills `info` with the properties of the cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_get_info(
    cache: *const wb_expert_cache,
    info: *mut wb_expert_cache_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache| -> info {
        let found = cache.info();
        Ok(wb_expert_cache_info {
            lanes: found.lanes,
            layers: found.layers,
            tensors: found.tensors,
            experts: found.experts,
            expert_bytes: found.expert_bytes,
            slots: found.slots,
            capacity: found.capacity,
            slot_bytes: found.slot_bytes,
            state_bytes: found.state_bytes,
            most_slots: found.most_slots,
            predicted_hit_rate: predicted_hit_rate(found.slots, found.experts),
            ..CStruct::init()
        })
    })
}

/// The slots of one expert tensor: a contiguous tensor `[most_slots, ...]` of addresses on the
/// device. The first `capacity` slots have memory, and kernels access no others.
#[repr(C)]
pub struct wb_expert_slots_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// The element type.
    pub dtype: wb_dtype,
    /// The name that the tensor was described with.
    pub name: *const c_char,
    /// The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one that its layout gave.
    pub dtype_name: *const c_char,
    /// `ndim` sizes in elements, of which the first is `most_slots`.
    pub shape: *const i64,
    /// Number of dimensions.
    pub ndim: i32,
    /// Elements of a block of a WB_DTYPE_OPAQUE; otherwise 0.
    pub block_elements: u32,
    /// Bytes of such a block; otherwise 0.
    pub block_bytes: u32,
    /// Zero.
    pub reserved0: u32,
    /// Address of slot 0 on the device. It stays until the cache is released.
    pub device_address: *mut c_void,
    /// Bytes of a slot.
    pub expert_bytes: u64,
}

c_struct!(wb_expert_slots_info);

/// Fills `info` with the slots of the expert tensor `index`; indexes follow the order in which
/// names were first described. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_get_slots_info(
    cache: *const wb_expert_cache,
    index: u64,
    info: *mut wb_expert_slots_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache| -> info {
        let tensor = cache.tensor(index)?;
        let (layout, dtype) = (&tensor.layout, tensor.layout.dtype());
        let (block_elements, block_bytes) = block_of(dtype);
        Ok(wb_expert_slots_info {
            dtype: dtype.code(),
            name: tensor.name.as_ptr(),
            dtype_name: dtype.c_name().as_ptr(),
            shape: layout.shape().as_ptr(),
            ndim: layout.ndim() as i32,
            block_elements,
            block_bytes,
            device_address: tensor.address as *mut c_void,
            expert_bytes: tensor.expert_bytes,
            ..CStruct::init()
        })
    })
}

/// Creates a view of the slots of the expert tensor `index`, which holds their memory. Fails with
/// WB_ERR_OUT_OF_RANGE, and with WB_ERR_NOT_SUPPORTED for an opaque type: use the address of
/// wb_expert_cache_get_slots_info.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_get_view(
    cache: *const wb_expert_cache,
    index: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache| -> view { cache.view(index) })
}

/// What an expert cache has done since it was created, counted on the device, replays of graphs
/// included. An expert that several ids of a call name counts once.
#[repr(C)]
pub struct wb_expert_cache_stats {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Calls of wb_expert_cache_route, without those of no ids.
    pub calls: u64,
    /// Experts that calls found in slots.
    pub hits: u64,
    /// Experts that calls did not find.
    pub misses: u64,
    /// Experts, of any layer, that calls and hints of the layer evicted.
    pub evictions: u64,
    /// Experts that wb_expert_cache_prefetch copied into slots.
    pub prefetched: u64,
    /// Experts for which no slot could be taken: of hints, 0 of calls.
    pub refused: u64,
    /// Ids without an expert in their layer.
    pub ignored: u64,
    /// Bytes that were gathered, of misses and hints.
    pub gathered_bytes: u64,
}

c_struct!(wb_expert_cache_stats);

fn stats(found: ExpertCounters) -> wb_expert_cache_stats {
    wb_expert_cache_stats {
        calls: found.calls,
        hits: found.hits,
        misses: found.misses,
        evictions: found.evictions,
        prefetched: found.prefetched,
        refused: found.refused,
        ignored: found.ignored,
        gathered_bytes: found.bytes,
        ..CStruct::init()
    }
}

/// Fills `stats` with the sum of all layers. Reads the device's counters on a stream of its own and
/// waits for that copy alone, so running kernels are not held up; a call that is running may be
/// counted in part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_get_stats(
    cache: *const wb_expert_cache,
    stats: *mut wb_expert_cache_stats,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache| -> stats {
        let layers = cache.counters()?;
        Ok(self::stats(layers.into_iter().fold(ExpertCounters::default(), ExpertCounters::plus)))
    })
}

/// As wb_expert_cache_get_stats, for one layer. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_get_layer_stats(
    cache: *const wb_expert_cache,
    layer: u64,
    stats: *mut wb_expert_cache_stats,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache| -> stats {
        cache.layer(layer)?;
        Ok(self::stats(cache.counters()?[layer as usize]))
    })
}
