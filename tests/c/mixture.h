/* A model of experts, offloaded with fixed addresses, and a cache of them. */
#ifndef MIXTURE_H
#define MIXTURE_H

#include "fixed.h"

enum { E_LAYERS = 3, E_EXPERTS = 8, E_COUNT = E_LAYERS * E_EXPERTS, E_TOP = 3 };
/* The first tensor of an expert takes three slots for a piece or two, the second many. */
enum { E_WIDE = 1400000, E_NARROW = 1000, E_DENSE = 3000000 };
static const uint64_t e_bytes[2] = {E_WIDE, E_NARROW};

/* A model of layers with a dense parameter and two tensors of experts, and what its caches are given. */
struct mixture {
    wb_device *device;
    wb_offloader *offloader;
    wb_expert_cache *cache;
    wb_buffer *staging;
    void *stream;
    unsigned char *memory; /* of the device: ids, slots, and parts of the experts that were read */
    unsigned char *sources[E_LAYERS][3];
    int32_t *ids, *slots;
    uint64_t hits, misses, calls;
    uint64_t free_bytes, others; /* free, and in use, before the offloader was made */
};

/* The bytes of an expert, which begin where no other's do. */
static inline const unsigned char *expert_of(uint64_t layer, uint64_t expert, uint64_t tensor)
{
    static unsigned char all[E_WIDE + 2 * E_COUNT * 97];
    if (all[0] == 0) fill(all, sizeof all);
    return all + ((layer * E_EXPERTS + expert) * 2 + tensor) * 97;
}

static inline wb_plan_options mixture_options(uint64_t device_bytes, uint64_t expert_bytes)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = device_bytes;
    options.expert_bytes = expert_bytes;
    options.fixed_addresses = WB_TRISTATE_ON;
    return options;
}

/* If `rebalances`, the offloader is rebalanced before its cache is made. */
static inline int mixture_begin_with(struct mixture *m, wb_device *device, wb_plan_options options,
                                     int rebalances)
{
    static const int64_t wide[2] = {E_EXPERTS, E_WIDE}, narrow[2] = {E_EXPERTS, E_NARROW};
    static const int64_t dense[1] = {E_DENSE};
    static char names[E_LAYERS][3][16], groups[E_LAYERS][8];
    wb_parameter parameters[3 * E_LAYERS];
    wb_expert_tensor tensors[2 * E_LAYERS];
    wb_offloader_rebalance_progress progress = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    wb_plan *plan = NULL;
    void *memory = NULL;
    wb_layout layouts[3];
    layouts[0] = layout_of(WB_DTYPE_U8, 2, wide, NULL, 0);
    layouts[1] = layout_of(WB_DTYPE_U8, 2, narrow, NULL, 0);
    layouts[2] = layout_of(WB_DTYPE_U8, 1, dense, NULL, 0);
    memset(m, 0, sizeof *m);
    m->device = device;
    for (int layer = 0; layer < E_LAYERS; layer++) {
        snprintf(groups[layer], sizeof groups[layer], "l%d", layer);
        for (int at = 0; at < 3; at++) {
            const wb_parameter empty = WB_PARAMETER_INIT;
            const wb_expert_tensor none = WB_EXPERT_TENSOR_INIT;
            const uint64_t bytes = at < 2 ? E_EXPERTS * e_bytes[at] : (uint64_t)E_DENSE;
            wb_parameter *one = &parameters[3 * layer + at];
            *one = empty;
            snprintf(names[layer][at], sizeof names[layer][at], "l%d.w%d", layer, at);
            m->sources[layer][at] = (unsigned char *)malloc(bytes);
            if (!CHECK(m->sources[layer][at] != NULL)) return 0;
            if (at == 2) memset(m->sources[layer][at], layer, bytes);
            for (uint64_t expert = 0; at < 2 && expert < E_EXPERTS; expert++) {
                memcpy(m->sources[layer][at] + expert * e_bytes[at],
                       expert_of((uint64_t)layer, expert, (uint64_t)at), e_bytes[at]);
            }
            one->name = names[layer][at];
            one->group = groups[layer];
            one->layout = &layouts[at];
            one->source = m->sources[layer][at];
            if (at == 2) continue;
            one->access_pattern = WB_ACCESS_PATTERN_EXPERTS;
            tensors[2 * layer + at] = none;
            tensors[2 * layer + at].layer = (uint64_t)layer;
            tensors[2 * layer + at].name = at == 0 ? "wide" : "narrow";
            tensors[2 * layer + at].parameter = names[layer][at];
        }
    }
    if (!CHECK_OK(wb_device_stream_new(device, &m->stream, &error)) ||
        !CHECK_OK(wb_buffer_alloc(device, 4096, NULL, &m->staging, &error)) ||
        !CHECK_OK(wb_device_alloc(device, 4096, &memory, &error))) {
        return 0;
    }
    m->free_bytes = free_bytes_of(device);
    m->others = device_stats(device).device_bytes;
    const int done =
        CHECK_OK(wb_plan_new(device, parameters, 3 * E_LAYERS, &options, &plan, &error)) &&
        CHECK_OK(wb_offloader_new(plan, m->stream, NULL, &m->offloader, &error)) &&
        (!rebalances || CHECK_OK(wb_offloader_rebalance(m->offloader, 0, m->stream, &progress, &error))) &&
        CHECK_OK(wb_expert_cache_new_for_offloader(m->offloader, tensors, 2 * E_LAYERS, NULL, &m->cache,
                                                   &error));
    wb_plan_release(plan);
    if (!done) return 0;
    m->memory = (unsigned char *)memory;
    m->ids = (int32_t *)buffer_info(m->staging).data;
    m->slots = m->ids + E_LAYERS * E_TOP;
    return 1;
}

static inline int mixture_begin(struct mixture *m, wb_device *device, uint64_t device_bytes,
                                uint64_t expert_bytes)
{
    return mixture_begin_with(m, device, mixture_options(device_bytes, expert_bytes), 0);
}

static inline void mixture_end(struct mixture *m)
{
    CHECK_OK(wb_device_stream_synchronize(m->device, m->stream, &error));
    wb_expert_cache_release(m->cache);
    wb_offloader_release(m->offloader);
    CHECK_OK(wb_device_free(m->device, m->memory, &error));
    wb_buffer_release(m->staging);
    CHECK_OK(wb_device_stream_release(m->device, m->stream, &error));
    for (int at = 0; at < 3 * E_LAYERS; at++) free(m->sources[at / 3][at % 3]);
}

static inline wb_expert_cache_info info_of(const struct mixture *m)
{
    wb_expert_cache_info info = WB_EXPERT_CACHE_INFO_INIT;
    CHECK_OK(wb_expert_cache_get_info(m->cache, &info, &error));
    return info;
}

static inline wb_expert_slots_info slots_of(const struct mixture *m, uint64_t tensor)
{
    wb_expert_slots_info info = WB_EXPERT_SLOTS_INFO_INIT;
    CHECK_OK(wb_expert_cache_get_slots_info(m->cache, tensor, &info, &error));
    return info;
}

/* A step that ends with layer `last`: of each layer the experts that the ids in the staging memory name, and
 * their slots, back there. */
static inline void queue_step(struct mixture *m, int last)
{
    for (int at = 1; at <= E_LAYERS; at++) {
        const int layer = (last + at) % E_LAYERS;
        unsigned char *ids = m->memory + layer * E_TOP * 4, *slots = ids + E_LAYERS * E_TOP * 4;
        CHECK_OK(wb_offloader_acquire_group(m->offloader, (uint64_t)layer, m->stream, &error));
        CHECK_OK(wb_device_copy(m->device, ids, m->ids + layer * E_TOP, E_TOP * 4, m->stream, &error));
        CHECK_OK(wb_expert_cache_route(m->cache, (uint64_t)layer, ids, E_TOP, WB_DTYPE_I32, slots, NULL,
                                       m->stream, &error));
        CHECK_OK(wb_device_copy(m->device, m->slots + layer * E_TOP, slots, E_TOP * 4, m->stream, &error));
        CHECK_OK(wb_offloader_release_group(m->offloader, (uint64_t)layer, m->stream, &error));
    }
}

static inline void draw_ids(struct mixture *m)
{
    for (int at = 0; at < E_LAYERS * E_TOP; at++) m->ids[at] = (int32_t)random_below(E_EXPERTS);
    memset(m->slots, 0x55, E_LAYERS * E_TOP * 4);
}

/* Waits, and checks that each id has a slot with memory, in which are the bytes of its expert. */
static inline void check_layer(struct mixture *m, int last)
{
    static unsigned char found[E_WIDE];
    const wb_expert_cache_info info = info_of(m);
    CHECK_OK(wb_device_stream_synchronize(m->device, m->stream, &error));
    /* What is in a slot now may be of a later layer: all of the last one is there. */
    for (int at = 0; at < E_TOP; at++) {
        const int32_t id = m->ids[last * E_TOP + at], slot = m->slots[last * E_TOP + at];
        if (!CHECK(slot >= 0 && (uint64_t)slot < info.capacity)) continue;
        for (uint64_t tensor = 0; tensor < 2; tensor++) {
            const wb_expert_slots_info slots = slots_of(m, tensor);
            const unsigned char *from = (unsigned char *)slots.device_address;
            if (read_device(m->device, found, from + (uint64_t)slot * e_bytes[tensor], e_bytes[tensor])) {
                CHECK(memcmp(found, expert_of((uint64_t)last, (uint64_t)id, tensor), e_bytes[tensor]) == 0);
            }
        }
    }
    for (int at = 0; at < E_LAYERS * E_TOP; at++) {
        CHECK(m->slots[at] >= 0 && (uint64_t)m->slots[at] < info.capacity);
    }
}

/* Experts that a step names: each counts once in a call. */
static inline uint64_t named_experts(const struct mixture *m)
{
    uint64_t count = 0;
    for (int layer = 0; layer < E_LAYERS; layer++) {
        unsigned seen = 0;
        for (int at = 0; at < E_TOP; at++) seen |= 1u << m->ids[layer * E_TOP + at];
        for (; seen != 0; seen &= seen - 1) count++;
    }
    return count;
}

/* Checks what the cache has counted since the last call: `named` experts in `steps` steps. Returns hits. */
static inline uint64_t check_counts(struct mixture *m, uint64_t named, uint64_t steps)
{
    wb_expert_cache_stats stats = WB_EXPERT_CACHE_STATS_INIT;
    CHECK_OK(wb_expert_cache_get_stats(m->cache, &stats, &error));
    const uint64_t hits = stats.hits - m->hits;
    CHECK_SAME(hits + stats.misses - m->misses, named);
    CHECK_SAME(stats.calls - m->calls, steps * E_LAYERS);
    CHECK_SAME(stats.refused, 0);
    CHECK_SAME(stats.gathered_bytes, stats.misses * (E_WIDE + E_NARROW));
    m->hits = stats.hits, m->misses = stats.misses, m->calls = stats.calls;
    return hits;
}

static inline wb_status try_resize(struct mixture *m, uint64_t bytes, wb_offloader_resize_progress *progress)
{
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = bytes;
    const wb_status status = wb_offloader_resize(m->offloader, &options, m->stream, progress, &error);
    if (status != WB_OK) return status;
    return wb_offloader_resize_wait(m->offloader, m->stream, MINUTE, progress, &error);
}

static inline wb_offloader_resize_progress resize(struct mixture *m, uint64_t bytes)
{
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    CHECK_OK(try_resize(m, bytes, &progress));
    CHECK_SAME(progress.pending_units, 0);
    CHECK(progress.device_bytes <= bytes);
    return progress;
}

/* Pieces of all dense parameters, and of a cache with `slots` slots: those of each tensor, and the state. */
enum { E_PIECES = 2 << 20, DENSE_PIECES = E_LAYERS * ((E_DENSE + E_PIECES - 1) / E_PIECES) };

static inline uint64_t cache_pieces(uint64_t slots)
{
    return (slots * E_WIDE + PIECE - 1) / PIECE + (slots * E_NARROW + PIECE - 1) / PIECE + 1;
}

#endif
