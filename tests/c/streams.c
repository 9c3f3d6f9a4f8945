/* Streams: order of work, and memory that is released after it. */
#include "captures.h"
#include "gate.h"
#include "model.h"

static void *new_stream(wb_device *device)
{
    void *stream = NULL;
    CHECK_OK(wb_device_stream_new(device, &stream, &error));
    return stream;
}

static void memory_is_freed_when_the_stream_reaches_its_release(wb_device *device)
{
    struct gate gate = GATE_INIT;
    const int64_t count = 4096;
    void *stream = new_stream(device);
    wb_buffer *buffer = new_buffer(device, 4096);
    REQUIRE(stream != NULL && buffer != NULL);
    wb_view *view = new_view(buffer, bytes_layout(&count), WB_ACCESSOR_DEVICE);
    REQUIRE(view != NULL);
    unsigned char *memory = (unsigned char *)buffer_info(buffer).data;
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    CHECK_OK(wb_view_release_after(view, stream, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    gate_await(&gate);
    sleep_ms(50);
    CHECK_SAME(device_stats(device).buffers, 1);
    CHECK_SAME(device_stats(device).views, 1);
    CHECK_SAME(device_stats(device).deferred, 2);
    fill(memory, 4096);
    gate_open(&gate);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(device_stats(device).buffers + device_stats(device).views + device_stats(device).deferred, 0);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
}

static void a_copy_in_flight_keeps_its_source(wb_device *device)
{
    enum { BYTES = 1 << 20 };
    struct gate gate = GATE_INIT;
    void *memory = NULL;
    unsigned char *back = (unsigned char *)calloc(1, BYTES);
    void *stream = new_stream(device);
    wb_buffer *buffer = new_buffer(device, BYTES);
    REQUIRE(stream != NULL && back != NULL && buffer != NULL);
    REQUIRE_OK(wb_device_alloc(device, BYTES, &memory, &error));
    fill(buffer_info(buffer).data, BYTES);
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    CHECK_OK(wb_device_copy(device, memory, buffer_info(buffer).data, BYTES, stream, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    gate_await(&gate);
    gate_open(&gate);
    CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
    CHECK(read_device(device, back, memory, BYTES));
    CHECK(holds_pattern(back, 0, BYTES));
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_OK(wb_device_free(device, memory, &error));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    free(back);
}

static void increment(void *owner)
{
    __atomic_fetch_add((int *)owner, 1, __ATOMIC_ACQ_REL);
}

static int value_of(int *counter)
{
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

static void the_deleter_of_registered_memory_waits_for_the_stream(wb_device *device)
{
    struct gate gate = GATE_INIT;
    wb_buffer *buffer = NULL;
    void *memory = malloc(8192), *stream = new_stream(device);
    int deleted = 0;
    REQUIRE(memory != NULL && stream != NULL);
    REQUIRE_OK(wb_buffer_register(device, memory, 8192, NULL, increment, &deleted, &buffer,
                                  &error));
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    gate_await(&gate);
    sleep_ms(20);
    CHECK_SAME(value_of(&deleted), 0);
    gate_open(&gate);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(value_of(&deleted), 1);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    free(memory);
}

/* On the host device, where releasing memory does not wait for other streams. */
static void a_blocked_stream_does_not_delay_releases_of_another(wb_device *device)
{
    struct gate gate = GATE_INIT;
    void *blocked = new_stream(device), *other = new_stream(device);
    wb_buffer *held = new_buffer(device, 100), *gone = new_buffer(device, 100);
    REQUIRE(blocked != NULL && other != NULL && held != NULL && gone != NULL);
    REQUIRE_OK(wb_device_stream_call(device, blocked, gate_wait, &gate, &error));
    CHECK_OK(wb_buffer_release_after(held, blocked, &error));
    CHECK_OK(wb_buffer_release_after(gone, other, &error));
    for (int wait = 0; wait < 5000 && device_stats(device).buffers > 1; wait++) sleep_ms(1);
    CHECK_SAME(device_stats(device).buffers, 1);
    gate_open(&gate);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_OK(wb_device_stream_release(device, blocked, &error));
    CHECK_OK(wb_device_stream_release(device, other, &error));
}

static void a_drain_times_out_and_counts_the_rest(wb_device *device)
{
    struct gate gate = GATE_INIT;
    struct timespec start, end;
    void *stream = new_stream(device);
    wb_buffer *buffer = new_buffer(device, 100);
    REQUIRE(stream != NULL && buffer != NULL);
    CHECK_OK(wb_device_drain(device, 0, &error)); /* nothing is in flight */
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    clock_gettime(CLOCK_MONOTONIC, &start);
    CHECK_ERROR(WB_ERR_TIMEOUT, wb_device_drain(device, 50, &error), "50ms|1 references");
    clock_gettime(CLOCK_MONOTONIC, &end);
    int64_t waited = (end.tv_sec - start.tv_sec) * 1000 + (end.tv_nsec - start.tv_nsec) / 1000000;
    CHECK(waited >= 45 && waited < 5000);
    gate_open(&gate);
    CHECK_OK(wb_device_drain(device, UINT64_MAX, &error));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
}

enum { STEPS = 200 };
struct order {
    int next, wrong;
};
struct step {
    struct order *order;
    int value_of;
};

static void take_step(void *user)
{
    struct step *step = (struct step *)user;
    if (step->order->next++ != step->value_of) step->order->wrong++;
}

static void a_stream_runs_its_work_in_order(wb_device *device)
{
    struct order order = {0, 0};
    struct step steps[STEPS];
    void *stream = new_stream(device);
    REQUIRE(stream != NULL);
    for (int i = 0; i < STEPS; i++) {
        steps[i].order = &order;
        steps[i].value_of = i;
        CHECK_OK(wb_device_stream_call(device, stream, take_step, &steps[i], &error));
    }
    CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
    CHECK_SAME(order.next, STEPS);
    CHECK_SAME(order.wrong, 0);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
}

/* The other stream copies: a driver may run the host functions of all streams on one thread. */
static void streams_are_independent(wb_device *device)
{
    struct gate gate = GATE_INIT;
    void *blocked = new_stream(device), *other = new_stream(device);
    wb_buffer *from = new_buffer(device, 1000), *to = new_buffer(device, 1000);
    REQUIRE(blocked != NULL && other != NULL && from != NULL && to != NULL);
    fill(buffer_info(from).data, 1000);
    REQUIRE_OK(wb_device_stream_call(device, blocked, gate_wait, &gate, &error));
    gate_await(&gate);
    CHECK_OK(wb_device_copy(device, buffer_info(to).device_address, buffer_info(from).device_address,
                            1000, other, &error));
    CHECK_OK(wb_device_stream_synchronize(device, other, &error));
    CHECK(holds_pattern(buffer_info(to).data, 0, 1000));
    gate_open(&gate);
    CHECK_OK(wb_device_stream_synchronize(device, blocked, &error)); /* the gate is unused now */
    CHECK_OK(wb_device_stream_release(device, blocked, &error));
    CHECK_OK(wb_device_stream_release(device, other, &error));
    wb_buffer_release(from);
    wb_buffer_release(to);
}

static void a_released_stream_runs_its_queued_work(wb_device *device)
{
    struct gate gate = GATE_INIT;
    int ran = 0;
    void *stream = new_stream(device);
    wb_buffer *buffer = new_buffer(device, 100);
    REQUIRE(stream != NULL && buffer != NULL);
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    CHECK_OK(wb_device_stream_call(device, stream, increment, &ran, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_SAME(value_of(&ran), 0);
    gate_open(&gate);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(value_of(&ran), 1);
    CHECK_SAME(device_stats(device).buffers, 0);
}

static void sleep_a_while(void *user)
{
    (void)user;
    sleep_ms(100);
}

static void freeing_device_memory_waits_for_a_released_stream(wb_device *device)
{
    enum { BYTES = 1 << 20 };
    int ran = 0;
    void *memory = NULL;
    void *stream = new_stream(device);
    wb_buffer *buffer = new_buffer(device, BYTES);
    REQUIRE(stream != NULL && buffer != NULL);
    REQUIRE_OK(wb_device_alloc(device, BYTES, &memory, &error));
    CHECK_OK(wb_device_stream_call(device, stream, sleep_a_while, NULL, &error));
    CHECK_OK(wb_device_copy(device, memory, buffer_info(buffer).data, BYTES, stream, &error));
    CHECK_OK(wb_device_stream_call(device, stream, increment, &ran, &error));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_free(device, memory, &error));
    CHECK_SAME(value_of(&ran), 1);
    wb_buffer_release(buffer);
}

static void the_default_stream_can_be_used(wb_device *device)
{
    int ran = 0;
    wb_buffer *buffer = new_buffer(device, 100);
    REQUIRE(buffer != NULL);
    CHECK_OK(wb_device_stream_call(device, NULL, increment, &ran, &error));
    CHECK_OK(wb_buffer_release_after(buffer, NULL, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(value_of(&ran), 1);
}

static void an_invalid_stream_is_refused_and_the_reference_kept(wb_device *device)
{
    void *stream = new_stream(device), *none = (void *)(uintptr_t)12345;
    wb_buffer *buffer = new_buffer(device, 100);
    REQUIRE(stream != NULL && buffer != NULL);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_buffer_release_after(buffer, stream, &error),
                "released");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_buffer_release_after(buffer, none, &error), "0x3039");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_stream_synchronize(device, none, &error),
                "wb_device_stream_new");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_stream_release(device, NULL, &error), "default");
    CHECK_SAME(device_stats(device).deferred, 0);
    memset(buffer_info(buffer).data, 1, 100);
    wb_buffer_release(buffer);
}

static void a_drain_completes_many_releases(wb_device *device)
{
    void *stream = new_stream(device);
    REQUIRE(stream != NULL);
    for (int i = 0; i < 300; i++) {
        wb_buffer *buffer = new_buffer(device, 5000);
        REQUIRE(buffer != NULL);
        CHECK_OK(wb_device_copy(device, (char *)buffer_info(buffer).data + 1,
                                buffer_info(buffer).data, 4000, stream, &error));
        CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    }
    CHECK_OK(wb_device_drain(device, 30000, &error));
    CHECK_SAME(device_stats(device).buffers, 0);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
}

/* A captured wait for the last use of a slot may never run, so that later work must wait again. */
static void a_wait_in_a_capture_does_not_replace_one_outside(wb_device *device)
{
    struct offload o;
    struct captures captures;
    struct gate gate = GATE_INIT;
    void *graph = NULL, *other = NULL;
    REQUIRE(captures_begin(&captures) && offload_begin(&o, device, WB_TRANSFER_MODE_ON_DEMAND));
    REQUIRE_OK(wb_device_stream_new(device, &other, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    const void *slot = info_of(&o, 0).device_address;
    CHECK(info_of(&o, EACH).device_address == slot); /* the groups share it */
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_device_stream_call(device, o.stream, gate_wait, &gate, &error));
    CHECK_OK(wb_device_copy(device, back, slot, BYTES, o.stream, &error));
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    gate_await(&gate);
    CHECK(captures.begin(other, 0) == 0);
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, other, &error));
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, other, &error));
    CHECK_OK(wb_offloader_join(o.offloader, other, &error));
    CHECK(captures.end(other, &graph) == 0 && captures.destroy(graph) == 0);
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, other, &error));
    sleep_ms(100);
    gate_open(&gate);
    CHECK_OK(wb_device_stream_synchronize(device, o.stream, &error));
    CHECK(holds_parameter(back, 0, 0));
    CHECK_OK(wb_offloader_release_group(o.offloader, 1, other, &error));
    CHECK_OK(wb_device_stream_synchronize(device, other, &error));
    CHECK_OK(wb_device_stream_release(device, other, &error));
    offload_end(&o);
    captures_end(&captures);
}

/* Also once another stream has its handle, and has used the slot, too. */
static void a_use_on_a_destroyed_stream_is_waited_for(wb_device *device)
{
    struct offload o;
    struct gate gate = GATE_INIT;
    static const uint64_t only[] = {0};
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    options.depth = 1;
    model_init(&model);
    REQUIRE(offload_begin_first(&o, device, COUNT, options));
    CHECK_OK(wb_offloader_expect(o.offloader, only, 1, &error)); /* nothing else is prefetched */
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    double_set("WB_DOUBLE_REUSE_STREAMS", "1");
    void *first = new_stream(device);
    REQUIRE(first != NULL);
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, first, &error));
    CHECK_OK(wb_device_stream_call(device, first, gate_wait, &gate, &error));
    CHECK_OK(wb_device_copy(device, back, info_of(&o, 0).device_address, BYTES, first, &error));
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, first, &error));
    CHECK_OK(wb_device_stream_release(device, first, &error));
    void *second = new_stream(device);
    CHECK(second == first);
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, second, &error));
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, second, &error));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, second, &error)); /* the groups share a slot */
    sleep_ms(100);
    gate_open(&gate);
    CHECK_OK(wb_offloader_release_group(o.offloader, 1, second, &error));
    CHECK_OK(wb_device_stream_synchronize(device, second, &error)); /* after the copy to the slot */
    CHECK(holds_parameter(back, 0, 0));
    double_set("WB_DOUBLE_REUSE_STREAMS", "0");
    CHECK_OK(wb_device_stream_release(device, second, &error));
    offload_end(&o);
}

CHECK_MAIN(CASE(memory_is_freed_when_the_stream_reaches_its_release),
           CASE(a_copy_in_flight_keeps_its_source),
           CASE(the_deleter_of_registered_memory_waits_for_the_stream),
           CASE_ON(HOST_ONLY, a_blocked_stream_does_not_delay_releases_of_another),
           CASE(a_drain_times_out_and_counts_the_rest), CASE(a_stream_runs_its_work_in_order),
           CASE(streams_are_independent), CASE(a_released_stream_runs_its_queued_work),
           CASE(freeing_device_memory_waits_for_a_released_stream),
           CASE(the_default_stream_can_be_used),
           CASE_ON(HOST_ONLY, an_invalid_stream_is_refused_and_the_reference_kept),
           CASE(a_drain_completes_many_releases),
           CASE_ON(CUDA_ONLY, a_wait_in_a_capture_does_not_replace_one_outside),
           CASE_ON(DOUBLE_ONLY, a_use_on_a_destroyed_stream_is_waited_for))
