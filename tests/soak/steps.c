/* An offloader's steps with its ring at depths of 2 to 8 and 24, with views and on demand, from pinned and pageable
 * memory: after every step each byte of every weight, as the device found it, is compared with the
 * model's by its checksum. Between steps weights are replaced, by others of another size.
 *
 *   steps [--steps=100000] [--seed=1] [--break=weights]               WEIGHBRIDGE_TEST_DEVICE=cuda:0 */
#include "content.h"
#include "weights.h"

enum { GROUPS = 24, EACH = 2, WEIGHTS = GROUPS * EACH, MOST_BYTES = 512 << 10, LANDINGS = 3,
       PROGRESS_SECONDS = 10 };

/* How the weights of a part of the steps are carried. */
struct way {
    const char *name;
    wb_transfer_mode carrier;
    uint32_t depth; /* 0 where there is no ring */
    wb_tristate pin;
};

static const struct way ways[] = {
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 2, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 3, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 4, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 5, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 6, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 7, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, 8, WB_TRISTATE_AUTO},
    {"prefetch", WB_TRANSFER_MODE_PREFETCH, GROUPS, WB_TRISTATE_AUTO},
    {"prefetch from pageable memory", WB_TRANSFER_MODE_PREFETCH, 3, WB_TRISTATE_OFF},
    {"on demand", WB_TRANSFER_MODE_ON_DEMAND, 0, WB_TRISTATE_AUTO},
    {"view", WB_TRANSFER_MODE_ZERO_COPY, 0, WB_TRISTATE_AUTO}};
enum { WAYS = sizeof ways / sizeof ways[0] };

/* What the stream copied out of one step's weights, and the checksums of what it must have found. */
struct landing {
    wb_buffer *buffer;
    unsigned char *room; /* MOST_BYTES for each weight */
    int full;
    uint64_t bytes[WEIGHTS], sums[WEIGHTS];
};

struct run {
    wb_device *device;
    wb_offloader *offloader;
    void *stream;
    uint64_t through; /* device memory, by which the device itself reads a view */
    struct random random;
    struct weights weights;
    uint64_t sums[WEIGHTS]; /* of the weights as they are now */
    uint64_t acquired;
    struct landing landings[LANDINGS];
};

static uint64_t steps_done, compared, mismatches, replaced;

static void check_landing(struct run *run, struct landing *landing)
{
    char what[120];
    for (int index = 0; landing->full && index < WEIGHTS; index++) {
        const unsigned char *seen = landing->room + (size_t)index * MOST_BYTES;
        compared++;
        if (checksum(seen, landing->bytes[index]) == landing->sums[index]) continue;
        mismatches++;
        snprintf(what, sizeof what, "%s is another than the model's, in step %" PRIu64 " or before",
                 run->weights.all[index].name, steps_done);
        check_failed(__FILE__, __LINE__, what);
    }
    landing->full = 0;
}

/* Waits, and compares all that has arrived. */
static void check_all(struct run *run)
{
    CHECK_OK(wb_device_stream_synchronize(run->device, run->stream, &error));
    for (int index = 0; index < LANDINGS; index++) check_landing(run, &run->landings[index]);
}

static void slow_kernel(void *user)
{
    (void)user;
    sleep_us(50);
}

static void look_at(struct run *run, struct landing *landing, int index)
{
    const uint64_t to = number(landing->room + (size_t)index * MOST_BYTES);
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    CHECK_OK(wb_offloader_get_parameter_info(run->offloader, run->weights.all[index].name, &info, &error));
    uint64_t from = info.device_address;
    landing->bytes[index] = info.span_bytes;
    landing->sums[index] = run->sums[index];
    if (info.carrier == WB_TRANSFER_MODE_ZERO_COPY) {
        CHECK_OK(wb_device_copy(run->device, run->through, from, info.span_bytes, run->stream,
                                &error));
        from = run->through;
    }
    CHECK_OK(wb_device_copy(run->device, to, from, info.span_bytes, run->stream, &error));
}

static void visit(struct run *run, struct landing *landing, uint64_t group)
{
    if (!CHECK_OK(wb_offloader_acquire_group(run->offloader, group, run->stream, &error))) return;
    run->acquired++;
    for (int each = 0; each < EACH; each++) look_at(run, landing, (int)group * EACH + each);
    if (draw(&run->random, 200) == 0) {
        CHECK_OK(wb_device_stream_call(run->device, run->stream, slow_kernel, NULL, &error));
    }
    CHECK_OK(wb_offloader_release_group(run->offloader, group, run->stream, &error));
}

/* All groups in their order, or now and then from another one on, backwards, or after an abandoned
 * step. */
static void step(struct run *run)
{
    struct landing *landing = &run->landings[steps_done % LANDINGS];
    const uint64_t kind = draw(&run->random, 64);
    const uint64_t first = kind == 0 ? draw(&run->random, GROUPS) : 0;
    if (landing->full || draw(&run->random, 8) == 0) check_all(run);
    if (kind == 1) {
        CHECK_OK(wb_offloader_acquire_group(run->offloader, draw(&run->random, GROUPS), run->stream,
                                            &error));
        run->acquired++;
        CHECK_OK(wb_offloader_reset(run->offloader, run->stream, &error));
    }
    for (uint64_t turn = 0; turn < GROUPS; turn++) {
        visit(run, landing, kind == 2 ? GROUPS - 1 - turn : (first + turn) % GROUPS);
    }
    landing->full = 1;
    steps_done++;
    if (draw(&run->random, 32) == 0) sleep_us((long)draw(&run->random, 300));
}

/* Notes the checksum of a weight as it is now. */
static void note(struct run *run, int index, const unsigned char *content)
{
    const uint64_t version = run->weights.all[index].done;
    run->sums[index] = checksum(content, weight_bytes(&run->weights, index, version));
}

static void replace_one(struct run *run)
{
    const int index = (int)draw(&run->random, WEIGHTS);
    struct weight *weight = &run->weights.all[index];
    const uint64_t version = ++weight->done;
    unsigned char *content = weight_content(&run->weights, index, version);
    const int64_t shape[] = {(int64_t)weight_bytes(&run->weights, index, version)};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    note(run, index, content);
    if (settings.broken == BROKEN_WEIGHTS) content[shape[0] / 2] ^= 1;
    CHECK_OK(wb_offloader_replace(run->offloader, weight->name, number(content), &layout,
                                  run->stream, &error));
    free(content);
    replaced++;
    if (draw(&run->random, 8) == 0) {
        CHECK_OK(wb_offloader_compact(run->offloader, run->stream, &error));
    }
}

static int begin(struct run *run, const struct way *way)
{
    wb_plan_options plan = WB_PLAN_OPTIONS_INIT;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_status status = WB_OK;
    plan.offload_bytes = WB_UNSET - 1;
    plan.allow = WB_ALLOW_EVERYTHING_FITS;
    plan.carrier = way->carrier;
    plan.depth = way->depth;
    options.pin = way->pin;
    run->acquired = 0;
    weights_init(&run->weights, GROUPS, EACH, MOST_BYTES, SIZES_CHANGE,
                 draw(&run->random, UINT64_MAX));
    for (int index = 0; index < WEIGHTS; index++) {
        unsigned char *content = weight_content(&run->weights, index, 0);
        note(run, index, content);
        free(content);
    }
    run->offloader =
        weights_offload(&run->weights, run->device, run->stream, &plan, &options, &status);
    if (!CHECK_OK(status)) return 0;
    if (way->depth > 0) CHECK_SAME(run->weights.planned.depth, way->depth);
    return 1;
}

static void end(struct run *run, const struct way *way)
{
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    CHECK_OK(wb_offloader_get_stats(run->offloader, &stats, &error));
    CHECK_SAME(stats.acquires, run->acquired);
    CHECK_SAME(stats.resident_bytes, 0);
    CHECK((stats.moved_bytes == 0) == (way->carrier == WB_TRANSFER_MODE_ZERO_COPY));
    wb_offloader_release(run->offloader);
    check_all(run);
}

static void run_way(struct run *run, const struct way *way, uint64_t until)
{
    const double start = seconds_now();
    const uint64_t before = steps_done;
    double told = start;
    if (!begin(run, way)) return;
    while (steps_done < until && failures() == 0) {
        step(run);
        if (draw(&run->random, 16) == 0) replace_one(run);
        if (seconds_now() - told < PROGRESS_SECONDS) continue;
        told = seconds_now();
        printf("%" PRIu64 " steps, %" PRIu64 " checksums\n", steps_done, compared);
    }
    end(run, way);
    printf("%s, depth %u: %" PRIu64 " steps in %.1f s\n", way->name, way->depth,
           steps_done - before, seconds_now() - start);
}

static int prepare(struct run *run)
{
    for (int index = 0; index < LANDINGS; index++) {
        struct landing *landing = &run->landings[index];
        if (!CHECK_OK(wb_buffer_alloc(run->device, (uint64_t)WEIGHTS * MOST_BYTES, NULL,
                                      &landing->buffer, &error))) {
            return 0;
        }
        landing->room = (unsigned char *)describe(landing->buffer).data;
    }
    return CHECK_OK(wb_device_stream_new(run->device, &run->stream, &error)) &&
           CHECK_OK(wb_device_alloc(run->device, MOST_BYTES, &run->through, &error));
}

static void run_all(struct run *run)
{
    for (uint64_t way = 0; way < WAYS && failures() == 0; way++) {
        run_way(run, &ways[way], settings.steps * (way + 1) / WAYS);
    }
    for (int index = 0; index < LANDINGS; index++) wb_buffer_release(run->landings[index].buffer);
    CHECK_OK(wb_device_free(run->device, run->through, &error));
    CHECK_OK(wb_device_stream_release(run->device, run->stream, &error));
}

static void report(double seconds)
{
    printf("reliability: {\"steps\": %" PRIu64 ", \"depths\": [", steps_done);
    for (int way = 0; way < WAYS; way++) {
        if (ways[way].depth > 0 && ways[way].pin == WB_TRISTATE_AUTO) {
            printf("%s%u", way > 0 ? ", " : "", ways[way].depth);
        }
    }
    printf("], \"carriers\": [\"prefetch\", \"on demand\", \"view\"], \"checksums\": %" PRIu64
           ", \"replaced\": %" PRIu64 ", \"mismatches\": %" PRIu64
           ", \"seconds\": %.1f, \"device\": \"%s\"}\n",
           compared, replaced, mismatches, seconds, device_kind());
}

int main(int argc, char **argv)
{
    static struct run run;
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    settings_read(argc, argv);
    const double start = seconds_now();
    run.random = random_of(0);
    if (!CHECK_OK(wb_device_open(test_device(), NULL, &run.device, &error))) return 1;
    printf("seed %" PRIu64 ", %" PRIu64 " steps, %s\n", settings.seed, settings.steps,
           device_kind());
    if (prepare(&run)) run_all(&run);
    CHECK_OK(wb_device_drain(run.device, 60000, &error));
    CHECK_USAGE(run.device, nothing);
    wb_device_release(run.device);
    CHECK(failures() > 0 || steps_done == settings.steps);
    report(seconds_now() - start);
    if (failures() > 0) printf("FAILED: seed %" PRIu64 ", %d checks\n", settings.seed, failures());
    return failures() > 0;
}
