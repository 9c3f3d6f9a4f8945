/* What a resize does between other calls: in a capture that goes on, and after calls that failed half way. */
#include "fixed.h"

static wb_status try_resize(struct bench *b, uint64_t bytes, wb_offloader_resize_progress *progress)
{
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = bytes;
    const wb_status status = wb_offloader_resize(b->offloader, &options, b->stream, progress, &error);
    if (status != WB_OK) return status;
    return wb_offloader_resize_wait(b->offloader, b->stream, MINUTE, progress, &error);
}

static void resize(struct bench *b, uint64_t bytes)
{
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    CHECK_OK(try_resize(b, bytes, &progress));
    CHECK_SAME(progress.pending_units, 0);
    CHECK(progress.device_bytes <= bytes);
    CHECK_SAME(device_stats(b->device).device_bytes, progress.device_bytes);
}

/* The first group of those the plan keeps on the device, or of the others, that has memory of its own, or not. */
static int first_group(struct bench *b, int planned, int resident)
{
    for (int group = 0; group < GROUPS; group++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(b->offloader, (uint64_t)group, &info, &error));
        if ((info.placement != WB_PLACEMENT_OFFLOADED) == planned && (info.resident_bytes > 0) == resident) {
            return group;
        }
    }
    CHECK(0);
    return 0;
}

/* The graph does not copy it, so that it must not return to its slot. */
static void a_unit_that_comes_during_a_capture_is_right_after_it_leaves(wb_device *device)
{
    struct bench b;
    void *other = NULL, *own = NULL;
    int reads[] = {0, 0, -1};
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    REQUIRE_OK(wb_device_stream_new(device, &other, &error));
    const uint64_t slots = stats_of(&b).slot_bytes;
    reads[0] = first_group(&b, 1, 1);
    reads[1] = first_group(&b, 0, 0);
    struct graph graph = {NULL, new_step(&b, reads), 0, 2};
    void *made = NULL;
    REQUIRE(b.captures.begin(b.stream, 2) == 0);
    visit(&b, graph.step, 0, reads[0]); /* nothing is copied: resizes are not refused */
    own = b.stream, b.stream = other;
    resize(&b, slots + GROUPS * PIECE);
    b.stream = own;
    visit(&b, graph.step, 1, reads[1]);
    CHECK_OK(wb_offloader_join(b.offloader, b.stream, &error));
    REQUIRE(b.captures.end(b.stream, &made) == 0);
    CHECK(b.captures.instantiate(&graph.exec, made, 0) == 0 && b.captures.destroy(made) == 0);
    replay(&b, &graph);
    check_reads(&b, "while it is resident", 1);
    resize(&b, slots + RESIDENT * PIECE);
    b.explicit_steps = 1;
    eager(&b, orders[0]); /* others are in the slots then */
    replay(&b, &graph);
    check_reads(&b, "after it has left", 1);
    graph_end(&b, &graph);
    CHECK_OK(wb_device_stream_release(device, other, &error));
    bench_end(&b);
}

/* Steps are refused after a replacement that failed half way: groups may still be acquired. */
static void a_sleep_after_a_failed_replacement_waits_for_acquired_groups(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    const uint64_t slots = stats_of(&b).slot_bytes, some = slots + (RESIDENT + 1) * PIECE;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    resize(&b, some);
    const int own = first_group(&b, 0, 1), acquired = first_group(&b, 0, 0);
    CHECK_OK(wb_offloader_acquire_group(b.offloader, (uint64_t)acquired, b.stream, &error));
    CHECK_INJECTED("cuStreamCreate:0:999", WB_ERR_DRIVER,
                   wb_offloader_replace(b.offloader, ring.names[own], ring.bytes[own], &ring.layout, b.stream,
                                        &error),
                   "");
    CHECK_OK(wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error)); /* to sleep */
    CHECK(progress.pending_units > 0);
    CHECK(progress.device_bytes >= slots);
    CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes);
    CHECK_OK(wb_offloader_release_group(b.offloader, (uint64_t)acquired, b.stream, &error));
    CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
    CHECK_SAME(progress.device_bytes, 0);
    CHECK_SAME(device_stats(device).device_bytes, 0);
    resize(&b, some);
    CHECK_OK(wb_offloader_replace(b.offloader, ring.names[own], ring.bytes[own], &ring.layout, b.stream, &error));
    eager(&b, orders[0]);
    check_reads(&b, "awake", 0);
    bench_end(&b);
}

/* It fails once slots have memory, and before a unit is back. */
static void a_sleep_after_a_failed_wake_frees_the_slots(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    const uint64_t whole = stats_of(&b).slot_bytes + RESIDENT * PIECE;
    resize(&b, 0);
    CHECK_INJECTED("cuMemSetAccess:1+:999", WB_ERR_DRIVER, try_resize(&b, whole, &progress), "");
    resize(&b, 0);
    CHECK_SAME(stats_of(&b).slot_bytes, 0);
    resize(&b, whole);
    eager(&b, orders[0]);
    check_reads(&b, "awake", 0);
    bench_end(&b);
}

static void *drain(void *device)
{
    CHECK_OK(wb_device_drain((wb_device *)device, MINUTE, &error));
    return NULL;
}

/* The driver has refused it before, and is slow now. */
static void a_resize_waits_for_a_release_that_another_thread_repeats(wb_device *device)
{
    struct bench b;
    pthread_t thread;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    const uint64_t logged = device_stats(device).errors_logged;
    CHECK_INJECTED("cuMemRelease:1+:999", WB_ERR_DRIVER, try_resize(&b, 0, &progress), "");
    check_logged += (int)(device_stats(device).errors_logged - logged);
    const long long calls = double_called("cuMemRelease");
    double_set("WB_DOUBLE_FAIL", "cuMemRelease:1:hang500");
    REQUIRE(pthread_create(&thread, NULL, drain, device) == 0);
    while (double_called("cuMemRelease") == calls) sleep_ms(1);
    resize(&b, 0);
    pthread_join(thread, NULL);
    double_set("WB_DOUBLE_FAIL", "");
    bench_end(&b);
}

CHECK_MAIN(CASE_ON(CUDA_ONLY, a_unit_that_comes_during_a_capture_is_right_after_it_leaves),
           CASE_ON(DOUBLE_ONLY, a_sleep_after_a_failed_replacement_waits_for_acquired_groups),
           CASE_ON(DOUBLE_ONLY, a_sleep_after_a_failed_wake_frees_the_slots),
           CASE_ON(DOUBLE_ONLY, a_resize_waits_for_a_release_that_another_thread_repeats))
