/* Steps of two streams on one offloader: each ends and begins its own only. */
#include <pthread.h>

#include "model.h"

struct two_streams {
    struct offload o;
    void *other;
};

static int two_begin(struct two_streams *two, wb_device *device)
{
    model_init(&model);
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    options.depth = 2;
    return offload_begin_first(&two->o, device, COUNT, options) &&
           CHECK_OK(wb_device_stream_new(device, &two->other, &error));
}

static void two_end(struct two_streams *two)
{
    CHECK_OK(wb_device_stream_synchronize(two->o.device, two->other, &error));
    CHECK_OK(wb_device_stream_release(two->o.device, two->other, &error));
    offload_end(&two->o);
}

static void a_reset_ends_the_step_of_its_stream(wb_device *device)
{
    struct two_streams two;
    REQUIRE(two_begin(&two, device));
    wb_offloader *offloader = two.o.offloader;
    CHECK_OK(wb_offloader_acquire_group(offloader, 0, two.o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 1, two.other, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 1, two.o.stream, &error)); /* both */
    CHECK_OK(wb_offloader_reset(offloader, two.other, &error));
    CHECK_ERROR(WB_ERR_BUSY, wb_offloader_acquire_group(offloader, 2, two.other, &error),
                "layers.0|still acquired");
    CHECK_OK(wb_offloader_release_group(offloader, 1, two.o.stream, &error));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_release_group(offloader, 1, two.other, &error), "not acquired");
    CHECK_OK(wb_offloader_release_group(offloader, 0, two.o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 2, two.other, &error));
    CHECK_OK(wb_offloader_release_group(offloader, 2, two.other, &error));
    two_end(&two);
}

static void a_release_may_use_another_stream(wb_device *device)
{
    struct two_streams two;
    REQUIRE(two_begin(&two, device));
    wb_offloader *offloader = two.o.offloader;
    CHECK_OK(wb_offloader_acquire_group(offloader, 0, two.o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 0, two.other, &error));
    CHECK_OK(wb_offloader_release_group(offloader, 0, two.other, &error)); /* its own */
    CHECK_OK(wb_offloader_reset(offloader, two.other, &error));            /* has nothing left */
    CHECK_OK(wb_offloader_release_group(offloader, 0, two.other, &error)); /* that of o.stream */
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_release_group(offloader, 0, two.o.stream, &error), "not acquired");
    two_end(&two);
}

static void reset_all_ends_the_steps_of_every_stream(wb_device *device)
{
    struct two_streams two;
    void *gone = NULL;
    REQUIRE(two_begin(&two, device));
    REQUIRE_OK(wb_device_stream_new(device, &gone, &error));
    wb_offloader *offloader = two.o.offloader;
    CHECK_OK(wb_offloader_acquire_group(offloader, 0, gone, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 1, two.other, &error));
    CHECK_OK(wb_device_stream_synchronize(device, gone, &error));
    CHECK_OK(wb_device_stream_release(device, gone, &error));
    CHECK_OK(wb_offloader_reset_all(offloader, two.o.stream, &error));
    for (uint64_t group = 0; group < 2; group++) {
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                    wb_offloader_release_group(offloader, group, two.other, &error),
                    "not acquired");
    }
    check_step(&two.o);
    two_end(&two);
}

/* The copy that another stream's step has prefetched is not made again. */
static void begin_step_leaves_the_steps_of_other_streams(wb_device *device)
{
    struct two_streams two;
    REQUIRE(two_begin(&two, device));
    wb_offloader *offloader = two.o.offloader;
    CHECK_OK(wb_offloader_begin_step(offloader, two.o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 0, two.o.stream, &error)); /* prefetches 1 */
    CHECK_OK(wb_offloader_begin_step(offloader, two.other, &error));
    const wb_offloader_stats before = stats_of(&two.o);
    CHECK_OK(wb_offloader_acquire_group(offloader, 1, two.o.stream, &error));
    CHECK_SAME(stats_of(&two.o).late_copies, before.late_copies);
    CHECK_OK(wb_offloader_release_group(offloader, 0, two.o.stream, &error));
    CHECK_OK(wb_offloader_release_group(offloader, 1, two.o.stream, &error));
    /* Its own step relies on no copy from before it. */
    const uint64_t copies = stats_of(&two.o).copies;
    CHECK_OK(wb_offloader_begin_step(offloader, two.other, &error));
    CHECK_OK(wb_offloader_acquire_group(offloader, 1, two.other, &error));
    CHECK(stats_of(&two.o).copies > copies);
    CHECK_OK(wb_offloader_release_group(offloader, 1, two.other, &error));
    two_end(&two);
}

/* A stream without steps of its own takes part in the one that was begun last. */
static void a_step_may_use_several_streams(wb_device *device)
{
    struct two_streams two;
    REQUIRE(two_begin(&two, device));
    const uint64_t before = stats_of(&two.o).copies;
    CHECK_OK(wb_offloader_begin_step(two.o.offloader, two.o.stream, &error));
    for (uint64_t group = 0; group < LAYERS; group++) {
        void *stream = group % 2 ? two.other : two.o.stream;
        CHECK_OK(wb_offloader_acquire_group(two.o.offloader, group, stream, &error));
        CHECK_OK(wb_offloader_release_group(two.o.offloader, group, stream, &error));
    }
    CHECK_SAME(stats_of(&two.o).copies - before, LAYERS);
    two_end(&two);
}

/* Two threads, each with a stream of its own, abandon steps and go on. */
struct stepper {
    pthread_t thread;
    struct two_streams *two;
    void *stream;
    int wrong;
};

static void *abandon_steps(void *argument)
{
    struct stepper *stepper = (struct stepper *)argument;
    wb_offloader *offloader = stepper->two->o.offloader;
    wb_error mine = WB_ERROR_INIT;
    for (int turn = 0; turn < 200; turn++) {
        for (uint64_t group = 0; group < LAYERS; group++) {
            wb_status status = WB_ERR_BUSY;
            while (status == WB_ERR_BUSY) {
                status = wb_offloader_acquire_group(offloader, group, stepper->stream, &mine);
            }
            stepper->wrong += status != WB_OK;
            const int abandoned = turn % 3 == 0 && group == 2;
            status = abandoned
                         ? wb_offloader_reset(offloader, stepper->stream, &mine)
                         : wb_offloader_release_group(offloader, group, stepper->stream, &mine);
            stepper->wrong += status != WB_OK;
            if (abandoned) break;
        }
    }
    return NULL;
}

static void threads_abandon_their_own_steps(wb_device *device)
{
    struct two_streams two;
    REQUIRE(two_begin(&two, device));
    struct stepper steppers[2];
    memset(steppers, 0, sizeof steppers);
    for (int at = 0; at < 2; at++) {
        steppers[at].two = &two;
        steppers[at].stream = at ? two.other : two.o.stream;
        CHECK(pthread_create(&steppers[at].thread, NULL, abandon_steps, &steppers[at]) == 0);
    }
    for (int at = 0; at < 2; at++) {
        CHECK(pthread_join(steppers[at].thread, NULL) == 0);
        CHECK_SAME(steppers[at].wrong, 0);
    }
    two_end(&two);
}

CHECK_MAIN(CASE(a_reset_ends_the_step_of_its_stream), CASE(a_release_may_use_another_stream),
           CASE(reset_all_ends_the_steps_of_every_stream),
           CASE(begin_step_leaves_the_steps_of_other_streams),
           CASE(a_step_may_use_several_streams), CASE(threads_abandon_their_own_steps))
