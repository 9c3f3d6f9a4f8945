/* A thread that does everything at random. */
#include "worker.h"

#include "counts.h"

int inbox_put(struct inbox *inbox, const struct thing *thing)
{
    pthread_mutex_lock(&inbox->lock);
    const int room = inbox->count < INBOX;
    if (room) inbox->things[inbox->count++] = *thing;
    pthread_mutex_unlock(&inbox->lock);
    return room;
}

struct thing inbox_take(struct inbox *inbox, struct random *random)
{
    struct thing taken = {NOTHING, {NULL}, NULL, 0, 0, 0, 0};
    pthread_mutex_lock(&inbox->lock);
    if (inbox->count > 0) {
        const uint64_t at = draw(random, (uint64_t)inbox->count);
        taken = inbox->things[at];
        inbox->things[at] = inbox->things[--inbox->count];
    }
    pthread_mutex_unlock(&inbox->lock);
    return taken;
}

/* To another thread, or back to where it was. */
static void hand_over(struct worker *worker, struct thing *thing)
{
    const uint64_t to = draw(&worker->random, (uint64_t)settings.threads);
    if (thing->kind != NOTHING && inbox_put(&worker->round->inboxes[to], thing)) {
        thing->kind = NOTHING;
        count(HANDED_OVER);
    }
}

static void let_go(struct worker *worker, struct thing *thing)
{
    switch (draw(&worker->random, 4)) {
    case 0:
        read_by_device(worker, thing);
        thing_release_after(thing, worker->stream);
        return;
    case 1:
        hand_over(worker, thing);
        break;
    default:
        break;
    }
    thing_release(thing);
}

static struct thing make(struct worker *worker, const struct thing *other)
{
    switch (draw(&worker->random, 16)) {
    case 0: case 1: case 2: return make_buffer(worker);
    case 3: return make_registered(worker);
    case 4: return make_mapped(worker);
    case 5: return make_of_model_file(worker);
    case 6: return make_copy(worker);
    case 7: return make_imported(worker);
    case 8: case 9: return thing_again(other);
    case 10: case 11: return inbox_take(&worker->round->inboxes[worker->index], &worker->random);
    case 12: case 13: return make_exported(worker, other);
    default: return make_view(worker, other);
    }
}

static void open_a_device(void)
{
    wb_device *device = NULL;
    wb_buffer *buffer = NULL;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    if (CHECK_OK(wb_buffer_alloc(device, 777, NULL, &buffer, &error))) {
        CHECK_SAME(measure(device).asked_bytes, 777);
        wb_buffer_release(buffer);
    }
    CHECK_SAME(measure(device).asked_bytes, 0);
    wb_device_release(device);
    count(DEVICE_OPENED);
}

static void work(struct worker *worker)
{
    struct thing *slot = &worker->held[draw(&worker->random, HELD)];
    struct thing *other = &worker->held[draw(&worker->random, HELD)];
    switch (draw(&worker->random, 40)) {
    case 0: use_device_memory(worker); break;
    case 1: quantize(worker); break;
    case 2: be_refused(worker, other); break;
    case 3:
        read_by_device(worker, other);
        read_check(worker); /* others may release it at once */
        break;
    case 4: hand_over(worker, other); break;
    case 5: CHECK(measure(worker->round->device).asked_bytes > 0); break;
    case 6:
        if (draw(&worker->random, 10) == 0) renew_stream(worker);
        break;
    case 7:
        if (draw(&worker->random, 10) == 0) open_a_device();
        break;
    default:
        if (slot->kind != NOTHING) let_go(worker, slot);
        *slot = make(worker, other);
    }
}

void *worker_run(void *user)
{
    struct worker *worker = (struct worker *)user;
    wb_device *device = worker->round->device;
    worker->random = random_of(worker->round->number * 1000 + (uint64_t)worker->index);
    if (!CHECK_OK(wb_device_stream_new(device, &worker->stream, &error))) return NULL;
    if (CHECK_OK(wb_buffer_alloc(device, LANDING_BYTES, NULL, &worker->landing, &error))) {
        while (!stopped(worker->round) && failures() == 0) work(worker);
        for (int slot = 0; slot < HELD; slot++) let_go(worker, &worker->held[slot]);
        read_check(worker);
        wb_buffer_release(worker->landing);
    }
    CHECK_OK(wb_device_stream_release(device, worker->stream, &error));
    return NULL;
}
