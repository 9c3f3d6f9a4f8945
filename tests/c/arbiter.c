/* Offloaders that share a budget: what is used next gets memory, what is idle gives it, the budget is
 * exceeded at no moment, and every step reads the true weights. */
#include "fixed.h"

enum { SHARED = 3, TURNS = 60, THREAD_TURNS = 150 };

/* Offloaders of one device, committed with all groups offloaded, and their arbiter. */
struct sharing {
    wb_device *device;
    wb_arbiter *arbiter;
    struct bench benches[SHARED];
    uint64_t slots, whole; /* of each */
};

static wb_arbiter_options member_options(const struct bench *b, int32_t priority, uint64_t min_bytes)
{
    wb_arbiter_options options = WB_ARBITER_OPTIONS_INIT;
    options.priority = priority;
    options.min_bytes = min_bytes;
    options.stream = b->stream;
    return options;
}

/* Without the arbiter's members. `pieces` are the budget beyond the slots of all. */
static int sharing_begin(struct sharing *s, wb_device *device, uint64_t pieces)
{
    s->device = device;
    s->arbiter = NULL;
    for (int at = 0; at < SHARED; at++) {
        wb_plan_options options = WB_PLAN_OPTIONS_INIT;
        options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
        options.budget_bytes = GROUPS * SIZE;
        options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
        options.depth = 2;
        options.fixed_addresses = WB_TRISTATE_ON;
        if (!bench_begin_with(&s->benches[at], device, options)) return 0;
    }
    s->slots = stats_of(&s->benches[0]).slot_bytes;
    s->whole = s->slots + GROUPS * PIECE;
    return CHECK_OK(wb_arbiter_new(device, SHARED * s->slots + pieces * PIECE, &s->arbiter, &error));
}

static int add_all(struct sharing *s, uint64_t min_bytes)
{
    for (int at = 0; at < SHARED; at++) {
        const wb_arbiter_options options = member_options(&s->benches[at], 0, min_bytes);
        if (!CHECK_OK(wb_arbiter_add(s->arbiter, s->benches[at].offloader, &options, &error))) return 0;
    }
    return 1;
}

static void sharing_end(struct sharing *s)
{
    wb_arbiter_release(s->arbiter);
    for (int at = 0; at < SHARED; at++) {
        check_addresses(&s->benches[at]);
        bench_end(&s->benches[at]);
    }
}

static wb_arbiter_member_info member_of(struct sharing *s, int at)
{
    wb_arbiter_member_info info = WB_ARBITER_MEMBER_INFO_INIT;
    CHECK_OK(wb_arbiter_get_member_info(s->arbiter, s->benches[at].offloader, &info, &error));
    return info;
}

static void check_member(struct sharing *s, int at, uint64_t bytes)
{
    const wb_arbiter_member_info info = member_of(s, at);
    CHECK_SAME(info.target_bytes, bytes);
    CHECK_SAME(info.device_bytes, bytes);
    CHECK_SAME(info.asleep, bytes == 0);
}

static wb_arbiter_progress use(struct sharing *s, int at)
{
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    CHECK_OK(wb_arbiter_use(s->arbiter, s->benches[at].offloader, &progress, &error));
    CHECK_OK(wb_arbiter_wait(s->arbiter, MINUTE, &progress, &error));
    CHECK_SAME(progress.pending_offloaders, 0);
    CHECK_SAME(progress.ready, 1);
    return progress;
}

static void check_steps(struct sharing *s, int at)
{
    eager(&s->benches[at], orders[random_below(ORDERS)]);
    check_reads(&s->benches[at], "shared", 0);
}

static void what_is_used_next_gets_memory(wb_device *device)
{
    struct sharing s;
    if (!sharing_begin(&s, device, GROUPS + 2) || !add_all(&s, 0)) return;
    const uint64_t budget = SHARED * s.slots + (GROUPS + 2) * PIECE;
    for (int at = 0; at < SHARED; at++) check_member(&s, at, s.slots);
    CHECK_SAME(use(&s, 0).device_bytes, 2 * s.slots + s.whole);
    check_member(&s, 0, s.whole);
    check_member(&s, 1, s.slots);
    /* The others keep what is left: the one used last first. */
    CHECK_SAME(use(&s, 1).device_bytes, budget);
    check_member(&s, 1, s.whole);
    check_member(&s, 0, budget - s.whole);
    check_member(&s, 2, 0);
    CHECK_ERROR(WB_ERR_BUSY, wb_offloader_acquire_group(s.benches[2].offloader, 0, s.benches[2].stream,
                                                        &error),
                "asleep");
    seed = 3;
    for (int turn = 0; turn < TURNS; turn++) {
        const int at = (int)random_below(SHARED);
        const wb_arbiter_progress progress = use(&s, at);
        CHECK(progress.device_bytes <= budget);
        CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes);
        check_member(&s, at, s.whole);
        check_steps(&s, at);
    }
    sharing_end(&s);
}

static void the_least_important_gives_memory_first(wb_device *device)
{
    struct sharing s;
    if (!sharing_begin(&s, device, GROUPS)) return;
    for (int at = 0; at < SHARED; at++) {
        const wb_arbiter_options options =
            member_options(&s.benches[at], at == 0 ? 5 : 0, at == 1 ? 1 : 0);
        REQUIRE_OK(wb_arbiter_add(s.arbiter, s.benches[at].offloader, &options, &error));
    }
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    use(&s, 2);
    check_member(&s, 2, s.whole);
    check_member(&s, 1, s.slots);
    check_member(&s, 0, s.slots);
    CHECK_OK(wb_arbiter_resize(s.arbiter, s.whole + s.slots, &progress, &error));
    CHECK_OK(wb_arbiter_wait(s.arbiter, MINUTE, &progress, &error));
    CHECK_SAME(progress.device_bytes, s.whole + s.slots);
    check_member(&s, 2, s.whole - s.slots);
    CHECK_OK(wb_arbiter_resize(s.arbiter, 2 * s.slots, &progress, &error));
    CHECK_OK(wb_arbiter_wait(s.arbiter, MINUTE, &progress, &error));
    check_member(&s, 2, 0); /* the first is more important, the second keeps its slots */
    check_member(&s, 1, s.slots);
    check_member(&s, 0, s.slots);
    CHECK_OK(wb_arbiter_resize(s.arbiter, s.slots + s.whole, &progress, &error));
    CHECK_SAME(progress.device_bytes, 2 * s.slots); /* none is used */
    use(&s, 2);
    check_member(&s, 2, s.whole);
    check_member(&s, 1, s.slots);
    check_member(&s, 0, 0);
    CHECK_ERROR(WB_ERR_BUDGET, wb_arbiter_resize(s.arbiter, s.slots - 1, &progress, &error), "min_bytes");
    check_member(&s, 2, s.whole);
    for (int at = 1; at < SHARED; at++) check_steps(&s, at);
    sharing_end(&s);
}

/* The second has its slots at once, and the rest when the first has given it. */
static void steps_of_one_run_while_another_is_evicted(wb_device *device)
{
    struct sharing s;
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    if (!sharing_begin(&s, device, GROUPS) || !add_all(&s, 0)) return;
    struct bench *first = &s.benches[0];
    use(&s, 0);
    const int step = new_step(first, orders[8]);
    CHECK_OK(wb_offloader_acquire_group(first->offloader, 6, first->stream, &error));
    CHECK_OK(wb_arbiter_use(s.arbiter, s.benches[1].offloader, &progress, &error));
    CHECK(progress.pending_offloaders == 2 && progress.ready == 1);
    for (int turn = 0; turn < 5; turn++) {
        check_steps(&s, 1);
        CHECK_OK(wb_arbiter_advance(s.arbiter, &progress, &error));
        CHECK(progress.pending_offloaders > 0);
    }
    CHECK_ERROR(WB_ERR_TIMEOUT, wb_arbiter_wait(s.arbiter, 5, &progress, &error), "offloaders");
    CHECK_OK(wb_device_copy(device, seen_of(first, step, 0), first->slots[6], SIZE, first->stream, &error));
    CHECK_OK(wb_offloader_release_group(first->offloader, 6, first->stream, &error));
    CHECK_OK(wb_arbiter_wait(s.arbiter, MINUTE, &progress, &error));
    check_member(&s, 1, s.whole);
    check_reads(first, "held", 0);
    check_steps(&s, 1);
    sharing_end(&s);
}

static void graphs_of_all_are_right_whenever_they_are_used(wb_device *device)
{
    struct sharing s;
    struct graph graphs[SHARED];
    if (!sharing_begin(&s, device, GROUPS) || !add_all(&s, 0)) return;
    for (int at = 0; at < SHARED; at++) graphs[at] = captured(&s.benches[at], orders[at]);
    seed = 5;
    for (int turn = 0; turn < TURNS; turn++) {
        const int at = (int)random_below(SHARED);
        use(&s, at);
        replay(&s.benches[at], &graphs[at]);
        eager(&s.benches[at], orders[random_below(ORDERS)]);
        check_reads(&s.benches[at], "replay", 1);
    }
    for (int at = 0; at < SHARED; at++) graph_end(&s.benches[at], &graphs[at]);
    sharing_end(&s);
}

struct stepper {
    pthread_t thread;
    struct sharing *s;
    int at;
};

static void *step_and_use(void *user)
{
    struct stepper *stepper = (struct stepper *)user;
    struct bench *b = &stepper->s->benches[stepper->at];
    for (int turn = 0; turn < THREAD_TURNS; turn++) {
        wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
        if (turn % 3 == stepper->at) {
            CHECK_OK(wb_arbiter_use(stepper->s->arbiter, b->offloader, &progress, &error));
        } else {
            CHECK_OK(wb_arbiter_advance(stepper->s->arbiter, &progress, &error));
        }
        eager(b, orders[turn % ORDERS]);
        check_reads(b, "of a thread", 0);
    }
    return NULL;
}

static int step_in_threads(struct sharing *s)
{
    struct stepper steppers[SHARED];
    for (int at = 0; at < SHARED; at++) {
        const struct stepper stepper = {0, s, at};
        steppers[at] = stepper;
        if (!CHECK(pthread_create(&steppers[at].thread, NULL, step_and_use, &steppers[at]) == 0)) return 0;
    }
    for (int at = 0; at < SHARED; at++) pthread_join(steppers[at].thread, NULL);
    return 1;
}

/* Each keeps its slots, so that its steps are never refused. The first time, a driver gets what it keeps for
 * itself for as many threads. */
static void threads_share_and_the_budget_is_never_exceeded(wb_device *unused)
{
    (void)unused;
    struct sharing s;
    struct sampler sampler;
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    wb_device *device = device_with_capacity();
    REQUIRE(device != NULL);
    if (!sharing_begin(&s, device, GROUPS + 3) || !add_all(&s, 1) || !step_in_threads(&s)) return;
    sharing_end(&s);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    const uint64_t free_bytes = free_bytes_of(device);
    if (!sharing_begin(&s, device, GROUPS + 3) || !add_all(&s, 1)) return;
    const uint64_t budget = SHARED * s.slots + (GROUPS + 3) * PIECE;
    REQUIRE(sampler_begin(&sampler, device, free_bytes, budget));
    REQUIRE(step_in_threads(&s));
    CHECK_OK(wb_arbiter_wait(s.arbiter, MINUTE, &progress, &error));
    sampler_end(&sampler);
    CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes);
    sharing_end(&s);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    wb_device_release(device);
}

static wb_status resize_first(struct sharing *s, uint64_t bytes)
{
    const struct bench *b = &s->benches[0];
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = bytes;
    return wb_offloader_resize(b->offloader, &options, b->stream, &progress, &error);
}

static void *wake_first(void *user)
{
    struct sharing *s = (struct sharing *)user;
    CHECK_OK(resize_first(s, s->slots));
    return NULL;
}

static void *add_first(void *user)
{
    struct sharing *s = (struct sharing *)user;
    const wb_arbiter_options options = member_options(&s->benches[0], 0, 0);
    CHECK_OK(wb_arbiter_add(s->arbiter, s->benches[0].offloader, &options, &error));
    return NULL;
}

/* The driver is slow to wake an offloader, for which an arbiter waits that is to have it, and then a resize. */
static void no_resize_comes_between_what_an_arbiter_sees_and_owns(wb_device *device)
{
    struct sharing s;
    pthread_t waking, adding;
    if (!sharing_begin(&s, device, 1)) return;
    CHECK_OK(resize_first(&s, 0));
    const long long calls = double_called("cuMemCreate");
    double_set("WB_DOUBLE_FAIL", "cuMemCreate:1:hang1000");
    REQUIRE(pthread_create(&waking, NULL, wake_first, &s) == 0);
    while (double_called("cuMemCreate") == calls) sleep_ms(1);
    REQUIRE(pthread_create(&adding, NULL, add_first, &s) == 0);
    sleep_ms(300);
    CHECK_ERROR(WB_ERR_BUSY, resize_first(&s, s.whole), "wb_arbiter_use");
    pthread_join(waking, NULL);
    pthread_join(adding, NULL);
    double_set("WB_DOUBLE_FAIL", "");
    check_member(&s, 0, s.slots);
    sharing_end(&s);
}

/* Any call of the driver fails once: a later call goes on. */
static void a_failed_change_goes_on(wb_device *device)
{
    static const char *const functions[] = {"cuMemCreate",  "cuMemMap",      "cuMemSetAccess",
                                            "cuMemUnmap",   "cuMemRelease",  "cuMemAddressReserve",
                                            "cuEventQuery", "cuMemcpyAsync", "cuMemAddressFree"};
    const uint64_t logged = device_stats(device).errors_logged;
    int failed = 0;
    for (size_t function = 0; function < sizeof functions / sizeof functions[0]; function++) {
        for (int nth = 1; nth <= 16; nth++) {
            struct sharing s;
            char setting[64];
            wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
            if (!sharing_begin(&s, device, GROUPS) || !add_all(&s, 0)) return;
            const uint64_t budget = SHARED * s.slots + GROUPS * PIECE;
            int seen = 0;
            snprintf(setting, sizeof setting, "%s:%d:2", functions[function], nth);
            double_set("WB_DOUBLE_FAIL", setting);
            for (int turn = 0; turn < 4; turn++) {
                wb_offloader *next = s.benches[turn % SHARED].offloader;
                if (wb_arbiter_use(s.arbiter, next, &progress, &error) != WB_OK) seen++;
                CHECK(device_stats(device).device_bytes <= budget);
                for (int retry = 0; retry < 2; retry++) {
                    if (wb_arbiter_wait(s.arbiter, MINUTE, &progress, &error) == WB_OK) break;
                    CHECK(device_stats(device).device_bytes <= budget);
                    seen++;
                }
                CHECK_SAME(progress.pending_offloaders, 0);
                CHECK_SAME(device_stats(device).device_bytes, progress.device_bytes);
                check_member(&s, turn % SHARED, s.whole);
            }
            double_set("WB_DOUBLE_FAIL", "");
            CHECK(seen <= 1);
            failed += seen;
            check_steps(&s, 0);
            sharing_end(&s);
        }
    }
    CHECK(failed > 40);
    check_logged = (int)(device_stats(device).errors_logged - logged); /* by releases, which are repeated */
}

static void what_cannot_be_shared_is_refused(wb_device *device)
{
    struct sharing s;
    struct bench plain;
    wb_arbiter *other = NULL;
    wb_device *second = NULL;
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    wb_arbiter_member_info info = WB_ARBITER_MEMBER_INFO_INIT;
    wb_offloader_resize_progress resized = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_offloader_resize_options resize = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    resize.budget_kind = WB_BUDGET_DEVICE_BYTES;
    if (!sharing_begin(&s, device, 0)) return;
    struct bench *b = &s.benches[0];
    CHECK_NULL(wb_arbiter_new(NULL, 1, &other, &error), "device");
    CHECK_NULL(wb_arbiter_new(device, 1, NULL, &error), "arbiter");
    CHECK_NULL(wb_arbiter_add(NULL, b->offloader, NULL, &error), "arbiter");
    CHECK_NULL(wb_arbiter_add(s.arbiter, NULL, NULL, &error), "offloader");
    CHECK_NULL(wb_arbiter_remove(s.arbiter, NULL, &error), "offloader");
    CHECK_NULL(wb_arbiter_use(s.arbiter, NULL, &progress, &error), "offloader");
    CHECK_NULL(wb_arbiter_use(s.arbiter, b->offloader, NULL, &error), "progress");
    CHECK_NULL(wb_arbiter_resize(NULL, 1, &progress, &error), "arbiter");
    CHECK_NULL(wb_arbiter_advance(NULL, &progress, &error), "arbiter");
    CHECK_NULL(wb_arbiter_wait(NULL, 1, &progress, &error), "arbiter");
    CHECK_NULL(wb_arbiter_get_member_info(s.arbiter, b->offloader, NULL, &error), "info");
    CHECK(other == NULL);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_arbiter_new(device, 0, &other, &error), "0 bytes");
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_arbiter_use(s.arbiter, b->offloader, &progress, &error), "add it");
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_arbiter_remove(s.arbiter, b->offloader, &error), "add it");
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_arbiter_get_member_info(s.arbiter, b->offloader, &info, &error),
                "add it");
    if (!bench_begin(&plain, device, WB_TRANSFER_MODE_PREFETCH, 2)) return;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_arbiter_add(s.arbiter, plain.offloader, NULL, &error),
                "fixed_addresses");
    bench_end(&plain);
    const wb_arbiter_options options = member_options(b, 0, 0);
    CHECK_OK(wb_arbiter_add(s.arbiter, b->offloader, &options, &error));
    CHECK_ERROR(WB_ERR_BUSY, wb_arbiter_add(s.arbiter, b->offloader, &options, &error),
                "already");
    CHECK_OK(wb_arbiter_new(device, s.slots - 1, &other, &error));
    CHECK_ERROR(WB_ERR_BUSY, wb_arbiter_add(other, b->offloader, &options, &error), "already");
    CHECK_ERROR(WB_ERR_BUDGET, wb_arbiter_add(other, s.benches[1].offloader, &options, &error), "holds");
    wb_arbiter_release(other);
    resize.budget_bytes = s.whole;
    CHECK_ERROR(WB_ERR_BUSY, wb_offloader_resize(b->offloader, &resize, b->stream, &resized, &error),
                "arbiter");
    CHECK_OK(wb_arbiter_remove(s.arbiter, b->offloader, &error));
    CHECK_OK(wb_offloader_resize(b->offloader, &resize, b->stream, &resized, &error));
    CHECK_OK(wb_offloader_resize_wait(b->offloader, b->stream, MINUTE, &resized, &error));
    CHECK_SAME(resized.device_bytes, s.whole);
    CHECK_OK(wb_arbiter_add(s.arbiter, s.benches[1].offloader, NULL, &error));
    CHECK_ERROR(WB_ERR_BUDGET, wb_arbiter_add(s.arbiter, b->offloader, &options, &error), "beside");
    /* Another handle of the same device shares its memory. */
    CHECK_OK(wb_device_open(test_device(), NULL, &second, &error));
    CHECK_OK(wb_arbiter_new(second, 1 << 30, &other, &error));
    CHECK_OK(wb_arbiter_add(other, b->offloader, &options, &error));
    wb_arbiter_release(other);
    wb_device_release(second);
    if (on_cuda()) {
        CHECK_OK(wb_device_open("host", NULL, &second, &error));
        CHECK_OK(wb_arbiter_new(second, 1 << 30, &other, &error));
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_arbiter_add(other, b->offloader, &options, &error),
                    "another device");
        wb_arbiter_release(other);
        wb_device_release(second);
    }
    sharing_end(&s);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, threads_share_and_the_budget_is_never_exceeded),
           CASE(what_is_used_next_gets_memory), CASE(the_least_important_gives_memory_first),
           CASE(steps_of_one_run_while_another_is_evicted),
           CASE_ON(CUDA_ONLY, graphs_of_all_are_right_whenever_they_are_used),
           CASE_ON(DOUBLE_ONLY, no_resize_comes_between_what_an_arbiter_sees_and_owns),
           CASE_ON(DOUBLE_ONLY, a_failed_change_goes_on), CASE(what_cannot_be_shared_is_refused))
