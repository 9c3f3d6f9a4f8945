/* Steps of several graphs: captured in parts that rely on each other's copies, or graphs of kernels
 * only, between eager acquires and releases. Any such step may be replayed after any other step. */
#include "ring.h"

enum { MOST_PARTS = 5, READS = 3 * GROUPS };

/* A step reads each group three times: in the middle an engine runs its attention, eagerly if the
 * step is cut there. */
static const int layers[READS + 1] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4,
                                      4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, -1};

/* A step that is captured in parts. It is cut in the middle of some groups, which are held from one
 * part into the next, and behind others; bits are groups. */
struct parts {
    unsigned in_the_middle, behind;
    int begins_before; /* the step begins before its first capture, not in it */
    int step, count;
    void *execs[MOST_PARTS];
};

static void read_layer(struct bench *b, int step, int group, int at)
{
    CHECK_OK(wb_device_copy(b->device, seen_of(b, step, 3 * group + at), b->slots[group], SIZE,
                            b->stream, &error));
}

static void acquire(struct bench *b, int group)
{
    CHECK_OK(wb_offloader_acquire_group(b->offloader, (uint64_t)group, b->stream, &error));
}

static void release(struct bench *b, int group)
{
    CHECK_OK(wb_offloader_release_group(b->offloader, (uint64_t)group, b->stream, &error));
}

static void join(struct bench *b)
{
    CHECK_OK(wb_offloader_join(b->offloader, b->stream, &error));
}

static void begin_capture(struct bench *b)
{
    CHECK(b->captures.begin(b->stream, 2) == 0);
}

static void *end_capture(struct bench *b)
{
    void *made = NULL, *exec = NULL;
    join(b);
    CHECK(b->captures.end(b->stream, &made) == 0);
    CHECK(b->captures.instantiate(&exec, made, 0) == 0);
    CHECK(b->captures.destroy(made) == 0);
    return exec;
}

static void eager_layers(struct bench *b)
{
    const int step = new_step(b, layers);
    begin_step(b);
    for (int group = 0; group < GROUPS; group++) {
        acquire(b, group);
        for (int at = 0; at < 3; at++) read_layer(b, step, group, at);
        release(b, group);
    }
}

static void capture_parts(struct bench *b, struct parts *set)
{
    set->step = new_step(b, layers);
    set->count = 0;
    if (set->begins_before) begin_step(b);
    begin_capture(b);
    if (!set->begins_before) begin_step(b);
    for (int group = 0; group < GROUPS; group++) {
        acquire(b, group);
        read_layer(b, set->step, group, 0);
        const int cut = set->in_the_middle >> group & 1;
        if (cut) set->execs[set->count++] = end_capture(b);
        read_layer(b, set->step, group, 1);
        if (cut) begin_capture(b);
        read_layer(b, set->step, group, 2);
        release(b, group);
        if (set->behind >> group & 1) {
            set->execs[set->count++] = end_capture(b);
            begin_capture(b);
        }
    }
    set->execs[set->count++] = end_capture(b);
}

static void replay_parts(struct bench *b, const struct parts *set)
{
    int part = 0;
    for (int group = 0; group < GROUPS; group++) {
        if (set->in_the_middle >> group & 1) {
            CHECK(b->captures.launch(set->execs[part++], b->stream) == 0);
            read_layer(b, set->step, group, 1);
        }
        if (set->behind >> group & 1) CHECK(b->captures.launch(set->execs[part++], b->stream) == 0);
    }
    CHECK(b->captures.launch(set->execs[part++], b->stream) == 0);
    CHECK_SAME(part, set->count);
}

static void parts_end(struct bench *b, struct parts *set)
{
    for (int part = 0; part < set->count; part++) {
        CHECK(b->captures.destroy_exec(set->execs[part]) == 0);
    }
}

/* One to five parts. */
static const struct parts cuts[] = {
    {0, 0, 0, 0, 0, {NULL}},          {1u << 3, 0, 0, 0, 0, {NULL}},
    {0, 1u << 4, 1, 0, 0, {NULL}},    {1u << 0 | 1u << 7, 0, 0, 0, 0, {NULL}},
    {0x15, 0, 1, 0, 0, {NULL}},       {0x0E, 0x40, 0, 0, 0, {NULL}},
    {1u << 2, 1u << 2, 0, 0, 0, {NULL}}, {0x0F, 0, 0, 0, 0, {NULL}},
    {0, 0x0F, 1, 0, 0, {NULL}},       {0xA0, 0x0A, 0, 0, 0, {NULL}},
};
enum { CUTS = sizeof cuts / sizeof cuts[0] };

/* Two sets of parts, as of two batch sizes, a whole graph and eager steps, in turn. */
static void mixed_steps(struct bench *b, int first, int second, const char *what)
{
    struct parts sets[2] = {cuts[first], cuts[second]};
    b->explicit_steps = 1;
    for (int at = 0; at < 2; at++) {
        eager_layers(b); /* the engine warms up */
        const uint64_t before = copies_of(b);
        capture_parts(b, &sets[at]);
        CHECK_SAME(copies_of(b) - before, GROUPS);
    }
    struct graph whole = captured(b, orders[first % ORDERS]);
    static const char turns[] = "ABAAwAeABwBeeBAowAB";
    for (const char *turn = turns; *turn != '\0'; turn++) {
        if (*turn == 'A') replay_parts(b, &sets[0]);
        if (*turn == 'B') replay_parts(b, &sets[1]);
        if (*turn == 'w') replay(b, &whole);
        if (*turn == 'e') eager_layers(b);
        if (*turn == 'o') eager(b, orders[second % ORDERS]);
    }
    check_reads(b, what, 0);
    for (int at = 0; at < 2; at++) parts_end(b, &sets[at]);
    graph_end(b, &whole);
}

static void every_mix(wb_device *device, wb_transfer_mode mode, uint32_t depth)
{
    char what[100];
    for (int first = 0; first < CUTS; first++) {
        struct bench b;
        const int second = (first * 3 + 1) % CUTS;
        if (!bench_begin(&b, device, mode, depth)) return;
        snprintf(what, sizeof what, "depth %u, parts %d and %d", depth, first, second);
        mixed_steps(&b, first, second, what);
        bench_end(&b);
    }
}

static void a_step_in_parts_copies_each_group_once_and_is_right_after_any_step(wb_device *device)
{
    for (uint32_t depth = 2; depth <= 4; depth++) {
        every_mix(device, WB_TRANSFER_MODE_PREFETCH, depth);
    }
    every_mix(device, WB_TRANSFER_MODE_ON_DEMAND, 0);
}

/* Slow copies, so that what does not wait for them reads too early. */
static void parts_wait_for_copies_in_flight(wb_device *device)
{
    double_set("WB_DOUBLE_DELAY_US", "100");
    struct bench b;
    REQUIRE(bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 3));
    mixed_steps(&b, 5, 3, "in flight");
    bench_end(&b);
    double_set("WB_DOUBLE_DELAY_US", "0");
}

/* A part that begins a step of its own relies on no other: it may be replayed by itself. */
static void a_part_that_begins_a_step_stands_alone(wb_device *device)
{
    struct bench b;
    REQUIRE(bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 3));
    b.explicit_steps = 1;
    struct graph parts[4];
    for (int part = 0; part < 4; part++) parts[part] = captured(&b, orders[5 + part]);
    static const int turns[] = {2, 2, 0, 3, 1, 3, 0, 2, 1, 1};
    for (size_t turn = 0; turn < sizeof turns / sizeof turns[0]; turn++) {
        replay(&b, &parts[turns[turn]]);
        CHECK_OK(wb_device_stream_synchronize(device, b.stream, &error));
        check_step(&b, "alone", parts[turns[turn]].step);
    }
    for (int part = 0; part < 4; part++) graph_end(&b, &parts[part]);
    bench_end(&b);
}

/* Graphs of kernels only: for each group one before and one behind the eager attention. */
struct kernels {
    int step;
    void *execs[2 * GROUPS];
};

/* A step of such graphs: captures them, or replays them. */
static void step_of_kernels(struct bench *b, struct kernels *set, int captures)
{
    begin_step(b);
    for (int group = 0; group < GROUPS; group++) {
        acquire(b, group);
        for (int at = 0; at < 3; at++) {
            void **exec = &set->execs[2 * group + at / 2];
            if (captures && at != 1) begin_capture(b);
            if (captures || at == 1) read_layer(b, set->step, group, at);
            if (captures && at != 1) *exec = end_capture(b); /* joins, as engines do everywhere */
            if (!captures && at != 1) CHECK(b->captures.launch(*exec, b->stream) == 0);
        }
        release(b, group);
    }
}

static void kernels_end(struct bench *b, struct kernels *set)
{
    for (int at = 0; at < 2 * GROUPS; at++) {
        CHECK(b->captures.destroy_exec(set->execs[at]) == 0);
    }
}

static void graphs_between_eager_calls_are_right_after_any_step(wb_device *device)
{
    for (uint32_t depth = 2; depth <= 4; depth++) {
        struct bench b;
        struct kernels sets[2];
        if (!bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, depth)) return;
        b.explicit_steps = 1;
        for (int at = 0; at < 2; at++) {
            sets[at].step = new_step(&b, layers);
            eager(&b, orders[0]);
            step_of_kernels(&b, &sets[at], 1);
        }
        struct graph whole = captured(&b, orders[5]);
        static const char turns[] = "ABAAwAeABwBeeBAwAB";
        for (const char *turn = turns; *turn != '\0'; turn++) {
            const wb_offloader_stats before = stats_of(&b);
            if (*turn == 'w') replay(&b, &whole);
            if (*turn == 'e') eager(&b, orders[4]);
            if (*turn != 'A' && *turn != 'B') continue;
            step_of_kernels(&b, &sets[*turn - 'A'], 0);
            CHECK_SAME(stats_of(&b).copies - before.copies, GROUPS);
            CHECK_SAME(stats_of(&b).late_copies - before.late_copies, 1); /* the first */
        }
        check_reads(&b, "kernels", 0);
        for (int at = 0; at < 2; at++) kernels_end(&b, &sets[at]);
        graph_end(&b, &whole);
        bench_end(&b);
    }
}

/* The joins in their captures change nothing: steps still prefetch for each other. */
static void captures_without_calls_of_a_step_leave_eager_steps_alone(wb_device *device)
{
    struct bench b;
    struct kernels set;
    REQUIRE(bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 3));
    set.step = new_step(&b, layers);
    step_of_kernels(&b, &set, 1);
    for (int turn = 0; turn < 3; turn++) {
        const wb_offloader_stats before = stats_of(&b);
        step_of_kernels(&b, &set, 0);
        CHECK_SAME(stats_of(&b).late_copies, before.late_copies);
        CHECK(stats_of(&b).copies - before.copies <= GROUPS);
        check_reads(&b, "overlapping steps", 1);
    }
    kernels_end(&b, &set);
    bench_end(&b);
}

static void check_refused(struct bench *b, void *stream)
{
    const uint64_t copies = copies_of(b);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_acquire_group(b->offloader, 5, stream, &error),
                "layers.5|outside of a capture|wb_offloader_begin_step");
    CHECK_SAME(copies_of(b), copies);
}

/* What replays could not repeat is refused between the captures. */
static void an_eager_acquire_within_a_captured_step_is_refused(wb_device *device)
{
    struct bench b;
    void *other = NULL;
    REQUIRE(bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2));
    REQUIRE_OK(wb_device_stream_new(device, &other, &error));
    b.explicit_steps = 1;
    for (int held = 0; held < 2; held++) {
        struct parts set = {held ? 1u << 5 : 0, held ? 0 : 1u << 4, 0, 0, 0, {NULL}};
        eager_layers(&b);
        /* As capture_parts, with the calls that are refused between the captures. */
        set.step = new_step(&b, layers);
        begin_capture(&b);
        begin_step(&b);
        for (int group = 0; group < GROUPS; group++) {
            if (group == 5 && held) acquire(&b, group);
            if (group == 5) {
                if (held) read_layer(&b, set.step, group, 0);
                set.execs[set.count++] = end_capture(&b);
                check_refused(&b, b.stream);
                check_refused(&b, other);
                if (held) read_layer(&b, set.step, group, 1);
                begin_capture(&b);
            }
            if (group != 5 || !held) acquire(&b, group);
            for (int at = group == 5 && held ? 2 : 0; at < 3; at++) {
                read_layer(&b, set.step, group, at);
            }
            release(&b, group);
        }
        set.execs[set.count++] = end_capture(&b);
        for (int turn = 0; turn < 2; turn++) { /* the refused calls have changed nothing */
            replay_parts(&b, &set);
            eager_layers(&b);
        }
        check_reads(&b, "after a refused acquire", 0);
        parts_end(&b, &set);
    }
    CHECK_OK(wb_device_stream_release(device, other, &error));
    bench_end(&b);
}

/* Groups that are read in place have nothing that a replay could overwrite. */
static void groups_without_slots_may_be_acquired_within_a_captured_step(wb_device *device)
{
    struct bench b;
    REQUIRE(bench_begin(&b, device, WB_TRANSFER_MODE_ZERO_COPY, 0));
    b.explicit_steps = 1;
    begin_step(&b);
    begin_capture(&b);
    begin_step(&b);
    acquire(&b, 0);
    release(&b, 0);
    void *first = end_capture(&b);
    acquire(&b, 1);
    release(&b, 1);
    CHECK(b.captures.destroy_exec(first) == 0);
    bench_end(&b);
}

static void a_release_ends_an_acquire_of_its_kind(wb_device *device)
{
    struct bench b;
    REQUIRE(bench_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 3));
    b.explicit_steps = 1;
    begin_step(&b);
    acquire(&b, 0);
    begin_capture(&b);
    begin_step(&b);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_release_group(b.offloader, 0, b.stream, &error),
                "layers.0|outside of captures");
    acquire(&b, 1);
    void *first = end_capture(&b);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_release_group(b.offloader, 1, b.stream, &error),
                "layers.1|outside of a capture|wb_offloader_reset");
    const uint64_t copies = copies_of(&b);
    release(&b, 0);
    CHECK_SAME(copies_of(&b), copies); /* no next group of this step can rely on slots */
    begin_step(&b); /* eagerly: the captured step is over */
    begin_capture(&b);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_release_group(b.offloader, 1, b.stream, &error),
                "layers.1|another step");
    void *second = end_capture(&b);
    CHECK_OK(wb_offloader_reset(b.offloader, b.stream, &error)); /* ends the abandoned one */
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_release_group(b.offloader, 1, b.stream, &error),
                "layers.1|not acquired");
    CHECK(b.captures.destroy_exec(first) == 0 && b.captures.destroy_exec(second) == 0);
    struct parts set = cuts[7];
    eager_layers(&b);
    const uint64_t before = copies_of(&b);
    capture_parts(&b, &set);
    CHECK_SAME(copies_of(&b) - before, GROUPS);
    replay_parts(&b, &set);
    check_reads(&b, "after an abandoned step", 0);
    parts_end(&b, &set);
    bench_end(&b);
}

CHECK_MAIN(CASE(a_step_in_parts_copies_each_group_once_and_is_right_after_any_step),
           CASE(parts_wait_for_copies_in_flight), CASE(a_part_that_begins_a_step_stands_alone),
           CASE(graphs_between_eager_calls_are_right_after_any_step),
           CASE(captures_without_calls_of_a_step_leave_eager_steps_alone),
           CASE(an_eager_acquire_within_a_captured_step_is_refused),
           CASE(groups_without_slots_may_be_acquired_within_a_captured_step),
           CASE(a_release_ends_an_acquire_of_its_kind))
