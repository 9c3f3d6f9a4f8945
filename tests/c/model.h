/* A model with layers in host memory, its plan and its offloader. */
#ifndef MODEL_H
#define MODEL_H

#include "memory.h"

/* Each layer has EACH parameters, each of them SIDE by SIDE numbers of 2 bytes. */
enum { LAYERS = 4, EACH = 2, COUNT = LAYERS * EACH, SIDE = 50, BYTES = SIDE * SIDE * 2 };

struct model {
    char names[COUNT][32], groups[COUNT][32];
    int64_t shape[2];
    wb_layout layout;
    unsigned char bytes[COUNT][BYTES];
    wb_parameter parameters[COUNT];
};

static inline unsigned char byte_of(int parameter, int at, int version)
{
    return (unsigned char)(parameter * 31 + at + version * 7);
}

static inline void fill_parameter(unsigned char *to, int parameter, int version)
{
    for (int at = 0; at < BYTES; at++) to[at] = byte_of(parameter, at, version);
}

static inline int holds_parameter(const unsigned char *from, int parameter, int version)
{
    for (int at = 0; at < BYTES; at++) {
        if (from[at] != byte_of(parameter, at, version)) return 0;
    }
    return 1;
}

static inline void model_init(struct model *model)
{
    model->shape[0] = model->shape[1] = SIDE;
    model->layout = layout_of(WB_DTYPE_BF16, 2, model->shape, NULL, 0);
    for (int i = 0; i < COUNT; i++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        snprintf(model->names[i], sizeof model->names[i], "layers.%d.w%d", i / EACH, i % EACH);
        snprintf(model->groups[i], sizeof model->groups[i], "layers.%d", i / EACH);
        fill_parameter(model->bytes[i], i, 0);
        model->parameters[i] = empty;
        model->parameters[i].name = model->names[i];
        model->parameters[i].group = model->groups[i];
        model->parameters[i].layout = &model->layout;
        model->parameters[i].source = model->bytes[i];
    }
}

static struct model model;

struct offload {
    wb_device *device;
    wb_plan *plan;
    wb_offloader *offloader;
    wb_buffer *back; /* BYTES, for reading back from the device */
    void *stream;
};

static inline wb_plan_options budget_options(wb_budget_kind kind, uint64_t bytes)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = kind;
    options.budget_bytes = bytes;
    return options;
}

static inline wb_plan_options offload_options(wb_transfer_mode mode)
{
    wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    options.transfer_mode = mode;
    return options;
}

/* Plans and commits the first `count` parameters of the model. */
static inline int offload_begin_first(struct offload *o, wb_device *device, int count,
                                      wb_plan_options options)
{
    const struct offload none = {device, NULL, NULL, NULL, NULL};
    *o = none;
    return CHECK_OK(wb_device_stream_new(device, &o->stream, &error)) &&
           CHECK_OK(wb_plan_new(device, model.parameters, (uint64_t)count, &options, &o->plan,
                                &error)) &&
           CHECK_OK(wb_offloader_new(o->plan, o->stream, NULL, &o->offloader, &error)) &&
           (o->back = new_buffer(device, BYTES)) != NULL;
}

/* Plans and commits a new model. */
static inline int offload_begin(struct offload *o, wb_device *device, wb_transfer_mode mode)
{
    model_init(&model);
    return offload_begin_first(o, device, COUNT, offload_options(mode));
}

static inline void offload_end(struct offload *o)
{
    wb_plan_release(o->plan);
    wb_offloader_release(o->offloader);
    wb_buffer_release(o->back);
    CHECK_OK(wb_device_stream_release(o->device, o->stream, &error));
}

static inline uint64_t index_of(struct offload *o, const char *name)
{
    uint64_t index = UINT64_MAX;
    CHECK_OK(wb_offloader_find_parameter(o->offloader, name, &index, &error));
    return index;
}

static inline wb_offloader_parameter_info info_by_name(struct offload *o, const char *name)
{
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    CHECK_OK(
        wb_offloader_get_parameter_info(o->offloader, index_of(o, name), &info, &error));
    return info;
}

static inline wb_offloader_parameter_info info_of(struct offload *o, int parameter)
{
    return info_by_name(o, model.names[parameter]);
}

/* Acquires and releases each group once. */
static inline void check_step(struct offload *o)
{
    for (uint64_t group = 0; group < LAYERS; group++) {
        CHECK_OK(wb_offloader_acquire_group(o->offloader, group, o->stream, &error));
        CHECK_OK(wb_offloader_release_group(o->offloader, group, o->stream, &error));
    }
}

static inline wb_offloader_stats stats_of(struct offload *o)
{
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    CHECK_OK(wb_offloader_get_stats(o->offloader, &stats, &error));
    return stats;
}

#endif
