/* An expert cache of a small model, and calls of it whose results are checked. */
#ifndef EXPERTS_H
#define EXPERTS_H

#include "memory.h"

/* Three tensors: bytes in multiples of 16, single bytes at an odd address, and blocks of 18 bytes. */
enum { E_LAYERS = 3, E_EXPERTS = 8, E_TENSORS = 3, E_IDS = 24, E_CALLS = 64 };

static const uint64_t expert_bytes[E_TENSORS] = {6 * 16 * 2, 5, 2 * 18};
static const uint64_t expert_offset[E_TENSORS] = {0, 3, 0};

struct experts {
    wb_device *device;
    wb_expert_cache *cache;
    wb_buffer *sources[E_LAYERS][E_TENSORS];
    wb_buffer *staging; /* ids, and slots, of every call */
    unsigned char *memory; /* the same on the device */
    int64_t *ids, *slots;
    uint64_t counts[E_CALLS], layers[E_CALLS];
    int calls;
};

static inline unsigned char expert_byte(uint64_t layer, uint64_t expert, uint64_t tensor, uint64_t at)
{
    return (unsigned char)(layer * 83 + expert * 31 + tensor * 7 + at * 3 + 1);
}

/* Fills the experts of a tensor, so that no two are equal. */
static inline void fill_experts(struct experts *e, uint64_t layer, uint64_t tensor)
{
    unsigned char *data = (unsigned char *)buffer_info(e->sources[layer][tensor]).data;
    for (uint64_t at = 0; at < E_EXPERTS * expert_bytes[tensor]; at++) {
        const uint64_t expert = at / expert_bytes[tensor];
        data[expert_offset[tensor] + at] = expert_byte(layer, expert, tensor, at % expert_bytes[tensor]);
    }
}

static inline int experts_sources(struct experts *e)
{
    for (uint64_t layer = 0; layer < E_LAYERS; layer++) {
        for (uint64_t tensor = 0; tensor < E_TENSORS; tensor++) {
            const uint64_t bytes = expert_offset[tensor] + E_EXPERTS * expert_bytes[tensor];
            wb_buffer **buffer = &e->sources[layer][tensor];
            if (!CHECK_OK(wb_buffer_alloc(e->device, bytes, NULL, buffer, &error))) return 0;
            fill_experts(e, layer, tensor);
        }
    }
    return 1;
}

/* Calls `wb_expert_cache_new`, or `_measure` if `size` is not NULL. */
static inline wb_status experts_new(struct experts *e, const wb_expert_cache_options *options,
                                    wb_expert_cache_size *size)
{
    static const char *const names[E_TENSORS] = {"w13", "w13_scale", "w2"};
    static const int64_t shapes[E_TENSORS][3] = {{E_EXPERTS, 6, 16}, {E_EXPERTS, 5}, {E_EXPERTS, 64}};
    wb_layout layouts[E_TENSORS];
    wb_expert_tensor tensors[E_LAYERS * E_TENSORS];
    layouts[0] = layout_of(WB_DTYPE_BF16, 3, shapes[0], NULL, expert_offset[0]);
    layouts[1] = layout_of(WB_DTYPE_U8, 2, shapes[1], NULL, expert_offset[1]);
    layouts[2] = layout_of(WB_DTYPE_OPAQUE, 2, shapes[2], NULL, expert_offset[2]);
    layouts[2].dtype_name = "q4_0";
    layouts[2].block_elements = 32;
    layouts[2].block_bytes = 18;
    for (int at = 0; at < E_LAYERS * E_TENSORS; at++) {
        const wb_expert_tensor empty = WB_EXPERT_TENSOR_INIT;
        tensors[at] = empty;
        tensors[at].layer = (uint64_t)(at / E_TENSORS);
        tensors[at].name = names[at % E_TENSORS];
        tensors[at].layout = &layouts[at % E_TENSORS];
        tensors[at].buffer = e->sources[at / E_TENSORS][at % E_TENSORS];
    }
    if (size != NULL) {
        return wb_expert_cache_measure(e->device, tensors, E_LAYERS * E_TENSORS, options, size, &error);
    }
    return wb_expert_cache_new(e->device, tensors, E_LAYERS * E_TENSORS, options, &e->cache, &error);
}

/* Bytes of the ids of all calls, and of the slots. */
enum { E_BYTES = E_CALLS * E_IDS * 8 };

static inline int experts_begin(struct experts *e, wb_device *device, uint64_t slots, uint32_t lanes)
{
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    void *memory = NULL;
    memset(e, 0, sizeof *e);
    e->device = device;
    options.slots = slots;
    options.lanes = lanes;
    if (!experts_sources(e) || !CHECK_OK(experts_new(e, &options, NULL)) ||
        !CHECK_OK(wb_buffer_alloc(device, 2 * E_BYTES, NULL, &e->staging, &error)) ||
        !CHECK_OK(wb_device_alloc(device, 2 * E_BYTES, &memory, &error))) {
        return 0;
    }
    e->memory = (unsigned char *)memory;
    e->ids = (int64_t *)buffer_info(e->staging).data;
    e->slots = e->ids + E_CALLS * E_IDS;
    return 1;
}

static inline void experts_end(struct experts *e)
{
    wb_expert_cache_release(e->cache);
    for (int at = 0; at < E_LAYERS * E_TENSORS; at++) {
        wb_buffer_release(e->sources[at / E_TENSORS][at % E_TENSORS]);
    }
    wb_buffer_release(e->staging);
    if (e->memory != NULL) CHECK_OK(wb_device_free(e->device, e->memory, &error));
}

static inline unsigned char *device_ids(struct experts *e, int call)
{
    return e->memory + call * E_IDS * 8;
}

static inline unsigned char *device_slots(struct experts *e, int call)
{
    return e->memory + E_BYTES + call * E_IDS * 8;
}

/* Queues the copy of a call's ids to the device; the next call's number. */
static inline int give_ids(struct experts *e, uint64_t layer, const int64_t *ids, uint64_t count,
                           void *stream)
{
    const int call = e->calls++;
    e->counts[call] = count;
    e->layers[call] = layer;
    memcpy(e->ids + call * E_IDS, ids, count * 8);
    CHECK_OK(wb_device_copy(e->device, device_ids(e, call), e->ids + call * E_IDS, count * 8, stream,
                            &error));
    return call;
}

static inline void take_slots(struct experts *e, int call, void *stream)
{
    CHECK_OK(wb_device_copy(e->device, e->slots + call * E_IDS, device_slots(e, call),
                            e->counts[call] * 8, stream, &error));
}

/* Queues a call and the copies of its ids and slots. Returns its number. */
static inline int route(struct experts *e, uint64_t layer, const int64_t *ids, uint64_t count,
                        uint32_t lane, void *stream)
{
    wb_expert_route_options options = WB_EXPERT_ROUTE_OPTIONS_INIT;
    options.lane = lane;
    const int call = give_ids(e, layer, ids, count, stream);
    CHECK_OK(wb_expert_cache_route(e->cache, layer, device_ids(e, call), count, WB_DTYPE_I64,
                                   device_slots(e, call), &options, stream, &error));
    take_slots(e, call, stream);
    return call;
}

static inline void hint(struct experts *e, uint64_t layer, const int64_t *ids, uint64_t count,
                        void *stream)
{
    const int call = give_ids(e, layer, ids, count, stream);
    CHECK_OK(wb_expert_cache_prefetch(e->cache, layer, device_ids(e, call), count, WB_DTYPE_I64, stream,
                                      &error));
}

/* Whether a slot holds an expert, in all tensors. */
static inline int holds_expert(struct experts *e, int64_t slot, uint64_t layer, uint64_t expert)
{
    unsigned char found[256];
    for (uint64_t tensor = 0; tensor < E_TENSORS; tensor++) {
        wb_expert_slots_info info = WB_EXPERT_SLOTS_INFO_INIT;
        CHECK_OK(wb_expert_cache_get_slots_info(e->cache, tensor, &info, &error));
        CHECK_SAME(info.expert_bytes, expert_bytes[tensor]);
        if (!read_device(e->device, found,
                         (unsigned char *)info.device_address + (uint64_t)slot * info.expert_bytes,
                         info.expert_bytes)) {
            return 0;
        }
        for (uint64_t at = 0; at < info.expert_bytes; at++) {
            if (found[at] != expert_byte(layer, expert, tensor, at)) return 0;
        }
    }
    return 1;
}

/* Checks that every id of a call, whose stream was waited for, has a slot with its expert. */
static inline void check_call(struct experts *e, int call)
{
    for (uint64_t at = 0; at < e->counts[call]; at++) {
        const int64_t id = e->ids[call * E_IDS + (int)at], slot = e->slots[call * E_IDS + (int)at];
        if (id < 0 || id >= E_EXPERTS) {
            CHECK(slot == -1);
        } else if (CHECK(slot >= 0)) {
            CHECK(holds_expert(e, slot, e->layers[call], (uint64_t)id));
        }
    }
}

static inline wb_expert_cache_stats experts_stats(const struct experts *e)
{
    wb_expert_cache_stats stats = WB_EXPERT_CACHE_STATS_INIT;
    CHECK_OK(wb_expert_cache_get_stats(e->cache, &stats, &error));
    return stats;
}

static inline uint32_t random_below(uint32_t *seed, uint32_t limit)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % limit;
}

/* Up to 6 ids, of which some repeat and some name none. Returns how many. */
static inline uint64_t random_ids(uint32_t *seed, int64_t *ids)
{
    const uint64_t count = 1 + random_below(seed, 6);
    for (uint64_t at = 0; at < count; at++) ids[at] = (int64_t)random_below(seed, E_EXPERTS + 2) - 1;
    return count;
}

#endif
