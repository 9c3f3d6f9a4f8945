/* An offloader whose weights are carried compressed, with their expected bytes. */
#ifndef COMPRESSED_H
#define COMPRESSED_H

#include "memory.h"

#ifndef MOST_TILES
#define MOST_TILES 12 /* of a weight */
#endif
enum { WEIGHTS = 8, TILE = 8192, MOST_BYTES = MOST_TILES * TILE };

/* How the values of a weight are distributed. */
enum content { TRAINED, RANDOM_BITS, ZEROS, SPECIAL, CONTENTS };

struct weight {
    char name[32], group[32];
    wb_dtype dtype;
    int64_t shape[1];
    uint64_t bytes;
    unsigned char content[MOST_BYTES];
};

struct compressed {
    wb_device *device;
    wb_plan *plan;
    wb_offloader *offloader;
    wb_buffer *back;
    void *stream;
    int count;
    struct weight weights[WEIGHTS];
    wb_layout layouts[WEIGHTS];
    wb_parameter parameters[WEIGHTS];
};

static struct compressed all;

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

static inline uint64_t bytes_of(wb_dtype type)
{
    return type == WB_DTYPE_F32 ? 4 : type == WB_DTYPE_BF16 || type == WB_DTYPE_F16 ? 2 : 1;
}

/* Values of a type: like those of a trained weight, bits without order, zeros, or zeros of both signs,
 * subnormal numbers, infinities and NaN between others. */
static inline void make_content(unsigned char *to, wb_dtype type, uint64_t bytes, enum content content,
                                uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 88172645463325252u;
    for (uint64_t at = 0; at + bytes_of(type) <= bytes; at += bytes_of(type)) {
        uint32_t bits;
        const uint64_t drawn = next_random(&state);
        float number = 0.02f * ((float)(int64_t)(drawn & 0xffff) / 65536.0f - 0.5f);
        number *= (float)(int64_t)(drawn >> 16 & 0xff) / 256.0f;
        memcpy(&bits, &number, sizeof bits);
        if (type == WB_DTYPE_BF16) bits >>= 16;
        if (type == WB_DTYPE_F16) bits = (bits >> 13 & 0x3fff) | (bits >> 16 & 0x8000);
        if (bytes_of(type) == 1) bits = (bits >> 20 & 0x3f) | (bits >> 24 & 0x80);
        if (content == RANDOM_BITS || (content == SPECIAL && drawn % 3 == 0)) {
            bits = (uint32_t)(drawn >> 24);
        }
        if (content == SPECIAL && drawn % 3 == 1) {
            bits = drawn >> 8 & 1 ? 0 : 1u << (8 * bytes_of(type) - 1); /* 0 or -0 */
        }
        if (content == SPECIAL && drawn % 7 == 0) bits = 0xffffffff;
        if (content == ZEROS) bits = 0;
        memcpy(to + at, &bits, bytes_of(type));
    }
}

static inline void set_weight(int at, wb_dtype dtype, uint64_t bytes, enum content content,
                              uint64_t seed)
{
    struct weight *weight = &all.weights[at];
    weight->dtype = dtype;
    weight->bytes = bytes;
    weight->shape[0] = (int64_t)(bytes / bytes_of(dtype));
    all.layouts[at] = layout_of(dtype, 1, weight->shape, NULL, 0);
    make_content(weight->content, dtype, bytes, content, seed);
}

/* `count` weights in the form of a model, each of a group of its own but the first two. */
static inline void weights_init(int count)
{
    static const wb_dtype types[] = {WB_DTYPE_BF16, WB_DTYPE_F16, WB_DTYPE_F32, WB_DTYPE_F8_E4M3FN,
                                     WB_DTYPE_F8_E5M2};
    static const uint64_t sizes[] = {4 * TILE, TILE, 3 * TILE + 24, 12 * TILE, 2 * TILE + 8000};
    const wb_parameter empty = WB_PARAMETER_INIT;
    memset(&all, 0, sizeof all);
    all.count = count;
    for (int at = 0; at < count; at++) {
        struct weight *weight = &all.weights[at];
        snprintf(weight->name, sizeof weight->name, "layers.%d.w", at);
        snprintf(weight->group, sizeof weight->group, "layers.%d", at < 2 ? 0 : at - 1);
        set_weight(at, types[at % 5], sizes[at % 5], (enum content)(at % CONTENTS), (uint64_t)at + 1);
        all.parameters[at] = empty;
        all.parameters[at].name = weight->name;
        all.parameters[at].group = weight->group;
        all.parameters[at].layout = &all.layouts[at];
        all.parameters[at].source = weight->content;
    }
}

static inline wb_plan_options compressed_options(wb_transfer_mode mode)
{
    static const char *const every[] = {"*"};
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = 4 << 20;
    options.transfer_mode = mode;
    options.compress = WB_COMPRESS_SELECTED;
    options.compress_select = every;
    options.compress_select_count = 1;
    return options;
}

static inline int compressed_begin(wb_device *device, wb_plan_options options)
{
    all.device = device;
    return CHECK_OK(wb_device_stream_new(device, &all.stream, &error)) &&
           CHECK_OK(wb_plan_new(device, all.parameters, (uint64_t)all.count, &options, &all.plan,
                                &error)) &&
           CHECK_OK(wb_offloader_new(all.plan, all.stream, NULL, &all.offloader, &error)) &&
           CHECK_OK(wb_buffer_alloc(device, MOST_BYTES, NULL, &all.back, &error));
}

static inline void compressed_end(void)
{
    wb_plan_release(all.plan);
    wb_offloader_release(all.offloader);
    wb_buffer_release(all.back);
    CHECK_OK(wb_device_stream_release(all.device, all.stream, &error));
}

static inline uint64_t index_of(const char *name)
{
    uint64_t index = UINT64_MAX;
    CHECK_OK(wb_offloader_find_parameter(all.offloader, name, &index, &error));
    return index;
}

static inline wb_offloader_parameter_info info_at(int at)
{
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    CHECK_OK(wb_offloader_get_parameter_info(all.offloader, index_of(all.weights[at].name), &info,
                                             &error));
    return info;
}

static inline wb_plan_parameter_info planned_at(int at)
{
    wb_plan_parameter_info info = WB_PLAN_PARAMETER_INFO_INIT;
    CHECK_OK(wb_plan_get_parameter_info(all.plan, (uint64_t)at, &info, &error));
    return info;
}

static inline wb_offloader_stats stats_now(void)
{
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    CHECK_OK(wb_offloader_get_stats(all.offloader, &stats, &error));
    return stats;
}

/* Whether the device finds the weight's bytes while its group is acquired, and the host reads those of an
 * offloaded one. */
static inline int holds(int at)
{
    static unsigned char read[MOST_BYTES];
    const struct weight *weight = &all.weights[at];
    unsigned char *back = (unsigned char *)buffer_info(all.back).data;
    uint64_t group = 0;
    memset(back, 0xee, MOST_BYTES);
    if (!CHECK_OK(wb_offloader_find_group(all.offloader, weight->group, &group, &error)) ||
        !CHECK_OK(wb_offloader_acquire_group(all.offloader, group, all.stream, &error))) {
        return 0;
    }
    CHECK_OK(wb_device_copy(all.device, back, info_at(at).device_address, weight->bytes, all.stream,
                            &error));
    CHECK_OK(wb_device_stream_synchronize(all.device, all.stream, &error));
    CHECK_OK(wb_offloader_release_group(all.offloader, group, all.stream, &error));
    if (info_at(at).placement == WB_PLACEMENT_RESIDENT) {
        return memcmp(back, weight->content, weight->bytes) == 0;
    }
    memset(read, 0xee, sizeof read);
    CHECK_OK(wb_offloader_read_parameter(all.offloader, index_of(weight->name), read, weight->bytes,
                                         &error));
    CHECK(read[weight->bytes % MOST_BYTES] == (weight->bytes < MOST_BYTES ? 0xee : read[0]));
    return memcmp(back, weight->content, weight->bytes) == 0 &&
           memcmp(read, weight->content, weight->bytes) == 0;
}

static inline void check_all(void)
{
    for (int at = 0; at < all.count; at++) {
        char what[80];
        if (holds(at)) continue;
        snprintf(what, sizeof what, "%s has other bytes", all.weights[at].name);
        check_failed(__FILE__, __LINE__, what);
    }
}

static inline wb_status replace_weight(int at)
{
    const struct weight *weight = &all.weights[at];
    return wb_offloader_replace(all.offloader, weight->name, weight->content, &all.layouts[at],
                                all.stream, &error);
}

#endif
