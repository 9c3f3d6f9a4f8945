/* A thread that runs the steps of an engine. */
#include "stepper.h"

#include "counts.h"

/* What was copied out of a weight while its group was acquired. */
struct look {
    int index;
    uint64_t oldest; /* version that may be there */
    uint64_t bytes;
    const unsigned char *seen;
};

static uint64_t room(const struct weights *weights)
{
    return (uint64_t)weights_count(weights) * weights->most_bytes;
}

int stepper_begin(struct stepper *stepper)
{
    return CHECK_OK(wb_device_stream_new(stepper->device, &stepper->stream, &error)) &&
           CHECK_OK(wb_buffer_alloc(stepper->device, room(stepper->weights), NULL,
                                    &stepper->landing, &error));
}

void stepper_end(struct stepper *stepper)
{
    CHECK_OK(wb_device_stream_synchronize(stepper->device, stepper->stream, &error));
    wb_buffer_release(stepper->landing);
    CHECK_OK(wb_device_stream_release(stepper->device, stepper->stream, &error));
}

static uint64_t newest(const struct weight *weight)
{
    return __atomic_load_n(&weight->begun, __ATOMIC_ACQUIRE);
}

static void check_look(const struct weights *weights, const struct look *look)
{
    const struct weight *weight = &weights->all[look->index];
    const uint64_t last = newest(weight);
    char what[160];
    for (uint64_t version = look->oldest; version <= last; version++) {
        if (weight_is(weights, look->index, version, look->seen, look->bytes)) return;
    }
    snprintf(what, sizeof what,
             "%s, %" PRIu64 " bytes, is none of its versions %" PRIu64 " to %" PRIu64, weight->name,
             look->bytes, look->oldest, last);
    check_failed(__FILE__, __LINE__, what);
}

/* Queues a copy of what the device finds at a weight's address. */
static void look_at(struct stepper *stepper, struct look *look)
{
    const char *name = stepper->weights->all[look->index].name;
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    const wb_status status = wb_offloader_get_parameter_info(stepper->offloader, name, &info, &error);
    look->bytes = status == WB_OK ? info.span_bytes : 0;
    if (status == WB_ERR_NOT_FOUND || !CHECK_OK(status)) return;
    CHECK_OK(wb_device_copy(stepper->device, number(look->seen), info.device_address, look->bytes,
                            stepper->stream, &error));
}

/* Another thread's group may hold the slot for a moment. */
static int acquire(struct stepper *stepper, uint64_t group)
{
    for (;;) {
        const wb_status status =
            wb_offloader_acquire_group(stepper->offloader, group, stepper->stream, &error);
        if (status != WB_ERR_BUSY || stepper->alone) return CHECK_OK(status);
        count(CHANGE_REFUSED);
        sleep_us(50);
    }
}

static void slow_kernel(void *user)
{
    (void)user;
    sleep_us(100);
}

void stepper_step(struct stepper *stepper)
{
    struct weights *weights = stepper->weights;
    struct look looks[MOST_WEIGHTS];
    unsigned char *free_room = (unsigned char *)describe(stepper->landing).data;
    const int in_order = !stepper->alone || draw(&stepper->random, 8) > 0;
    const int abandoned = stepper->alone && draw(&stepper->random, 50) == 0;
    int seen = 0;
    for (int turn = 0; turn < weights->groups; turn++) {
        const int group =
            in_order ? turn : (int)draw(&stepper->random, (uint64_t)weights->groups);
        const int first = seen;
        for (int each = 0; each < weights->each; each++, seen++) {
            looks[seen].index = group * weights->each + each;
            looks[seen].oldest =
                __atomic_load_n(&weights->all[looks[seen].index].done, __ATOMIC_ACQUIRE);
            looks[seen].seen = free_room;
            free_room += weights->most_bytes;
        }
        if (!acquire(stepper, (uint64_t)group)) return;
        count(ACQUIRED);
        for (int look = first; look < seen; look++) look_at(stepper, &looks[look]);
        if (draw(&stepper->random, 10) == 0) {
            CHECK_OK(wb_device_stream_call(stepper->device, stepper->stream, slow_kernel, NULL,
                                           &error));
        }
        if (abandoned && turn == weights->groups / 2) break;
        CHECK_OK(wb_offloader_release_group(stepper->offloader, (uint64_t)group, stepper->stream,
                                            &error));
    }
    if (abandoned) {
        CHECK_OK(wb_offloader_reset(stepper->offloader, stepper->stream, &error));
        count(ABANDONED);
    }
    CHECK_OK(wb_device_stream_synchronize(stepper->device, stepper->stream, &error));
    for (int look = 0; look < seen; look++) check_look(weights, &looks[look]);
    count(STEPPED);
}
