/* Sequences of calls as engines make them. Any call of the driver or the system in them may fail. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "arbiter_scenarios.h"
#include "experts.h"
#include "memory_scenarios.h"
#include "offload_scenarios.h"

static void quantizes(struct world *world)
{
    enum { SIDE_Q = 64 };
    static float numbers[SIDE_Q][SIDE_Q], back[SIDE_Q][SIDE_Q];
    static unsigned char codes[SIDE_Q][SIDE_Q];
    float scales[SIDE_Q];
    int64_t shape[] = {SIDE_Q, SIDE_Q};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer *quantizer = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    options.block_rows = 1;
    for (int row = 0; row < SIDE_Q; row++) {
        /* Values that FP8 represents exactly, with scales that are powers of two. */
        for (int col = 0; col < SIDE_Q; col++) {
            numbers[row][col] = (float)(col % 2 ? 448 : -(col % 16)) * (float)(1 << row % 4);
        }
    }
    /* Little staging memory, so that the matrix is split into chunks. */
    STEP(wb_quantizer_new(world->device, 1 << 14, &quantizer, &error));
    world->keeps_workspace = 1;
    STEP(wb_quantizer_quantize(quantizer, numbers, &layout, codes, scales, &options, NULL, &error));
    STEP(wb_quantizer_dequantize(quantizer, codes, scales, back, &layout, &options, NULL, &error));
    CHECK(memcmp(back, numbers, sizeof back) == 0);
out:
    wb_quantizer_release(quantizer);
}

/* Calls of a cache with fewer slots than experts, each checked: also after a call that failed, no slot
 * holds an expert without its bytes. */
static void caches_experts(struct world *world)
{
    static const int64_t each[3][2] = {{0, 1}, {2, 3}, {1, 2}};
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    wb_expert_cache_stats stats = WB_EXPERT_CACHE_STATS_INIT;
    struct experts e;
    void *memory = NULL;
    memset(&e, 0, sizeof e);
    e.device = world->device;
    options.slots = 3;
    for (int at = 0; at < E_LAYERS * E_TENSORS; at++) {
        const uint64_t tensor = (uint64_t)(at % E_TENSORS), layer = (uint64_t)(at / E_TENSORS);
        const uint64_t bytes = expert_offset[tensor] + E_EXPERTS * expert_bytes[tensor];
        STEP(wb_buffer_alloc(e.device, bytes, NULL, &e.sources[layer][tensor], &error));
        read_reason(world, e.sources[layer][tensor]);
        fill_experts(&e, layer, tensor);
    }
    STEP(experts_new(&e, &options, NULL));
    world->keeps_workspace = 1;
    STEP(wb_buffer_alloc(e.device, 2 * E_BYTES, NULL, &e.staging, &error));
    read_reason(world, e.staging);
    STEP(wb_device_alloc(e.device, 2 * E_BYTES, &memory, &error));
    e.memory = (unsigned char *)memory;
    e.ids = (int64_t *)buffer_info(e.staging).data;
    e.slots = e.ids + E_CALLS * E_IDS;
    for (int call = 0; call < 3; call++) {
        unsigned char *ids = device_ids(&e, call), *slots = device_slots(&e, call);
        e.counts[call] = 2;
        e.layers[call] = (uint64_t)(call % 2);
        memcpy(e.ids + call * E_IDS, each[call], sizeof each[call]);
        STEP(wb_device_copy(e.device, ids, e.ids + call * E_IDS, 16, NULL, &error));
        STEP(wb_expert_cache_route(e.cache, e.layers[call], ids, 2, WB_DTYPE_I64, slots, NULL, NULL,
                                   &error));
        STEP(wb_device_copy(e.device, e.slots + call * E_IDS, slots, 16, NULL, &error));
        STEP(wb_device_stream_synchronize(e.device, NULL, &error));
        for (int at = 0; at < 2; at++) {
            for (uint64_t tensor = 0; tensor < E_TENSORS; tensor++) {
                const int64_t slot = e.slots[call * E_IDS + at];
                wb_expert_slots_info info = WB_EXPERT_SLOTS_INFO_INIT;
                unsigned char *found = (unsigned char *)(e.slots + (E_CALLS - 2) * E_IDS);
                CHECK_OK(wb_expert_cache_get_slots_info(e.cache, tensor, &info, &error));
                STEP(wb_device_copy(e.device, found,
                                    (unsigned char *)info.device_address +
                                        (uint64_t)slot * info.expert_bytes,
                                    info.expert_bytes, NULL, &error));
                STEP(wb_device_stream_synchronize(e.device, NULL, &error));
                for (uint64_t byte = 0; byte < info.expert_bytes; byte++) {
                    CHECK_SAME(found[byte], expert_byte(e.layers[call], (uint64_t)each[call][at],
                                                        tensor, byte));
                }
            }
        }
    }
    STEP(wb_expert_cache_get_stats(e.cache, &stats, &error));
    STEP(wb_expert_cache_resize(e.cache, 2, NULL, &error));
    STEP(wb_expert_cache_reset(e.cache, NULL, &error));
    STEP(wb_device_free(e.device, memory, &error));
    memory = NULL;
out:
    wb_expert_cache_release(e.cache);
    for (int at = 0; at < E_LAYERS * E_TENSORS; at++) {
        wb_buffer_release(e.sources[at / E_TENSORS][at % E_TENSORS]);
    }
    wb_buffer_release(e.staging);
    if (memory != NULL) CHECK_OK(wb_device_free(e.device, memory, &error));
}

struct scenario {
    const char *name;
    void (*run)(struct world *world);
};

static const struct scenario scenarios[] = {
    {"open a device", opens},
    {"allocate", allocates},
    {"register", registers},
    {"map a file", maps_a_file},
    {"open a safetensors file", opens_a_model_file},
    {"view", views},
    {"DLPack", crosses_dlpack},
    {"read pageable memory", reads_pageable},
    {"copy and defer", computes_in_order},
    {"offload zero-copy", offloads_zero_copy},
    {"offload on demand", offloads_on_demand},
    {"offload by prefetch", offloads_by_prefetch},
    {"offload compressed", offloads_compressed},
    {"offload through windows", offloads_through_windows},
    {"keep compressed", keeps_compressed},
    {"resize", resizes},
    {"sleep", sleeps},
    {"resize compressed", resizes_compressed},
    {"move pieces", moves_pieces},
    {"share a budget", shares},
    {"quantize", quantizes},
    {"cache experts", caches_experts},
};
enum { SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

#endif
