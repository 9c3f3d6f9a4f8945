/* Expert caches: what is gathered and evicted, lanes, hints, passes, streams, captures. */
#include "experts.h"

#include "captures.h"
#include "gate.h"

static void synchronize(struct experts *e, void *stream)
{
    CHECK_OK(wb_device_stream_synchronize(e->device, stream, &error));
}

static void ids_become_slots_that_hold_their_experts(wb_device *device)
{
    static const int64_t first[] = {5, 2, 5, -1, 8}, second[] = {2, 7}, third[] = {1, 0, 3};
    static const int64_t slots[] = {1, 0, 1, -1, -1};
    struct experts e;
    if (!experts_begin(&e, device, 5, 1)) return;
    int call = route(&e, 0, first, 5, 0, NULL);
    synchronize(&e, NULL);
    check_call(&e, call);
    CHECK(memcmp(e.slots + call * E_IDS, slots, sizeof slots) == 0);
    call = route(&e, 0, second, 2, 0, NULL);
    synchronize(&e, NULL);
    CHECK_SAME(e.slots[call * E_IDS], 0);
    CHECK_SAME(e.slots[call * E_IDS + 1], 2);
    /* Slots 3 and 4 are empty; 1 was used before 0 and 2. Experts and slots are in order. */
    call = route(&e, 2, third, 3, 0, NULL);
    synchronize(&e, NULL);
    check_call(&e, call);
    CHECK_SAME(e.slots[call * E_IDS], 3);
    CHECK_SAME(e.slots[call * E_IDS + 1], 1);
    CHECK_SAME(e.slots[call * E_IDS + 2], 4);
    const wb_expert_cache_stats stats = experts_stats(&e);
    CHECK_SAME(stats.calls, 3);
    CHECK_SAME(stats.hits, 1);
    CHECK_SAME(stats.misses, 6);
    CHECK_SAME(stats.evictions, 1);
    CHECK_SAME(stats.ignored, 2);
    CHECK_SAME(stats.gathered_bytes, 6 * (192 + 5 + 36));
    wb_expert_cache_stats of_layer = WB_EXPERT_CACHE_STATS_INIT;
    CHECK_OK(wb_expert_cache_get_layer_stats(e.cache, 2, &of_layer, &error));
    CHECK(of_layer.misses == 3 && of_layer.evictions == 1 && of_layer.hits == 0);
    experts_end(&e);
}

static void ids_of_32_bits_are_rewritten_in_place(wb_device *device)
{
    const int32_t ids[] = {3, -1, 6, 3}, wanted[] = {0, -1, 1, 0};
    int32_t found[4];
    struct experts e;
    if (!experts_begin(&e, device, 4, 1)) return;
    memcpy(e.ids, ids, sizeof ids);
    CHECK_OK(wb_device_copy(device, e.memory, e.ids, sizeof ids, NULL, &error));
    CHECK_OK(wb_expert_cache_route(e.cache, 1, e.memory, 4, WB_DTYPE_I32, e.memory, NULL, NULL, &error));
    if (read_device(device, found, e.memory, sizeof found)) {
        CHECK(memcmp(found, wanted, sizeof wanted) == 0);
        CHECK(holds_expert(&e, 1, 1, 6));
    }
    experts_end(&e);
}

static void slots_are_tensors_of_the_capacity(wb_device *device)
{
    wb_expert_cache_info info = WB_EXPERT_CACHE_INFO_INIT;
    wb_expert_slots_info slots = WB_EXPERT_SLOTS_INFO_INIT;
    wb_view *view = NULL;
    struct experts e;
    if (!experts_begin(&e, device, 5, 2)) return;
    CHECK_OK(wb_expert_cache_get_info(e.cache, &info, &error));
    CHECK(info.lanes == 2 && info.layers == E_LAYERS && info.tensors == E_TENSORS);
    CHECK(info.experts == E_LAYERS * E_EXPERTS && info.slots == 5 && info.capacity == 5);
    CHECK_SAME(info.expert_bytes, 192 + 5 + 36);
    /* The second and the third begin at the next multiples of 256. */
    CHECK_SAME(info.slot_bytes, 1024 + 256 + 5 * 36);
    CHECK_OK(wb_expert_cache_get_view(e.cache, 0, &view, &error));
    const wb_view_info shown = view_info(view);
    CHECK(shown.dtype == WB_DTYPE_BF16 && shown.ndim == 3 && shown.shape[0] == 5);
    CHECK(shown.shape[1] == 6 && shown.shape[2] == 16 && shown.strides[0] == 96);
    CHECK_OK(wb_expert_cache_get_slots_info(e.cache, 0, &slots, &error));
    CHECK(slots.device_address == shown.device_address && strcmp(slots.name, "w13") == 0);
    CHECK_OK(wb_expert_cache_get_slots_info(e.cache, 2, &slots, &error));
    CHECK(slots.dtype == WB_DTYPE_OPAQUE && strcmp(slots.dtype_name, "q4_0") == 0);
    CHECK(slots.block_elements == 32 && slots.block_bytes == 18 && slots.ndim == 2);
    CHECK(slots.shape[0] == 5 && slots.shape[1] == 64);
    /* The view holds the memory. */
    wb_expert_cache_release(e.cache);
    e.cache = NULL;
    CHECK_OK(wb_device_copy(device, e.slots, shown.device_address, 192, NULL, &error));
    synchronize(&e, NULL);
    wb_view_release(view);
    experts_end(&e);
}

static void a_layer_with_more_experts_than_slots_is_computed_in_passes(wb_device *device)
{
    static const int64_t ids[] = {7, 6, 5, 4, 3, 2, 1, 0};
    wb_expert_route_options options = WB_EXPERT_ROUTE_OPTIONS_INIT;
    uint64_t passes = 0;
    int seen[E_EXPERTS] = {0};
    struct experts e;
    if (!experts_begin(&e, device, 3, 1)) return;
    CHECK_OK(wb_expert_cache_get_passes(e.cache, 0, 3, &passes, &error));
    CHECK_SAME(passes, 1);
    CHECK_OK(wb_expert_cache_get_passes(e.cache, 0, 8, &passes, &error));
    CHECK_SAME(passes, 3);
    const int call = give_ids(&e, 0, ids, 8, NULL);
    CHECK_ERROR(WB_ERR_SLOTS_BUDGET,
                wb_expert_cache_route(e.cache, 0, device_ids(&e, call), 8, WB_DTYPE_I64,
                                      device_slots(&e, call), NULL, NULL, &error),
                "up to 8 experts|3 of 3 slots|in 3 passes");
    CHECK_SAME(experts_stats(&e).calls, 0);
    options.passes = 3;
    for (options.pass = 0; options.pass < 3; options.pass++) {
        CHECK_OK(wb_expert_cache_route(e.cache, 0, device_ids(&e, call), 8, WB_DTYPE_I64,
                                       device_slots(&e, call), &options, NULL, &error));
        take_slots(&e, call, NULL);
        synchronize(&e, NULL);
        for (int at = 0; at < 8; at++) {
            const int64_t slot = e.slots[call * E_IDS + at];
            if (slot < 0) continue;
            seen[ids[at]]++;
            CHECK(holds_expert(&e, slot, 0, (uint64_t)ids[at]));
        }
    }
    for (int expert = 0; expert < E_EXPERTS; expert++) CHECK_SAME(seen[expert], 1);
    experts_end(&e);
}

/* Calls of two lanes on two streams, of which nothing is waited for before all are queued: each finds
 * what the same calls give one at a time, and the last of each lane still has its experts. */
static void batches_on_two_streams_do_not_evict_each_others_experts(wb_device *device)
{
    struct experts one, both;
    void *streams[2] = {NULL, NULL};
    uint32_t seed = 7;
    double_set("WB_DOUBLE_DELAY_US", "200");
    if (!experts_begin(&one, device, 14, 2) || !experts_begin(&both, device, 14, 2)) return;
    for (int at = 0; at < 2; at++) REQUIRE_OK(wb_device_stream_new(device, &streams[at], &error));
    int last[2] = {0, 0};
    for (int at = 0; at < 40; at++) {
        int64_t ids[6];
        const uint64_t layer = random_below(&seed, E_LAYERS), count = random_ids(&seed, ids);
        const uint32_t lane = random_below(&seed, 2);
        last[lane] = route(&both, layer, ids, count, lane, streams[lane]);
        route(&one, layer, ids, count, lane, NULL);
        synchronize(&one, NULL);
    }
    for (int at = 0; at < 2; at++) synchronize(&both, streams[at]);
    CHECK(memcmp(one.slots, both.slots, E_BYTES) == 0);
    for (int at = 0; at < 2; at++) check_call(&both, last[at]);
    double_set("WB_DOUBLE_DELAY_US", "0");
    for (int at = 0; at < 2; at++) CHECK_OK(wb_device_stream_release(device, streams[at], &error));
    experts_end(&one);
    experts_end(&both);
}

/* A hint on another stream: its call hits, and what the running call reads is not evicted. */
static void a_hint_is_gathered_before_its_call_reads_it(wb_device *device)
{
    static const int64_t now[] = {0, 1}, later[] = {3, 4, 5};
    struct experts e;
    void *ahead = NULL;
    double_set("WB_DOUBLE_DELAY_US", "300");
    if (!experts_begin(&e, device, 5, 1)) return;
    REQUIRE_OK(wb_device_stream_new(device, &ahead, &error));
    const int first = route(&e, 0, now, 2, 0, NULL);
    hint(&e, 1, later, 3, ahead);
    const int second = route(&e, 1, later, 3, 0, NULL);
    synchronize(&e, NULL);
    check_call(&e, first);
    check_call(&e, second);
    const wb_expert_cache_stats stats = experts_stats(&e);
    CHECK(stats.prefetched == 3 && stats.misses == 2 && stats.hits == 3 && stats.evictions == 0);
    /* Two slots are held, so three of the four find one. */
    static const int64_t many[] = {0, 1, 2, 3};
    hint(&e, 2, many, 4, ahead);
    synchronize(&e, ahead);
    CHECK_SAME(experts_stats(&e).refused, 4 - 2);
    check_call(&e, second);
    double_set("WB_DOUBLE_DELAY_US", "0");
    CHECK_OK(wb_device_stream_release(device, ahead, &error));
    experts_end(&e);
}

static void memory_of_the_caller_holds_the_slots(wb_device *device)
{
    static const int64_t ids[] = {4};
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    wb_expert_cache_size size = WB_EXPERT_CACHE_SIZE_INIT;
    wb_expert_slots_info slots = WB_EXPERT_SLOTS_INFO_INIT;
    struct experts e;
    void *memory = NULL;
    if (!experts_begin(&e, device, 2, 1)) return;
    wb_expert_cache_release(e.cache);
    e.cache = NULL;
    options.slots = 2;
    REQUIRE_OK(experts_new(&e, &options, &size));
    CHECK_SAME(size.slots, 2);
    REQUIRE_OK(wb_device_alloc(device, size.slot_bytes, &memory, &error));
    options.memory = memory;
    options.memory_bytes = size.slot_bytes - 1;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, experts_new(&e, &options, NULL), "the memory for slots has");
    options.memory_bytes = size.slot_bytes;
    const uint64_t before = device_stats(device).device_bytes;
    REQUIRE_OK(experts_new(&e, &options, NULL));
    CHECK_SAME(device_stats(device).device_bytes - before, size.state_bytes);
    CHECK_OK(wb_expert_cache_get_slots_info(e.cache, 0, &slots, &error));
    CHECK(slots.device_address == memory);
    const int call = route(&e, 1, ids, 1, 0, NULL);
    synchronize(&e, NULL);
    check_call(&e, call);
    /* A budget: the bytes of this size hold as many slots, and one byte less does not. */
    wb_expert_cache_options budget = WB_EXPERT_CACHE_OPTIONS_INIT;
    budget.device_bytes = size.slot_bytes + size.state_bytes;
    CHECK_OK(experts_new(&e, &budget, &size));
    CHECK_SAME(size.slots, 2);
    budget.device_bytes--;
    CHECK_OK(experts_new(&e, &budget, &size));
    CHECK_SAME(size.slots, 1);
    experts_end(&e);
    CHECK_OK(wb_device_free(device, memory, &error));
}

static void changed_weights_are_read_after_a_reset_and_fewer_slots_evict(wb_device *device)
{
    static const int64_t ids[] = {1, 2}, two[] = {6, 7};
    struct experts e;
    if (!experts_begin(&e, device, 4, 1)) return;
    route(&e, 0, ids, 2, 0, NULL);
    synchronize(&e, NULL);
    CHECK_OK(wb_expert_cache_reset(e.cache, NULL, &error));
    route(&e, 0, ids, 2, 0, NULL);
    route(&e, 0, two, 2, 0, NULL);
    synchronize(&e, NULL);
    CHECK_SAME(experts_stats(&e).misses, 6);
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_expert_cache_resize(e.cache, 5, NULL, &error), "memory for 4");
    CHECK_ERROR(WB_ERR_SLOTS_BUDGET, wb_expert_cache_resize(e.cache, 1, NULL, &error), "need up to 2");
    CHECK_OK(wb_expert_cache_resize(e.cache, 2, NULL, &error));
    const int call = route(&e, 0, ids, 2, 0, NULL);
    synchronize(&e, NULL);
    check_call(&e, call);
    CHECK(e.slots[call * E_IDS] == 0 && e.slots[call * E_IDS + 1] == 1);
    CHECK_SAME(experts_stats(&e).misses, 6);
    experts_end(&e);
}

static void invalid_calls_are_refused(wb_device *device)
{
    static const int64_t ids[] = {1};
    wb_expert_route_options options = WB_EXPERT_ROUTE_OPTIONS_INIT;
    struct experts e;
    if (!experts_begin(&e, device, 4, 2)) return;
    const int call = give_ids(&e, 0, ids, 1, NULL);
    unsigned char *from = device_ids(&e, call), *to = device_slots(&e, call);
#define ROUTE(layer, from, dtype, to) \
    wb_expert_cache_route(e.cache, layer, from, 1, dtype, to, &options, NULL, &error)
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, ROUTE(3, from, WB_DTYPE_I64, to), "layer 3; there are 3");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, ROUTE(0, from, WB_DTYPE_F32, to), "dtype is 12");
    CHECK_ERROR(WB_ERR_UNALIGNED, ROUTE(0, from + 4, WB_DTYPE_I64, to), "ids is|multiple of 8");
    CHECK_ERROR(WB_ERR_UNALIGNED, ROUTE(0, from, WB_DTYPE_I32, to + 2), "slots is|multiple of 4");
    CHECK_NULL(ROUTE(0, NULL, WB_DTYPE_I64, to), "ids is NULL");
    CHECK_NULL(ROUTE(0, from, WB_DTYPE_I64, NULL), "slots is NULL");
    options.lane = 2;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, ROUTE(0, from, WB_DTYPE_I64, to), "lane 2; there are 2");
    options.lane = 0;
    options.pass = 2;
    options.passes = 2;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, ROUTE(0, from, WB_DTYPE_I64, to), "pass 2 of 2");
    options.pass = 0;
    options.passes = 9;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, ROUTE(0, from, WB_DTYPE_I64, to), "8 experts");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_expert_cache_prefetch(e.cache, 3, from, 1, WB_DTYPE_I64, NULL, &error), "layer 3");
    CHECK_OK(wb_expert_cache_route(e.cache, 0, NULL, 0, WB_DTYPE_I64, NULL, NULL, NULL, &error));
    CHECK_SAME(experts_stats(&e).calls, 0);
    experts_end(&e);
}

static void the_host_device_takes_the_same_slots(wb_device *device)
{
    struct experts here, host;
    wb_device *other = NULL;
    uint32_t seed = 3;
    REQUIRE_OK(wb_device_open("host", NULL, &other, &error));
    if (!experts_begin(&here, device, 13, 2) || !experts_begin(&host, other, 13, 2)) return;
    for (int at = 0; at < E_CALLS - 4; at++) {
        int64_t ids[6];
        const uint64_t layer = random_below(&seed, E_LAYERS), count = random_ids(&seed, ids);
        const uint32_t lane = random_below(&seed, 3);
        if (lane == 2) {
            hint(&here, layer, ids, count, NULL);
            hint(&host, layer, ids, count, NULL);
            continue;
        }
        const int call = route(&here, layer, ids, count, lane, NULL);
        route(&host, layer, ids, count, lane, NULL);
        synchronize(&here, NULL);
        check_call(&here, call);
    }
    synchronize(&here, NULL); /* the last may be hints */
    synchronize(&host, NULL);
    CHECK(memcmp(here.slots, host.slots, E_BYTES) == 0);
    for (uint64_t layer = 0; layer < E_LAYERS; layer++) {
        wb_expert_cache_stats stats[2] = {WB_EXPERT_CACHE_STATS_INIT, WB_EXPERT_CACHE_STATS_INIT};
        CHECK_OK(wb_expert_cache_get_layer_stats(here.cache, layer, &stats[0], &error));
        CHECK_OK(wb_expert_cache_get_layer_stats(host.cache, layer, &stats[1], &error));
        CHECK(memcmp(&stats[0], &stats[1], sizeof stats[0]) == 0);
    }
    experts_end(&here);
    experts_end(&host);
    wb_device_release(other);
}

/* The events by which an engine forks a stream in a capture. */
struct forks {
    int (*create)(void **, unsigned), (*record)(void *, void *), (*destroy)(void *);
    int (*wait)(void *, void *, unsigned);
    void *event;
};

static int forks_begin(struct forks *forks)
{
    return CHECK(driver_function("cuEventCreate", &forks->create) &&
                 driver_function("cuEventRecord", &forks->record) &&
                 driver_function("cuEventDestroy_v2", &forks->destroy) &&
                 driver_function("cuStreamWaitEvent", &forks->wait)) &&
           CHECK(forks->create(&forks->event, 2) == 0);
}

/* A step: for each layer a hint for the next on another stream, and the call. The ids of layer `l` are
 * those of call `l`, and of the hint for it those of call `E_LAYERS + l`. */
static void step(struct experts *e, void *stream, void *ahead, const struct forks *forks)
{
    for (uint64_t layer = 0; layer < E_LAYERS; layer++) {
        CHECK_OK(wb_expert_cache_route(e->cache, layer, device_ids(e, (int)layer), 3, WB_DTYPE_I64,
                                       device_slots(e, (int)layer), NULL, stream, &error));
        if (layer + 1 == E_LAYERS) return;
        CHECK(forks->record(forks->event, stream) == 0);
        CHECK(forks->wait(ahead, forks->event, 0) == 0);
        CHECK_OK(wb_expert_cache_prefetch(e->cache, layer + 1,
                                          device_ids(e, E_LAYERS + (int)layer + 1), 3, WB_DTYPE_I64,
                                          ahead, &error));
    }
}

static void a_captured_step_takes_the_slots_of_one_that_was_not(wb_device *device)
{
    struct captures captures;
    struct forks forks;
    struct experts eager, graph;
    void *stream = NULL, *ahead = NULL, *made = NULL, *exec = NULL;
    uint32_t seed = 11;
    if (!captures_begin(&captures) || !forks_begin(&forks)) return;
    if (!experts_begin(&eager, device, 9, 1) || !experts_begin(&graph, device, 9, 1)) return;
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    REQUIRE_OK(wb_device_stream_new(device, &ahead, &error));
    REQUIRE(captures.begin(stream, 2) == 0);
    step(&graph, stream, ahead, &forks);
    REQUIRE(captures.end(stream, &made) == 0);
    REQUIRE(captures.instantiate(&exec, made, 0) == 0);
    CHECK_SAME(experts_stats(&graph).calls, 0);
    for (int turn = 0; turn < 20; turn++) {
        eager.calls = graph.calls = 0;
        for (int call = 0; call < 2 * E_LAYERS; call++) {
            int64_t ids[3];
            for (int at = 0; at < 3; at++) ids[at] = (int64_t)random_below(&seed, E_EXPERTS);
            give_ids(&eager, (uint64_t)(call % E_LAYERS), ids, 3, stream);
            give_ids(&graph, (uint64_t)(call % E_LAYERS), ids, 3, stream);
        }
        /* Now and then a step that is not captured comes between replays. */
        if (turn % 5 == 4) step(&graph, stream, ahead, &forks);
        else CHECK(captures.launch(exec, stream) == 0);
        step(&eager, stream, ahead, &forks);
        for (int call = 0; call < E_LAYERS; call++) {
            take_slots(&eager, call, stream);
            take_slots(&graph, call, stream);
        }
        synchronize(&graph, stream);
        for (int call = 0; call < E_LAYERS; call++) {
            CHECK(memcmp(eager.slots + call * E_IDS, graph.slots + call * E_IDS, 24) == 0);
        }
        check_call(&graph, E_LAYERS - 1);
    }
    const wb_expert_cache_stats stats[2] = {experts_stats(&eager), experts_stats(&graph)};
    CHECK(memcmp(&stats[0], &stats[1], sizeof stats[0]) == 0);
    CHECK(stats[0].hits > 0 && stats[0].misses > 0 && stats[0].prefetched > 0);
    /* Fewer slots, which the graph sees. */
    CHECK_OK(wb_expert_cache_resize(graph.cache, 6, stream, &error));
    CHECK(captures.launch(exec, stream) == 0);
    for (int call = 0; call < E_LAYERS; call++) take_slots(&graph, call, stream);
    synchronize(&graph, stream);
    for (int at = 0; at < E_LAYERS * 3; at++) CHECK(graph.slots[at / 3 * E_IDS + at % 3] < 6);
    check_call(&graph, E_LAYERS - 1);
    REQUIRE(captures.begin(stream, 2) == 0);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_expert_cache_reset(graph.cache, stream, &error), "reset");
    CHECK_ERROR(WB_ERR_CAPTURING, wb_expert_cache_resize(graph.cache, 9, stream, &error), "resize");
    void *empty = NULL;
    CHECK(captures.end(stream, &empty) == 0 && captures.destroy(empty) == 0);
    CHECK(captures.destroy_exec(exec) == 0 && captures.destroy(made) == 0);
    experts_end(&eager);
    experts_end(&graph);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_stream_release(device, ahead, &error));
    CHECK(forks.destroy(forks.event) == 0);
    captures_end(&captures);
}

/* A call that fails leaves no expert in a slot without its bytes, and no call on another stream that
 * comes before queued work. */
static void after_a_call_that_failed_the_next_is_right(wb_device *device)
{
    static const char *const settings[] = {"cuLaunchKernel:1:1", "cuEventRecord:1:1", "cuStreamGetId:1:1",
                                           "cuStreamGetCaptureInfo_v2:1:1", "cuStreamWaitEvent:1:1"};
    static const int64_t ids[] = {2, 3};
    void *first = NULL, *other = NULL;
    REQUIRE_OK(wb_device_stream_new(device, &first, &error));
    REQUIRE_OK(wb_device_stream_new(device, &other, &error));
    for (int at = 0; at < 5; at++) {
        struct experts e;
        if (!experts_begin(&e, device, 4, 1)) return;
        route(&e, 1, ids, 1, 0, first); /* so that there is something to wait for */
        const int call = give_ids(&e, 0, ids, 2, NULL);
        synchronize(&e, first);
        synchronize(&e, NULL);
        double_set("WB_DOUBLE_DELAY_US", "300");
        double_set("WB_DOUBLE_FAIL", settings[at]);
        CHECK_ERROR(WB_ERR_DRIVER,
                    wb_expert_cache_route(e.cache, 0, device_ids(&e, call), 2, WB_DTYPE_I64,
                                          device_slots(&e, call), NULL, NULL, &error),
                    "returned CUDA_ERROR_INVALID_VALUE");
        double_set("WB_DOUBLE_FAIL", "");
        const int again = route(&e, 0, ids, 2, 0, other);
        synchronize(&e, other);
        check_call(&e, again);
        double_set("WB_DOUBLE_DELAY_US", "0");
        experts_end(&e);
    }
    CHECK_OK(wb_device_stream_release(device, first, &error));
    CHECK_OK(wb_device_stream_release(device, other, &error));
}

/* What the driver was asked: to make streams wait, to find functions, and all in all. */
struct asked {
    long long waits, functions, calls;
};

static struct asked all_asked(void)
{
    struct asked now;
    now.waits = double_called("cuStreamWaitEvent");
    now.functions = double_called("cuModuleGetFunction");
    now.calls = double_called(NULL);
    return now;
}

/* Routes, and checks how often the stream was made to wait. Returns all calls of the driver. */
static long long routed(struct experts *e, void *stream, long long waits)
{
    static const int64_t ids[] = {1, 2};
    const int call = give_ids(e, 0, ids, 2, stream);
    const struct asked before = all_asked();
    CHECK_OK(wb_expert_cache_route(e->cache, 0, device_ids(e, call), 2, WB_DTYPE_I64,
                                   device_slots(e, call), NULL, stream, &error));
    const struct asked after = all_asked();
    CHECK_SAME(after.waits - before.waits, waits);
    return after.calls - before.calls;
}

/* A stream waits for the last call unless it made it itself, whatever kind of call that was; captured
 * calls are none of those. The order costs a repeated call eight calls of the driver. */
static void a_stream_waits_for_the_last_call_unless_it_made_it(wb_device *device)
{
    struct captures captures;
    struct experts e;
    void *one = NULL, *other = NULL, *made = NULL;
    if (!captures_begin(&captures) || !experts_begin(&e, device, 8, 1)) return;
    REQUIRE_OK(wb_device_stream_new(device, &one, &error));
    REQUIRE_OK(wb_device_stream_new(device, &other, &error));
    routed(&e, one, 0);
    const struct asked before = all_asked();
    CHECK_SAME(routed(&e, one, 0), 8);
    CHECK_SAME(all_asked().functions, before.functions);
    CHECK_SAME(routed(&e, other, 1), 9);
    routed(&e, one, 1);
    routed(&e, NULL, 1);
    routed(&e, NULL, 0);
    routed(&e, one, 1);
    static const int64_t ids[] = {3};
    hint(&e, 1, ids, 1, other);
    routed(&e, one, 1);
    CHECK_OK(wb_expert_cache_reset(e.cache, other, &error));
    routed(&e, other, 0);
    CHECK_OK(wb_expert_cache_resize(e.cache, 6, one, &error));
    routed(&e, other, 1);
    REQUIRE(captures.begin(one, 2) == 0);
    routed(&e, one, 0);
    REQUIRE(captures.end(one, &made) == 0 && captures.destroy(made) == 0);
    routed(&e, other, 0);
    routed(&e, one, 1);
    take_slots(&e, e.calls - 1, one);
    synchronize(&e, one);
    check_call(&e, e.calls - 1);
    CHECK_OK(wb_device_stream_release(device, one, &error));
    CHECK_OK(wb_device_stream_release(device, other, &error));
    experts_end(&e);
    captures_end(&captures);
}

/* A new stream that has the handle of a destroyed one, whose work is not done, waits for it. */
static void a_stream_with_the_handle_of_a_destroyed_one_waits(wb_device *device)
{
    static const int64_t ids[] = {4, 5};
    int (*query)(void *) = NULL;
    struct gate gate = GATE_INIT;
    struct captures captures;
    struct experts e;
    void *first = NULL, *second = NULL;
    REQUIRE(driver_function("cuStreamQuery", &query));
    if (!captures_begin(&captures) || !experts_begin(&e, device, 4, 1)) return;
    double_set("WB_DOUBLE_REUSE_STREAMS", "1");
    REQUIRE_OK(wb_device_stream_new(device, &first, &error));
    REQUIRE_OK(wb_device_stream_call(device, first, gate_wait, &gate, &error));
    route(&e, 0, ids, 2, 0, first);
    CHECK_OK(wb_device_stream_release(device, first, &error));
    REQUIRE_OK(wb_device_stream_new(device, &second, &error));
    CHECK(second == first);
    const int call = route(&e, 1, ids, 2, 0, second);
    for (int turn = 0; turn < 50; turn++) {
        usleep(1000);
        if (!CHECK(query(second) == 600)) break; /* CUDA_ERROR_NOT_READY */
    }
    gate_open(&gate);
    synchronize(&e, second);
    check_call(&e, call);
    double_set("WB_DOUBLE_REUSE_STREAMS", "0");
    CHECK_OK(wb_device_stream_release(device, second, &error));
    experts_end(&e);
    captures_end(&captures);
}

/* Another thread may capture a step with calls of the same cache meanwhile. */
static void calls_of_a_capture_are_ordered_beside_those_of_another(wb_device *device)
{
    static const int64_t ids[] = {4, 5};
    struct captures captures;
    struct experts e;
    struct forks forks;
    void *streams[3] = {NULL, NULL, NULL}, *made = NULL;
    if (!captures_begin(&captures) || !forks_begin(&forks) || !experts_begin(&e, device, 4, 1)) return;
    for (int at = 0; at < 3; at++) REQUIRE_OK(wb_device_stream_new(device, &streams[at], &error));
    REQUIRE(captures.begin(streams[0], 2) == 0);
    CHECK(forks.record(forks.event, streams[0]) == 0 && forks.wait(streams[1], forks.event, 0) == 0);
    route(&e, 0, ids, 2, 0, streams[0]);
    REQUIRE(captures.begin(streams[2], 2) == 0);
    route(&e, 1, ids, 2, 0, streams[2]);
    REQUIRE(captures.end(streams[2], &made) == 0 && captures.destroy(made) == 0);
    const struct asked before = all_asked();
    hint(&e, 2, ids, 2, streams[1]);
    CHECK_SAME(all_asked().waits - before.waits, 1);
    CHECK(forks.record(forks.event, streams[1]) == 0 && forks.wait(streams[0], forks.event, 0) == 0);
    REQUIRE(captures.end(streams[0], &made) == 0 && captures.destroy(made) == 0);
    for (int at = 0; at < 3; at++) CHECK_OK(wb_device_stream_release(device, streams[at], &error));
    CHECK(forks.destroy(forks.event) == 0);
    experts_end(&e);
    captures_end(&captures);
}

CHECK_MAIN(CASE(ids_become_slots_that_hold_their_experts),
           CASE(ids_of_32_bits_are_rewritten_in_place),
           CASE(slots_are_tensors_of_the_capacity),
           CASE(a_layer_with_more_experts_than_slots_is_computed_in_passes),
           CASE(batches_on_two_streams_do_not_evict_each_others_experts),
           CASE(a_hint_is_gathered_before_its_call_reads_it),
           CASE(memory_of_the_caller_holds_the_slots),
           CASE(changed_weights_are_read_after_a_reset_and_fewer_slots_evict),
           CASE(invalid_calls_are_refused),
           CASE_ON(CUDA_ONLY, the_host_device_takes_the_same_slots),
           CASE_ON(CUDA_ONLY, a_captured_step_takes_the_slots_of_one_that_was_not),
           CASE_ON(DOUBLE_ONLY, after_a_call_that_failed_the_next_is_right),
           CASE_ON(DOUBLE_ONLY, a_stream_waits_for_the_last_call_unless_it_made_it),
           CASE_ON(DOUBLE_ONLY, a_stream_with_the_handle_of_a_destroyed_one_waits),
           CASE_ON(DOUBLE_ONLY, calls_of_a_capture_are_ordered_beside_those_of_another))
