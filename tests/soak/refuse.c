/* Calls that must fail, and leave nothing. */
#include "counts.h"
#include "lent.h"
#include "worker.h"

static void refuse_a_view_behind_the_end(const struct thing *thing)
{
    const int64_t shape[] = {(int64_t)describe(thing->as.buffer).asked_bytes + 1};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    wb_view *view = NULL;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_view_new(thing->as.buffer, &layout, WB_ACCESSOR_HOST, &view, &error), NULL);
}

/* Registered where the device pins: the same memory again is an error. */
static void refuse_the_same_again(struct worker *worker)
{
    wb_device *device = worker->round->device;
    struct lent *lent = lent_new(100, worker->round->number);
    wb_buffer *first = NULL, *second = NULL;
    if (!CHECK_OK(wb_buffer_register(device, lent_memory(lent), 100, NULL, lent_back, lent, &first,
                                     &error))) {
        return;
    }
    if (describe(first).pinned_bytes > 0) {
        CHECK_ERROR(WB_ERR_ALREADY_REGISTERED,
                    wb_buffer_register(device, lent_memory(lent), 1, NULL, lent_back, lent, &second,
                                       &error),
                    "overlaps");
    }
    wb_buffer_release(first);
}

static int cancel(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)phase, (void)done, (void)total;
    return 1;
}

static void refuse_what_is_cancelled(struct worker *worker)
{
    wb_buffer *buffer = NULL;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    options.progress = cancel;
    CHECK_ERROR(WB_ERR_CANCELLED,
                wb_buffer_alloc(worker->round->device, 50000, &options, &buffer, &error), NULL);
}

static void refuse_a_file(struct worker *worker)
{
    wb_safetensors *file = NULL;
    CHECK_ERROR(WB_ERR_FORMAT,
                wb_safetensors_open(worker->round->device, worker->round->files->plain, NULL, &file,
                                    &error),
                NULL);
}

void be_refused(struct worker *worker, const struct thing *thing)
{
    switch (draw(&worker->random, 4)) {
    case 0:
        if (thing->kind != A_BUFFER) return;
        refuse_a_view_behind_the_end(thing);
        break;
    case 1: refuse_the_same_again(worker); break;
    case 2: refuse_what_is_cancelled(worker); break;
    default: refuse_a_file(worker);
    }
    count(REFUSED);
}
