/* Compressed weights that are so large that copies carry them through windows of device memory, several of
 * them one after another. */
#define MOST_TILES 6600
#include "compressed_graph.h"

enum { LARGE = 4, WINDOWS_BYTES = 64 << 20 };

/* Large weights, which fill more than a window, and a small one between them, which passes through none. */
static wb_plan_options large_weights(wb_transfer_mode mode)
{
    wb_plan_options options = compressed_options(mode);
    options.budget_bytes = 1u << 30;
    weights_init(LARGE);
    set_weight(0, WB_DTYPE_BF16, MOST_BYTES, TRAINED, 1);
    set_weight(1, WB_DTYPE_F32, MOST_BYTES - 20, SPECIAL, 2);
    set_weight(3, WB_DTYPE_BF16, MOST_BYTES - 18, TRAINED, 3);
    return options;
}

static uint64_t planned_slot_bytes(wb_device *device, const wb_plan_options *options)
{
    wb_plan *plan = NULL;
    wb_plan_info info = WB_PLAN_INFO_INIT;
    if (!CHECK_OK(wb_plan_new(device, all.parameters, LARGE, options, &plan, &error))) return 0;
    CHECK_OK(wb_plan_get_info(plan, &info, &error));
    wb_plan_release(plan);
    return info.slot_bytes;
}

static void every_large_weight_is_what_it_was(wb_device *device)
{
    static const wb_transfer_mode modes[] = {WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND};
    for (int mode = 0; mode < 2; mode++) {
        wb_plan_options options = large_weights(modes[mode]);
        options.depth = 2;
        REQUIRE(compressed_begin(device, options));
        for (int step = 0; step < 3; step++) check_all();
        CHECK(stats_now().moved_encoded_bytes > 0);
        compressed_end();
    }
}

static void windows_are_counted_as_slots(wb_device *device)
{
    wb_plan_options options = large_weights(WB_TRANSFER_MODE_PREFETCH);
    const uint64_t bytes = planned_slot_bytes(device, &options);
    const uint64_t before = device_stats(device).device_bytes;
    REQUIRE(compressed_begin(device, options));
    CHECK_SAME(stats_now().slot_bytes, bytes);
    CHECK_SAME(stats_now().peak_slot_bytes, bytes);
    CHECK_SAME(device_stats(device).device_bytes - before, bytes);
    compressed_end();
    /* With a limit of slots there are none, and weights are the same. */
    options.slot_bytes = bytes;
    CHECK_SAME(planned_slot_bytes(device, &options), bytes - WINDOWS_BYTES);
    REQUIRE(compressed_begin(device, options));
    CHECK_SAME(stats_now().slot_bytes, bytes - WINDOWS_BYTES);
    check_all();
    compressed_end();
}

/* A graph copies the same bytes of host memory each time. What it does not copy is read there. */
static void a_replay_reads_replaced_large_weights(wb_device *device)
{
    struct captures captures;
    REQUIRE(compressed_begin(device, large_weights(WB_TRANSFER_MODE_PREFETCH)));
    REQUIRE(CHECK(captures_begin(&captures)));
    void *exec = capture_read(&captures, 0);
    REQUIRE(exec != NULL);
    for (int content = 0; content < CONTENTS; content++) {
        set_weight(0, WB_DTYPE_BF16, MOST_BYTES, (enum content)content, 10 + (uint64_t)content);
        check_replay_of_replaced(&captures, exec, 0);
    }
    CHECK(captures.destroy_exec(exec) == 0);
    captures_end(&captures);
    compressed_end();
}

/* On demand, so that no other weight is copied in the capture. */
static void a_graph_may_use_no_window(wb_device *device)
{
    struct captures captures;
    REQUIRE(compressed_begin(device, large_weights(WB_TRANSFER_MODE_ON_DEMAND)));
    REQUIRE(CHECK(captures_begin(&captures)));
    void *exec = capture_read(&captures, 2);
    REQUIRE(exec != NULL);
    set_weight(2, WB_DTYPE_F32, all.weights[2].bytes, SPECIAL, 20);
    check_replay_of_replaced(&captures, exec, 2);
    CHECK(captures.destroy_exec(exec) == 0);
    captures_end(&captures);
    compressed_end();
}

CHECK_MAIN(CASE(every_large_weight_is_what_it_was), CASE(windows_are_counted_as_slots),
           CASE_ON(CUDA_ONLY, a_replay_reads_replaced_large_weights),
           CASE_ON(CUDA_ONLY, a_graph_may_use_no_window))
