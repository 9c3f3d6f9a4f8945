/* Compressed weights with fixed addresses that pass through windows: the memory of windows is in every budget,
 * and gone in sleep, after which graphs that have their addresses read every bit. */
#define MOST_TILES 700
#include "compressed_graph.h"
#include "gate.h"

enum { LARGE = 4, PIECE = 2 << 20, MINUTE = 60000 };
#define WINDOWS_BYTES ((uint64_t)64 << 20)

static wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;

/* Three with slots, of which two are there at a time, and one that the plan keeps on the device. The first and
 * the third pass through windows. */
static wb_plan_options large_weights(void)
{
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    options.budget_bytes = 64u << 20;
    options.fixed_addresses = WB_TRISTATE_ON;
    options.depth = 2;
    weights_init(LARGE);
    set_weight(0, WB_DTYPE_BF16, 640 * TILE, TRAINED, 1);
    set_weight(1, WB_DTYPE_F32, 3 * TILE + 24, SPECIAL, 2);
    set_weight(2, WB_DTYPE_BF16, MOST_BYTES - 20, TRAINED, 3);
    set_weight(3, WB_DTYPE_BF16, 5 * TILE, TRAINED, 4);
    for (int at = 0; at < LARGE; at++) {
        snprintf(all.weights[at].group, sizeof all.weights[at].group, "layers.%d", at);
    }
    all.parameters[3].placement = WB_PLACEMENT_RESIDENT;
    return options;
}

static wb_status try_resize(uint64_t bytes)
{
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    to.budget_bytes = bytes;
    const wb_status status = wb_offloader_resize(all.offloader, &to, all.stream, &progress,
                                                 &error);
    if (status != WB_OK) return status;
    return wb_offloader_resize_wait(all.offloader, all.stream, MINUTE, &progress, &error);
}

static void resize(uint64_t bytes)
{
    CHECK_OK(try_resize(bytes));
    CHECK_SAME(progress.pending_units, 0);
    CHECK(progress.device_bytes <= bytes);
    CHECK_SAME(device_stats(all.device).device_bytes, progress.device_bytes);
    if (bytes == 0) CHECK_SAME(stats_now().slot_bytes, 0);
}

/* The bytes of a sleeping offloader's weights. */
static void check_reading(void)
{
    static unsigned char read[MOST_BYTES];
    for (int at = 0; at < 3; at++) {
        const struct weight *weight = &all.weights[at];
        CHECK_OK(wb_offloader_read_parameter(all.offloader, index_of(weight->name), read, weight->bytes,
                                             &error));
        CHECK(memcmp(read, weight->content, weight->bytes) == 0);
    }
}

static void windows_are_in_every_budget(wb_device *device)
{
    wb_plan_info plan = WB_PLAN_INFO_INIT;
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    REQUIRE(compressed_begin(device, large_weights()));
    CHECK_OK(wb_plan_get_info(all.plan, &plan, &error));
    const uint64_t least = stats_now().slot_bytes;
    CHECK_SAME(plan.slot_bytes, least);
    CHECK_SAME(stats_now().peak_slot_bytes, least);
    CHECK(least > WINDOWS_BYTES);
    CHECK_SAME(device_stats(device).device_bytes, plan.slot_bytes + plan.resident_bytes);
    for (uint64_t pieces = 0; pieces < 12; pieces++) {
        resize(least + pieces * PIECE);
        check_all();
    }
    CHECK_SAME(progress.device_bytes, least + (3 + 1 + 3 + 1) * PIECE);
    const wb_offloader_stats whole = stats_now();
    CHECK_SAME(whole.device_parameter_bytes, plan.payload_bytes);
    CHECK_SAME(whole.peak_slot_bytes, least);
    check_all();
    CHECK_SAME(stats_now().moved_bytes, whole.moved_bytes); /* nothing crosses the link */
    to.budget_bytes = least - 1;
    CHECK_ERROR(WB_ERR_BUDGET, wb_offloader_resize(all.offloader, &to, all.stream, &progress, &error),
                "slots need");
    resize(least);
    CHECK(stats_now().device_parameter_bytes == 0);
    check_all();
    const wb_offloader_stats slots = stats_now();
    CHECK(slots.moved_encoded_bytes > whole.moved_encoded_bytes);
    CHECK(slots.moved_bytes - whole.moved_bytes < 3 * MOST_BYTES); /* compressed */
    to.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    to.budget_bytes = 4 * PIECE;
    CHECK_OK(wb_offloader_resize(all.offloader, &to, all.stream, &progress, &error));
    CHECK_OK(wb_offloader_resize_wait(all.offloader, all.stream, MINUTE, &progress, &error));
    CHECK_SAME(progress.device_bytes, least + (3 + 1) * PIECE);
    check_all();
    compressed_end();
}

/* Also by graphs: of a weight that was in its slot at the capture, and of one that was resident. */
static void every_content_is_right_at_every_budget(wb_device *device)
{
    static const int contents[] = {TRAINED, RANDOM_BITS, ZEROS, SPECIAL};
    struct captures captures;
    void *graphs[2] = {NULL, NULL}, *addresses[LARGE];
    unsigned char *back = NULL;
    REQUIRE(compressed_begin(device, large_weights()));
    back = (unsigned char *)buffer_info(all.back).data;
    const uint64_t least = stats_now().slot_bytes, whole = least + 20 * PIECE;
    for (int at = 0; at < LARGE; at++) addresses[at] = (void *)(uintptr_t)info_at(at).device_address;
    if (on_cuda()) {
        REQUIRE(CHECK(captures_begin(&captures)));
        graphs[0] = capture_read(&captures, 0);
        resize(whole);
        graphs[1] = capture_read(&captures, 2);
    }
    const uint64_t budgets[] = {least, whole, 0, least + 5 * PIECE, 0, whole, least + PIECE};
    for (int turn = 0; turn < 28; turn++) {
        const uint64_t budget = budgets[turn % 7];
        resize(budget);
        const int at = turn % 3;
        set_weight(at, all.weights[at].dtype, all.weights[at].bytes,
                   (enum content)contents[turn / 7], 100 + (uint64_t)turn);
        CHECK_OK(replace_weight(at));
        check_reading();
        if (budget == 0) {
            CHECK_ERROR(WB_ERR_BUSY,
                        wb_offloader_acquire_group(all.offloader, 0, all.stream, &error), "asleep");
            continue;
        }
        for (int each = 0; each < 2 && on_cuda(); each++) {
            memset(back, 0xee, MOST_BYTES);
            CHECK(captures.launch(graphs[each], all.stream) == 0);
            CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
            CHECK(memcmp(back, all.weights[2 * each].content, all.weights[2 * each].bytes) == 0);
        }
        check_all();
    }
    for (int at = 0; at < LARGE; at++) CHECK(info_at(at).device_address == addresses[at]);
    CHECK_SAME(stats_now().generation, 0);
    if (on_cuda()) {
        for (int each = 0; each < 2; each++) CHECK(captures.destroy_exec(graphs[each]) == 0);
        captures_end(&captures);
    }
    compressed_end();
}

/* Units that a graph does not copy are being copied to host memory when they are sent elsewhere. */
static void a_unit_that_leaves_is_sent_elsewhere(wb_device *device)
{
    struct captures captures;
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    REQUIRE(compressed_begin(device, large_weights()));
    REQUIRE(CHECK(captures_begin(&captures)));
    unsigned char *back = (unsigned char *)buffer_info(all.back).data;
    const uint64_t least = stats_now().slot_bytes, whole = least + 20 * PIECE;
    resize(whole);
    void *exec = capture_read(&captures, 2);
    double_set("WB_DOUBLE_DELAY_US", "2000");
    for (int turn = 0; turn < 6; turn++) {
        to.budget_bytes = least;
        CHECK_OK(wb_offloader_resize(all.offloader, &to, all.stream, &progress, &error));
        CHECK(progress.pending_units > 0);
        to.budget_bytes = turn % 2 ? whole : 0;
        CHECK_OK(wb_offloader_resize(all.offloader, &to, all.stream, &progress, &error));
        resize(to.budget_bytes);
        resize(turn % 3 ? least : whole);
        memset(back, 0xee, MOST_BYTES);
        CHECK(captures.launch(exec, all.stream) == 0);
        CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
        CHECK(memcmp(back, all.weights[2].content, all.weights[2].bytes) == 0);
        check_all();
        resize(whole);
    }
    double_set("WB_DOUBLE_DELAY_US", "0");
    CHECK(captures.destroy_exec(exec) == 0);
    captures_end(&captures);
    compressed_end();
}

static void *open_later(void *gate)
{
    sleep_ms(300);
    gate_open((struct gate *)gate);
    return NULL;
}

/* Calls of the driver fail, at any place of falling asleep, waking and growing; tests/faults has every call. */
static void a_failed_call_is_repeated(wb_device *device)
{
    static const char *const functions[] = {"cuMemCreate", "cuMemMap",     "cuMemSetAccess",
                                            "cuMemUnmap",  "cuMemRelease", "cuLaunchKernel",
                                            "cuMemcpyAsync"};
    int failed = 0, refused = 0;
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 12; nth += 1 + nth / 4) {
            char setting[64];
            REQUIRE(compressed_begin(device, large_weights()));
            const uint64_t logged = device_stats(device).errors_logged;
            const uint64_t least = stats_now().slot_bytes;
            const uint64_t budgets[] = {0, least, least + 12 * PIECE, 0, least + 12 * PIECE};
            snprintf(setting, sizeof setting, "%s:%d:2", functions[function], nth);
            double_set("WB_DOUBLE_FAIL", setting);
            for (int each = 0; each < 5; each++) {
                for (int retry = 0; retry < 3 && try_resize(budgets[each]) != WB_OK; retry++) failed++;
                CHECK_SAME(progress.pending_units, 0);
                CHECK(progress.device_bytes <= budgets[each]);
                CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes);
                CHECK_SAME(wb_offloader_begin_step(all.offloader, all.stream, &error),
                           budgets[each] == 0 ? WB_ERR_BUSY : WB_OK);
            }
            /* Of the unit that has memory of its own. */
            set_weight(0, WB_DTYPE_BF16, all.weights[0].bytes, TRAINED, 50 + (uint64_t)nth);
            while (replace_weight(0) != WB_OK && refused < 100) refused++;
            double_set("WB_DOUBLE_FAIL", "");
            check_logged += (int)(device_stats(device).errors_logged - logged);
            check_all();
            resize(least);
            check_all();
            compressed_end();
        }
    }
    CHECK(failed > 30 && refused < 100);
}

/* Steps are refused after a resize that failed half way, while copies of earlier ones are in flight. */
static void a_sleep_after_a_failure_waits_for_copies_in_flight(wb_device *device)
{
    static const uint64_t only[] = {0, 2};
    struct gate gate = GATE_INIT;
    pthread_t opener;
    REQUIRE(compressed_begin(device, large_weights()));
    const uint64_t least = stats_now().slot_bytes, logged = device_stats(device).errors_logged;
    check_all();
    CHECK_OK(wb_offloader_expect(all.offloader, only, 2, &error));
    CHECK_OK(wb_device_stream_call(device, all.stream, gate_wait, &gate, &error));
    CHECK_OK(wb_offloader_begin_step(all.offloader, all.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(all.offloader, 0, all.stream, &error));
    CHECK_OK(wb_offloader_release_group(all.offloader, 0, all.stream, &error)); /* copies wait for the gate */
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    to.budget_bytes = least + 2 * PIECE;
    double_set("WB_DOUBLE_FAIL", "cuMemMap:2+:999");
    wb_status status = wb_offloader_resize(all.offloader, &to, all.stream, &progress, &error);
    for (int turn = 0; status == WB_OK && progress.pending_units > 0 && turn < 1000; turn++) {
        sleep_ms(1);
        status = wb_offloader_resize_advance(all.offloader, all.stream, &progress, &error);
    }
    double_set("WB_DOUBLE_FAIL", "");
    check_logged += (int)(device_stats(device).errors_logged - logged);
    CHECK_SAME(status, WB_ERR_DRIVER);
    REQUIRE(pthread_create(&opener, NULL, open_later, &gate) == 0);
    CHECK_OK(try_resize(0));
    CHECK_SAME(__atomic_load_n(&gate.open, __ATOMIC_ACQUIRE), 1);
    CHECK_SAME(device_stats(device).device_bytes, 0);
    pthread_join(opener, NULL);
    CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
    resize(least);
    check_all();
    compressed_end();
}

/* One storage: the second is within the first. The third is a part of the first's bytes, by its address. */
static void check_ties_and_addresses(wb_device *device, int compress)
{
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    wb_parameter now[LARGE];
    wb_plan_options options = large_weights();
    if (!compress) options.compress = WB_COMPRESS_OFF, options.compress_select_count = 0;
    set_weight(1, WB_DTYPE_BF16, TILE + 512, TRAINED, 1);
    memcpy(all.weights[1].content, all.weights[0].content + 3000, all.weights[1].bytes);
    all.parameters[1].source = all.weights[0].content + 3000;
    snprintf(all.weights[1].group, sizeof all.weights[1].group, "layers.0");
    set_weight(2, WB_DTYPE_BF16, 4 * TILE, TRAINED, 6);
    REQUIRE(compressed_begin(device, options));
    const uint64_t least = stats_now().slot_bytes;
    const uint64_t budgets[] = {least, least + 12 * PIECE, least + 4 * PIECE, 0, least};
    for (int turn = 0; turn < 5; turn++) {
        resize(budgets[turn]);
        for (int at = 0; at < LARGE; at++) {
            now[at] = all.parameters[at];
            now[at].source = info_at(at).device_address; /* its own bytes */
        }
        CHECK_OK(wb_offloader_reconcile(all.offloader, now, LARGE, all.stream, &done, &error));
        CHECK_SAME(done.kept, LARGE);
        set_weight(1, WB_DTYPE_BF16, TILE + 512, SPECIAL, 60 + (uint64_t)turn);
        CHECK_OK(replace_weight(1));
        memcpy(all.weights[0].content + 3000, all.weights[1].content, all.weights[1].bytes);
        const size_t offset = 8192 * (size_t)(turn + 1);
        now[2].source = (const unsigned char *)info_at(0).device_address + offset;
        memcpy(all.weights[2].content, all.weights[0].content + offset, all.weights[2].bytes);
        CHECK_OK(wb_offloader_reconcile(all.offloader, now, LARGE, all.stream, &done, &error));
        CHECK_SAME(done.replaced, 1);
        check_reading();
        if (budgets[turn] > 0) check_all();
        CHECK_SAME(stats_now().generation, 0);
    }
    CHECK_SAME(stats_now().decoded_bytes > 0, compress);
    compressed_end();
}

static void ties_and_addresses_are_known_at_every_budget(wb_device *device)
{
    for (int compress = 0; compress < 2; compress++) check_ties_and_addresses(device, compress);
}

CHECK_MAIN(CASE(windows_are_in_every_budget), CASE(every_content_is_right_at_every_budget),
           CASE(ties_and_addresses_are_known_at_every_budget),
           CASE_ON(CUDA_ONLY, a_unit_that_leaves_is_sent_elsewhere),
           CASE_ON(DOUBLE_ONLY, a_failed_call_is_repeated),
           CASE_ON(DOUBLE_ONLY, a_sleep_after_a_failure_waits_for_copies_in_flight))
