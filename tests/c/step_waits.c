/* Threads that wait for a slot which another thread's step occupies. */
#include <pthread.h>

#include "model.h"

struct waiter {
    pthread_t thread;
    struct offload *o;
    void *stream;
    uint64_t group, timeout_ms;
    int entered;
    wb_status status;
    char message[1024];
};

static int begin(struct offload *o, struct waiter *waiter, wb_device *device)
{
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    memset(waiter, 0, sizeof *waiter);
    model_init(&model);
    options.depth = 2;
    waiter->o = o;
    waiter->group = 2; /* shares its slot with 0 */
    waiter->timeout_ms = 60000;
    return offload_begin_first(o, device, COUNT, options) &&
           CHECK_OK(wb_device_stream_new(device, &waiter->stream, &error));
}

static void end(struct offload *o, struct waiter *waiter)
{
    CHECK_OK(wb_device_stream_synchronize(o->device, waiter->stream, &error));
    CHECK_OK(wb_device_stream_release(o->device, waiter->stream, &error));
    offload_end(o);
}

static void *acquire_within(void *argument)
{
    struct waiter *waiter = (struct waiter *)argument;
    wb_error mine = WB_ERROR_INIT;
    __atomic_store_n(&waiter->entered, 1, __ATOMIC_RELEASE);
    waiter->status = wb_offloader_acquire_group_within(waiter->o->offloader, waiter->group,
                                                       waiter->stream, waiter->timeout_ms, &mine);
    snprintf(waiter->message, sizeof waiter->message, "%s", mine.message);
    __atomic_store_n(&waiter->entered, 2, __ATOMIC_RELEASE);
    return NULL;
}

/* Starts the thread. Returns once it is likely to wait. */
static void start(struct waiter *waiter)
{
    REQUIRE(pthread_create(&waiter->thread, NULL, acquire_within, waiter) == 0);
    while (__atomic_load_n(&waiter->entered, __ATOMIC_ACQUIRE) == 0) sleep_ms(1);
    sleep_ms(50);
}

static void a_thread_waits_until_the_slot_is_released(wb_device *device)
{
    struct offload o;
    struct waiter waiter;
    for (int how = 0; how < 3; how++) {
        REQUIRE(begin(&o, &waiter, device));
        CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
        start(&waiter);
        CHECK_SAME(__atomic_load_n(&waiter.entered, __ATOMIC_ACQUIRE), 1);
        CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, o.stream, &error)); /* no lock is held */
        CHECK_OK(wb_offloader_release_group(o.offloader, 1, o.stream, &error));
        if (how == 0) CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
        if (how == 1) CHECK_OK(wb_offloader_reset(o.offloader, o.stream, &error));
        if (how == 2) CHECK_OK(wb_offloader_reset_all(o.offloader, o.stream, &error));
        CHECK(pthread_join(waiter.thread, NULL) == 0);
        CHECK_SAME(waiter.status, WB_OK);
        unsigned char *back = (unsigned char *)buffer_info(o.back).data;
        CHECK_OK(wb_device_copy(device, back, info_of(&o, 2 * EACH).device_address, BYTES,
                                waiter.stream, &error));
        CHECK_OK(wb_offloader_release_group(o.offloader, 2, waiter.stream, &error));
        CHECK_OK(wb_device_stream_synchronize(device, waiter.stream, &error));
        CHECK(holds_parameter(back, 2 * EACH, 0));
        end(&o, &waiter);
    }
}

static void a_wait_ends_with_its_timeout(wb_device *device)
{
    struct offload o;
    struct waiter waiter;
    struct timespec from, to;
    REQUIRE(begin(&o, &waiter, device));
    waiter.timeout_ms = 60;
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    clock_gettime(CLOCK_MONOTONIC, &from);
    start(&waiter);
    CHECK(pthread_join(waiter.thread, NULL) == 0);
    clock_gettime(CLOCK_MONOTONIC, &to);
    const int64_t ms = (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
    CHECK(ms >= 55 && ms < 10000);
    CHECK_SAME(waiter.status, WB_ERR_TIMEOUT);
    CHECK(strstr(waiter.message, "60ms") != NULL && strstr(waiter.message, "layers.0") != NULL);
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    end(&o, &waiter);
}

/* Waiting for oneself would never end. */
static void a_thread_does_not_wait_for_itself(wb_device *device)
{
    struct offload o;
    struct waiter waiter;
    REQUIRE(begin(&o, &waiter, device));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUSY,
                wb_offloader_acquire_group_within(o.offloader, 2, o.stream, UINT64_MAX, &error),
                "layers.0|still acquired");
    CHECK_ERROR(WB_ERR_BUSY,
                wb_offloader_acquire_group_within(o.offloader, 2, waiter.stream, UINT64_MAX, &error),
                "layers.0|still acquired"); /* the thread's own, on another stream */
    void *own = waiter.stream;
    waiter.stream = o.stream; /* another thread's, but on the same stream */
    start(&waiter);
    CHECK(pthread_join(waiter.thread, NULL) == 0);
    CHECK_SAME(waiter.status, WB_ERR_BUSY);
    waiter.stream = own;
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group_within(o.offloader, 2, o.stream, 0, &error));
    CHECK_OK(wb_offloader_release_group(o.offloader, 2, o.stream, &error));
    end(&o, &waiter);
}

static void *run_steps(void *argument)
{
    struct waiter *waiter = (struct waiter *)argument;
    wb_error mine = WB_ERROR_INIT;
    for (int turn = 0; turn < 200 && waiter->status == WB_OK; turn++) {
        for (uint64_t group = 0; group < LAYERS && waiter->status == WB_OK; group++) {
            waiter->status = wb_offloader_acquire_group_within(
                waiter->o->offloader, group, waiter->stream, waiter->timeout_ms, &mine);
            if (waiter->status != WB_OK) break;
            waiter->status =
                wb_offloader_release_group(waiter->o->offloader, group, waiter->stream, &mine);
        }
    }
    return NULL;
}

/* Threads that release before they wait never wait for long. */
static void threads_take_turns(wb_device *device)
{
    struct offload o;
    struct waiter waiters[2];
    REQUIRE(begin(&o, &waiters[0], device));
    waiters[1] = waiters[0];
    waiters[1].stream = o.stream;
    for (int at = 0; at < 2; at++) {
        REQUIRE(pthread_create(&waiters[at].thread, NULL, run_steps, &waiters[at]) == 0);
    }
    for (int at = 0; at < 2; at++) {
        CHECK(pthread_join(waiters[at].thread, NULL) == 0);
        CHECK_SAME(waiters[at].status, WB_OK);
    }
    end(&o, &waiters[0]);
}

/* It fails where it copies the first group, once the others are released. */
static void a_reset_that_fails_ends_waits(wb_device *device)
{
    struct offload o;
    struct waiter waiter;
    REQUIRE(begin(&o, &waiter, device));
    waiter.group = 0;
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 2, o.stream, &error));
    start(&waiter);
    CHECK_INJECTED("cuMemcpyAsync:1:999", WB_ERR_DRIVER, wb_offloader_reset(o.offloader, o.stream, &error), "");
    for (int turn = 0; turn < 5000 && __atomic_load_n(&waiter.entered, __ATOMIC_ACQUIRE) == 1; turn++) sleep_ms(1);
    CHECK_SAME(__atomic_load_n(&waiter.entered, __ATOMIC_ACQUIRE), 2);
    CHECK_OK(wb_offloader_reset_all(o.offloader, o.stream, &error)); /* ends a wait that has not ended */
    CHECK(pthread_join(waiter.thread, NULL) == 0);
    CHECK_SAME(waiter.status, WB_OK);
    CHECK_OK(wb_offloader_reset_all(o.offloader, o.stream, &error));
    end(&o, &waiter);
}

CHECK_MAIN(CASE(a_thread_waits_until_the_slot_is_released), CASE(a_wait_ends_with_its_timeout),
           CASE(a_thread_does_not_wait_for_itself), CASE(threads_take_turns),
           CASE_ON(DOUBLE_ONLY, a_reset_that_fails_ends_waits))
