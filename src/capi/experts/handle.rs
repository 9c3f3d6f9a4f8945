//! Expert caches.

use crate::cache::cache::{CacheOptions, ExpertCache};
use crate::cache::experts::ExpertTensor;
use crate::capi::call::{call, release, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::experts::options::{
    wb_expert_cache_options, wb_expert_cache_size, wb_expert_tensor,
};
use crate::capi::handle::opaque;
use crate::capi::offloader::handle::wb_offloader;
use crate::capi::structs::CStruct;
use crate::device::device::Device;
use crate::offload::expert_table::ExpertParameter;
use crate::offload::offloader::Offloader;
use crate::os::sync::Arc;
use crate::status::wb_status;

/// Keeps the recently used experts of a mixture of experts on the device, in slots that all layers
/// share; all experts stay in pinned host memory. An engine uses it so:
///
/// 1. Describe each expert tensor of each layer (wb_expert_tensor) and create the cache with a
///    number of slots or a budget of device memory.
/// 2. Give the fused kernel the slots in place of the weights: wb_expert_cache_get_view has a
///    tensor `[most_slots, ...]` for each expert tensor, at an address that stays.
/// 3. In each layer, between the router and the fused kernel, on the same stream:
///
/// ```c
/// wb_expert_cache_route(cache, layer, ids, tokens * k, WB_DTYPE_I32, slots, NULL, stream, &error);
/// fused_experts(hidden, w13_slots, w2_slots, slots, weights, stream);
/// ```
///
/// Everything is decided on the device, so the host never waits, and a decode step that has been
/// captured stays one graph. An expert is the rows with its number of all tensors of its layer.
/// Slots serve all layers, so these have equal experts; layers of another size have a cache of
/// their own.
pub struct wb_expert_cache {
    _opaque: [u8; 0],
}

opaque!(wb_expert_cache, ExpertCache);

/// Creates a cache whose slots are empty, and zeros. Memory for the slots, unless the caller gives
/// it, and for the state is allocated. Names, layouts and the array are not needed after the call.
///
/// Stream order: what was written to the host memory before is read by later calls. Fails with
/// WB_ERR_NOT_MAPPED if the device cannot read a buffer in place, with WB_ERR_SLOTS_BUDGET,
/// WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_SUPPORTED or WB_ERR_UNALIGNED, and as wb_buffer_alloc and
/// wb_device_alloc do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_new(
    device: *const wb_device,
    tensors: *const wb_expert_tensor,
    count: u64,
    options: *const wb_expert_cache_options,
    cache: *mut *mut wb_expert_cache,
    error: *mut wb_error,
) -> wb_status {
    let tensors = (tensors, count);
    call!(error, |device: Arc<Device>,
                  tensors: Vec<ExpertTensor>,
                  options: CacheOptions|
     -> cache { ExpertCache::new(&device, tensors, options) })
}

/// Creates a cache of experts that are parameters of an offloader, offloaded and read in place,
/// such as those with WB_ACCESS_PATTERN_EXPERTS. Each of `tensors` names its parameter, which has
/// the layout and the memory.
///
/// The cache, slots and state together, takes its device memory from the `expert_bytes` of the
/// plan; with neither `slots` nor `device_bytes` in the options it takes all that other caches have
/// left. Layers of another size have a cache of their own: give each its part.
///
/// The cache follows its parameters: a call that replaces, moves or compacts them waits for the
/// calls of the cache, also for replays on its stream, and empties all slots. If a parameter then
/// has no bytes, or is another one, calls of the cache fail with WB_ERR_NOT_FOUND until it is
/// replaced again. Weights that are written through a host view need wb_expert_cache_reset. The
/// cache may outlive the offloader.
///
/// With fixed addresses, slots have addresses for all experts, and the state and the first slots
/// have memory, in whole pieces: wb_offloader_resize gives slots memory and takes it away, and they
/// may not be in `memory` of the caller.
///
/// Fails with WB_ERR_BUDGET if the plan, or the last resize, has less device memory left for
/// caches, with WB_ERR_BUSY while an offloader with fixed addresses is resized or asleep, or if an
/// arbiter shares its memory, with WB_ERR_NOT_FOUND for an unknown
/// parameter, with WB_ERR_INVALID_ARGUMENT for one that is resident or copied, and as
/// wb_expert_cache_new does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_new_for_offloader(
    offloader: *const wb_offloader,
    tensors: *const wb_expert_tensor,
    count: u64,
    options: *const wb_expert_cache_options,
    cache: *mut *mut wb_expert_cache,
    error: *mut wb_error,
) -> wb_status {
    let tensors = (tensors, count);
    call!(error, |offloader: &Offloader,
                  tensors: Vec<ExpertParameter>,
                  options: CacheOptions|
     -> cache { offloader.new_expert_cache(tensors, options) })
}

/// Fills `size` with the size of the cache that wb_expert_cache_new would create, and allocates
/// nothing. Fails as wb_expert_cache_new does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_measure(
    device: *const wb_device,
    tensors: *const wb_expert_tensor,
    count: u64,
    options: *const wb_expert_cache_options,
    size: *mut wb_expert_cache_size,
    error: *mut wb_error,
) -> wb_status {
    let tensors = (tensors, count);
    call!(error, |device: Arc<Device>, tensors: Vec<ExpertTensor>, options: CacheOptions| -> size {
        ExpertCache::measure(&device, tensors, options).map(|found| wb_expert_cache_size {
            slots: u64::from(found.slots),
            slot_bytes: found.slot_bytes,
            state_bytes: found.state_bytes,
            ..CStruct::init()
        })
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_retain(cache: *const wb_expert_cache) {
    retain!(cache)
}

/// Drops a reference. The last one waits for the calls that were queued, then frees the memory,
/// except what views hold. Graphs that captured calls of the cache must not be launched any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_release(cache: *mut wb_expert_cache) {
    release!(cache)
}
