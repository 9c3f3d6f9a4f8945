/* A budget that changes while steps run: addresses stay, every step and every replay reads the true
 * weights, no budget is exceeded, and freed memory is free. */
#include "dlpack_structs.h"
#include "fixed.h"

enum { RESIZES = 100, MANY_RESIZES = 1000 };

static wb_offloader_resize_options to_bytes(uint64_t bytes)
{
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = bytes;
    return options;
}

static wb_offloader_resize_progress progress_of(struct bench *b)
{
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    CHECK_OK(wb_offloader_resize_advance(b->offloader, b->stream, &progress, &error));
    return progress;
}

static wb_offloader_resize_progress resize(struct bench *b, uint64_t bytes)
{
    wb_offloader_resize_options options = to_bytes(bytes);
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    CHECK_OK(wb_offloader_resize(b->offloader, &options, b->stream, &progress, &error));
    CHECK_OK(wb_offloader_resize_wait(b->offloader, b->stream, MINUTE, &progress, &error));
    CHECK_SAME(progress.pending_units, 0);
    CHECK(progress.device_bytes <= bytes);
    return progress;
}

/* A budget with which the slots fit. */
static uint64_t any_budget(const wb_offloader_stats *first)
{
    return first->slot_bytes + random_below(GROUPS + 1) * PIECE;
}

static void steps_are_right_at_every_budget(wb_device *device)
{
    const wb_transfer_mode modes[] = {WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND};
    double_set("WB_DOUBLE_DELAY_US", "100");
    for (uint32_t variant = 0; variant < 8; variant++) {
        struct bench b;
        wb_view *view = NULL;
        DLManagedTensor *tensor = NULL;
        if (!fixed_begin(&b, device, modes[variant % 2], 1 + variant / 2, variant % 3 == 0)) return;
        b.explicit_steps = variant >= 4;
        seed = variant + 1;
        wb_offloader_stats first = stats_of(&b);
        CHECK_OK(wb_offloader_get_view(b.offloader, variant % GROUPS, &view, &error));
        if (CHECK_OK(wb_view_to_dlpack(view, &tensor, &error))) {
            CHECK(tensor->dl_tensor.data == b.slots[variant % GROUPS]);
        }
        for (int turn = 0; turn < 25; turn++) {
            wb_offloader_resize_options options = to_bytes(any_budget(&first));
            wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
            uint64_t held = progress_of(&b).device_bytes;
            uint64_t most = held > options.budget_bytes ? held : options.budget_bytes;
            eager(&b, orders[random_below(ORDERS)]);
            CHECK_OK(wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error));
            CHECK(progress.device_bytes <= most);
            for (unsigned each = random_below(4); each > 0; each--) {
                eager(&b, orders[random_below(ORDERS)]);
                CHECK(progress_of(&b).device_bytes <= most);
            }
            if (random_below(2)) {
                CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
                CHECK(progress.device_bytes <= options.budget_bytes);
                CHECK_SAME(progress.pending_units, 0);
            }
            eager(&b, orders[random_below(ORDERS)]);
            check_reads(&b, "eager", 0);
            check_addresses(&b);
        }
        /* Both outlive the offloader, and read its memory until their release. */
        wb_view_release(view);
        bench_end(&b);
        if (tensor != NULL) tensor->deleter(tensor);
    }
    double_set("WB_DOUBLE_DELAY_US", "0");
}

static void no_budget_is_exceeded_at_any_moment(wb_device *unused)
{
    (void)unused;
    struct sampler sampler;
    struct bench b;
    wb_device *device = device_with_capacity();
    REQUIRE(device != NULL);
    const uint64_t free_bytes = settled_free_bytes(device);
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    wb_offloader_stats first = stats_of(&b);
    uint64_t held = progress_of(&b).device_bytes;
    REQUIRE(sampler_begin(&sampler, device, free_bytes, held));
    seed = 7;
    double_set("WB_DOUBLE_DELAY_US", "50");
    for (int turn = 0; turn < 200; turn++) {
        wb_offloader_resize_options to = to_bytes(turn % 9 == 0 ? 0 : any_budget(&first));
        wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
        set_limit(&sampler, held > to.budget_bytes ? held : to.budget_bytes);
        CHECK_OK(wb_offloader_resize(b.offloader, &to, b.stream, &progress, &error));
        for (unsigned each = random_below(3); each > 0 && to.budget_bytes > 0; each--) {
            if (wb_offloader_acquire_group(b.offloader, each, b.stream, &error) != WB_OK) continue;
            CHECK_OK(wb_offloader_release_group(b.offloader, each, b.stream, &error));
        }
        CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
        held = progress.device_bytes;
        set_limit(&sampler, held);
        CHECK_SAME(device_stats(device).device_bytes, held);
        CHECK_SAME(free_bytes - free_bytes_of(device), held);
    }
    double_set("WB_DOUBLE_DELAY_US", "0");
    sampler_end(&sampler);
    bench_end(&b);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    wb_device_release(device);
}

/* Captured before any resize and between resizes; each graph is replayed after each. */
static void graphs_are_right_at_every_budget(wb_device *device)
{
    struct bench b;
    struct graph graphs[3];
    /* Over the double each takes tens of milliseconds, for a dozen system calls. */
    const int many = on_double() ? RESIZES : MANY_RESIZES;
    double_set("WB_DOUBLE_DELAY_US", "20");
    for (uint32_t depth = 1; depth <= 3; depth++) {
        const wb_transfer_mode mode =
            depth == 1 ? WB_TRANSFER_MODE_ON_DEMAND : WB_TRANSFER_MODE_PREFETCH;
        if (!fixed_begin(&b, device, mode, depth, depth == 2)) return;
        seed = depth;
        b.explicit_steps = depth == 3;
        wb_offloader_stats first = stats_of(&b);
        graphs[0] = captured(&b, orders[0]);
        resize(&b, first.slot_bytes + GROUPS * PIECE);
        graphs[1] = captured(&b, orders[4]); /* copies nothing */
        resize(&b, first.slot_bytes + (RESIDENT + 2) * PIECE);
        graphs[2] = captured(&b, orders[1]);
        for (int turn = 0; turn < (depth == 2 ? many : RESIZES); turn++) {
            wb_offloader_resize_options options = to_bytes(any_budget(&first));
            wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
            if (random_below(10) == 0) {
                resize(&b, 0);
                resize(&b, options.budget_bytes);
            }
            CHECK_OK(wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error));
            for (int each = 0; each < 3; each++) replay(&b, &graphs[each]);
            if (random_below(2)) eager(&b, orders[random_below(ORDERS)]);
            CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
            for (int each = 2; each >= 0; each--) replay(&b, &graphs[each]);
            check_reads(&b, "replays", 3);
        }
        check_addresses(&b);
        for (int each = 0; each < 3; each++) graph_end(&b, &graphs[each]);
        bench_end(&b);
    }
    double_set("WB_DOUBLE_DELAY_US", "0");
}

static void units_return_to_slots_once_graphs_are_dropped(wb_device *device)
{
    struct bench b;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    uint64_t slots = stats_of(&b).slot_bytes, whole = slots + GROUPS * PIECE;
    resize(&b, whole);
    CHECK_SAME(resize(&b, slots + RESIDENT * PIECE).host_bytes, 0); /* no graph: to their slots */
    resize(&b, whole);
    struct graph graph = captured(&b, orders[0]);
    CHECK_SAME(resize(&b, slots + RESIDENT * PIECE).host_bytes, OFFLOADED * PIECE);
    replay(&b, &graph);
    check_reads(&b, "in place", 1);
    graph_end(&b, &graph);
    wb_offloader_resize_options options = to_bytes(slots + RESIDENT * PIECE);
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    options.graphs_dropped = 1;
    CHECK_OK(wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error));
    CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
    CHECK_SAME(progress.host_bytes, 0);
    b.steps = 0;
    graph = captured(&b, orders[0]);
    replay(&b, &graph);
    eager(&b, orders[3]);
    check_reads(&b, "in slots", 0);
    graph_end(&b, &graph);
    bench_end(&b);
}

/* Of parameters that have slots, and of those that the plan keeps on the device. */
static void check_states(struct bench *b, const int32_t *placements, uint32_t offloaded, uint32_t resident)
{
    for (uint64_t at = 0; at < GROUPS; at++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(b->offloader, at, &info, &error));
        CHECK_SAME(info.address_state,
                   placements[at] == WB_PLACEMENT_OFFLOADED ? offloaded : resident);
    }
}

static void an_info_says_what_is_behind_an_address(wb_device *device)
{
    struct bench b;
    int32_t placements[GROUPS];
    uint64_t group = GROUPS;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    for (uint64_t at = 0; at < GROUPS; at++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(b.offloader, at, &info, &error));
        placements[at] = info.placement;
        if (info.placement == WB_PLACEMENT_OFFLOADED) group = at;
    }
    const uint64_t slots = stats_of(&b).slot_bytes, whole = slots + GROUPS * PIECE;
    check_states(&b, placements, 0, WB_ADDRESS_OWN);
    resize(&b, whole);
    check_states(&b, placements, WB_ADDRESS_OWN, WB_ADDRESS_OWN);
    for (uint64_t at = 0; at < GROUPS; at++) {
        CHECK_OK(wb_offloader_acquire_group(b.offloader, at, b.stream, &error));
    }
    wb_offloader_resize_options least = to_bytes(slots + RESIDENT * PIECE);
    CHECK_OK(wb_offloader_resize(b.offloader, &least, b.stream, &progress, &error));
    CHECK(progress.pending_units > 0);
    check_states(&b, placements, WB_ADDRESS_OWN | WB_ADDRESS_MOVING, WB_ADDRESS_OWN);
    for (uint64_t at = 0; at < GROUPS; at++) {
        CHECK_OK(wb_offloader_release_group(b.offloader, at, b.stream, &error));
    }
    CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
    check_states(&b, placements, 0, WB_ADDRESS_OWN);
    resize(&b, 0);
    check_states(&b, placements, 0, 0);
    resize(&b, whole);
    check_states(&b, placements, WB_ADDRESS_OWN, WB_ADDRESS_OWN);
    CHECK_OK(wb_offloader_acquire_group(b.offloader, group, b.stream, &error));
    CHECK_OK(wb_offloader_release_group(b.offloader, group, b.stream, &error));
    if (on_cuda()) {
        const uint32_t copied = WB_ADDRESS_COPIED_BY_GRAPHS;
        resize(&b, slots);
        struct graph graph = captured(&b, orders[0]); /* copies what has slots */
        check_states(&b, placements, 0, WB_ADDRESS_OWN);
        resize(&b, whole);
        check_states(&b, placements, WB_ADDRESS_OWN | copied, WB_ADDRESS_OWN);
        replay(&b, &graph);
        graph_end(&b, &graph);
        wb_offloader_resize_options dropped = to_bytes(whole);
        dropped.graphs_dropped = 1;
        CHECK_OK(wb_offloader_resize(b.offloader, &dropped, b.stream, &progress, &error));
        check_states(&b, placements, WB_ADDRESS_OWN, WB_ADDRESS_OWN);
        graph = captured(&b, orders[0]); /* copies nothing */
        resize(&b, slots);
        check_states(&b, placements, WB_ADDRESS_OWN, WB_ADDRESS_OWN);
        resize(&b, whole);
        check_states(&b, placements, WB_ADDRESS_OWN, WB_ADDRESS_OWN);
        graph_end(&b, &graph);
    }
    bench_end(&b);
}

/* Units that a graph read in host memory leave it, too, whether the offloader sleeps already or not. */
static void graphs_may_be_dropped_by_going_to_sleep(wb_device *device)
{
    for (int asleep = 0; asleep < 2; asleep++) {
        struct bench b;
        wb_offloader_resize_options sleep = to_bytes(0);
        wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
        if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
        const uint64_t least = stats_of(&b).slot_bytes + RESIDENT * PIECE;
        resize(&b, least + OFFLOADED * PIECE);
        struct graph graph = captured(&b, orders[0]);
        CHECK_SAME(resize(&b, least).host_bytes, OFFLOADED * PIECE);
        graph_end(&b, &graph);
        b.steps = 0;
        if (asleep) CHECK_SAME(resize(&b, 0).host_bytes, GROUPS * PIECE);
        sleep.graphs_dropped = 1;
        CHECK_OK(wb_offloader_resize(b.offloader, &sleep, b.stream, &progress, &error));
        CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
        CHECK_SAME(progress.host_bytes, RESIDENT * PIECE);
        CHECK_SAME(progress.device_bytes, 0);
        CHECK_SAME(resize(&b, least).host_bytes, 0);
        eager(&b, orders[1]);
        check_reads(&b, "awake", 0);
        check_addresses(&b);
        bench_end(&b);
    }
}

static void a_sleeping_offloader_holds_nothing(wb_device *device)
{
    for (uint32_t keep = 0; keep < 2; keep++) {
        struct bench b;
        struct graph graph = {NULL, 0, 0, 0};
        if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, keep)) return;
        const uint64_t before = progress_of(&b).device_bytes;
        const long long memory = double_alive("physical_memory");
        uint64_t host_bytes = keep ? RESIDENT * PIECE : 0;
        wb_device_stats awake = device_stats(device);
        CHECK_SAME(progress_of(&b).host_bytes, host_bytes);
        if (on_cuda()) graph = captured(&b, orders[0]);
        for (int night = 0; night < 100; night++) {
            eager(&b, orders[night % ORDERS]);
            CHECK_SAME(resize(&b, 0).device_bytes, 0);
            CHECK_SAME(progress_of(&b).host_bytes, RESIDENT * PIECE);
            CHECK_SAME(device_stats(device).device_bytes, awake.device_bytes - before);
            CHECK_SAME(stats_of(&b).slot_bytes, 0);
            CHECK_ERROR(WB_ERR_BUSY, wb_offloader_acquire_group(b.offloader, 0, b.stream, &error),
                        "asleep|waking|wb_offloader_resize_wait");
            CHECK_SAME(resize(&b, before).device_bytes, before);
            CHECK_SAME(progress_of(&b).host_bytes, host_bytes);
            if (on_cuda()) replay(&b, &graph);
            eager(&b, orders[(night + 4) % ORDERS]);
            check_reads(&b, "awake", on_cuda() ? 1 : 0);
            CHECK_SAME(double_alive("physical_memory"), memory);
        }
        CHECK_OK(wb_device_drain(device, MINUTE, &error)); /* buffers are freed by a thread */
        CHECK_STATS(device, awake);
        check_addresses(&b);
        if (on_cuda()) graph_end(&b, &graph);
        bench_end(&b);
    }
}

/* The driver's own count, or the host device's. */
static void freed_memory_is_free(wb_device *unused)
{
    (void)unused;
    struct bench b;
    wb_device *device = device_with_capacity();
    REQUIRE(device != NULL);
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 1)) return;
    uint64_t slots = stats_of(&b).slot_bytes, whole = slots + GROUPS * PIECE;
    resize(&b, whole);
    uint64_t full = free_bytes_of(device);
    for (uint64_t bytes = whole; bytes >= slots; bytes -= PIECE) {
        CHECK_SAME(resize(&b, bytes).device_bytes, bytes);
        CHECK_SAME(free_bytes_of(device) - full, whole - bytes);
    }
    resize(&b, 0);
    CHECK_SAME(free_bytes_of(device) - full, whole);
    resize(&b, whole);
    CHECK_SAME(free_bytes_of(device), full);
    bench_end(&b);
    wb_device_release(device);
}

static void an_acquired_group_moves_when_it_is_released(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 1)) return;
    const wb_offloader_resize_options sleep = to_bytes(0);
    wb_offloader_resize_options least = to_bytes(stats_of(&b).slot_bytes);
    uint64_t before = progress_of(&b).device_bytes;
    int step = new_step(&b, orders[0]);
    for (uint64_t group = 0; group < GROUPS; group++) {
        CHECK_OK(wb_offloader_acquire_group(b.offloader, group, b.stream, &error));
        CHECK_OK(wb_offloader_resize(b.offloader, &least, b.stream, &progress, &error));
        CHECK_OK(wb_device_copy(device, seen_of(&b, step, (int)group), b.slots[group], SIZE, b.stream,
                                &error));
        CHECK_OK(wb_offloader_resize(b.offloader, &sleep, b.stream, &progress, &error));
        CHECK(progress.pending_units > 0 && progress.device_bytes > 0);
        CHECK_ERROR(WB_ERR_TIMEOUT,
                    wb_offloader_resize_wait(b.offloader, b.stream, 5, &progress, &error), "units");
        CHECK_ERROR(WB_ERR_BUSY,
                    wb_offloader_replace(b.offloader, ring.names[0], ring.bytes[0], &ring.layout,
                                         b.stream, &error),
                    "resize");
        CHECK_OK(wb_offloader_release_group(b.offloader, group, b.stream, &error));
        resize(&b, before);
    }
    check_reads(&b, "held", 0);
    bench_end(&b);
}

/* With `keep`, host copies that are out of date are not used. */
static void replace_at_every_budget(wb_device *device, uint32_t keep)
{
    static unsigned char bytes[SIZE];
    struct bench b;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, keep)) return;
    uint64_t slots = stats_of(&b).slot_bytes;
    const uint64_t budgets[] = {slots, slots + GROUPS * PIECE, 0, slots + 4 * PIECE};
    struct graph graph = {NULL, 0, 0, 0};
    if (on_cuda()) { /* units that it does not copy leave to host memory */
        resize(&b, slots + GROUPS * PIECE);
        graph = captured(&b, orders[0]);
        b.steps = 0;
    }
    for (int turn = 0; turn < 12; turn++) {
        resize(&b, budgets[turn % 4]);
        for (int group = 0; group < GROUPS; group++) {
            memset(bytes, 100 + turn, SIZE);
            CHECK_OK(wb_offloader_replace(b.offloader, ring.names[group], bytes, &ring.layout,
                                          b.stream, &error));
        }
        for (int after = 1; after < 5; after++) {
            if (budgets[(turn + after) % 4] == 0) continue;
            resize(&b, budgets[(turn + after) % 4]);
            int step = new_step(&b, orders[0]);
            for (int at = 0; at < GROUPS; at++) visit(&b, step, at, at);
            CHECK_OK(wb_device_stream_synchronize(device, b.stream, &error));
            for (int at = 0; at < GROUPS; at++) {
                CHECK_SAME(*seen_of(&b, step, at), 100 + turn);
                CHECK_SAME(seen_of(&b, step, at)[SIZE - 1], 100 + turn);
            }
            b.steps = 0;
        }
    }
    check_addresses(&b);
    /* Addresses would change. */
    int64_t shape = SIZE / 2;
    wb_layout half = layout_of(WB_DTYPE_U8, 1, &shape, NULL, 0);
    for (int group = 0; group < GROUPS; group++) {
        CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                    wb_offloader_replace(b.offloader, ring.names[group], bytes, &half, b.stream, &error),
                    "fixed_addresses");
        CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                    wb_offloader_remove(b.offloader, ring.names[group], b.stream, &error),
                    "fixed_addresses");
    }
    if (on_cuda()) graph_end(&b, &graph);
    bench_end(&b);
}

static void replaced_bytes_are_there_at_every_budget(wb_device *device)
{
    for (uint32_t keep = 0; keep < 2; keep++) replace_at_every_budget(device, keep);
}

/* A replacement that fails leaves no address to half of a weight, and no step with it; a repeated one
 * leaves the same address as before. */
static void a_failed_replacement_is_repeated(wb_device *device)
{
    static const char *const functions[] = {"cuMemcpyAsync", "cuStreamSynchronize", "cuStreamCreate",
                                            "cuEventRecord", "cuLaunchKernel"};
    static unsigned char bytes[SIZE];
    int failed = 0, refused = 0;
    memset(bytes, 200, SIZE);
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 3; nth++) {
            for (int group = 0; group < GROUPS; group++) {
                struct bench b;
                char setting[64];
                wb_view *view = NULL;
                if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, nth % 2)) return;
                resize(&b, stats_of(&b).slot_bytes + GROUPS * PIECE); /* all have memory of their own */
                uint64_t logged = device_stats(device).errors_logged;
                snprintf(setting, sizeof setting, "%s:%d:999", functions[function], nth);
                double_set("WB_DOUBLE_FAIL", setting);
                wb_status status = wb_offloader_replace(b.offloader, ring.names[group], bytes,
                                                        &ring.layout, b.stream, &error);
                double_set("WB_DOUBLE_FAIL", "");
                check_logged += (int)(device_stats(device).errors_logged - logged);
                if (status != WB_OK) {
                    CHECK_SAME(status, WB_ERR_DRIVER);
                    failed++;
                    if (wb_offloader_get_view(b.offloader, (uint64_t)group, &view, &error) == WB_OK) {
                        /* Nothing was written yet, or it is whole in the arena only. */
                        wb_view_release(view);
                        status = wb_offloader_acquire_group(b.offloader, (uint64_t)group, b.stream,
                                                            &error);
                        if (status == WB_OK) {
                            CHECK_OK(wb_offloader_release_group(b.offloader, (uint64_t)group, b.stream,
                                                                &error));
                        } else {
                            CHECK_SAME(status, WB_ERR_BUSY);
                            CHECK(strstr(error.message, "replacement") != NULL);
                            refused++;
                        }
                    } else {
                        CHECK_SAME(error.status, WB_ERR_NOT_FOUND);
                        CHECK(strstr(error.message, "replace it again") != NULL);
                    }
                    CHECK_OK(wb_offloader_replace(b.offloader, ring.names[group], bytes, &ring.layout,
                                                  b.stream, &error));
                }
                int step = new_step(&b, orders[0]);
                for (int at = 0; at < GROUPS; at++) visit(&b, step, at, at);
                CHECK_OK(wb_device_stream_synchronize(device, b.stream, &error));
                for (int at = 0; at < GROUPS; at++) {
                    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
                    CHECK_SAME(seen_of(&b, step, at)[SIZE - 1], at == group ? 200 : at + 1);
                    CHECK_OK(wb_offloader_get_parameter_info(b.offloader, (uint64_t)at, &info, &error));
                    CHECK(info.device_address == b.slots[at]);
                }
                CHECK_SAME(stats_of(&b).unfilled_bytes, 0);
                bench_end(&b);
            }
        }
    }
    CHECK(failed > GROUPS && refused > 0);
}

/* Every call of the driver fails once, at every place of a resize in both directions. */
static void a_failed_resize_goes_on(wb_device *device)
{
    static const char *const functions[] = {"cuMemCreate",   "cuMemMap",      "cuMemSetAccess",
                                            "cuMemUnmap",    "cuEventRecord", "cuMemAddressReserve",
                                            "cuMemcpyAsync", "cuEventQuery",  "cuLaunchKernel"};
    int failed = 0;
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 20; nth++) {
            struct bench b;
            char setting[64];
            wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
            if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, nth % 2)) return;
            uint64_t slots = stats_of(&b).slot_bytes;
            const uint64_t budgets[] = {slots + GROUPS * PIECE, slots, 0, slots + GROUPS * PIECE};
            struct graph graph = captured(&b, orders[0]);
            int seen = 0;
            snprintf(setting, sizeof setting, "%s:%d:2", functions[function], nth);
            double_set("WB_DOUBLE_FAIL", setting);
            for (int each = 0; each < 4; each++) {
                wb_offloader_resize_options options = to_bytes(budgets[each]);
                for (int retry = 0; retry < 3; retry++) {
                    if (wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error) ==
                            WB_OK &&
                        wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error) ==
                            WB_OK) {
                        break;
                    }
                    seen++;
                }
                CHECK_SAME(progress.pending_units, 0);
                CHECK(progress.device_bytes <= budgets[each]);
                if (budgets[each] == 0) continue;
                if (wb_offloader_begin_step(b.offloader, b.stream, &error) != WB_OK) continue;
                CHECK(b.captures.launch(graph.exec, b.stream) == 0);
            }
            double_set("WB_DOUBLE_FAIL", "");
            failed += seen;
            CHECK(seen <= 1);
            replay(&b, &graph);
            eager(&b, orders[0]);
            check_reads(&b, setting, 0);
            check_addresses(&b);
            graph_end(&b, &graph);
            bench_end(&b);
        }
    }
    CHECK(failed > 50);
}

/* What a driver does not release when it is first asked is released later, and counts until then. */
static void a_failed_release_is_repeated(wb_device *device)
{
    static const char *const functions[] = {"cuMemRelease", "cuMemAddressFree", "cuMemUnmap"};
    const long long memory = double_alive("physical_memory"), ranges = double_alive("reservations");
    int failed = 0;
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 30; nth++) {
            struct bench b;
            char setting[64];
            const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
            wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
            const uint64_t logged = device_stats(device).errors_logged;
            if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, nth % 2)) return;
            uint64_t slots = stats_of(&b).slot_bytes;
            const uint64_t budgets[] = {slots + GROUPS * PIECE, slots, 0, slots + GROUPS * PIECE};
            snprintf(setting, sizeof setting, "%s:%d:999", functions[function], nth);
            double_set("WB_DOUBLE_FAIL", setting);
            for (int each = 0; each < 4; each++) {
                wb_offloader_resize_options options = to_bytes(budgets[each]);
                for (int retry = 0; retry < 2; retry++) {
                    if (wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error) ==
                            WB_OK &&
                        wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error) ==
                            WB_OK) {
                        break;
                    }
                }
                CHECK_SAME(progress.pending_units, 0);
                CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes);
            }
            bench_end(&b);
            double_set("WB_DOUBLE_FAIL", "");
            CHECK_OK(wb_device_drain(device, MINUTE, &error));
            CHECK_STATS(device, nothing);
            CHECK_SAME(double_alive("physical_memory"), memory);
            CHECK_SAME(double_alive("reservations"), ranges);
            const int now = (int)(device_stats(device).errors_logged - logged);
            CHECK(now <= 1);
            failed += now;
        }
    }
    check_logged = failed;
    CHECK(failed > 30);
}

/* The engine resets the context while units are being moved. Nothing is waited for, and all objects can
 * be released. */
static void a_destroyed_context_ends_a_resize(wb_device *unused)
{
    (void)unused;
    int (*reset)(int) = NULL;
    wb_device *device = NULL;
    struct bench b;
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    REQUIRE(driver_function("cuDevicePrimaryCtxReset_v2", &reset));
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    wb_offloader_resize_options options = to_bytes(stats_of(&b).slot_bytes + GROUPS * PIECE);
    double_set("WB_DOUBLE_DELAY_US", "2000");
    CHECK_OK(wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error));
    CHECK(progress.pending_units > 0);
    CHECK_SAME(reset(0), 0);
    CHECK_ERROR(WB_ERR_DRIVER, wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error),
                "CONTEXT_IS_DESTROYED");
    CHECK_ERROR(WB_ERR_DRIVER,
                wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error),
                "CONTEXT_IS_DESTROYED");
    wb_plan_release(b.plan);
    wb_offloader_release(b.offloader);
    wb_buffer_release(b.seen);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    CHECK_STATS(device, nothing);
    CHECK_SAME(device_stats(device).errors_logged, 0);
    wb_device_release(device);
    double_set("WB_DOUBLE_DELAY_US", "0");
}

static void what_cannot_be_resized_is_refused(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_offloader_resize_options options = to_bytes(64 * PIECE);
    if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2)) return;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error),
                "fixed_addresses");
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_offloader_resize_advance(b.offloader, b.stream, &progress, &error),
                "fixed_addresses");
    bench_end(&b);
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return;
    uint64_t slots = stats_of(&b).slot_bytes;
    options.budget_bytes = slots - 1;
    CHECK_ERROR(WB_ERR_BUDGET,
                wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error), "slots need");
    options.reserved[0] = 1;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error), "reserved");
    if (on_cuda()) {
        void *made = NULL;
        options = to_bytes(slots);
        REQUIRE(b.captures.begin(b.stream, 2) == 0);
        CHECK_ERROR(WB_ERR_CAPTURING,
                    wb_offloader_resize(b.offloader, &options, b.stream, &progress, &error),
                    "captured");
        CHECK(b.captures.end(b.stream, &made) == 0 && b.captures.destroy(made) == 0);
    }
    bench_end(&b);
}

static void without_address_ranges_the_plan_says_why(wb_device *unused)
{
    static const struct {
        const char *attributes, *why;
    } cases[] = {{"102=0", "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"},
                 {"141=0", "HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"}};
    (void)unused;
    for (size_t at = 0; at < sizeof cases / sizeof cases[0]; at++) {
        wb_device *device = NULL;
        wb_device_info info = WB_DEVICE_INFO_INIT;
        struct bench b;
        wb_plan_options options = WB_PLAN_OPTIONS_INIT;
        double_set("WB_DOUBLE_ATTRIBUTES", cases[at].attributes);
        REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
        CHECK_OK(wb_device_get_info(device, &info, &error));
        CHECK_SAME(info.address_granularity, 0);
        CHECK(strstr(info.address_reason, cases[at].why) != NULL);
        if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2)) return; /* works without */
        eager(&b, orders[0]);
        check_reads(&b, "without", 0);
        options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
        options.budget_bytes = GROUPS * SIZE;
        options.fixed_addresses = WB_TRISTATE_ON;
        wb_plan *plan = NULL;
        CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                    wb_plan_new(device, ring.parameters, GROUPS, &options, &plan, &error),
                    cases[at].why);
        bench_end(&b);
        wb_device_release(device);
        double_set("WB_DOUBLE_ATTRIBUTES", "");
    }
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, freed_memory_is_free),
           CASE_ALONE(EVERYWHERE, no_budget_is_exceeded_at_any_moment),
           CASE_ALONE(DOUBLE_ONLY, a_destroyed_context_ends_a_resize),
           CASE_ALONE(DOUBLE_ONLY, without_address_ranges_the_plan_says_why),
           CASE(steps_are_right_at_every_budget), CASE_ON(CUDA_ONLY, graphs_are_right_at_every_budget),
           CASE_ON(CUDA_ONLY, units_return_to_slots_once_graphs_are_dropped),
           CASE(an_info_says_what_is_behind_an_address),
           CASE_ON(CUDA_ONLY, graphs_may_be_dropped_by_going_to_sleep),
           CASE(a_sleeping_offloader_holds_nothing),
           CASE(an_acquired_group_moves_when_it_is_released),
           CASE(replaced_bytes_are_there_at_every_budget),
           CASE_ON(DOUBLE_ONLY, a_failed_replacement_is_repeated),
           CASE_ON(DOUBLE_ONLY, a_failed_release_is_repeated),
           CASE_ON(DOUBLE_ONLY, a_failed_resize_goes_on), CASE(what_cannot_be_resized_is_refused))
