/* Stream capture: forbidden calls, invalidation, joins. */
#include "selftest.h"

static char memory[4096];

static CUstream begin(int mode)
{
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    OK(cuStreamBeginCapture_v2(s, mode));
    return s;
}

static CUresult end(CUstream s)
{
    CUgraph graph = NULL;
    CUresult result = cuStreamEndCapture(s, &graph);
    CHECK((graph != NULL) == (result == CUDA_SUCCESS));
    if (graph != NULL) OK(cuGraphDestroy(graph));
    return result;
}

static int status_of(CUstream s)
{
    int status = -1;
    OK(cuStreamIsCapturing(s, &status));
    return status;
}

static void each_capture_has_its_own_id(void)
{
    int status = -1;
    uint64_t first = 0, second = 0;
    start();
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuStreamGetCaptureInfo_v2(s, &status, &first, NULL, NULL, NULL));
    CHECK_EQUAL(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(end(s));
    OK(cuStreamGetCaptureInfo_v2(s, &status, &second, NULL, NULL, NULL));
    CHECK_EQUAL(status, CU_STREAM_CAPTURE_STATUS_NONE);
    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuStreamGetCaptureInfo_v2(s, &status, &second, NULL, NULL, NULL));
    CHECK(first != 0 && second != 0 && first != second);
    OK(end(s));
}

static void a_capture_may_wait_externally_for_an_uncaptured_event(void)
{
    CUevent event;
    start();
    OK(cuEventCreate(&event, 0));
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_RELAXED), other;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventRecord(event, other));
    OK(cuStreamWaitEvent(s, event, CU_EVENT_WAIT_EXTERNAL));
    OK(end(s));
    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    REFUSED(STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(s, event, CU_EVENT_WAIT_DEFAULT));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
}

static int exchange(int mode)
{
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    return mode;
}

static void captured_work_does_not_run(void)
{
    CUgraph graph;
    start();
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    CHECK_EQUAL(status_of(s), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuLaunchHostFunc(s, append_call, "a"));
    CHECK_EQUAL(double_live("captures"), 1);
    OK(cuStreamEndCapture(s, &graph));
    CHECK_EQUAL(double_live("graphs"), 1);
    CHECK_EQUAL(status_of(s), CU_STREAM_CAPTURE_STATUS_NONE);
    OK(cuLaunchHostFunc(s, append_call, "b"));
    OK(cuStreamSynchronize(s));
    CHECK_EQUAL(call_order[0], 'b');
    OK(cuGraphDestroy(graph));
    REFUSED(INVALID_VALUE, cuGraphDestroy(graph));
}

/* The call fails during a capture and invalidates it. */
#define INVALIDATES(call)                                                                         \
    do {                                                                                          \
        CUstream captured = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);                                 \
        REFUSED(STREAM_CAPTURE_UNSUPPORTED, call);                                                \
        CHECK_EQUAL(status_of(captured), CU_STREAM_CAPTURE_STATUS_INVALIDATED);                   \
        REFUSED(STREAM_CAPTURE_INVALIDATED, cuLaunchHostFunc(captured, append_call, "x"));        \
        REFUSED(STREAM_CAPTURE_INVALIDATED, end(captured));                                       \
    } while (0)

static void *make_unsafe_calls(void *context)
{
    void *host;
    CUdeviceptr pointer;
    OK(cuCtxSetCurrent(context));
    CUstream other = stream(CU_STREAM_NON_BLOCKING);
    CUevent e = event(0);
    INVALIDATES(cuMemAlloc_v2(&pointer, 1));
    INVALIDATES(cuMemFree_v2(0));
    INVALIDATES(cuMemHostAlloc(&host, 1, 0));
    INVALIDATES(cuMemFreeHost(memory));
    INVALIDATES(cuMemHostRegister_v2(memory, 1, 0));
    INVALIDATES(cuMemHostUnregister(memory));
    INVALIDATES(cuEventQuery(e));
    INVALIDATES(cuEventSynchronize(e));
    INVALIDATES(cuStreamQuery(other));
    INVALIDATES(cuStreamSynchronize(other));
    INVALIDATES(cuCtxSynchronize());
    return NULL;
}

static void unsafe_calls_invalidate_a_global_capture(void)
{
    make_unsafe_calls(start());
}

static void *register_in_each_mode(void *context)
{
    OK(cuCtxSetCurrent(context));
    CHECK_EQUAL(exchange(CU_STREAM_CAPTURE_MODE_RELAXED), CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuMemHostRegister_v2(memory, 1, 0));
    CHECK_EQUAL(exchange(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), CU_STREAM_CAPTURE_MODE_RELAXED);
    OK(cuMemHostUnregister(memory));
    CHECK_EQUAL(exchange(CU_STREAM_CAPTURE_MODE_GLOBAL), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    return NULL;
}

static void *register_once(void *context)
{
    OK(cuCtxSetCurrent(context));
    static CUresult result;
    result = cuMemHostRegister_v2(memory, 1, 0);
    if (result == CUDA_SUCCESS) OK(cuMemHostUnregister(memory));
    return &result;
}

static void *expect_registered(void *context)
{
    OK(*(CUresult *)register_once(context));
    return NULL;
}

static void *expect_refused(void *context)
{
    REFUSED(STREAM_CAPTURE_UNSUPPORTED, *(CUresult *)register_once(context));
    return NULL;
}

static void the_mode_of_the_thread_permits_unsafe_calls(void)
{
    CUcontext context = start();
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    run_in_thread(register_in_each_mode, context);
    OK(end(s));
    s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    run_in_thread(expect_refused, context);
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
    s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    exchange(CU_STREAM_CAPTURE_MODE_RELAXED);
    expect_registered(context);
    exchange(CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(end(s));
    int bad = 3;
    REFUSED(INVALID_VALUE, cuThreadExchangeStreamCaptureMode(&bad));
}

static void the_mode_of_the_capture_decides_which_threads_it_restricts(void)
{
    CUcontext context = start();
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    run_in_thread(expect_registered, context);
    OK(end(s));
    s = begin(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    expect_refused(context);
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
    s = begin(CU_STREAM_CAPTURE_MODE_RELAXED);
    run_in_thread(expect_registered, context);
    expect_registered(context);
    OK(end(s));
}

static void waiting_for_a_capturing_stream_fails_in_every_mode(void)
{
    start();
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_RELAXED);
    REFUSED(STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(s));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
    s = begin(CU_STREAM_CAPTURE_MODE_RELAXED);
    REFUSED(STREAM_CAPTURE_UNSUPPORTED, cuCtxSynchronize());
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
}

static void a_captured_event_cannot_be_queried(void)
{
    float milliseconds;
    start();
    CUevent e = event(0), plain = event(0);
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_RELAXED);
    OK(cuEventRecord(e, s));
    REFUSED(CAPTURED_EVENT, cuEventQuery(e));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
    REFUSED(CAPTURED_EVENT, cuEventSynchronize(e));
    REFUSED(CAPTURED_EVENT, cuEventElapsedTime(&milliseconds, e, plain));
    REFUSED(CAPTURED_EVENT, cuStreamWaitEvent(s, e, 0));
    OK(cuEventRecord(e, s)); /* recorded outside a capture, it is an ordinary event again */
    OK(cuEventSynchronize(e));
}

static void a_capture_cannot_wait_for_an_event_recorded_outside_it(void)
{
    start();
    CUevent before = event(0);
    OK(cuEventRecord(before, NULL));
    OK(cuEventSynchronize(before));
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    REFUSED(STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(s, before, 0));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));

    s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuEventRecord(before, s));
    OK(end(s));
    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    REFUSED(STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(s, before, 0)); /* of another capture */
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
}

static void forked_streams_must_be_joined(void)
{
    start();
    CUevent fork = event(2), joined = event(2);
    CUstream side = stream(CU_STREAM_NON_BLOCKING), deep = stream(CU_STREAM_NON_BLOCKING);
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    CHECK_EQUAL(status_of(side), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuLaunchHostFunc(side, append_call, "a"));
    REFUSED(STREAM_CAPTURE_UNMATCHED, end(side));
    REFUSED(STREAM_CAPTURE_UNJOINED, end(s));
    CHECK_EQUAL(status_of(side), CU_STREAM_CAPTURE_STATUS_NONE);

    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuEventRecord(fork, side));
    OK(cuStreamWaitEvent(deep, fork, 0)); /* joined through `side` */
    OK(cuLaunchHostFunc(deep, append_call, "b"));
    OK(cuEventRecord(joined, deep));
    OK(cuStreamWaitEvent(side, joined, 0));
    OK(cuEventRecord(joined, side));
    OK(cuStreamWaitEvent(s, joined, 0));
    OK(end(s));

    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuEventRecord(joined, side));
    OK(cuStreamWaitEvent(s, joined, 0));
    OK(cuLaunchHostFunc(side, append_call, "c")); /* after the join */
    REFUSED(STREAM_CAPTURE_UNJOINED, end(s));
}

static void two_captures_never_merge(void)
{
    start();
    CUevent e = event(2);
    CUstream first = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    CUstream second = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuEventRecord(e, first));
    REFUSED(STREAM_CAPTURE_MERGE, cuStreamWaitEvent(second, e, 0));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(first));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(second));
}

static void the_legacy_stream_cannot_be_captured(void)
{
    int status;
    start();
    CUdeviceptr device = device_memory(8);
    CUstream s = stream(0);
    REFUSED(STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(NULL, 0));
    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    REFUSED(STREAM_CAPTURE_IMPLICIT, cuStreamIsCapturing(NULL, &status));
    REFUSED(STREAM_CAPTURE_IMPLICIT, cuMemsetD8Async(device, 0, 8, NULL));
    REFUSED(STREAM_CAPTURE_INVALIDATED, end(s));
    s = begin(CU_STREAM_CAPTURE_MODE_RELAXED); /* not a blocking stream */
    OK(cuMemsetD8Async(device, 0, 8, NULL));
    OK(cuStreamSynchronize(NULL));
    OK(end(s));
}

static void *end_in_another_thread(void *s)
{
    CUcontext context = start();
    CHECK(context != NULL);
    REFUSED(STREAM_CAPTURE_WRONG_THREAD, end(s));
    return NULL;
}

static void a_capture_ends_in_the_thread_and_stream_that_began_it(void)
{
    start();
    CUstream s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    run_in_thread(end_in_another_thread, s);
    OK(end(s));
    REFUSED(ILLEGAL_STATE, end(s));
    OK(cuStreamBeginCapture_v2(s, 0));
    REFUSED(ILLEGAL_STATE, cuStreamBeginCapture_v2(s, 0));
    OK(cuStreamDestroy_v2(s)); /* ends its capture */
    CHECK_EQUAL(double_live("captures"), 0);
    REFUSED(INVALID_VALUE, cuStreamBeginCapture_v2(stream(0), 3));
}

const struct test capture_tests[] = {
    TEST(captured_work_does_not_run),
    TEST(unsafe_calls_invalidate_a_global_capture),
    TEST(the_mode_of_the_thread_permits_unsafe_calls),
    TEST(the_mode_of_the_capture_decides_which_threads_it_restricts),
    TEST(waiting_for_a_capturing_stream_fails_in_every_mode),
    TEST(a_captured_event_cannot_be_queried),
    TEST(a_capture_cannot_wait_for_an_event_recorded_outside_it),
    TEST(forked_streams_must_be_joined),
    TEST(two_captures_never_merge),
    TEST(the_legacy_stream_cannot_be_captured),
    TEST(a_capture_ends_in_the_thread_and_stream_that_began_it),
    TEST(each_capture_has_its_own_id),
    TEST(a_capture_may_wait_externally_for_an_uncaptured_event),
    {0},
};
