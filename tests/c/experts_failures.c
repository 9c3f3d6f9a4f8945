/* Expert caches of an offloader with fixed addresses after calls of the driver that failed. */
#include "mixture.h"

static wb_status route_three(struct mixture *m)
{
    unsigned char *slots = m->memory + E_TOP * 4;
    CHECK_OK(wb_device_copy(m->device, m->memory, m->ids, E_TOP * 4, m->stream, &error));
    const wb_status status = wb_expert_cache_route(m->cache, 0, m->memory, E_TOP, WB_DTYPE_I32, slots,
                                                   NULL, m->stream, &error);
    if (status != WB_OK) return status;
    CHECK_OK(wb_device_copy(m->device, m->slots, slots, E_TOP * 4, m->stream, &error));
    return wb_device_stream_synchronize(m->device, m->stream, &error);
}

/* A part of the new bytes may have been written, so that the cache must neither gather nor serve. */
static void a_cache_refuses_calls_after_a_failed_replacement(wb_device *device)
{
    static const int64_t wide[2] = {E_EXPERTS, E_WIDE};
    static const int32_t first[E_TOP] = {0, 1, 2}, next[E_TOP] = {0, 2, 4};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 2, wide, NULL, 0);
    struct mixture m;
    void *source = NULL;
    if (!mixture_begin(&m, device, 12 * PIECE, 8 * PIECE)) return;
    REQUIRE_OK(wb_device_alloc(device, E_EXPERTS * E_WIDE, &source, &error));
    memset(source, 0xab, E_EXPERTS * E_WIDE); /* the double's memory is the host's */
    memcpy(m.ids, first, sizeof first);
    CHECK_OK(route_three(&m));
    CHECK_INJECTED("cuStreamSynchronize:2:999", WB_ERR_DRIVER,
                   wb_offloader_replace(m.offloader, "l0.w0", source, &layout, m.stream, &error), "");
    memcpy(m.ids, next, sizeof next);
    CHECK_ERROR(WB_ERR_NOT_FOUND, route_three(&m), "replace them again");
    CHECK_OK(wb_offloader_replace(m.offloader, "l0.w0", source, &layout, m.stream, &error));
    CHECK_OK(route_three(&m));
    for (int at = 0; at < E_TOP; at++) {
        const unsigned char *slots = (const unsigned char *)slots_of(&m, 0).device_address;
        unsigned char found = 0;
        read_device(device, &found, slots + (uint64_t)m.slots[at] * E_WIDE + 5, 1);
        CHECK_SAME(found, 0xab);
    }
    CHECK_OK(wb_device_free(device, source, &error));
    mixture_end(&m);
}

/* The state, which has the counts, is saved in sleep until a wake has restored all of it. */
static void a_cache_keeps_its_state_through_a_wake_that_fails(wb_device *device)
{
    struct mixture m;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!mixture_begin(&m, device, 20 * PIECE, 8 * PIECE)) return;
    draw_ids(&m);
    queue_step(&m, E_LAYERS - 1);
    check_layer(&m, E_LAYERS - 1);
    check_counts(&m, named_experts(&m), 1);
    resize(&m, 0);
    CHECK_INJECTED("cuLaunchKernel:1:999", WB_ERR_DRIVER, try_resize(&m, 20 * PIECE, &progress), "");
    resize(&m, 0);
    resize(&m, 20 * PIECE);
    check_counts(&m, 0, 0);
    queue_step(&m, E_LAYERS - 1);
    check_layer(&m, E_LAYERS - 1);
    check_counts(&m, named_experts(&m), 1);
    mixture_end(&m);
}

CHECK_MAIN(CASE_ON(DOUBLE_ONLY, a_cache_refuses_calls_after_a_failed_replacement),
           CASE_ON(DOUBLE_ONLY, a_cache_keeps_its_state_through_a_wake_that_fails))
