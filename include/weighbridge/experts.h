/* Expert caches: experts of a mixture in slots on the device.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_EXPERTS_H
#define WEIGHBRIDGE_EXPERTS_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "device.h"
#include "dtype.h"
#include "error.h"
#include "offloader.h"
#include "status.h"
#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Keeps the recently used experts of a mixture of experts on the device, in slots that all layers
 * share; all experts stay in pinned host memory. An engine uses it so:
 *
 * 1. Describe each expert tensor of each layer (wb_expert_tensor) and create the cache with a
 *    number of slots or a budget of device memory.
 * 2. Give the fused kernel the slots in place of the weights: wb_expert_cache_get_view has a
 *    tensor `[most_slots, ...]` for each expert tensor, at an address that stays.
 * 3. In each layer, between the router and the fused kernel, on the same stream:
 *
 * ```c
 * wb_expert_cache_route(cache, layer, ids, tokens * k, WB_DTYPE_I32, slots, NULL, stream, &error);
 * fused_experts(hidden, w13_slots, w2_slots, slots, weights, stream);
 * ```
 *
 * Everything is decided on the device, so the host never waits, and a decode step that has been
 * captured stays one graph. An expert is the rows with its number of all tensors of its layer.
 * Slots serve all layers, so these have equal experts; layers of another size have a cache of
 * their own.
 */
typedef struct wb_expert_cache wb_expert_cache;

/** One expert tensor of one layer: weights, scales or zero points, of any type. */
typedef struct {
    /** Size of the struct; in an array, the same in each. */
    uint32_t struct_size;
    /** Must be zero. */
    uint32_t reserved0;
    /** The layer; they count from 0 without a gap. */
    uint64_t layer;
    /** The name, such as "w13": the same in every layer. */
    const char *name;
    /**
     * Type, shape and strides. The first dimension counts the experts of the layer, at most 4096;
     * the others are an expert, which is contiguous. Its offset counts from the start of `buffer`.
     * Experts at multiples of 16 bytes are gathered fastest.
     */
    const wb_layout *layout;
    /** The memory, mapped for the device. The cache keeps a reference. */
    const wb_buffer *buffer;
    /**
     * For wb_expert_cache_new_for_offloader the name of the parameter, which has the layout and
     * the memory: `layout` and `buffer` are NULL. Otherwise NULL.
     */
    const char *parameter;
    /** Must be zero. */
    uint64_t reserved[1];
} wb_expert_tensor;
#define WB_EXPERT_TENSOR_INIT {sizeof(wb_expert_tensor), 0, 0, NULL, NULL, NULL, NULL, {0}}

/**
 * Options of an expert cache. One of `slots` and `device_bytes` is not 0, but for
 * wb_expert_cache_new_for_offloader, where both may be.
 */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Batches in flight at a time, at most 16; 0 for 1. See wb_expert_cache_route. */
    uint32_t lanes;
    /** Number of slots, at most the number of experts of all layers. */
    uint64_t slots;
    /**
     * Bytes of device memory for slots and state together: a ceiling, which the number of slots
     * follows from.
     */
    uint64_t device_bytes;
    /**
     * Device memory for the slots, at a multiple of 256 bytes, which the caller keeps until the
     * cache and its views are released; NULL to allocate it.
     */
    void *memory;
    /** Bytes at `memory`, at least the `slot_bytes` of wb_expert_cache_measure. */
    uint64_t memory_bytes;
    /** Must be zero. */
    uint64_t reserved[4];
} wb_expert_cache_options;
#define WB_EXPERT_CACHE_OPTIONS_INIT {sizeof(wb_expert_cache_options), 0, 0, 0, NULL, 0, {0}}

/** The size of an expert cache. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Number of slots. */
    uint64_t slots;
    /** Bytes of device memory for the slots of all tensors, with padding between tensors. */
    uint64_t slot_bytes;
    /** Bytes of device memory for the state, which is always the library's. */
    uint64_t state_bytes;
} wb_expert_cache_size;
#define WB_EXPERT_CACHE_SIZE_INIT {sizeof(wb_expert_cache_size), 0, 0, 0, 0}

/** Options of wb_expert_cache_route. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The lane of the call, below the `lanes` of the cache. */
    uint32_t lane;
    /** The pass, below `passes`. */
    uint32_t pass;
    /** Number of passes that the layer is computed in; 0 for 1. */
    uint32_t passes;
} wb_expert_route_options;
#define WB_EXPERT_ROUTE_OPTIONS_INIT {sizeof(wb_expert_route_options), 0, 0, 0}

/**
 * Creates a cache whose slots are empty, and zeros. Memory for the slots, unless the caller gives
 * it, and for the state is allocated. Names, layouts and the array are not needed after the call.
 *
 * Stream order: what was written to the host memory before is read by later calls. Fails with
 * WB_ERR_NOT_MAPPED if the device cannot read a buffer in place, with WB_ERR_SLOTS_BUDGET,
 * WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_SUPPORTED or WB_ERR_UNALIGNED, and as wb_buffer_alloc and
 * wb_device_alloc do.
 */
wb_status wb_expert_cache_new(const wb_device *device, const wb_expert_tensor *tensors,
                              uint64_t count, const wb_expert_cache_options *options,
                              wb_expert_cache **cache, wb_error *error);

/**
 * Creates a cache of experts that are parameters of an offloader, offloaded and read in place,
 * such as those with WB_ACCESS_PATTERN_EXPERTS. Each of `tensors` names its parameter, which has
 * the layout and the memory.
 *
 * The cache, slots and state together, takes its device memory from the `expert_bytes` of the
 * plan; with neither `slots` nor `device_bytes` in the options it takes all that other caches have
 * left. Layers of another size have a cache of their own: give each its part.
 *
 * The cache follows its parameters: a call that replaces, moves or compacts them waits for the
 * calls of the cache, also for replays on its stream, and empties all slots. If a parameter then
 * has no bytes, or is another one, calls of the cache fail with WB_ERR_NOT_FOUND until it is
 * replaced again. Weights that are written through a host view need wb_expert_cache_reset. The
 * cache may outlive the offloader.
 *
 * With fixed addresses, slots have addresses for all experts, and the state and the first slots
 * have memory, in whole pieces: wb_offloader_resize gives slots memory and takes it away, and they
 * may not be in `memory` of the caller.
 *
 * Fails with WB_ERR_BUDGET if the plan, or the last resize, has less device memory left for
 * caches, with WB_ERR_BUSY while an offloader with fixed addresses is resized or asleep, or if an
 * arbiter shares its memory, with WB_ERR_NOT_FOUND for an unknown
 * parameter, with WB_ERR_INVALID_ARGUMENT for one that is resident or copied, and as
 * wb_expert_cache_new does.
 */
wb_status wb_expert_cache_new_for_offloader(const wb_offloader *offloader,
                                            const wb_expert_tensor *tensors, uint64_t count,
                                            const wb_expert_cache_options *options,
                                            wb_expert_cache **cache, wb_error *error);

/**
 * Fills `size` with the size of the cache that wb_expert_cache_new would create, and allocates
 * nothing. Fails as wb_expert_cache_new does.
 */
wb_status wb_expert_cache_measure(const wb_device *device, const wb_expert_tensor *tensors,
                                  uint64_t count, const wb_expert_cache_options *options,
                                  wb_expert_cache_size *size, wb_error *error);

/** Adds a reference. */
void wb_expert_cache_retain(const wb_expert_cache *cache);

/**
 * Drops a reference. The last one waits for the calls that were queued, then frees the memory,
 * except what views hold. Graphs that captured calls of the cache must not be launched any more.
 */
void wb_expert_cache_release(wb_expert_cache *cache);

/**
 * Brings the experts of a layer that `ids` name into slots, and writes to `slots` the slot of each
 * id. `ids` are `count` numbers in device memory, of type WB_DTYPE_I32 or WB_DTYPE_I64, such as
 * the `[tokens, k]` of a router; `slots` receives as many of the same type, and may be `ids`. An
 * id without an expert in the layer, such as -1 for padding, gets -1 and is counted.
 *
 * Absent experts take the slots that were used longest ago, never one that this call needs, and
 * their bytes are gathered from host memory before `slots` may be used. They stay in their slots
 * until the next call with the same lane, whatever other lanes and hints do: kernels that read
 * them are queued on `stream` between the two. Batches that are in flight at the same time, on
 * several streams, have a lane each. Calls with one lane are on one stream, or on streams that the
 * engine orders.
 *
 * The ids name at most `count` experts, and a lane may use `slots / lanes` of the cache's. If a
 * layer has more, the call fails with WB_ERR_SLOTS_BUDGET before anything is queued; the layer is
 * then computed in the passes that wb_expert_cache_get_passes gives, each with a call. Pass `p` of
 * `n` has the experts from `experts * p / n` to `experts * (p + 1) / n`; all other ids get -1, and
 * the fused kernel is to leave them out. The sum of the passes is the layer.
 *
 * Stream order: one kernel on `stream`, after all earlier calls of this cache on any stream; the
 * host does not wait. Capturable; a captured call is ordered after those of the same capture, and
 * the engine orders a graph with calls and graphs that come before it. Fails with
 * WB_ERR_OUT_OF_RANGE, WB_ERR_UNALIGNED or WB_ERR_SLOTS_BUDGET, and for a cache of an offloader
 * with WB_ERR_NOT_FOUND while parameters are not there, and with WB_ERR_BUSY while it is asleep.
 */
wb_status wb_expert_cache_route(const wb_expert_cache *cache, uint64_t layer, const void *ids,
                                uint64_t count, wb_dtype dtype, void *slots,
                                const wb_expert_route_options *options, void *stream,
                                wb_error *error);

/**
 * Brings experts into slots ahead of their call of wb_expert_cache_route, which then finds them.
 * For an engine that guesses the experts of a later layer. Takes no slot of the last call of any
 * lane; experts for which there is none are left out. `ids` as for wb_expert_cache_route.
 *
 * Stream order: after all earlier calls of this cache; the next call of it waits for the gather,
 * and kernels of the engine that were queued in between do not. So it is called on another stream
 * than the kernels that it is to overlap. Capturable: `stream` must already be in the capture, and
 * the next captured call of wb_expert_cache_route joins it. Fails as wb_expert_cache_route does.
 */
wb_status wb_expert_cache_prefetch(const wb_expert_cache *cache, uint64_t layer, const void *ids,
                                   uint64_t count, wb_dtype dtype, void *stream, wb_error *error);

/**
 * Gets the number of passes in which a layer is computed for `count` ids: 1 if
 * wb_expert_cache_route takes them at once. Fails with WB_ERR_OUT_OF_RANGE, and with WB_ERR_BUSY
 * while an offloader is asleep.
 */
wb_status wb_expert_cache_get_passes(const wb_expert_cache *cache, uint64_t layer, uint64_t count,
                                     uint64_t *passes, wb_error *error);

/**
 * Empties all slots, so that calls gather experts again: after weights in host memory were
 * written. Between steps.
 *
 * Stream order: after all earlier calls of this cache; `stream` is ordered after the kernels that
 * read slots. Fails with WB_ERR_CAPTURING.
 */
wb_status wb_expert_cache_reset(const wb_expert_cache *cache, void *stream, wb_error *error);

/**
 * Uses the first `slots` slots from now on, at most the `capacity` of the cache. Experts in slots
 * beyond them are evicted, and that memory is not accessed until `slots` grows again. Addresses
 * stay, and so do graphs, which see the new number. Between steps.
 *
 * Stream order as wb_expert_cache_reset. Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_SLOTS_BUDGET
 * for fewer slots than calls so far need, with WB_ERR_CAPTURING, and with WB_ERR_BUSY while an
 * offloader is asleep. A resize of an offloader with
 * fixed addresses changes the `capacity`, and uses all of it.
 */
wb_status wb_expert_cache_resize(const wb_expert_cache *cache, uint64_t slots, void *stream,
                                 wb_error *error);

/** Properties of an expert cache. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Number of lanes. */
    uint32_t lanes;
    /** Number of layers. */
    uint64_t layers;
    /** Number of expert tensors of a layer; their indexes are smaller. */
    uint64_t tensors;
    /** Number of experts of all layers. */
    uint64_t experts;
    /** Bytes of an expert, of all its tensors. */
    uint64_t expert_bytes;
    /** Slots in use. */
    uint64_t slots;
    /** Slots that there is memory for; 0 while an offloader with fixed addresses is asleep. */
    uint64_t capacity;
    /** Bytes of device memory of the slots. */
    uint64_t slot_bytes;
    /** Bytes of device memory of the state. */
    uint64_t state_bytes;
    /** The first dimension of the slots' tensors: `capacity`, or with fixed addresses `experts`. */
    uint64_t most_slots;
    /**
     * The hit rate that is predicted of the slots in use, as in wb_plan_info: `slots` of
     * `experts`. That of wb_expert_cache_get_stats is `hits` of `hits + misses`.
     */
    double predicted_hit_rate;
} wb_expert_cache_info;
#define WB_EXPERT_CACHE_INFO_INIT {sizeof(wb_expert_cache_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0}

/** Fills `info` with the properties of the cache. */
wb_status wb_expert_cache_get_info(const wb_expert_cache *cache, wb_expert_cache_info *info,
                                   wb_error *error);

/**
 * The slots of one expert tensor: a contiguous tensor `[most_slots, ...]` of addresses on the
 * device. The first `capacity` slots have memory, and kernels access no others.
 */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The element type. */
    wb_dtype dtype;
    /** The name that the tensor was described with. */
    const char *name;
    /** The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one that its layout gave. */
    const char *dtype_name;
    /** `ndim` sizes in elements, of which the first is `most_slots`. */
    const int64_t *shape;
    /** Number of dimensions. */
    int32_t ndim;
    /** Elements of a block of a WB_DTYPE_OPAQUE; otherwise 0. */
    uint32_t block_elements;
    /** Bytes of such a block; otherwise 0. */
    uint32_t block_bytes;
    /** Zero. */
    uint32_t reserved0;
    /** Address of slot 0 on the device. It stays until the cache is released. */
    void *device_address;
    /** Bytes of a slot. */
    uint64_t expert_bytes;
} wb_expert_slots_info;
#define WB_EXPERT_SLOTS_INFO_INIT \
    {sizeof(wb_expert_slots_info), 0, NULL, NULL, NULL, 0, 0, 0, 0, NULL, 0}

/**
 * Fills `info` with the slots of the expert tensor `index`; indexes follow the order in which
 * names were first described. Fails with WB_ERR_OUT_OF_RANGE.
 */
wb_status wb_expert_cache_get_slots_info(const wb_expert_cache *cache, uint64_t index,
                                         wb_expert_slots_info *info, wb_error *error);

/**
 * Creates a view of the slots of the expert tensor `index`, which holds their memory. Fails with
 * WB_ERR_OUT_OF_RANGE, and with WB_ERR_NOT_SUPPORTED for an opaque type: use the address of
 * wb_expert_cache_get_slots_info.
 */
wb_status wb_expert_cache_get_view(const wb_expert_cache *cache, uint64_t index, wb_view **view,
                                   wb_error *error);

/**
 * What an expert cache has done since it was created, counted on the device, replays of graphs
 * included. An expert that several ids of a call name counts once.
 */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Calls of wb_expert_cache_route, without those of no ids. */
    uint64_t calls;
    /** Experts that calls found in slots. */
    uint64_t hits;
    /** Experts that calls did not find. */
    uint64_t misses;
    /** Experts, of any layer, that calls and hints of the layer evicted. */
    uint64_t evictions;
    /** Experts that wb_expert_cache_prefetch copied into slots. */
    uint64_t prefetched;
    /** Experts for which no slot could be taken: of hints, 0 of calls. */
    uint64_t refused;
    /** Ids without an expert in their layer. */
    uint64_t ignored;
    /** Bytes that were gathered, of misses and hints. */
    uint64_t gathered_bytes;
} wb_expert_cache_stats;
#define WB_EXPERT_CACHE_STATS_INIT {sizeof(wb_expert_cache_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0}

/**
 * Fills `stats` with the sum of all layers. Reads the device's counters on a stream of its own and
 * waits for that copy alone, so running kernels are not held up; a call that is running may be
 * counted in part.
 */
wb_status wb_expert_cache_get_stats(const wb_expert_cache *cache, wb_expert_cache_stats *stats,
                                    wb_error *error);

/** As wb_expert_cache_get_stats, for one layer. Fails with WB_ERR_OUT_OF_RANGE. */
wb_status wb_expert_cache_get_layer_stats(const wb_expert_cache *cache, uint64_t layer,
                                          wb_expert_cache_stats *stats, wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
