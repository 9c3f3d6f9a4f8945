/* Parameters in pieces, each on the device or in host memory: a budget is met to the piece, the hottest
 * pieces come and the coldest leave, and every step and every replay reads the true weights. */
#include "fixed.h"

enum { EACH = 5, WEIGHTS = 2, ALL = WEIGHTS * EACH, ROW = 64 };

struct pieces {
    wb_device *device;
    wb_plan *plan;
    wb_offloader *offloader;
    wb_buffer *seen;
    void *stream;
    struct captures captures;
    const unsigned char *at[WEIGHTS];
};

static unsigned char *weights[WEIGHTS];
static int64_t shape[1];
static wb_layout layout;
static wb_parameter parameters[WEIGHTS];

static unsigned char value_of(int weight, int piece)
{
    return (unsigned char)(1 + weight * EACH + piece);
}

static void init_weights(void)
{
    static const char *const names[] = {"dense", "sparse"};
    const wb_parameter empty = WB_PARAMETER_INIT;
    shape[0] = (int64_t)(EACH * PIECE);
    layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    for (int weight = 0; weight < WEIGHTS; weight++) {
        if (weights[weight] == NULL) weights[weight] = (unsigned char *)malloc(EACH * PIECE);
        for (int piece = 0; piece < EACH; piece++) {
            memset(weights[weight] + (uint64_t)piece * PIECE, value_of(weight, piece), PIECE);
        }
        parameters[weight] = empty;
        parameters[weight].name = parameters[weight].group = names[weight];
        parameters[weight].layout = &layout;
        parameters[weight].source = weights[weight];
    }
    parameters[1].access_pattern = WB_ACCESS_PATTERN_SPARSE;
}

static int pieces_begin(struct pieces *p, wb_device *device, uint64_t device_bytes)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = device_bytes;
    options.transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
    options.fixed_addresses = WB_TRISTATE_ON;
    memset(p, 0, sizeof *p);
    init_weights();
    p->device = device;
    if ((on_cuda() && !CHECK(captures_begin(&p->captures))) ||
        !CHECK_OK(wb_device_stream_new(device, &p->stream, &error)) ||
        !CHECK_OK(wb_plan_new(device, parameters, WEIGHTS, &options, &p->plan, &error)) ||
        !CHECK_OK(wb_offloader_new(p->plan, p->stream, NULL, &p->offloader, &error)) ||
        !CHECK_OK(wb_buffer_alloc(device, ALL * ROW, NULL, &p->seen, &error))) {
        return 0;
    }
    for (uint64_t weight = 0; weight < WEIGHTS; weight++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(p->offloader, weight, &info, &error));
        p->at[weight] = (const unsigned char *)info.device_address;
    }
    return 1;
}

static void pieces_end(struct pieces *p)
{
    CHECK_OK(wb_device_stream_synchronize(p->device, p->stream, &error));
    wb_plan_release(p->plan);
    wb_offloader_release(p->offloader);
    wb_buffer_release(p->seen);
    CHECK_OK(wb_device_stream_release(p->device, p->stream, &error));
    if (on_cuda()) captures_end(&p->captures);
}

/* Reads a row of each piece. */
static void step(struct pieces *p)
{
    unsigned char *seen = (unsigned char *)buffer_info(p->seen).data;
    for (int weight = 0; weight < WEIGHTS; weight++) {
        CHECK_OK(wb_offloader_acquire_group(p->offloader, (uint64_t)weight, p->stream, &error));
        for (int piece = 0; piece < EACH; piece++) {
            const uint64_t row = (uint64_t)(piece + 1) * PIECE - ROW;
            CHECK_OK(wb_device_copy(p->device, seen + (weight * EACH + piece) * ROW,
                                    p->at[weight] + row, ROW, p->stream, &error));
        }
        CHECK_OK(wb_offloader_release_group(p->offloader, (uint64_t)weight, p->stream, &error));
    }
}

static void check_read(struct pieces *p, void *graph)
{
    unsigned char *seen = (unsigned char *)buffer_info(p->seen).data;
    memset(seen, 0xEE, ALL * ROW);
    if (graph == NULL) {
        step(p);
    } else {
        CHECK(p->captures.launch(graph, p->stream) == 0);
    }
    CHECK_OK(wb_device_stream_synchronize(p->device, p->stream, &error));
    for (int at = 0; at < ALL; at++) {
        const unsigned char value = value_of(at / EACH, at % EACH);
        CHECK(seen[at * ROW] == value && seen[at * ROW + ROW - 1] == value);
    }
}

static void *captured_reads(struct pieces *p)
{
    void *made = NULL, *exec = NULL;
    CHECK(p->captures.begin(p->stream, 2) == 0);
    step(p);
    CHECK_OK(wb_offloader_join(p->offloader, p->stream, &error));
    CHECK(p->captures.end(p->stream, &made) == 0);
    CHECK(p->captures.instantiate(&exec, made, 0) == 0);
    CHECK(p->captures.destroy(made) == 0);
    return exec;
}

static wb_offloader_rebalance_progress rebalance(struct pieces *p, uint64_t max_bytes)
{
    wb_offloader_rebalance_progress progress = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    CHECK_OK(wb_offloader_rebalance(p->offloader, max_bytes, p->stream, &progress, &error));
    CHECK(progress.moved_bytes <= max_bytes);
    return progress;
}

static wb_offloader_rebalance_progress rebalance_fully(struct pieces *p)
{
    wb_offloader_rebalance_progress progress = rebalance(p, 4 * PIECE);
    for (int turn = 0; turn < 100000 && progress.pending_bytes > 0; turn++) {
        sleep_ms(1);
        progress = rebalance(p, 4 * PIECE);
    }
    CHECK_SAME(progress.pending_bytes, 0);
    return progress;
}

static uint64_t resident_of(struct pieces *p, uint64_t weight)
{
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    CHECK_OK(wb_offloader_get_parameter_info(p->offloader, weight, &info, &error));
    CHECK(info.device_address == p->at[weight]);
    CHECK(info.placement == (info.resident_bytes == EACH * PIECE ? WB_PLACEMENT_RESIDENT
                                                                  : WB_PLACEMENT_OFFLOADED));
    return info.resident_bytes;
}

static void check_totals(struct pieces *p, uint64_t device_bytes)
{
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    const uint64_t resident = resident_of(p, 0) + resident_of(p, 1);
    CHECK_OK(wb_offloader_get_stats(p->offloader, &stats, &error));
    CHECK_SAME(resident, device_bytes);
    CHECK_SAME(stats.resident_bytes, resident);
    CHECK_SAME(stats.device_parameter_bytes, resident);
    CHECK_SAME(stats.offloaded_bytes, ALL * PIECE - resident);
    CHECK_SAME(stats.view_bytes, ALL * PIECE - resident);
    CHECK_SAME(stats.generation, 0);
}

static void a_budget_is_met_to_the_piece(wb_device *device)
{
    for (uint64_t count = 0; count <= ALL; count += 3) {
        struct pieces p;
        wb_plan_info info = WB_PLAN_INFO_INIT;
        uint64_t resident = 0, before = device_stats(device).device_bytes;
        if (!pieces_begin(&p, device, count * PIECE + PIECE / 2)) return;
        CHECK_OK(wb_plan_get_info(p.plan, &info, &error));
        CHECK_SAME(info.resident_bytes, count * PIECE);
        CHECK_SAME(info.offloaded_bytes, (ALL - count) * PIECE);
        CHECK_SAME(device_stats(device).device_bytes - before, count * PIECE);
        for (uint64_t at = 0; at < WEIGHTS; at++) {
            wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
            CHECK_OK(wb_plan_get_parameter_info(p.plan, at, &planned, &error));
            CHECK_SAME(planned.resident_bytes, resident_of(&p, at));
            resident += planned.resident_bytes;
        }
        CHECK_SAME(resident, info.resident_bytes);
        check_totals(&p, count * PIECE);
        check_read(&p, NULL);
        pieces_end(&p);
    }
}

static void pieces_move_under_steps_and_graphs(wb_device *device)
{
    struct pieces p;
    void *graph = NULL;
    if (!pieces_begin(&p, device, 4 * PIECE)) return;
    double_set("WB_DOUBLE_DELAY_US", "100");
    if (on_cuda()) graph = captured_reads(&p);
    seed = 11;
    for (int turn = 0; turn < 60; turn++) {
        const uint64_t first = random_below(EACH), weight = random_below(WEIGHTS);
        const double reads = random_below(8);
        CHECK_OK(wb_offloader_prefer(p.offloader, weight, first * PIECE + 100,
                                     (EACH - first) * PIECE - 200, reads, &error));
        rebalance(&p, random_below(5) * PIECE);
        check_read(&p, turn % 2 ? graph : NULL);
        if (turn % 5 == 0) {
            wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
            to.budget_kind = WB_BUDGET_DEVICE_BYTES;
            wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
            to.budget_bytes = random_below(ALL + 1) * PIECE;
            CHECK_OK(wb_offloader_resize(p.offloader, &to, p.stream, &progress, &error));
            CHECK_OK(wb_offloader_resize_wait(p.offloader, p.stream, MINUTE, &progress, &error));
            CHECK_SAME(progress.device_bytes, to.budget_bytes);
            CHECK_SAME(progress.host_bytes, ALL * PIECE - to.budget_bytes);
            if (to.budget_bytes == 0) { /* asleep */
                to.budget_bytes = 4 * PIECE;
                CHECK_OK(wb_offloader_resize(p.offloader, &to, p.stream, &progress, &error));
                CHECK_OK(wb_offloader_resize_wait(p.offloader, p.stream, MINUTE, &progress, &error));
            }
            check_read(&p, graph);
        }
    }
    const wb_offloader_rebalance_progress progress = rebalance_fully(&p);
    check_totals(&p, progress.device_bytes);
    check_read(&p, graph);
    double_set("WB_DOUBLE_DELAY_US", "0");
    if (graph != NULL) CHECK(p.captures.destroy_exec(graph) == 0);
    pieces_end(&p);
}

static void the_hottest_pieces_come(wb_device *device)
{
    struct pieces p;
    if (!pieces_begin(&p, device, 2 * PIECE)) return;
    CHECK_SAME(resident_of(&p, 0), 2 * PIECE);
    CHECK_SAME(rebalance(&p, UINT64_MAX).pending_bytes, 0);
    /* Rows of two pieces of the sparse one, each read oftener than a dense piece as a whole. */
    for (int piece = 1; piece < 4; piece += 2) {
        CHECK_OK(wb_offloader_prefer(p.offloader, 1, (uint64_t)piece * PIECE + 512, 1024, 1e6, &error));
    }
    CHECK_SAME(rebalance(&p, 0).pending_bytes, 4 * PIECE);
    CHECK_SAME(rebalance(&p, PIECE).moved_bytes, PIECE);
    CHECK_SAME(rebalance_fully(&p).device_bytes, 2 * PIECE);
    CHECK_SAME(resident_of(&p, 1), 2 * PIECE);
    check_totals(&p, 2 * PIECE);
    check_read(&p, NULL);
    CHECK_OK(wb_offloader_prefer(p.offloader, 1, 0, EACH * PIECE, 0, &error));
    rebalance_fully(&p);
    CHECK_SAME(resident_of(&p, 0), 2 * PIECE);
    check_read(&p, NULL);
    pieces_end(&p);
}

static void no_budget_is_exceeded_while_pieces_move(wb_device *unused)
{
    (void)unused;
    struct sampler sampler;
    struct pieces p;
    wb_device *device = device_with_capacity();
    REQUIRE(device != NULL);
    const uint64_t free_bytes = settled_free_bytes(device);
    if (!pieces_begin(&p, device, 4 * PIECE)) return;
    REQUIRE(sampler_begin(&sampler, device, free_bytes, 4 * PIECE));
    seed = 3;
    for (int turn = 0; turn < 100; turn++) {
        CHECK_OK(wb_offloader_prefer(p.offloader, turn % 2, random_below(EACH) * PIECE, PIECE,
                                     random_below(9), &error));
        CHECK(rebalance(&p, 3 * PIECE).device_bytes <= 4 * PIECE);
    }
    rebalance_fully(&p);
    sampler_end(&sampler);
    pieces_end(&p);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    wb_device_release(device);
}

static void replaced_bytes_are_there_wherever_pieces_are(wb_device *device)
{
    struct pieces p;
    wb_view *view = NULL;
    unsigned char *back = (unsigned char *)malloc(EACH * PIECE);
    if (!pieces_begin(&p, device, 3 * PIECE)) return;
    unsigned char *changed = (unsigned char *)malloc(EACH * PIECE);
    for (int weight = 0; weight < WEIGHTS; weight++) {
        memset(changed, 77 + weight, EACH * PIECE);
        CHECK_OK(wb_offloader_replace(p.offloader, parameters[weight].name, changed, &layout, p.stream,
                                      &error));
        memset(back, 0, EACH * PIECE);
        CHECK_OK(wb_offloader_read_parameter(p.offloader, (uint64_t)weight, back, EACH * PIECE, &error));
        CHECK(memcmp(back, changed, EACH * PIECE) == 0);
        CHECK_OK(wb_offloader_replace(p.offloader, parameters[weight].name, weights[weight], &layout,
                                      p.stream, &error));
    }
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_offloader_get_host_view(p.offloader, 0, &view, &error), "pieces");
    check_read(&p, NULL);
    free(changed);
    free(back);
    pieces_end(&p);
}

/* It has no address until then, and the same for life. */
static void a_parameter_without_a_source_gets_its_bytes_later(wb_device *device)
{
    struct pieces p;
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    if (!pieces_begin(&p, device, 3 * PIECE)) return;
    wb_plan_release(p.plan);
    wb_offloader_release(p.offloader);
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = ALL * PIECE;
    options.transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
    options.fixed_addresses = WB_TRISTATE_ON;
    parameters[1].source = NULL;
    REQUIRE_OK(wb_plan_new(device, parameters, WEIGHTS, &options, &p.plan, &error));
    REQUIRE_OK(wb_offloader_new(p.plan, p.stream, NULL, &p.offloader, &error));
    CHECK_OK(wb_offloader_get_stats(p.offloader, &stats, &error));
    CHECK_SAME(stats.unfilled_bytes, EACH * PIECE);
    CHECK_SAME(stats.offloaded_bytes, ALL * PIECE);
    CHECK_OK(wb_offloader_get_parameter_info(p.offloader, 1, &info, &error));
    CHECK(info.device_address == NULL);
    CHECK_OK(wb_offloader_replace(p.offloader, parameters[1].name, weights[1], &layout, p.stream, &error));
    CHECK_OK(wb_offloader_get_stats(p.offloader, &stats, &error));
    CHECK_SAME(stats.unfilled_bytes, 0);
    for (uint64_t weight = 0; weight < WEIGHTS; weight++) {
        CHECK_OK(wb_offloader_get_parameter_info(p.offloader, weight, &info, &error));
        p.at[weight] = (const unsigned char *)info.device_address;
        CHECK(info.device_address != NULL && info.resident_bytes == 0);
    }
    check_read(&p, NULL);
    pieces_end(&p);
}

/* Every call of the driver fails once, at every place of a rebalance and of resizes. */
static void a_failed_rebalance_goes_on(wb_device *device)
{
    static const char *const functions[] = {"cuMemCreate",   "cuMemMap",      "cuMemSetAccess",
                                            "cuMemUnmap",    "cuEventRecord", "cuMemAddressReserve",
                                            "cuMemcpyAsync", "cuEventQuery",  "cuMemRelease"};
    int failed = 0;
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 12; nth++) {
            struct pieces p;
            char setting[64];
            int seen = 0, is_done = 0;
            if (!pieces_begin(&p, device, 3 * PIECE)) return;
            void *graph = captured_reads(&p);
            const uint64_t logged = device_stats(device).errors_logged;
            CHECK_OK(wb_offloader_prefer(p.offloader, 1, 0, 2 * PIECE, 5, &error));
            snprintf(setting, sizeof setting, "%s:%d:2", functions[function], nth);
            double_set("WB_DOUBLE_FAIL", setting);
            for (int turn = 0; turn < 10000 && !is_done; turn++) {
                wb_offloader_rebalance_progress progress = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
                const wb_status status = wb_offloader_rebalance(p.offloader, 2 * PIECE, p.stream,
                                                                &progress, &error);
                seen += status != WB_OK;
                is_done = status == WB_OK && progress.pending_bytes == 0;
                CHECK(progress.device_bytes <= 3 * PIECE);
                sleep_ms(1);
            }
            double_set("WB_DOUBLE_FAIL", "");
            CHECK(is_done && seen <= 2);
            failed += seen;
            check_logged += (int)(device_stats(device).errors_logged - logged);
            CHECK_SAME(rebalance_fully(&p).device_bytes, 3 * PIECE);
            CHECK_SAME(resident_of(&p, 1), 2 * PIECE);
            check_read(&p, graph);
            check_read(&p, NULL);
            CHECK(p.captures.destroy_exec(graph) == 0);
            pieces_end(&p);
        }
    }
    CHECK(failed > 30);
}

static void what_cannot_be_preferred_is_refused(wb_device *device)
{
    struct bench b;
    struct pieces p;
    wb_offloader_rebalance_progress progress = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    if (!pieces_begin(&p, device, 3 * PIECE)) return;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_offloader_prefer(p.offloader, WEIGHTS, 0, 1, 1, &error), "there are");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_prefer(p.offloader, 0, 1, EACH * PIECE, 1, &error), "which has");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_prefer(p.offloader, 0, 0, 1, -1, &error), "weight");
    pieces_end(&p);
    if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2)) return;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_offloader_prefer(b.offloader, 0, 0, 1, 1, &error),
                "fixed_addresses");
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_offloader_rebalance(b.offloader, PIECE, b.stream, &progress, &error),
                "fixed_addresses");
    bench_end(&b);
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_offloader_prefer(b.offloader, 0, 0, 1, 1, &error), "pieces");
    bench_end(&b);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, no_budget_is_exceeded_while_pieces_move),
           CASE(a_budget_is_met_to_the_piece), CASE(pieces_move_under_steps_and_graphs),
           CASE(the_hottest_pieces_come), CASE(replaced_bytes_are_there_wherever_pieces_are),
           CASE(a_parameter_without_a_source_gets_its_bytes_later),
           CASE_ON(DOUBLE_ONLY, a_failed_rebalance_goes_on), CASE(what_cannot_be_preferred_is_refused))
