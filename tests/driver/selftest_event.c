/* Events: completion, waits across streams, timing. */
#include <string.h>

#include "selftest.h"

static void an_event_never_recorded_is_complete(void)
{
    start();
    CUevent e = event(0);
    OK(cuEventQuery(e));
    OK(cuEventSynchronize(e));
    OK(cuStreamWaitEvent(NULL, e, 0));
}

static void an_event_completes_after_earlier_work(void)
{
    start();
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    CUevent e = event(CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC);
    block_stream(s);
    OK(cuLaunchHostFunc(s, append_call, "a"));
    OK(cuEventRecord(e, s));
    REFUSED(NOT_READY, cuEventQuery(e));
    block_stream(s);
    OK(cuLaunchHostFunc(s, append_call, "b"));
    unblock_stream();
    OK(cuEventSynchronize(e));
    OK(cuEventQuery(e));
    CHECK(strcmp(call_order, "a") == 0);
    REFUSED(NOT_READY, cuStreamQuery(s));
    OK(cuEventRecord(e, s)); /* replaces the earlier record */
    REFUSED(NOT_READY, cuEventQuery(e));
    unblock_stream();
    OK(cuEventSynchronize(e));
    CHECK(strcmp(call_order, "ab") == 0);
}

static void a_wait_orders_two_streams(void)
{
    start();
    CUstream first = stream(CU_STREAM_NON_BLOCKING), second = stream(CU_STREAM_NON_BLOCKING);
    CUevent e = event(CU_EVENT_DISABLE_TIMING);
    configure("WB_DOUBLE_DELAY_US", "10000");
    for (int i = 0; i < 3; i++) OK(cuLaunchHostFunc(first, append_call, "a"));
    OK(cuEventRecord(e, first));
    OK(cuStreamWaitEvent(second, e, 0));
    OK(cuLaunchHostFunc(second, append_call, "b"));
    OK(cuStreamSynchronize(second));
    CHECK(strcmp(call_order, "aaab") == 0);
    REFUSED(INVALID_VALUE, cuStreamWaitEvent(second, e, 2));
}

/* Destroying the event or its stream later has no effect on the wait. */
static void a_wait_is_for_the_record_before_it(void)
{
    start();
    CUstream first = stream(CU_STREAM_NON_BLOCKING), second = stream(CU_STREAM_NON_BLOCKING);
    CUevent e = event(0);
    configure("WB_DOUBLE_DELAY_US", "10000");
    OK(cuLaunchHostFunc(first, append_call, "a"));
    OK(cuEventRecord(e, first));
    OK(cuStreamWaitEvent(second, e, 0));
    OK(cuEventDestroy_v2(e));
    OK(cuLaunchHostFunc(second, append_call, "b"));
    OK(cuStreamDestroy_v2(first));
    OK(cuStreamSynchronize(second));
    CHECK(strcmp(call_order, "ab") == 0);
    CHECK_EQUAL(double_live("events"), 0);
    REFUSED(INVALID_HANDLE, cuEventQuery(e));
    REFUSED(INVALID_HANDLE, cuEventRecord(e, second));
    REFUSED(INVALID_HANDLE, cuStreamWaitEvent(second, e, 0));
    REFUSED(INVALID_HANDLE, cuEventDestroy_v2(e));
}

static void elapsed_time_is_measured(void)
{
    float milliseconds = 0;
    start();
    CUstream s = stream(0);
    CUevent from = event(0), to = event(0), untimed = event(CU_EVENT_DISABLE_TIMING);
    REFUSED(INVALID_HANDLE, cuEventElapsedTime(&milliseconds, from, to));
    configure("WB_DOUBLE_DELAY_US", "20000");
    OK(cuEventRecord(from, s));
    block_stream(s);
    OK(cuEventRecord(to, s));
    OK(cuEventRecord(untimed, s));
    REFUSED(NOT_READY, cuEventElapsedTime(&milliseconds, from, to));
    unblock_stream();
    OK(cuStreamSynchronize(s));
    OK(cuEventElapsedTime(&milliseconds, from, to));
    CHECK(milliseconds >= 40); /* two delays between them */
    CHECK(milliseconds < 100000);
    REFUSED(INVALID_HANDLE, cuEventElapsedTime(&milliseconds, from, untimed));
}

static void an_event_and_its_stream_share_a_context(void)
{
    CUcontext other;
    start();
    CUevent e = event(0);
    CUstream first = stream(0);
    OK(cuCtxCreate_v2(&other, 0, 0));
    CUstream second = stream(0);
    REFUSED(INVALID_HANDLE, cuEventRecord(e, second));
    OK(cuEventRecord(e, first));
    OK(cuStreamWaitEvent(second, e, 0)); /* a wait may be in another context */
    OK(cuStreamSynchronize(second));
}

static void event_flags_are_checked(void)
{
    CUevent made;
    start();
    REFUSED(INVALID_VALUE, cuEventCreate(&made, 8));
    REFUSED(INVALID_VALUE, cuEventCreate(&made, CU_EVENT_INTERPROCESS));
    OK(cuEventCreate(&made, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
    CHECK_EQUAL(double_live("events"), 1);
}

const struct test event_tests[] = {
    TEST(an_event_never_recorded_is_complete),
    TEST(an_event_completes_after_earlier_work),
    TEST(a_wait_orders_two_streams),
    TEST(a_wait_is_for_the_record_before_it),
    TEST(elapsed_time_is_measured),
    TEST(an_event_and_its_stream_share_a_context),
    TEST(event_flags_are_checked),
    {0},
};
