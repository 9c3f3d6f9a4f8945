/* Parameters of an offloader that tests replace, add and remove. */
#ifndef CHANGES_H
#define CHANGES_H

#include "model.h"

static inline wb_plan_options prefetch_options(void)
{
    return offload_options(WB_TRANSFER_MODE_PREFETCH);
}

/* Plans and commits `count` parameters of these sizes in bytes. The first `together` share a group;
 * each other parameter has a group of its own. */
static inline int offload_begin_sizes(struct offload *o, wb_device *device, const int64_t *sizes,
                                      int count, int together, wb_plan_options options)
{
    static wb_layout layouts[COUNT];
    static int64_t shapes[COUNT];
    options.allow |= WB_ALLOW_EVERYTHING_FITS;
    for (int i = 0; i < count; i++) {
        shapes[i] = sizes[i];
        layouts[i] = bytes_layout(&shapes[i]);
        model.parameters[i].layout = &layouts[i];
        model.parameters[i].group = i < together ? "together" : model.names[i];
    }
    return offload_begin_first(o, device, count, options);
}

static inline const unsigned char *fresh_bytes(int parameter)
{
    static unsigned char fresh[COUNT][BYTES];
    memset(fresh[parameter], 10 + parameter, BYTES);
    return fresh[parameter];
}

static inline wb_status replace_from(struct offload *o, int parameter, const void *source,
                                     const wb_layout *layout)
{
    return wb_offloader_replace(o->offloader, model.names[parameter], source, layout, o->stream,
                                &error);
}

/* Replaces a parameter by fresh bytes. */
static inline wb_status replace(struct offload *o, int parameter, int64_t bytes)
{
    const wb_layout layout = bytes_layout(&bytes);
    return replace_from(o, parameter, fresh_bytes(parameter), &layout);
}

/* Whether the parameter has these bytes on the device while its group is acquired. */
static inline int device_holds(struct offload *o, const char *group, int parameter,
                               const unsigned char *expected, size_t bytes)
{
    unsigned char *back = (unsigned char *)describe(o->back).data;
    uint64_t index = 0;
    int holds = 0;
    memset(back, 0xee, bytes);
    if (!CHECK_OK(wb_offloader_find_group(o->offloader, group, &index, &error)) ||
        !CHECK_OK(wb_offloader_acquire_group(o->offloader, index, o->stream, &error))) {
        return 0;
    }
    CHECK_OK(wb_device_copy(o->device, back, info_of(o, parameter).device_address, bytes,
                            o->stream, &error));
    CHECK_OK(wb_device_stream_synchronize(o->device, o->stream, &error));
    holds = memcmp(back, expected, bytes) == 0;
    CHECK_OK(wb_offloader_release_group(o->offloader, index, o->stream, &error));
    return holds;
}

/* Replaces a parameter and checks its bytes on the host and on the device. */
static inline void check_replacement(struct offload *o, const char *group, int parameter,
                                     int64_t bytes)
{
    if (!CHECK_OK(replace(o, parameter, bytes))) return;
    CHECK_SAME(info_of(o, parameter).span_bytes, (uint64_t)bytes);
    CHECK(memcmp(info_of(o, parameter).host_address, fresh_bytes(parameter), (size_t)bytes) == 0);
    CHECK(bytes == 0 || device_holds(o, group, parameter, fresh_bytes(parameter), (size_t)bytes));
}

/* Adds a parameter of bytes to a group. */
static inline wb_status add_bytes(struct offload *o, const char *name, const char *group,
                                  int64_t bytes, const void *source, wb_placement placement)
{
    const wb_layout layout = bytes_layout(&bytes);
    wb_parameter added = WB_PARAMETER_INIT;
    added.name = name;
    added.group = group;
    added.layout = &layout;
    added.source = source;
    added.placement = placement;
    return wb_offloader_add(o->offloader, &added, o->stream, &error);
}

#endif
