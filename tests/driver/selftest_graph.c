/* Graphs: replays, their order, external waits. */
#include <string.h>
#include <unistd.h>

#include "selftest.h"

static CUstream begin(void)
{
    CUstream s = stream(CU_STREAM_NON_BLOCKING);
    OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    return s;
}

static CUgraphExec end(CUstream s)
{
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    OK(cuStreamEndCapture(s, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    return exec;
}

static void a_replay_runs_the_captured_work(void)
{
    start();
    CUstream s = begin();
    OK(cuLaunchHostFunc(s, append_call, "a"));
    OK(cuLaunchHostFunc(s, append_call, "b"));
    CUgraphExec exec = end(s);
    CHECK_EQUAL(double_live("graphs"), 0);
    CHECK_EQUAL(double_live("graph execs"), 1);
    OK(cuGraphLaunch(exec, s));
    OK(cuLaunchHostFunc(s, append_call, "c"));
    OK(cuGraphLaunch(exec, s));
    OK(cuStreamSynchronize(s));
    CHECK(strcmp(call_order, "abcab") == 0);
    OK(cuGraphExecDestroy(exec));
    CHECK_EQUAL(double_live("graph execs"), 0);
    REFUSED(INVALID_VALUE, cuGraphLaunch(exec, s));
    REFUSED(INVALID_VALUE, cuGraphExecDestroy(exec));
}

static void pause_and_append(void *character)
{
    usleep(20000);
    append_call(character);
}

static void a_replay_keeps_the_order_of_its_streams(void)
{
    start();
    CUevent fork = event(2), joined = event(2);
    CUstream side = stream(CU_STREAM_NON_BLOCKING), s = begin();
    OK(cuLaunchHostFunc(s, pause_and_append, "a"));
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuLaunchHostFunc(side, pause_and_append, "b"));
    OK(cuEventRecord(joined, side));
    OK(cuStreamWaitEvent(s, joined, 0));
    OK(cuLaunchHostFunc(s, append_call, "c"));
    CUgraphExec exec = end(s);
    for (int replay = 0; replay < 2; replay++) OK(cuGraphLaunch(exec, s));
    OK(cuStreamSynchronize(s));
    CHECK(strcmp(call_order, "abcabc") == 0);
    OK(cuGraphExecDestroy(exec));
}

/* What the capture does not order runs in any order. */
static void streams_of_a_replay_run_side_by_side(void)
{
    start();
    CUevent fork = event(2), joined = event(2);
    CUstream side = stream(CU_STREAM_NON_BLOCKING), s = begin();
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuLaunchHostFunc(side, pause_and_append, "b"));
    OK(cuLaunchHostFunc(s, append_call, "a"));
    OK(cuEventRecord(joined, side));
    OK(cuStreamWaitEvent(s, joined, 0));
    CUgraphExec exec = end(s);
    OK(cuGraphLaunch(exec, s));
    OK(cuStreamSynchronize(s));
    CHECK(strcmp(call_order, "ab") == 0);
    OK(cuGraphExecDestroy(exec));
}

static void an_external_wait_is_for_the_last_recording_before_the_launch(void)
{
    start();
    CUevent done = event(2);
    CUstream other = stream(CU_STREAM_NON_BLOCKING), s = begin();
    OK(cuStreamWaitEvent(s, done, CU_EVENT_WAIT_EXTERNAL)); /* not recorded yet */
    OK(cuLaunchHostFunc(s, append_call, "b"));
    CUgraphExec exec = end(s);
    OK(cuGraphLaunch(exec, s));
    OK(cuStreamSynchronize(s));
    OK(cuLaunchHostFunc(other, pause_and_append, "a"));
    OK(cuEventRecord(done, other));
    OK(cuGraphLaunch(exec, s));
    OK(cuStreamSynchronize(s));
    CHECK(strcmp(call_order, "bab") == 0);
    OK(cuGraphExecDestroy(exec));
}

static void an_external_wait_must_be_joined(void)
{
    start();
    CUgraph graph = NULL;
    CUevent fork = event(2), joined = event(2), done = event(2);
    CUstream side = stream(CU_STREAM_NON_BLOCKING), s = begin();
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuEventRecord(joined, side));
    OK(cuStreamWaitEvent(side, done, CU_EVENT_WAIT_EXTERNAL));
    OK(cuStreamWaitEvent(s, joined, 0));
    REFUSED(STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(s, &graph));
}

const struct test graph_tests[] = {
    TEST(a_replay_runs_the_captured_work),
    TEST(a_replay_keeps_the_order_of_its_streams),
    TEST(streams_of_a_replay_run_side_by_side),
    TEST(an_external_wait_is_for_the_last_recording_before_the_launch),
    TEST(an_external_wait_must_be_joined),
    {0},
};
