/* Copies: valid memory, order, synchronization; streams. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "selftest.h"

#define PAGE 4096

static char pinned[4 * PAGE] __attribute__((aligned(PAGE)));
static char pageable[4 * PAGE] __attribute__((aligned(PAGE)));

static void start_with_pinned(void)
{
    start();
    OK(cuMemHostRegister_v2(pinned, sizeof pinned, 0));
}

static void copies_transfer_bytes_to_the_device_and_back(void)
{
    start_with_pinned();
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    CUdeviceptr first = device_memory(PAGE), second = device_memory(PAGE);
    for (int i = 0; i < PAGE; i++) pinned[i] = (char)i;
    configure("WB_DOUBLE_DELAY_US", "5000");
    OK(cuMemcpyHtoDAsync_v2(first, pinned, PAGE, s));
    OK(cuMemcpyAsync(second, first, PAGE, s));
    OK(cuMemcpyDtoHAsync_v2(pinned + PAGE, second, PAGE, s));
    OK(cuMemsetD8Async(second + 1, 0x5a, 2, s));
    OK(cuMemcpyAsync((uintptr_t)pinned + 2 * PAGE, second, PAGE, s));
    OK(cuStreamSynchronize(s));
    CHECK_EQUAL(memcmp(pinned, pinned + PAGE, PAGE), 0);
    CHECK_EQUAL(pinned[2 * PAGE], 0);
    CHECK_EQUAL(pinned[2 * PAGE + 1], 0x5a);
    CHECK_EQUAL(pinned[2 * PAGE + 3], 3);
}

static void pinned_copies_are_asynchronous_and_pageable_ones_synchronous(void)
{
    start_with_pinned();
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    CUdeviceptr device = device_memory(PAGE);
    configure("WB_DOUBLE_DELAY_US", "10000");
    pageable[0] = 3;
    block_stream(s);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, PAGE, s));
    REFUSED(NOT_READY, cuStreamQuery(s));
    unblock_stream();
    OK(cuMemcpyHtoDAsync_v2(device, pageable, PAGE, s));
    OK(cuStreamQuery(s));
    OK(cuMemcpyDtoHAsync_v2(pageable + PAGE, device, PAGE, s));
    OK(cuStreamQuery(s));
    CHECK_EQUAL(pageable[PAGE], 3);
    OK(cuMemcpyAsync((uintptr_t)pageable + 2 * PAGE, device, PAGE, s));
    OK(cuStreamQuery(s));
}

static void a_copy_beyond_one_range_is_refused(void)
{
    start();
    CUdeviceptr device = device_memory(2 * PAGE);
    OK(cuMemHostRegister_v2(pinned, PAGE, 0));
    OK(cuMemHostRegister_v2(pinned + PAGE, PAGE, 0));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, PAGE, NULL));
    OK(cuMemcpyHtoDAsync_v2(device, pinned + PAGE, PAGE, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, pinned, 2 * PAGE, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, pinned + PAGE - 1, 2, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2(pinned, device, PAGE + 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyAsync(device, (uintptr_t)pinned, PAGE + 1, NULL));
    /* across either end of pinned memory */
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, pinned + PAGE, PAGE + 1, NULL));
    OK(cuMemHostUnregister(pinned));
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, pinned, PAGE + 1, NULL));
    /* past the end of the device allocation */
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device + 1, pageable, 2 * PAGE, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, pageable, (size_t)-1, NULL));
    REFUSED(INVALID_VALUE, cuMemsetD8Async(device + 2 * PAGE - 1, 0, 2, NULL));
    OK(cuMemsetD8Async(device + 2 * PAGE - 1, 0, 1, NULL));
}

static void a_stale_device_pointer_is_refused(void)
{
    start();
    CUdeviceptr stale = device_memory(PAGE);
    OK(cuMemFree_v2(stale));
    device_memory(PAGE);
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(stale, pageable, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyAsync(stale, (uintptr_t)pageable, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2(pageable, stale, 1, NULL));
    CUdeviceptr small = device_memory(100);
    REFUSED(INVALID_VALUE, cuMemcpyAsync((uintptr_t)pageable, small + 100, 1, NULL));
}

static void host_and_device_pointers_are_not_interchangeable(void)
{
    start_with_pinned();
    CUdeviceptr device = device_memory(PAGE);
    void *as_host = (void *)(uintptr_t)device;
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2((uintptr_t)pageable, pageable, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2(pageable, (uintptr_t)pageable, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, as_host, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2(as_host, device, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemsetD8Async((uintptr_t)pageable, 0, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2(device, NULL, 1, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2((void *)"constant", device, 1, NULL));
    OK(cuMemcpyHtoDAsync_v2((uintptr_t)pinned, pageable, 1, NULL)); /* mapped memory */
    OK(cuMemcpyHtoDAsync_v2(0, NULL, 0, NULL));
    configure("WB_DOUBLE_UNMAPPED", "1");
    REFUSED(INVALID_VALUE, cuMemcpyHtoDAsync_v2((uintptr_t)pinned, pageable, 1, NULL));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, 1, NULL)); /* still pinned */
}

static void pageable_access_makes_host_pointers_valid_on_the_device(void)
{
    configure("WB_DOUBLE_ATTRIBUTES", "88=1");
    start();
    OK(cuMemsetD8Async((uintptr_t)pageable, 4, 1, NULL));
    CHECK_EQUAL(pageable[0], 4);
}

static void set(void *flag)
{
    usleep(1000);
    atomic_store((atomic_int *)flag, 1);
}

/* Each release must wait for the work in flight in all streams. */
static void releasing_memory_waits_for_work_in_flight(void)
{
    atomic_int flag;
    void *host;
    start();
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    CUdeviceptr device = device_memory(PAGE);
    OK(cuMemHostAlloc(&host, PAGE, 0));
    OK(cuMemHostRegister_v2(pinned, PAGE, 0));
    configure("WB_DOUBLE_DELAY_US", "30000");

    atomic_store(&flag, 0);
    OK(cuLaunchHostFunc(s, set, &flag));
    OK(cuMemHostUnregister(pinned));
    CHECK_EQUAL(atomic_load(&flag), 1);

    atomic_store(&flag, 0);
    OK(cuMemcpyHtoDAsync_v2(device, host, PAGE, s));
    OK(cuLaunchHostFunc(s, set, &flag));
    OK(cuMemFreeHost(host));
    CHECK_EQUAL(atomic_load(&flag), 1);

    atomic_store(&flag, 0);
    OK(cuMemsetD8Async(device, 0, PAGE, s));
    OK(cuLaunchHostFunc(s, set, &flag));
    OK(cuMemFree_v2(device));
    CHECK_EQUAL(atomic_load(&flag), 1);
}

static void a_destroyed_stream_finishes_its_work(void)
{
    start();
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    configure("WB_DOUBLE_DELAY_US", "30000");
    OK(cuLaunchHostFunc(s, append_call, "a"));
    OK(cuLaunchHostFunc(s, append_call, "b"));
    OK(cuStreamDestroy_v2(s));
    CHECK_EQUAL(double_live("streams"), 0);
    REFUSED(INVALID_HANDLE, cuStreamSynchronize(s));
    REFUSED(INVALID_HANDLE, cuStreamDestroy_v2(s));
    OK(cuCtxSynchronize());
    CHECK(strcmp(call_order, "ab") == 0);
    CHECK(stream(0) != s);
    REFUSED(INVALID_HANDLE, cuStreamDestroy_v2(NULL));
    REFUSED(INVALID_VALUE, cuStreamCreate(&s, 2));
}

static unsigned long long id_of(CUstream stream)
{
    unsigned long long id = 0;
    OK(cuStreamGetId(stream, &id));
    return id;
}

static void a_handle_may_be_that_of_a_destroyed_stream_and_an_id_may_not(void)
{
    start();
    const CUstream first = stream(0);
    const unsigned long long id = id_of(first);
    CHECK(id == id_of(first) && id != id_of(NULL) && id != id_of(CU_STREAM_PER_THREAD));
    CHECK(id_of(NULL) == id_of(CU_STREAM_LEGACY));
    configure("WB_DOUBLE_REUSE_STREAMS", "1");
    OK(cuStreamDestroy_v2(first));
    const CUstream second = stream(0);
    CHECK(second == first && id_of(second) != id && stream(0) != second);
    OK(cuStreamBeginCapture_v2(second, CU_STREAM_CAPTURE_MODE_RELAXED));
    unsigned long long captured = 0;
    REFUSED(STREAM_CAPTURE_UNSUPPORTED, cuStreamGetId(second, &captured));
    REFUSED(INVALID_HANDLE, cuStreamGetId((CUstream)8, &captured));
}

static int threads_of_process(void)
{
    char line[256];
    int threads = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        sscanf(line, "Threads: %d", &threads);
    }
    if (status != NULL) fclose(status);
    return threads;
}

static void the_thread_of_a_destroyed_stream_ends(void)
{
    start();
    CUdeviceptr device = device_memory(20);
    OK(cuMemsetD8Async(device, 0, 20, NULL)); /* starts the stream's thread, which stays */
    int before = threads_of_process();
    for (unsigned i = 0; i < 20; i++) {
        CUstream s = stream(0);
        OK(cuMemsetD8Async(device + i, 1, 1, s));
        OK(cuStreamDestroy_v2(s));
    }
    for (int i = 0; i < 2000 && threads_of_process() > before; i++) usleep(1000);
    CHECK_EQUAL(threads_of_process(), before);
}

static void the_legacy_stream_is_ordered_with_blocking_streams(void)
{
    start();
    CUstream first = stream(0), second = stream(0);
    configure("WB_DOUBLE_DELAY_US", "20000");
    OK(cuLaunchHostFunc(first, append_call, "a"));
    OK(cuLaunchHostFunc(first, append_call, "b"));
    OK(cuLaunchHostFunc(NULL, append_call, "c"));
    OK(cuLaunchHostFunc(second, append_call, "d"));
    OK(cuLaunchHostFunc(CU_STREAM_LEGACY, append_call, "e"));
    OK(cuLaunchHostFunc(CU_STREAM_PER_THREAD, append_call, "f"));
    OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
    CHECK(strcmp(call_order, "abcdef") == 0);
}

static void a_non_blocking_stream_is_not_ordered_with_the_legacy_stream(void)
{
    start();
    CUstream alone = stream(CU_STREAM_NON_BLOCKING), blocking = stream(0);
    block_stream(blocking);
    REFUSED(NOT_READY, cuStreamQuery(NULL));
    OK(cuStreamQuery(alone));
    unblock_stream();
    OK(cuStreamSynchronize(NULL));
    OK(cuStreamQuery(blocking));
    block_stream(alone);
    OK(cuStreamQuery(NULL));
    OK(cuMemsetD8Async(device_memory(1), 0, 1, blocking));
    OK(cuStreamSynchronize(NULL));
    OK(cuStreamQuery(blocking));
    REFUSED(NOT_READY, cuStreamQuery(alone));
    unblock_stream();
    OK(cuStreamSynchronize(alone));
    OK(cuStreamQuery(alone));
}

static void *copy_many(void *context)
{
    static atomic_int next;
    int part = atomic_fetch_add(&next, 1);
    OK(cuCtxSetCurrent(context));
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    CUdeviceptr device = device_memory(256);
    char *mine = pinned + part * 512;
    for (int i = 0; i < 200; i++) {
        memset(mine, i, 256);
        OK(cuMemcpyHtoDAsync_v2(device, mine, 256, s));
        OK(cuMemcpyDtoHAsync_v2(mine + 256, device, 256, s));
        OK(cuStreamSynchronize(s));
        CHECK_EQUAL(memcmp(mine, mine + 256, 256), 0);
    }
    OK(cuMemFree_v2(device));
    OK(cuStreamDestroy_v2(s));
    return NULL;
}

static void threads_copy_concurrently(void)
{
    pthread_t threads[8];
    CUcontext context = start();
    OK(cuMemHostRegister_v2(pinned, sizeof pinned, 0));
    for (int i = 0; i < 8; i++) {
        CHECK_EQUAL(pthread_create(&threads[i], NULL, copy_many, context), 0);
    }
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    CHECK_EQUAL(double_live("device_bytes"), 0);
    CHECK_EQUAL(double_live("streams"), 0);
}

const struct test copy_tests[] = {
    TEST(copies_transfer_bytes_to_the_device_and_back),
    TEST(pinned_copies_are_asynchronous_and_pageable_ones_synchronous),
    TEST(a_copy_beyond_one_range_is_refused),
    TEST(a_stale_device_pointer_is_refused),
    TEST(host_and_device_pointers_are_not_interchangeable),
    TEST(pageable_access_makes_host_pointers_valid_on_the_device),
    TEST(releasing_memory_waits_for_work_in_flight),
    TEST(a_destroyed_stream_finishes_its_work),
    TEST(a_handle_may_be_that_of_a_destroyed_stream_and_an_id_may_not),
    TEST(the_thread_of_a_destroyed_stream_ends),
    TEST(the_legacy_stream_is_ordered_with_blocking_streams),
    TEST(a_non_blocking_stream_is_not_ordered_with_the_legacy_stream),
    TEST(threads_copy_concurrently),
    {0},
};
