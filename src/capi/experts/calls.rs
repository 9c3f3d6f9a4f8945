//! The calls of a step, and changes between steps.

use std::ffi::c_void;

use crate::cache::cache::ExpertCache;
use crate::cache::calls::{ExpertIds, RouteOptions};
use crate::capi::address::Address;
use crate::capi::call::call;
use crate::capi::enumeration::one_of;
use crate::capi::error::wb_error;
use crate::capi::experts::handle::wb_expert_cache;
use crate::capi::experts::options::wb_expert_route_options;
use crate::device::backend::Stream;
use crate::error::Result;
use crate::status::wb_status;
use crate::tensor::dtype::{WB_DTYPE_I32, WB_DTYPE_I64, wb_dtype};

fn ids_of(address: Address, count: u64, dtype: wb_dtype) -> Result<ExpertIds> {
    let wide = one_of(dtype, "dtype", &[(WB_DTYPE_I32, false), (WB_DTYPE_I64, true)])?;
    Ok(ExpertIds { address: address.0, count, wide })
}

/// Brings the experts of a layer that `ids` name into slots, and writes to `slots` the slot of each
/// id. `ids` are `count` numbers in device memory, of type WB_DTYPE_I32 or WB_DTYPE_I64, such as
/// the `[tokens, k]` of a router; `slots` receives as many of the same type, and may be `ids`. An
/// id without an expert in the layer, such as -1 for padding, gets -1 and is counted.
///
/// Absent experts take the slots that were used longest ago, never one that this call needs, and
/// their bytes are gathered from host memory before `slots` may be used. They stay in their slots
/// until the next call with the same lane, whatever other lanes and hints do: kernels that read
/// them are queued on `stream` between the two. Batches that are in flight at the same time, on
/// several streams, have a lane each. Calls with one lane are on one stream, or on streams that the
/// engine orders.
///
/// The ids name at most `count` experts, and a lane may use `slots / lanes` of the cache's. If a
/// layer has more, the call fails with WB_ERR_SLOTS_BUDGET before anything is queued; the layer is
/// then computed in the passes that wb_expert_cache_get_passes gives, each with a call. Pass `p` of
/// `n` has the experts from `experts * p / n` to `experts * (p + 1) / n`; all other ids get -1, and
/// the fused kernel is to leave them out. The sum of the passes is the layer.
///
/// Stream order: one kernel on `stream`, after all earlier calls of this cache on any stream; the
/// host does not wait. Capturable; a captured call is ordered after those of the same capture, and
/// the engine orders a graph with calls and graphs that come before it. Fails with
/// WB_ERR_OUT_OF_RANGE, WB_ERR_UNALIGNED or WB_ERR_SLOTS_BUDGET, and for a cache of an offloader
/// with WB_ERR_NOT_FOUND while parameters are not there, and with WB_ERR_BUSY while it is asleep.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_route(
    cache: *const wb_expert_cache,
    layer: u64,
    ids: *const c_void,
    count: u64,
    dtype: wb_dtype,
    slots: *mut c_void,
    options: *const wb_expert_route_options,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache,
                  ids: Address,
                  slots: Address,
                  options: RouteOptions,
                  stream: Stream| {
        cache.route(layer, ids_of(ids, count, dtype)?, slots.0, options, stream)
    })
}

/// Brings experts into slots ahead of their call of wb_expert_cache_route, which then finds them.
/// For an engine that guesses the experts of a later layer. Takes no slot of the last call of any
/// lane; experts for which there is none are left out. `ids` as for wb_expert_cache_route.
///
/// Stream order: after all earlier calls of this cache; the next call of it waits for the gather,
/// and kernels of the engine that were queued in between do not. So it is called on another stream
/// than the kernels that it is to overlap. Capturable: `stream` must already be in the capture, and
/// the next captured call of wb_expert_cache_route joins it. Fails as wb_expert_cache_route does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_prefetch(
    cache: *const wb_expert_cache,
    layer: u64,
    ids: *const c_void,
    count: u64,
    dtype: wb_dtype,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache, ids: Address, stream: Stream| {
        cache.prefetch(layer, ids_of(ids, count, dtype)?, stream)
    })
}

/// Gets the number of passes in which a layer is computed for `count` ids: 1 if
/// wb_expert_cache_route takes them at once. Fails with WB_ERR_OUT_OF_RANGE, and with WB_ERR_BUSY
/// while an offloader is asleep.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_get_passes(
    cache: *const wb_expert_cache,
    layer: u64,
    count: u64,
    passes: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache| -> passes { cache.passes(layer, count) })
}

/// Empties all slots, so that calls gather experts again: after weights in host memory were
/// written. Between steps.
///
/// Stream order: after all earlier calls of this cache; `stream` is ordered after the kernels that
/// read slots. Fails with WB_ERR_CAPTURING.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_reset(
    cache: *const wb_expert_cache,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache, stream: Stream| cache.reset(stream))
}

/// Uses the first `slots` slots from now on, at most the `capacity` of the cache. Experts in slots
/// beyond them are evicted, and that memory is not accessed until `slots` grows again. Addresses
/// stay, and so do graphs, which see the new number. Between steps.
///
/// Stream order as wb_expert_cache_reset. Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_SLOTS_BUDGET
/// for fewer slots than calls so far need, with WB_ERR_CAPTURING, and with WB_ERR_BUSY while an
/// offloader is asleep. A resize of an offloader with
/// fixed addresses changes the `capacity`, and uses all of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_expert_cache_resize(
    cache: *const wb_expert_cache,
    slots: u64,
    stream: *mut c_void,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |cache: &ExpertCache, stream: Stream| cache.resize(slots, stream))
}
