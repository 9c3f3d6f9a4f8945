/* A thread that changes an offloader's weights. */
#include "changer.h"

#include "counts.h"

int changer_begin(struct changer *changer)
{
    memset(changer->views, 0, sizeof changer->views);
    return CHECK_OK(wb_device_stream_new(changer->device, &changer->stream, &error));
}

void changer_end(struct changer *changer)
{
    for (int view = 0; view < KEPT_VIEWS; view++) wb_view_release(changer->views[view]);
    CHECK_OK(wb_device_stream_release(changer->device, changer->stream, &error));
}

/* The host's bytes, and where they are not kept the size, are those of the version. */
static void check_version(struct changer *changer, int index, uint64_t version)
{
    const struct weights *weights = changer->weights;
    const char *name = weights->all[index].name;
    const uint64_t bytes = weight_bytes(weights, index, version);
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    const wb_status status = wb_offloader_get_parameter_info(changer->offloader, name, &info, &error);
    CHECK(status == (bytes > 0 ? WB_OK : WB_ERR_NOT_FOUND));
    if (status != WB_OK) return;
    CHECK_SAME(info.span_bytes, bytes);
    if (info.host_address != NULL) {
        CHECK(weight_is(weights, index, version, info.host_address, info.span_bytes));
    }
}

/* A copy of the content in memory of the device; 0 where the weight would stay in it. */
static uint64_t on_device(struct changer *changer, const char *name, const void *content,
                          uint64_t bytes)
{
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    uint64_t address = 0;
    const wb_status status = wb_offloader_get_parameter_info(changer->offloader, name, &info, &error);
    if (status != WB_OK || info.carrier == WB_CARRIER_NONE) return 0;
    if (!CHECK_OK(wb_device_alloc(changer->device, bytes, &address, &error))) return 0;
    CHECK_OK(wb_device_copy(changer->device, address, number(content), bytes, changer->stream,
                            &error));
    return address;
}

static wb_status replace(struct changer *changer, const char *name, uint64_t bytes,
                         const void *content)
{
    const int64_t shape[] = {(int64_t)bytes};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    uint64_t source = number(content), there = 0;
    if (draw(&changer->random, 3) == 0) there = on_device(changer, name, content, bytes);
    if (there != 0) source = there;
    const wb_status status = wb_offloader_replace(changer->offloader, name, source, &layout,
                                                  changer->stream, &error);
    if (there != 0) CHECK_OK(wb_device_free(changer->device, there, &error));
    return status;
}

static wb_status add(struct changer *changer, const struct weight *weight, uint64_t bytes,
                     const void *content)
{
    const int64_t shape[] = {(int64_t)bytes};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    wb_parameter parameter = WB_PARAMETER_INIT;
    parameter.name = weight->name;
    parameter.group = weight->group;
    parameter.layout = &layout;
    parameter.source = number(content);
    return wb_offloader_add(changer->offloader, &parameter, changer->stream, &error);
}

/* What brings the weight to the version, and how that is counted. */
static wb_status change_to(struct changer *changer, int index, uint64_t version,
                           enum operation *done)
{
    const struct weights *weights = changer->weights;
    const struct weight *weight = &weights->all[index];
    const uint64_t bytes = weight_bytes(weights, index, version);
    const int there = weight_bytes(weights, index, weight->done) > 0;
    wb_status status = WB_OK;
    *done = there ? bytes > 0 ? REPLACED : REMOVED : ADDED;
    if (bytes == 0) {
        return there ? wb_offloader_remove(changer->offloader, weight->name, changer->stream,
                                           &error)
                     : WB_OK;
    }
    unsigned char *content = weight_content(weights, index, version);
    if (settings.broken == BROKEN_WEIGHTS) content[bytes / 2] ^= 1;
    status = there ? replace(changer, weight->name, bytes, content)
                   : add(changer, weight, bytes, content);
    free(content);
    return status;
}

static int refused(wb_status status)
{
    return status == WB_ERR_BUSY || status == WB_ERR_BUDGET;
}

static void bring_forward(struct changer *changer)
{
    const int index =
        (int)draw(&changer->random, (uint64_t)weights_count(changer->weights));
    struct weight *weight = &changer->weights->all[index];
    const uint64_t before = weight->done, version = before + 1;
    enum operation done = REPLACED;
    __atomic_store_n(&weight->begun, version, __ATOMIC_RELEASE);
    const wb_status status = change_to(changer, index, version, &done);
    if (refused(status)) {
        __atomic_store_n(&weight->begun, before, __ATOMIC_RELEASE);
        count(CHANGE_REFUSED);
        check_version(changer, index, before);
        return;
    }
    if (!CHECK_OK(status)) return;
    __atomic_store_n(&weight->done, version, __ATOMIC_RELEASE);
    count(done);
    if (settings.broken != BROKEN_WEIGHTS) check_version(changer, index, version);
}

static void keep_a_view(struct changer *changer)
{
    const int index = (int)draw(&changer->random, (uint64_t)weights_count(changer->weights));
    const char *name = changer->weights->all[index].name;
    wb_view **kept = &changer->views[draw(&changer->random, KEPT_VIEWS)];
    wb_view_release(*kept);
    *kept = NULL;
    const wb_status status =
        draw(&changer->random, 2) == 0
            ? wb_offloader_get_view(changer->offloader, name, kept, &error)
            : wb_offloader_get_host_view(changer->offloader, name, kept, &error);
    /* It may have been removed, or be resident. */
    if (status != WB_ERR_NOT_FOUND && CHECK_OK(status)) count(VIEWED);
}

void changer_change(struct changer *changer)
{
    const uint64_t kind = draw(&changer->random, 10);
    if (kind == 0) {
        keep_a_view(changer);
    } else if (kind == 1) {
        const wb_status status = wb_offloader_compact(changer->offloader, changer->stream, &error);
        if (!refused(status) && CHECK_OK(status)) count(COMPACTED);
    } else {
        bring_forward(changer);
    }
}
