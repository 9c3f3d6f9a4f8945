/* An offloader of one ring of groups, and its steps: eager, captured, and captured in parts. Every
 * step's reads go to memory of their own and are compared at the end, so that steps overlap. */
#ifndef RING_H
#define RING_H

#include "captures.h"

/* A program of tests may define other weights. */
#ifndef RING_BYTES
#define RING_BYTES 4096
#define RING_CAPACITY RING_BYTES
#define RING_DTYPE WB_DTYPE_U8
#define RING_VALUE 1
#define RING_COMPRESS WB_COMPRESS_OFF
#endif

enum { GROUPS = 8, SIZE = RING_BYTES, STEPS = 12, LONGEST = 3 * GROUPS };

struct ring_model {
    char names[GROUPS][16];
    int64_t shape[1];
    wb_layout layout;
    unsigned char bytes[GROUPS][SIZE];
    wb_parameter parameters[GROUPS];
};

static struct ring_model ring;

/* The groups of a step in their order; -1 ends them. */
typedef int order[LONGEST + 1];

/* The orders in which engines acquire groups. */
static const order orders[] = {
    {0, 1, 2, 3, 4, 5, 6, 7, -1},    /* the plan's */
    {7, 6, 5, 4, 3, 2, 1, 0, -1},    /* backwards */
    {4, 5, 6, 7, 0, 1, 2, 3, -1},    /* from the 4th on */
    {0, 1, 2, 3, 4, 5, 6, 7, 5, -1}, /* one group more */
    {3, 0, 6, 1, 7, 2, 5, 4, -1},    /* shuffled */
    {6, 2, 4, 0, 7, 5, 1, 3, -1},    /* shuffled otherwise */
    {0, 1, 2, -1},                   /* ends early */
    {3, 4, 5, -1},                   /* goes on where the one before ended */
    {6, -1},                         /* one group */
};
enum { ORDERS = sizeof orders / sizeof orders[0] };

struct bench {
    wb_device *device;
    wb_plan *plan;
    wb_offloader *offloader;
    wb_buffer *seen; /* what each step has read */
    void *stream;
    const void *slots[GROUPS];
    struct captures captures;
    int steps;
    const int *read[STEPS];
    int explicit_steps; /* whether steps begin with wb_offloader_begin_step */
};

static inline unsigned char *seen_of(struct bench *b, int step, int at)
{
    return (unsigned char *)buffer_info(b->seen).data + (step * LONGEST + at) * SIZE;
}

/* Graphs only where there is a driver. */
static inline int bench_begin_with(struct bench *b, wb_device *device, wb_plan_options options)
{
    static const char *const every[] = {"layers"};
    memset(b, 0, sizeof *b);
    options.compress = RING_COMPRESS;
    options.compress_select = every;
    options.compress_select_count = RING_COMPRESS == WB_COMPRESS_SELECTED;
    b->device = device;
    ring.shape[0] = SIZE / RING_VALUE;
    ring.layout = layout_of(RING_DTYPE, 1, ring.shape, NULL, 0);
    for (int group = 0; group < GROUPS; group++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        snprintf(ring.names[group], sizeof ring.names[group], "layers.%d", group);
        memset(ring.bytes[group], group + 1, SIZE);
        ring.parameters[group] = empty;
        ring.parameters[group].name = ring.parameters[group].group = ring.names[group];
        ring.parameters[group].layout = &ring.layout;
        ring.parameters[group].source = ring.bytes[group];
    }
    if ((on_cuda() && !CHECK(captures_begin(&b->captures))) ||
        !CHECK_OK(wb_device_stream_new(device, &b->stream, &error)) ||
        !CHECK_OK(wb_plan_new(device, ring.parameters, GROUPS, &options, &b->plan, &error)) ||
        !CHECK_OK(wb_offloader_new(b->plan, b->stream, NULL, &b->offloader, &error)) ||
        !CHECK_OK(wb_buffer_alloc(device, STEPS * LONGEST * SIZE, NULL, &b->seen, &error))) {
        return 0;
    }
    for (uint64_t at = 0; at < GROUPS; at++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(b->offloader, at, &info, &error));
        CHECK_SAME(info.group, at);
        b->slots[at] = info.device_address;
    }
    return 1;
}

static inline void bench_end(struct bench *b)
{
    CHECK_OK(wb_device_stream_synchronize(b->device, b->stream, &error));
    wb_plan_release(b->plan);
    wb_offloader_release(b->offloader);
    wb_buffer_release(b->seen);
    CHECK_OK(wb_device_stream_release(b->device, b->stream, &error));
    if (on_cuda()) captures_end(&b->captures);
}

#ifdef RING_KEPT
/* The least budget of device memory, in steps of 256 bytes, under which the device keeps all weights. */
static inline uint64_t keeping_budget(wb_device *device, wb_plan_options options)
{
    static const char *const every[] = {"layers"};
    struct bench described;
    wb_plan_info info = WB_PLAN_INFO_INIT;
    if (bench_begin_with(&described, device, options)) bench_end(&described); /* fills `ring` */
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.compress = RING_COMPRESS;
    options.compress_select = every;
    options.compress_select_count = 1;
    for (uint64_t bytes = RING_CAPACITY; bytes < GROUPS * RING_BYTES; bytes += 256) {
        wb_plan *plan = NULL;
        options.budget_bytes = bytes;
        if (wb_plan_new(device, ring.parameters, GROUPS, &options, &plan, &error) != WB_OK) continue;
        CHECK_OK(wb_plan_get_info(plan, &info, &error));
        wb_plan_release(plan);
        if (info.device_decoded_bytes == GROUPS * RING_BYTES) return bytes;
    }
    CHECK(0);
    return GROUPS * RING_BYTES;
}
#endif

static inline int bench_begin(struct bench *b, wb_device *device, wb_transfer_mode mode, uint32_t depth)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = GROUPS * RING_CAPACITY;
    options.transfer_mode = mode;
    options.depth = depth;
#ifdef RING_KEPT
    if (mode == WB_TRANSFER_MODE_PREFETCH) {
        options.link_bytes_per_second = 1e6; /* so slow that a byte less on it is worth decoding many */
        options.budget_bytes = keeping_budget(device, options);
        options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    }
#endif
    return bench_begin_with(b, device, options);
}

static inline wb_offloader_stats stats_of(struct bench *b)
{
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    CHECK_OK(wb_offloader_get_stats(b->offloader, &stats, &error));
    return stats;
}

static inline uint64_t copies_of(struct bench *b)
{
    return stats_of(b).copies;
}

/* Acquires, reads and releases a group, as read number `at` of the step. */
static inline void visit(struct bench *b, int step, int at, int group)
{
    CHECK_OK(wb_offloader_acquire_group(b->offloader, (uint64_t)group, b->stream, &error));
    CHECK_OK(wb_device_copy(b->device, seen_of(b, step, at), b->slots[group], SIZE, b->stream,
                            &error));
    CHECK_OK(wb_offloader_release_group(b->offloader, (uint64_t)group, b->stream, &error));
}

static inline int new_step(struct bench *b, const int *groups)
{
    b->read[b->steps] = groups;
    memset(seen_of(b, b->steps, 0), 0xEE, LONGEST * SIZE);
    return b->steps++;
}

static inline void begin_step(struct bench *b)
{
    if (b->explicit_steps) CHECK_OK(wb_offloader_begin_step(b->offloader, b->stream, &error));
}

static inline void eager(struct bench *b, const int *groups)
{
    const int step = new_step(b, groups);
    begin_step(b);
    for (int at = 0; groups[at] >= 0; at++) visit(b, step, at, groups[at]);
}

/* A captured step, or a part of one, that reads to memory of its own. */
struct graph {
    void *exec;
    int step, first, count;
};

static inline void capture(struct bench *b, struct graph *graph)
{
    void *made = NULL;
    REQUIRE(b->captures.begin(b->stream, 2) == 0);
    if (graph->first == 0) begin_step(b);
    for (int at = graph->first; at < graph->first + graph->count; at++) {
        visit(b, graph->step, at, b->read[graph->step][at]);
    }
    CHECK_OK(wb_offloader_join(b->offloader, b->stream, &error));
    REQUIRE(b->captures.end(b->stream, &made) == 0);
    CHECK(b->captures.instantiate(&graph->exec, made, 0) == 0);
    CHECK(b->captures.destroy(made) == 0);
}

static inline struct graph captured(struct bench *b, const int *groups)
{
    struct graph graph = {NULL, new_step(b, groups), 0, 0};
    while (groups[graph.count] >= 0) graph.count++;
    capture(b, &graph);
    return graph;
}

static inline void replay(struct bench *b, const struct graph *graph)
{
    CHECK(b->captures.launch(graph->exec, b->stream) == 0);
}

static inline void graph_end(struct bench *b, struct graph *graph)
{
    CHECK(b->captures.destroy_exec(graph->exec) == 0);
}

/* Checks what a step has read, and forgets it. */
static inline void check_step(struct bench *b, const char *what, int step)
{
    for (int at = 0; b->read[step][at] >= 0; at++) {
        const unsigned char wanted = (unsigned char)(b->read[step][at] + 1);
        const unsigned char *seen = seen_of(b, step, at);
        int right = 0;
        while (right < SIZE && seen[right] == wanted) right++;
        if (right == SIZE) continue;
        char text[200];
        snprintf(text, sizeof text, "%s: step %d, read %d: group %d has the bytes of %d", what, step,
                 at, wanted - 1, seen[right] - 1);
        check_failed(__FILE__, __LINE__, text);
    }
    memset(seen_of(b, step, 0), 0xEE, LONGEST * SIZE);
}

/* Checks what the steps since the last check have read, and forgets them from step `from` on. */
static inline void check_reads(struct bench *b, const char *what, int from)
{
    CHECK_OK(wb_device_stream_synchronize(b->device, b->stream, &error));
    for (int step = 0; step < b->steps; step++) check_step(b, what, step);
    b->steps = from;
}

#endif
