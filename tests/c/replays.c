/* A captured step is a step: it reads the true weights after any other step, and so does an eager
 * step after a replay. */
#include "ring.h"

/* Every order captured, between eager steps in every order, and two graphs in turn. */
static void every_order(wb_device *device, wb_transfer_mode mode, uint32_t depth, int explicit_steps)
{
    struct bench b;
    char what[100];
    if (!bench_begin(&b, device, mode, depth)) return;
    b.explicit_steps = explicit_steps;
    for (int first = 0; first < ORDERS; first++) {
        eager(&b, orders[first]);
        check_reads(&b, "before", 0);
        struct graph graph = captured(&b, orders[first]);
        struct graph in_order = captured(&b, orders[0]);
        for (int other = 0; other < ORDERS; other++) {
            snprintf(what, sizeof what, "depth %u, order %d captured, %d eager", depth, first, other);
            replay(&b, &graph);
            eager(&b, orders[other]);
            replay(&b, &graph);
            replay(&b, &in_order);
            eager(&b, orders[first]);
            eager(&b, orders[other]);
            replay(&b, &in_order);
            replay(&b, &graph);
            check_reads(&b, what, 2);
        }
        b.steps = 0;
        graph_end(&b, &graph);
        graph_end(&b, &in_order);
    }
    bench_end(&b);
}

static void a_replay_is_right_after_any_step(wb_device *device)
{
    for (uint32_t depth = 2; depth <= 4; depth++) {
        every_order(device, WB_TRANSFER_MODE_PREFETCH, depth, 0);
        every_order(device, WB_TRANSFER_MODE_PREFETCH, depth, 1);
    }
}

static void a_replay_of_on_demand_groups_is_right_after_any_step(wb_device *device)
{
    every_order(device, WB_TRANSFER_MODE_ON_DEMAND, 0, 0);
    every_order(device, WB_TRANSFER_MODE_ON_DEMAND, 0, 1);
}

/* Slow copies, so that what does not wait for them reads too early. */
static void a_replay_waits_for_copies_in_flight(wb_device *device)
{
    double_set("WB_DOUBLE_DELAY_US", "300");
    struct bench b;
    if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 3)) return;
    struct graph graph = captured(&b, orders[0]); /* before any eager copy but those of the commit */
    b.explicit_steps = 1;
    for (int turn = 0; turn < 2; turn++) {
        for (int other = 0; other < ORDERS; other++) {
            eager(&b, orders[other]);
            replay(&b, &graph);
            eager(&b, orders[(other + 6) % ORDERS]);
            check_reads(&b, "in flight", 1);
        }
    }
    graph_end(&b, &graph);
    bench_end(&b);
    double_set("WB_DOUBLE_DELAY_US", "0");
}

/* What each kind of step costs: no group is copied twice in one. */
static void a_step_copies_each_group_once(wb_device *device)
{
    for (uint32_t depth = 2; depth <= 4; depth++) {
        struct bench b;
        if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, depth)) return;
        for (int explicit_steps = 0; explicit_steps < 2; explicit_steps++) {
            b.explicit_steps = explicit_steps;
            eager(&b, orders[0]);
            uint64_t before = copies_of(&b);
            eager(&b, orders[0]);
            CHECK(copies_of(&b) - before <= GROUPS); /* those that keep their slots are not copied */
            before = copies_of(&b);
            struct graph graph = captured(&b, orders[0]);
            CHECK_SAME(copies_of(&b) - before, GROUPS);
            replay(&b, &graph);
            before = copies_of(&b);
            eager(&b, orders[0]);
            CHECK_SAME(copies_of(&b) - before, GROUPS);
            check_reads(&b, "copies", 0);
            graph_end(&b, &graph);
        }
        bench_end(&b);
    }
}

/* A step captured in parts, with and without eager steps between the replays of the whole. */
static void parts_of_a_step_rely_on_each_other(wb_device *device)
{
    for (uint32_t depth = 2; depth <= 4; depth++) {
        struct bench b;
        if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, depth)) return;
        b.explicit_steps = 1;
        eager(&b, orders[2]);
        check_reads(&b, "before", 0);
        const uint64_t before = copies_of(&b);
        struct graph parts[3] = {{NULL, 0, 0, 3}, {NULL, 0, 3, 1}, {NULL, 0, 4, 4}};
        new_step(&b, orders[0]);
        for (int part = 0; part < 3; part++) capture(&b, &parts[part]);
        CHECK_SAME(copies_of(&b) - before, GROUPS);
        for (int other = 0; other < ORDERS; other++) {
            for (int part = 0; part < 3; part++) replay(&b, &parts[part]);
            eager(&b, orders[other]);
            for (int part = 0; part < 3; part++) replay(&b, &parts[part]);
            check_reads(&b, "parts", 1);
        }
        for (int part = 0; part < 3; part++) graph_end(&b, &parts[part]);
        bench_end(&b);
    }
}

/* An eager copy between two captures may overwrite what the first one copies. */
static void a_part_does_not_rely_on_copies_across_an_eager_step(wb_device *device)
{
    struct bench b;
    if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2)) return;
    b.explicit_steps = 1;
    new_step(&b, orders[0]);
    struct graph parts[2] = {{NULL, 0, 0, 4}, {NULL, 0, 4, 4}};
    capture(&b, &parts[0]);
    eager(&b, orders[8]);
    capture(&b, &parts[1]);
    for (int turn = 0; turn < 3; turn++) {
        replay(&b, &parts[0]);
        eager(&b, orders[8]);
        replay(&b, &parts[1]);
        check_reads(&b, "across", 1);
        replay(&b, &parts[1]); /* by itself */
        replay(&b, &parts[0]);
        check_reads(&b, "apart", 1);
    }
    for (int part = 0; part < 2; part++) graph_end(&b, &parts[part]);
    bench_end(&b);
}

/* A graph reads host memory, so that it has the bytes of a replacement of the same size. */
static void a_replay_reads_replaced_bytes(wb_device *device)
{
    struct bench b;
    unsigned char bytes[SIZE];
    if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2)) return;
    struct graph graph = captured(&b, orders[0]);
    replay(&b, &graph);
    memset(bytes, GROUPS + 1, SIZE);
    for (int group = 0; group < GROUPS; group += 3) {
        CHECK_OK(wb_offloader_replace(b.offloader, ring.names[group], bytes, &ring.layout, b.stream,
                                      &error));
    }
    replay(&b, &graph);
    CHECK_OK(wb_device_stream_synchronize(device, b.stream, &error));
    for (int group = 0; group < GROUPS; group++) {
        const int wanted = group % 3 == 0 ? GROUPS + 1 : group + 1;
        CHECK_SAME(seen_of(&b, graph.step, group)[SIZE - 1], wanted);
    }
    graph_end(&b, &graph);
    bench_end(&b);
}

/* Another stream's capture has drawn in the copy streams: the call says so and spoils nothing. */
static void an_eager_call_during_a_capture_is_refused(wb_device *device)
{
    struct bench b;
    void *made = NULL, *other = NULL;
    if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2)) return;
    REQUIRE_OK(wb_device_stream_new(device, &other, &error));
    CHECK_OK(wb_offloader_acquire_group(b.offloader, 0, other, &error));
    struct graph graph = {NULL, new_step(&b, orders[0]), 0, GROUPS};
    REQUIRE(b.captures.begin(b.stream, 2) == 0);
    CHECK_OK(wb_offloader_acquire_group(b.offloader, 1, b.stream, &error));
    const uint64_t copies = copies_of(&b);
    const char *words = "captured on another stream|end that capture";
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_acquire_group(b.offloader, 0, other, &error), words);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_release_group(b.offloader, 0, other, &error), words);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_begin_step(b.offloader, other, &error), words);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_join(b.offloader, other, &error), words);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_reset(b.offloader, other, &error), words);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_reset_all(b.offloader, other, &error), words);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_compact(b.offloader, other, &error), words);
    CHECK_SAME(copies_of(&b), copies);
    REQUIRE(b.captures.begin(other, 2) == 0); /* nor does a second capture spoil the first */
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_acquire_group(b.offloader, 0, other, &error), words);
    CHECK(b.captures.end(other, &made) == 0 && b.captures.destroy(made) == 0);
    CHECK_OK(wb_offloader_release_group(b.offloader, 1, b.stream, &error));
    CHECK_OK(wb_offloader_join(b.offloader, b.stream, &error));
    CHECK(b.captures.end(b.stream, &made) == 0 && b.captures.destroy(made) == 0);
    CHECK_OK(wb_offloader_release_group(b.offloader, 0, other, &error));
    REQUIRE(b.captures.begin(b.stream, 2) == 0);
    CHECK(b.captures.end(b.stream, &made) == 0 && b.captures.destroy(made) == 0);
    capture(&b, &graph);
    replay(&b, &graph);
    eager(&b, orders[1]);
    check_reads(&b, "after", 0);
    graph_end(&b, &graph);
    CHECK_OK(wb_device_stream_synchronize(device, other, &error));
    CHECK_OK(wb_device_stream_release(device, other, &error));
    bench_end(&b);
}

CHECK_MAIN(CASE(a_replay_is_right_after_any_step),
           CASE(a_replay_of_on_demand_groups_is_right_after_any_step),
           CASE(a_replay_waits_for_copies_in_flight), CASE(a_step_copies_each_group_once),
           CASE(parts_of_a_step_rely_on_each_other),
           CASE(a_part_does_not_rely_on_copies_across_an_eager_step),
           CASE(a_replay_reads_replaced_bytes), CASE(an_eager_call_during_a_capture_is_refused))
