/* Contexts and the context stacks of threads. */
#include "selftest.h"

static CUcontext current(void)
{
    CUcontext context = NULL;
    OK(cuCtxGetCurrent(&context));
    return context;
}

static void calls_without_a_context_fail(void)
{
    int device;
    size_t bytes;
    void *host;
    CUdeviceptr pointer;
    CUstream made_stream;
    CUevent made_event;
    char memory[64];
    OK(cuInit(0));
    CHECK(current() == NULL);
    REFUSED(INVALID_CONTEXT, cuCtxGetDevice(&device));
    REFUSED(INVALID_CONTEXT, cuCtxSynchronize());
    REFUSED(INVALID_CONTEXT, cuMemGetInfo_v2(&bytes, &bytes));
    REFUSED(INVALID_CONTEXT, cuMemAlloc_v2(&pointer, 1));
    REFUSED(INVALID_CONTEXT, cuMemHostAlloc(&host, 1, 0));
    REFUSED(INVALID_CONTEXT, cuMemHostRegister_v2(memory, 64, 0));
    REFUSED(INVALID_CONTEXT, cuMemHostUnregister(memory));
    REFUSED(INVALID_CONTEXT, cuMemcpyAsync((uintptr_t)memory, (uintptr_t)memory, 1, NULL));
    REFUSED(INVALID_CONTEXT, cuStreamCreate(&made_stream, 0));
    REFUSED(INVALID_CONTEXT, cuEventCreate(&made_event, 0));
    REFUSED(INVALID_CONTEXT, cuCtxPopCurrent_v2(NULL));
}

static void push_pop_and_set_change_the_top_of_the_stack(void)
{
    CUcontext first = start(), second = NULL, popped = NULL;
    CHECK_EQUAL(double_context_depth(), 1);
    OK(cuCtxCreate_v2(&second, 0, 0));
    CHECK(current() == second);
    CHECK_EQUAL(double_context_depth(), 2);
    OK(cuCtxPushCurrent_v2(first));
    OK(cuCtxPopCurrent_v2(&popped));
    CHECK(popped == first);
    OK(cuCtxSetCurrent(first)); /* replaces the top only */
    CHECK_EQUAL(double_context_depth(), 2);
    OK(cuCtxSetCurrent(NULL)); /* pops the top */
    CHECK_EQUAL(double_context_depth(), 1);
    CHECK(current() == first);
    REFUSED(INVALID_CONTEXT, cuCtxPushCurrent_v2(NULL));
    REFUSED(INVALID_CONTEXT, cuCtxPushCurrent_v2((CUcontext)&first));
}

static void *check_own_stack(void *context)
{
    CHECK(current() == NULL);
    CHECK_EQUAL(double_context_depth(), 0);
    OK(cuCtxPushCurrent_v2(context));
    CHECK_EQUAL(double_context_depth(), 1);
    return NULL;
}

static void each_thread_has_its_own_stack(void)
{
    CUcontext context = start();
    run_in_thread(check_own_stack, context);
    CHECK_EQUAL(double_context_depth(), 1);
}

static void a_primary_context_lives_until_its_last_release(void)
{
    CUcontext first = start(), again = NULL;
    OK(cuDevicePrimaryCtxRetain(&again, 0));
    CHECK(first == again);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(double_live("contexts"), 1);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    CHECK_EQUAL(double_live("contexts"), 0);
    REFUSED(CONTEXT_IS_DESTROYED, cuCtxSynchronize());
    REFUSED(CONTEXT_IS_DESTROYED, cuCtxPushCurrent_v2(first));
    REFUSED(INVALID_CONTEXT, cuDevicePrimaryCtxRelease_v2(0));
    OK(cuCtxPopCurrent_v2(NULL)); /* a destroyed context can still be popped */
    start();
    OK(cuCtxSynchronize());
}

static void a_reset_destroys_the_primary_context(void)
{
    CUcontext first = start(), second = NULL;
    OK(cuDevicePrimaryCtxReset_v2(0));
    CHECK_EQUAL(double_live("contexts"), 0);
    REFUSED(CONTEXT_IS_DESTROYED, cuCtxPushCurrent_v2(first));
    REFUSED(INVALID_CONTEXT, cuDevicePrimaryCtxRelease_v2(0));
    OK(cuDevicePrimaryCtxReset_v2(0)); /* there is none: no effect */
    OK(cuDevicePrimaryCtxRetain(&second, 0));
    CHECK(second != first);
    REFUSED(INVALID_DEVICE, cuDevicePrimaryCtxReset_v2(1));
}

static void *destroy(void *context)
{
    OK(cuCtxDestroy_v2(context));
    return NULL;
}

static void calls_with_a_destroyed_context_fail(void)
{
    CUcontext primary = start(), made = NULL;
    OK(cuCtxCreate_v2(&made, 0, 0));
    OK(cuCtxDestroy_v2(made));
    CHECK(current() == primary); /* destroying the current one pops it */
    REFUSED(CONTEXT_IS_DESTROYED, cuCtxDestroy_v2(made));
    OK(cuCtxCreate_v2(&made, 0, 0));
    run_in_thread(destroy, made);
    REFUSED(CONTEXT_IS_DESTROYED, cuCtxSynchronize());
    REFUSED(INVALID_CONTEXT, cuCtxDestroy_v2(primary));
}

static void a_destroyed_context_releases_its_objects_and_counts_orphans(void)
{
    static char memory[4096];
    CUcontext context = start();
    void *host;
    CUstream made = stream(0);
    CUevent recorded = event(0);
    device_memory(100);
    OK(cuMemHostAlloc(&host, 100, 0));
    OK(cuMemHostRegister_v2(memory, sizeof memory, 0));
    configure("WB_DOUBLE_DELAY_US", "30000");
    OK(cuLaunchHostFunc(made, append_call, "a"));
    CHECK_EQUAL(double_live("orphans"), 0);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    CHECK_EQUAL(call_order[0], 'a');
    CHECK_EQUAL(double_live("orphans"), 5);
    CHECK_EQUAL(double_live("streams"), 0);
    CHECK_EQUAL(double_live("events"), 0);
    CHECK_EQUAL(double_live("device_bytes"), 0);
    CHECK_EQUAL(double_live("host_allocations"), 0);
    CHECK_EQUAL(double_live("registered_bytes"), 0);
    CHECK(start() != context);
    REFUSED(INVALID_HANDLE, cuStreamSynchronize(made));
    REFUSED(INVALID_HANDLE, cuEventQuery(recorded));
    REFUSED(HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(memory));
}

static void a_context_reports_its_device(void)
{
    CUcontext context;
    int device = -1;
    configure("WB_DOUBLE_DEVICES", "2");
    start();
    OK(cuCtxGetDevice(&device));
    CHECK_EQUAL(device, 0);
    OK(cuCtxCreate_v2(&context, 0, 1));
    OK(cuCtxGetDevice(&device));
    CHECK_EQUAL(device, 1);
    REFUSED(INVALID_DEVICE, cuCtxCreate_v2(&context, 0, 2));
    REFUSED(INVALID_DEVICE, cuDevicePrimaryCtxRetain(&context, 2));
}

const struct test context_tests[] = {
    TEST(calls_without_a_context_fail),
    TEST(push_pop_and_set_change_the_top_of_the_stack),
    TEST(each_thread_has_its_own_stack),
    TEST(a_primary_context_lives_until_its_last_release),
    TEST(a_reset_destroys_the_primary_context),
    TEST(calls_with_a_destroyed_context_fail),
    TEST(a_destroyed_context_releases_its_objects_and_counts_orphans),
    TEST(a_context_reports_its_device),
    {0},
};
