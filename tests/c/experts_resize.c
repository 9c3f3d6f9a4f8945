/* Expert caches of an offloader with fixed addresses: slots share one budget with residents, and come
 * and go under graphs that were captured once. */
#include "mixture.h"

enum { E_TURNS = 60 };

static void slots_are_in_the_budget_of_the_plan_and_of_each_resize(wb_device *unused)
{
    (void)unused;
    struct mixture m;
    struct sampler sampler;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_device *device = device_with_capacity();
    REQUIRE(device != NULL);
    /* A driver then has what it keeps for itself. */
    if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 0)) return;
    mixture_end(&m);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 0)) return;
    uint64_t held = (DENSE_PIECES + 8) * PIECE;
    CHECK_SAME(device_stats(device).device_bytes, held + m.others);
    CHECK_SAME(info_of(&m).slots, 8);
    CHECK_SAME(info_of(&m).slot_bytes, 7 * PIECE);
    CHECK_SAME(info_of(&m).state_bytes, PIECE);
    CHECK_SAME(info_of(&m).most_slots, E_COUNT);
    CHECK(info_of(&m).predicted_hit_rate == 8.0 / E_COUNT);
    REQUIRE(sampler_begin(&sampler, device, m.free_bytes, held + m.others));
    seed = 3;
    double_set("WB_DOUBLE_DELAY_US", "20");
    for (int turn = 0; turn < E_TURNS; turn++) {
        uint64_t pieces = DENSE_PIECES + 3 + random_below(18);
        if (turn % 8 == 7) pieces = 0;
        if (turn % 8 == 3) pieces = 4 + random_below(DENSE_PIECES);
        const uint64_t bytes = pieces * PIECE;
        wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
        options.budget_kind = WB_BUDGET_DEVICE_BYTES;
        options.budget_bytes = bytes;
        set_limit(&sampler, (held > bytes ? held : bytes) + m.others);
        CHECK_OK(wb_offloader_resize(m.offloader, &options, m.stream, &progress, &error));
        if (info_of(&m).slots >= E_TOP && pieces > 0 && progress.pending_units == 0) {
            draw_ids(&m);
            queue_step(&m, 0);
        }
        CHECK_OK(wb_offloader_resize_wait(m.offloader, m.stream, MINUTE, &progress, &error));
        CHECK_SAME(progress.pending_units, 0);
        held = progress.device_bytes;
        set_limit(&sampler, held + m.others);
        CHECK_SAME(device_stats(device).device_bytes, held + m.others);
        CHECK_SAME(m.free_bytes - free_bytes_of(device), held);
        const wb_expert_cache_info info = info_of(&m);
        CHECK_SAME(info.slots, info.capacity);
        CHECK(info.predicted_hit_rate == (double)info.slots / E_COUNT);
        if (pieces == 0) {
            CHECK_SAME(held, 0);
            CHECK(info.slots == 0 && info.slot_bytes == 0 && info.state_bytes == 0);
            CHECK_ERROR(WB_ERR_BUSY,
                        wb_expert_cache_route(m.cache, 0, m.memory, 1, WB_DTYPE_I32, m.memory, NULL, m.stream,
                                              &error),
                        "asleep");
            continue;
        }
        CHECK_SAME(info.slot_bytes + info.state_bytes, cache_pieces(info.slots) * PIECE);
        if (pieces > DENSE_PIECES + 3) {
            /* All others stay, and no slot more would fit. */
            CHECK_SAME(held, (DENSE_PIECES + cache_pieces(info.slots)) * PIECE);
            CHECK(info.slots == E_COUNT || DENSE_PIECES + cache_pieces(info.slots + 1) > pieces);
        }
        if (info.slots < E_TOP) continue;
        draw_ids(&m);
        queue_step(&m, turn % E_LAYERS);
        check_layer(&m, turn % E_LAYERS);
    }
    double_set("WB_DOUBLE_DELAY_US", "0");
    sampler_end(&sampler);
    CHECK_ERROR(WB_ERR_BUDGET, try_resize(&m, 2 * PIECE, &progress), "expert caches");
    mixture_end(&m);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    wb_device_release(device);
}

/* Steps that end with each layer, captured once. */
struct graphs {
    struct captures captures;
    void *execs[E_LAYERS];
};

static int graphs_begin(struct mixture *m, struct graphs *graphs)
{
    if (!captures_begin(&graphs->captures)) return 0;
    for (int last = 0; last < E_LAYERS; last++) {
        void *made = NULL;
        if (!CHECK(graphs->captures.begin(m->stream, 2) == 0)) return 0;
        queue_step(m, last);
        CHECK_OK(wb_offloader_join(m->offloader, m->stream, &error));
        CHECK(graphs->captures.end(m->stream, &made) == 0);
        CHECK(graphs->captures.instantiate(&graphs->execs[last], made, 0) == 0);
        CHECK(graphs->captures.destroy(made) == 0);
    }
    return 1;
}

static void graphs_end(const struct graphs *graphs)
{
    for (int last = 0; last < E_LAYERS; last++) CHECK(graphs->captures.destroy_exec(graphs->execs[last]) == 0);
    captures_end(&graphs->captures);
}

static void replay_step(struct mixture *m, const struct graphs *graphs, int last)
{
    CHECK(graphs->captures.launch(graphs->execs[last], m->stream) == 0);
}

/* For three slots, which every captured call needs; a fourth fits. */
enum { LEAST_PIECES = 5 };

static void graphs_captured_once_are_right_at_every_size(wb_device *device)
{
    struct mixture m;
    struct graphs graphs;
    if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 0) || !graphs_begin(&m, &graphs)) return;
    unsigned char *const slot0 = (unsigned char *)slots_of(&m, 0).device_address;
    seed = 11;
    double_set("WB_DOUBLE_DELAY_US", "20");
    for (int turn = 0; turn < E_TURNS; turn++) {
        const uint64_t pieces = LEAST_PIECES + random_below(DENSE_PIECES + 17);
        wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
        wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
        options.budget_kind = WB_BUDGET_DEVICE_BYTES;
        uint64_t named = 0, steps = 0;
        const int woken = turn % 5 == 4;
        if (woken) resize(&m, 0);
        options.budget_bytes = pieces * PIECE;
        CHECK_OK(wb_offloader_resize(m.offloader, &options, m.stream, &progress, &error));
        for (unsigned each = woken ? 0 : random_below(3); each > 0; each--) {
            /* The slots change between replays. */
            draw_ids(&m);
            replay_step(&m, &graphs, (int)each);
            check_layer(&m, (int)each);
            named += named_experts(&m), steps++;
            CHECK_OK(wb_offloader_resize_advance(m.offloader, m.stream, &progress, &error));
        }
        CHECK_OK(wb_offloader_resize_wait(m.offloader, m.stream, MINUTE, &progress, &error));
        CHECK(progress.device_bytes <= pieces * PIECE);
        const int last = (int)random_below(E_LAYERS);
        draw_ids(&m);
        replay_step(&m, &graphs, last);
        check_layer(&m, last);
        const uint64_t hits = check_counts(&m, named + named_experts(&m), steps + 1);
        if (woken) CHECK_SAME(hits, 0);
        if (info_of(&m).slots >= E_LAYERS * E_TOP) {
            replay_step(&m, &graphs, last);
            check_layer(&m, last);
            CHECK_SAME(check_counts(&m, named_experts(&m), 1), named_experts(&m));
        }
        CHECK(slots_of(&m, 0).device_address == slot0);
    }
    double_set("WB_DOUBLE_DELAY_US", "0");
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    CHECK_ERROR(WB_ERR_BUDGET, try_resize(&m, (LEAST_PIECES - 1) * PIECE, &progress), "graphs have captured");
    resize(&m, LEAST_PIECES * PIECE);
    CHECK_SAME(info_of(&m).slots, 4);
    graphs_end(&graphs);
    options.budget_bytes = (LEAST_PIECES - 1) * PIECE;
    options.graphs_dropped = 1;
    CHECK_OK(wb_offloader_resize(m.offloader, &options, m.stream, &progress, &error));
    CHECK_OK(wb_offloader_resize_wait(m.offloader, m.stream, MINUTE, &progress, &error));
    CHECK(info_of(&m).slots < E_TOP);
    mixture_end(&m);
}

static void a_cache_keeps_what_was_asked_for_it_and_residents_get_the_rest(wb_device *device)
{
    struct mixture m;
    if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 8 * PIECE)) return;
    for (uint64_t residents = 0; residents <= DENSE_PIECES; residents += 2) {
        const wb_offloader_resize_progress progress = resize(&m, (residents + 8) * PIECE);
        CHECK_SAME(progress.device_bytes, (residents + 8) * PIECE);
        CHECK_SAME(info_of(&m).slots, 8);
    }
    /* Without space for both, the cache has what there is. */
    CHECK_SAME(resize(&m, 6 * PIECE).device_bytes, 6 * PIECE);
    CHECK_SAME(info_of(&m).slots, 5);
    mixture_end(&m);
}

/* A rebalance has noted the budget before the cache was made: a hot piece still comes in place of a cold one. */
static void a_rebalance_knows_a_cache_that_was_made_later(wb_device *device)
{
    wb_plan_options options = mixture_options(11 * PIECE, 8 * PIECE);
    options.transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
    for (int before = 0; before < 2; before++) {
        struct mixture m;
        wb_offloader_rebalance_progress progress = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
        uint64_t cold = UINT64_MAX;
        if (!mixture_begin_with(&m, device, options, before)) return;
        for (uint64_t at = 2; at < 3 * E_LAYERS; at += 3) {
            wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
            CHECK_OK(wb_offloader_get_parameter_info(m.offloader, at, &info, &error));
            if (info.resident_bytes < info.span_bytes) cold = at;
        }
        CHECK_OK(wb_offloader_prefer(m.offloader, cold, PIECE, E_DENSE - PIECE, 100, &error));
        for (int turn = 0; turn < 2000 && (turn == 0 || progress.pending_bytes > 0); turn++) {
            CHECK_OK(wb_offloader_rebalance(m.offloader, 16 << 20, m.stream, &progress, &error));
            usleep(500);
        }
        CHECK_SAME(progress.pending_bytes, 0);
        CHECK_SAME(progress.device_bytes, 11 * PIECE);
        mixture_end(&m);
    }
}

static void slots_wait_for_the_groups_of_their_experts(wb_device *device)
{
    struct mixture m;
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 0)) return;
    draw_ids(&m);
    queue_step(&m, 0);
    CHECK_OK(wb_offloader_acquire_group(m.offloader, 1, m.stream, &error));
    options.budget_bytes = (DENSE_PIECES + 5) * PIECE;
    CHECK_OK(wb_offloader_resize(m.offloader, &options, m.stream, &progress, &error));
    CHECK_SAME(progress.pending_units, 1);
    CHECK_SAME(progress.pending_bytes, 3 * PIECE);
    CHECK_SAME(info_of(&m).capacity, 8);
    check_layer(&m, 0);
    CHECK_ERROR(WB_ERR_TIMEOUT,
                wb_offloader_resize_wait(m.offloader, m.stream, 10, &progress, &error), "released");
    CHECK_OK(wb_offloader_release_group(m.offloader, 1, m.stream, &error));
    CHECK_OK(wb_offloader_resize_wait(m.offloader, m.stream, MINUTE, &progress, &error));
    CHECK_SAME(info_of(&m).capacity, 4);
    mixture_end(&m);
}

static void replaced_experts_are_read_after_a_resize_and_after_sleep(wb_device *device)
{
    static const int64_t wide[2] = {E_EXPERTS, E_WIDE};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 2, wide, NULL, 0);
    struct mixture m;
    unsigned char found = 0;
    if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 0)) return;
    for (int turn = 0; turn < 3; turn++) {
        const unsigned char value = (unsigned char)(200 + turn);
        draw_ids(&m);
        queue_step(&m, 0);
        if (turn == 1) resize(&m, 0);
        memset(m.sources[0][0], value, E_EXPERTS * E_WIDE);
        CHECK_OK(wb_offloader_replace(m.offloader, "l0.w0", m.sources[0][0], &layout, m.stream, &error));
        resize(&m, (DENSE_PIECES + 5 + (uint64_t)turn) * PIECE);
        queue_step(&m, 0);
        CHECK_OK(wb_device_stream_synchronize(device, m.stream, &error));
        const unsigned char *slots = (const unsigned char *)slots_of(&m, 0).device_address;
        if (read_device(device, &found, slots + (uint64_t)m.slots[0] * E_WIDE + 77, 1)) {
            CHECK_SAME(found, value);
        }
    }
    mixture_end(&m);
}

/* Pieces of a model with slots for all of its experts. */
enum { WHOLE_PIECES = DENSE_PIECES + 19 };

static void models_with_caches_share_the_budget_of_an_arbiter(wb_device *device)
{
    static struct mixture both[2];
    wb_arbiter *arbiter = NULL;
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    const uint64_t budgets[2] = {(WHOLE_PIECES + 7) * PIECE, (WHOLE_PIECES + 1) * PIECE};
    for (int at = 0; at < 2; at++) {
        if (!mixture_begin(&both[at], device, (DENSE_PIECES + 8) * PIECE, 0)) return;
    }
    const uint64_t others = device_stats(device).device_bytes - 2 * (DENSE_PIECES + 8) * PIECE;
    REQUIRE_OK(wb_arbiter_new(device, budgets[0], &arbiter, &error));
    for (int at = 0; at < 2; at++) {
        wb_arbiter_options options = WB_ARBITER_OPTIONS_INIT;
        options.stream = both[at].stream;
        CHECK_OK(wb_arbiter_add(arbiter, both[at].offloader, &options, &error));
    }
    for (int turn = 0; turn < 8; turn++) {
        struct mixture *next = &both[turn % 2], *idle = &both[1 - turn % 2];
        if (turn == 4) CHECK_OK(wb_arbiter_resize(arbiter, budgets[1], &progress, &error));
        CHECK_OK(wb_arbiter_use(arbiter, next->offloader, &progress, &error));
        CHECK_OK(wb_arbiter_wait(arbiter, MINUTE, &progress, &error));
        CHECK(progress.ready && progress.device_bytes <= budgets[turn >= 4]);
        CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes + others);
        CHECK_SAME(info_of(next).slots, E_COUNT);
        /* A slot of the other one and a part of its dense parameters, or sleep. */
        CHECK_SAME(info_of(idle).slots, turn < 4 ? 1 : 0);
        draw_ids(next);
        queue_step(next, turn % E_LAYERS);
        check_layer(next, turn % E_LAYERS);
        check_counts(next, named_experts(next), 1);
    }
    CHECK_ERROR(WB_ERR_BUSY,
                wb_expert_cache_route(both[0].cache, 0, both[0].memory, 1, WB_DTYPE_I32, both[0].memory, NULL,
                                      both[0].stream, &error),
                "asleep");
    wb_arbiter_release(arbiter);
    for (int at = 0; at < 2; at++) mixture_end(&both[at]);
}

static void a_failed_resize_of_slots_goes_on(wb_device *device)
{
    static const char *const functions[] = {"cuMemCreate",     "cuMemMap",       "cuMemSetAccess",
                                            "cuMemUnmap",      "cuLaunchKernel", "cuEventRecord",
                                            "cuMemcpyAsync",   "cuMemsetD8Async", "cuEventSynchronize",
                                            "cuStreamSynchronize"};
    int failed = 0;
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 4; nth++) {
            static const uint64_t sizes[] = {13, 5, 0, 11, 8};
            struct mixture m;
            struct graphs graphs;
            char setting[64];
            int seen = 0;
            if (!mixture_begin(&m, device, (DENSE_PIECES + 8) * PIECE, 0) || !graphs_begin(&m, &graphs)) return;
            seed = (unsigned)nth;
            for (int each = 0; each < 5; each++) {
                const uint64_t bytes = sizes[each] == 0 ? 0 : (DENSE_PIECES + sizes[each]) * PIECE;
                wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
                const uint64_t logged = device_stats(device).errors_logged;
                snprintf(setting, sizeof setting, "%s:%d:2", functions[function], nth);
                double_set("WB_DOUBLE_FAIL", setting);
                wb_status status = try_resize(&m, bytes, &progress);
                double_set("WB_DOUBLE_FAIL", "");
                if (status != WB_OK) {
                    seen++;
                    CHECK_OK(try_resize(&m, bytes, &progress));
                }
                check_logged += (int)(device_stats(device).errors_logged - logged);
                CHECK_SAME(progress.pending_units, 0);
                CHECK(progress.device_bytes <= bytes);
                CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes + m.others);
                if (bytes == 0) continue;
                draw_ids(&m);
                replay_step(&m, &graphs, each % E_LAYERS);
                check_layer(&m, each % E_LAYERS);
                check_counts(&m, named_experts(&m), 1);
            }
            failed += seen;
            graphs_end(&graphs);
            mixture_end(&m);
        }
    }
    CHECK(failed > 50);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, slots_are_in_the_budget_of_the_plan_and_of_each_resize),
           CASE_ON(CUDA_ONLY, graphs_captured_once_are_right_at_every_size),
           CASE(a_cache_keeps_what_was_asked_for_it_and_residents_get_the_rest),
           CASE(a_rebalance_knows_a_cache_that_was_made_later),
           CASE(slots_wait_for_the_groups_of_their_experts),
           CASE(replaced_experts_are_read_after_a_resize_and_after_sleep),
           CASE(models_with_caches_share_the_budget_of_an_arbiter),
           CASE_ON(DOUBLE_ONLY, a_failed_resize_of_slots_goes_on))
