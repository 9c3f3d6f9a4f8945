/* Weights of bytes in an offloader, that tests replace, add and take away. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "model.h"

/* Plans and commits `count` weights of so many bytes; the first `together` are one group, each other is
 * one of its own. */
static inline int begin_of(struct offload *o, wb_device *device, const int64_t *sizes, int count,
                    int together, wb_plan_options options)
{
    static wb_layout layouts[COUNT];
    static int64_t shapes[COUNT];
    const struct offload none = {device, NULL, NULL, NULL, NULL};
    *o = none;
    options.allow |= WB_ALLOW_EVERYTHING_FITS;
    for (int i = 0; i < count; i++) {
        shapes[i] = sizes[i];
        layouts[i] = layout_of(WB_DTYPE_U8, 1, &shapes[i], NULL, 0);
        model.parameters[i].layout = &layouts[i];
        model.parameters[i].group = i < together ? "together" : model.names[i];
    }
    return CHECK_OK(wb_device_stream_new(device, &o->stream, &error)) &&
           CHECK_OK(wb_plan_new(device, model.parameters, (uint64_t)count, &options, &o->plan,
                                &error)) &&
           CHECK_OK(wb_offloader_new(o->plan, o->stream, NULL, &o->offloader, &error)) &&
           CHECK_OK(wb_buffer_alloc(device, BYTES, NULL, &o->back, &error));
}

static inline wb_plan_options options_of(wb_transfer_mode carrier)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.offload_bytes = 1 << 20;
    options.carrier = carrier;
    return options;
}

static inline const unsigned char *fresh_bytes(int parameter)
{
    static unsigned char fresh[COUNT][BYTES];
    memset(fresh[parameter], 10 + parameter, BYTES);
    return fresh[parameter];
}

static inline wb_status replace(struct offload *o, int parameter, int64_t bytes)
{
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &bytes, NULL, 0);
    return wb_offloader_replace(o->offloader, model.names[parameter],
                                (uint64_t)(uintptr_t)fresh_bytes(parameter), &layout, o->stream,
                                &error);
}

/* What the device finds while the group is acquired. */
static inline int device_holds(struct offload *o, const char *group, int parameter,
                        const unsigned char *expected, size_t bytes)
{
    unsigned char *back = (unsigned char *)describe(o->back).data;
    uint64_t number = 0;
    int holds = 0;
    memset(back, 0xee, bytes);
    if (!CHECK_OK(wb_offloader_find_group(o->offloader, group, &number, &error)) ||
        !CHECK_OK(wb_offloader_acquire_group(o->offloader, number, o->stream, &error))) {
        return 0;
    }
    CHECK_OK(wb_device_copy(o->device, (uint64_t)(uintptr_t)back, where(o, parameter).device_address,
                            bytes, o->stream, &error));
    CHECK_OK(wb_device_stream_synchronize(o->device, o->stream, &error));
    holds = memcmp(back, expected, bytes) == 0;
    CHECK_OK(wb_offloader_release_group(o->offloader, number, o->stream, &error));
    return holds;
}

/* Replaced, and then on the host and on the device. */
static inline void replace_by(struct offload *o, const char *group, int parameter, int64_t bytes)
{
    if (!CHECK_OK(replace(o, parameter, bytes))) return;
    CHECK_SAME(where(o, parameter).span_bytes, (uint64_t)bytes);
    CHECK(memcmp(where(o, parameter).host_address, fresh_bytes(parameter), (size_t)bytes) == 0);
    CHECK(bytes == 0 || device_holds(o, group, parameter, fresh_bytes(parameter), (size_t)bytes));
}

/* Adds a parameter of bytes to a group. */
static inline wb_status add_bytes(struct offload *o, const char *name, const char *group,
                                  int64_t bytes, const void *source, wb_transfer_mode carrier)
{
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &bytes, NULL, 0);
    wb_parameter added = WB_PARAMETER_INIT;
    added.name = name;
    added.group = group;
    added.layout = &layout;
    added.source = (uint64_t)(uintptr_t)source;
    added.carrier = carrier;
    return wb_offloader_add(o->offloader, &added, o->stream, &error);
}

#endif
