/* Steps of an offloader with its ring at depths of 2 to 8 and 24, zero-copy and on demand, from pinned
 * and pageable memory, compressed, through windows, and with fixed addresses while it is resized and while
 * pieces move. After every step the bytes of every weight, as the device read them, are compared with the
 * model's by their checksums. Between steps, weights are replaced by others, some of another size.
 *
 * With --compressed, all steps are of compressed weights, fewer and smaller ones than else so that more steps are
 * done: each has a kernel that waits for the link.
 *
 *   steps [--steps=100000] [--compressed] [--seed=1] [--break=weights]       WEIGHBRIDGE_TEST_DEVICE=cuda:0 */
#include "weights.h"

enum { GROUPS = 24, EACH = 2, WEIGHTS = GROUPS * EACH, MOST_BYTES = 512 << 10, LESS_BYTES = 96 << 10, FEWER_GROUPS = 6,
       READBACKS = 3, PROGRESS_SECONDS = 10, LARGE_GROUPS = 3, LARGE_BYTES = 3 << 20,
       WINDOWS_BYTES = 64 << 20 };

/* How the weights are transferred in one part of the steps. */
struct transfer {
    const char *name;
    wb_transfer_mode mode;
    uint32_t depth; /* 0 without a ring */
    wb_tristate pin;
    enum change change;
    wb_compress compress;
    int fixed; /* with fixed addresses */
    int large; /* few weights, each larger than a piece, and compressed through windows */
};

#define RAW(name, mode, depth, pin) \
    {name, WB_TRANSFER_MODE_##mode, depth, WB_TRISTATE_##pin, SIZES_CHANGE, WB_COMPRESS_OFF, 0, 0}
#define RESIZED(name, mode, depth, compress, large)                                                 \
    {name, WB_TRANSFER_MODE_##mode, depth, WB_TRISTATE_AUTO, CONTENT_CHANGES, WB_COMPRESS_##compress, 1, large}
#define COMPRESSED(name, mode, depth, change, large)                                                \
    {name, WB_TRANSFER_MODE_##mode, depth, WB_TRISTATE_AUTO, change, WB_COMPRESS_SELECTED, 0, large}

static const struct transfer transfers[] = {
    RAW("prefetch", PREFETCH, 2, AUTO),
    RAW("prefetch", PREFETCH, 3, AUTO),
    RAW("prefetch", PREFETCH, 4, AUTO),
    RAW("prefetch", PREFETCH, 5, AUTO),
    RAW("prefetch", PREFETCH, 6, AUTO),
    RAW("prefetch", PREFETCH, 7, AUTO),
    RAW("prefetch", PREFETCH, 8, AUTO),
    RAW("prefetch", PREFETCH, GROUPS, AUTO),
    RAW("prefetch from pageable memory", PREFETCH, 3, OFF),
    RAW("on demand", ON_DEMAND, 0, AUTO),
    RESIZED("resized", PREFETCH, 3, OFF, 0),
    RESIZED("resized on demand", ON_DEMAND, 0, OFF, 0),
    RESIZED("resized and compressed", PREFETCH, 3, SELECTED, 0),
    RESIZED("in pieces", ZERO_COPY, 0, OFF, 1),
    RAW("zero-copy", ZERO_COPY, 0, AUTO),
    COMPRESSED("compressed", PREFETCH, 2, SIZES_CHANGE, 0),
    COMPRESSED("compressed", PREFETCH, 4, CONTENT_CHANGES, 0),
    COMPRESSED("compressed", ON_DEMAND, 0, CONTENT_CHANGES, 0),
    COMPRESSED("through windows", PREFETCH, 2, SIZES_CHANGE, 1),
    COMPRESSED("through windows", ON_DEMAND, 0, CONTENT_CHANGES, 1)};
enum { TRANSFERS = sizeof transfers / sizeof transfers[0] };

/* The bytes that the stream copied from the weights of one step, and the checksums they must have. */
struct readback {
    wb_buffer *buffer;
    unsigned char *memory; /* `weights.most_bytes` for each weight */
    int full;
    uint64_t bytes[WEIGHTS], sums[WEIGHTS];
};

struct run {
    wb_device *device;
    wb_offloader *offloader;
    void *stream;
    void *device_memory; /* a zero-copy weight is copied here first, so that the device reads it */
    struct random random;
    struct weights weights;
    uint64_t sums[WEIGHTS]; /* of the current versions */
    uint64_t acquired, slot_bytes, pieces;
    struct readback readbacks[READBACKS];
};

static uint64_t steps_done, compared, mismatches, replaced, resized, rebalanced;

static int weights_of(const struct run *run)
{
    return weights_count(&run->weights);
}

static void check_readback(struct run *run, struct readback *readback)
{
    char what[120];
    for (int index = 0; readback->full && index < weights_of(run); index++) {
        const unsigned char *seen = readback->memory + (size_t)index * run->weights.most_bytes;
        compared++;
        if (checksum(seen, readback->bytes[index]) == readback->sums[index]) continue;
        mismatches++;
        snprintf(what, sizeof what, "%s differs from the model, in step %" PRIu64 " or before",
                 run->weights.all[index].name, steps_done);
        check_failed(__FILE__, __LINE__, what);
    }
    readback->full = 0;
}

/* Waits for the stream and compares all readbacks. */
static void check_all(struct run *run)
{
    CHECK_OK(wb_device_stream_synchronize(run->device, run->stream, &error));
    for (int index = 0; index < READBACKS; index++) check_readback(run, &run->readbacks[index]);
}

static void read_weight(struct run *run, struct readback *readback, int index)
{
    unsigned char *to = readback->memory + (size_t)index * run->weights.most_bytes;
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    uint64_t parameter = 0;
    CHECK_OK(wb_offloader_find_parameter(run->offloader, run->weights.all[index].name, &parameter,
                                         &error));
    CHECK_OK(wb_offloader_get_parameter_info(run->offloader, parameter, &info, &error));
    const void *from = info.device_address;
    readback->bytes[index] = info.span_bytes;
    readback->sums[index] = run->sums[index];
    if (info.transfer_mode == WB_TRANSFER_MODE_ZERO_COPY) {
        copy_pieces(run->device, run->device_memory, from, info.span_bytes, run->stream);
        from = run->device_memory;
    }
    CHECK_OK(wb_device_copy(run->device, to, from, info.span_bytes, run->stream, &error));
}

static void run_group(struct run *run, struct readback *readback, uint64_t group)
{
    static const long kernel_us = 50;
    if (!CHECK_OK(wb_offloader_acquire_group(run->offloader, group, run->stream, &error))) return;
    run->acquired++;
    const int each = run->weights.each;
    for (int at = 0; at < each; at++) read_weight(run, readback, (int)group * each + at);
    if (draw(&run->random, 200) == 0) delay_stream(run->device, run->stream, &kernel_us);
    CHECK_OK(wb_offloader_release_group(run->offloader, group, run->stream, &error));
}

/* All groups in their order; sometimes from another group on, backwards, or after an abandoned step. */
static void step(struct run *run)
{
    struct readback *readback = &run->readbacks[steps_done % READBACKS];
    const uint64_t groups = (uint64_t)run->weights.groups;
    const uint64_t kind = draw(&run->random, 64);
    const uint64_t first = kind == 0 ? draw(&run->random, groups) : 0;
    if (readback->full || draw(&run->random, 8) == 0) check_all(run);
    if (kind == 1) {
        CHECK_OK(wb_offloader_acquire_group(run->offloader, draw(&run->random, groups), run->stream,
                                            &error));
        run->acquired++;
        CHECK_OK(wb_offloader_reset(run->offloader, run->stream, &error));
    }
    for (uint64_t turn = 0; turn < groups; turn++) {
        run_group(run, readback, kind == 2 ? groups - 1 - turn : (first + turn) % groups);
    }
    readback->full = 1;
    steps_done++;
    if (draw(&run->random, 32) == 0) sleep_us((long)draw(&run->random, 300));
}

/* Returns the current content of a weight, in memory of malloc, and stores its checksum. */
static unsigned char *current_content(struct run *run, int index)
{
    const uint64_t version = run->weights.all[index].current;
    unsigned char *content = weight_content(&run->weights, index, version);
    run->sums[index] = checksum(content, weight_bytes(&run->weights, index, version));
    return content;
}

static void replace_weight(struct run *run, int fixed)
{
    const int index = (int)draw(&run->random, (uint64_t)weights_of(run));
    struct weight *weight = &run->weights.all[index];
    const int64_t bytes = (int64_t)weight_bytes(&run->weights, index, ++weight->current);
    const wb_layout layout = weight_layout(&run->weights, &bytes);
    unsigned char *content = current_content(run, index);
    if (options.defect == DEFECT_WEIGHTS) content[bytes / 2] ^= 1;
    CHECK_OK(wb_offloader_replace(run->offloader, weight->name, content, &layout, run->stream,
                                  &error));
    free(content);
    replaced++;
    if (!fixed && draw(&run->random, 8) == 0) {
        CHECK_OK(wb_offloader_compact(run->offloader, run->stream, &error));
    }
}

static void resize(struct run *run, uint64_t device_bytes, int wait)
{
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    to.budget_bytes = device_bytes;
    CHECK_OK(wb_offloader_resize(run->offloader, &to, run->stream, &progress, &error));
    resized++;
    if (!wait) return;
    CHECK_OK(wb_offloader_resize_wait(run->offloader, run->stream, 60000, &progress, &error));
    CHECK_SAME(progress.pending_units, 0);
    CHECK(progress.device_bytes <= device_bytes);
}

/* To any budget; sometimes asleep in between. */
static void resize_somehow(struct run *run)
{
    const uint64_t least = run->slot_bytes == 0; /* pieces, without which it would sleep */
    const uint64_t pieces = least + draw(&run->random, run->pieces + 1 - least);
    const uint64_t bytes = run->slot_bytes + pieces * PIECE_BYTES;
    const int sleeps = draw(&run->random, 8) == 0;
    if (sleeps) resize(run, 0, 1);
    resize(run, bytes, sleeps || draw(&run->random, 2) == 0);
}

/* Makes a part of a weight hotter or colder, and moves some pieces for it, sometimes all. */
static void rebalance_somehow(struct run *run)
{
    const int index = (int)draw(&run->random, (uint64_t)weights_of(run));
    const uint64_t bytes = weight_bytes(&run->weights, index, run->weights.all[index].current);
    const uint64_t start = draw(&run->random, bytes), rest = draw(&run->random, bytes - start) + 1;
    const uint64_t most = draw(&run->random, 6) * PIECE_BYTES;
    const int all = most > 0 && draw(&run->random, 2) == 0;
    wb_offloader_rebalance_progress moved = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    uint64_t parameter = 0;
    CHECK_OK(wb_offloader_find_parameter(run->offloader, run->weights.all[index].name, &parameter,
                                         &error));
    CHECK_OK(wb_offloader_prefer(run->offloader, parameter, start, rest,
                                 (double)draw(&run->random, 16) / 4, &error));
    CHECK_OK(wb_offloader_resize_advance(run->offloader, run->stream, &progress, &error));
    do {
        const uint64_t held = progress.device_bytes;
        CHECK_OK(wb_offloader_rebalance(run->offloader, most, run->stream, &moved, &error));
        /* A resize that is in progress is continued. */
        CHECK(moved.moved_bytes <= most && (progress.pending_units > 0 || moved.device_bytes <= held));
        rebalanced += moved.moved_bytes > 0;
    } while (all && moved.pending_bytes > 0 && failures() == 0);
}

static int begin(struct run *run, const struct transfer *transfer)
{
    static const char *const every[] = {"*"};
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    wb_plan_options plan = WB_PLAN_OPTIONS_INIT;
    wb_buffer_options buffers = WB_BUFFER_OPTIONS_INIT;
    wb_status status = WB_OK;
    plan.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    plan.budget_bytes = UINT64_MAX;
    plan.allow = WB_ALLOW_EVERYTHING_FITS;
    plan.transfer_mode = transfer->mode;
    plan.depth = transfer->depth;
    plan.compress = transfer->compress;
    plan.compress_select = every;
    plan.compress_select_count = transfer->compress == WB_COMPRESS_SELECTED;
    buffers.pin = transfer->pin;
    run->acquired = 0;
    plan.fixed_addresses = transfer->fixed ? WB_TRISTATE_ON : WB_TRISTATE_AUTO;
    const uint64_t most_bytes = options.compressed ? LESS_BYTES : MOST_BYTES;
    const int groups = options.compressed ? FEWER_GROUPS : GROUPS;
    weights_init(&run->weights, transfer->large ? LARGE_GROUPS : groups, EACH,
                 transfer->large ? LARGE_BYTES : most_bytes, transfer->change,
                 draw(&run->random, UINT64_MAX));
    run->weights.are_large = transfer->large;
    run->weights.are_numbers = transfer->compress != WB_COMPRESS_OFF;
    run->pieces = (uint64_t)(transfer->large ? LARGE_GROUPS * EACH * LARGE_BYTES / PIECE_BYTES : groups);
    for (int index = 0; index < weights_of(run); index++) free(current_content(run, index));
    run->offloader =
        weights_offload(&run->weights, run->device, run->stream, &plan, &buffers, &status);
    if (!CHECK_OK(status)) return 0;
    CHECK_OK(wb_offloader_get_stats(run->offloader, &stats, &error));
    run->slot_bytes = stats.slot_bytes;
    if (transfer->depth > 0) CHECK_SAME(run->weights.planned.depth, transfer->depth);
    if (transfer->compress != WB_COMPRESS_OFF) {
        CHECK((run->weights.planned.slot_bytes > WINDOWS_BYTES) == transfer->large);
    }
    return 1;
}

static void end(struct run *run, const struct transfer *transfer)
{
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    CHECK_OK(wb_offloader_get_stats(run->offloader, &stats, &error));
    CHECK_SAME(stats.acquires, run->acquired);
    if (transfer->mode != WB_TRANSFER_MODE_ZERO_COPY || !transfer->fixed) CHECK_SAME(stats.resident_bytes, 0);
    CHECK((stats.moved_bytes == 0) == (transfer->mode == WB_TRANSFER_MODE_ZERO_COPY));
    CHECK((stats.moved_encoded_bytes == 0) == (transfer->compress == WB_COMPRESS_OFF));
    CHECK(stats.moved_encoded_bytes <= stats.moved_bytes);
    wb_offloader_release(run->offloader);
    check_all(run);
}

static void run_transfer(struct run *run, const struct transfer *transfer, uint64_t until)
{
    const double start = seconds_now();
    const uint64_t before = steps_done;
    double printed = start;
    if (!begin(run, transfer)) return;
    while (steps_done < until && failures() == 0) {
        step(run);
        if (transfer->fixed && draw(&run->random, 4) == 0) resize_somehow(run);
        if (transfer->fixed && transfer->mode == WB_TRANSFER_MODE_ZERO_COPY) rebalance_somehow(run);
        if (draw(&run->random, 16) == 0) {
            if (transfer->fixed) resize(run, run->slot_bytes + PIECE_BYTES, 1);
            replace_weight(run, transfer->fixed);
        }
        if (seconds_now() - printed < PROGRESS_SECONDS) continue;
        printed = seconds_now();
        printf("%" PRIu64 " steps, %" PRIu64 " checksums\n", steps_done, compared);
    }
    end(run, transfer);
    printf("%s, depth %u: %" PRIu64 " steps in %.1f s\n", transfer->name, transfer->depth,
           steps_done - before, seconds_now() - start);
}

static int prepare(struct run *run)
{
    for (int index = 0; index < READBACKS; index++) {
        struct readback *readback = &run->readbacks[index];
        /* Enough for few large weights, too. */
        if (!CHECK_OK(wb_buffer_alloc(run->device, (uint64_t)WEIGHTS * MOST_BYTES, NULL,
                                      &readback->buffer, &error))) {
            return 0;
        }
        readback->memory = (unsigned char *)buffer_info(readback->buffer).data;
    }
    return CHECK_OK(wb_device_stream_new(run->device, &run->stream, &error)) &&
           CHECK_OK(wb_device_alloc(run->device, LARGE_BYTES, &run->device_memory, &error));
}

/* Large weights take longer, so they get a quarter of the steps of others, or of small ones less. */
static uint64_t share_of(const struct transfer *transfer)
{
    if (options.compressed && transfer->compress == WB_COMPRESS_OFF) return 0;
    return transfer->large ? 1 : options.compressed ? 8 : 4;
}

static void run_all(struct run *run)
{
    uint64_t shares = 0, until = 0;
    for (int part = 0; part < TRANSFERS; part++) shares += share_of(&transfers[part]);
    for (int part = 0; part < TRANSFERS && failures() == 0; part++) {
        if (share_of(&transfers[part]) == 0) continue;
        until += share_of(&transfers[part]);
        run_transfer(run, &transfers[part], options.steps * until / shares);
    }
    for (int index = 0; index < READBACKS; index++) wb_buffer_release(run->readbacks[index].buffer);
    CHECK_OK(wb_device_free(run->device, run->device_memory, &error));
    CHECK_OK(wb_device_stream_release(run->device, run->stream, &error));
}

static void report(double seconds)
{
    printf("reliability: {\"steps\": %" PRIu64 ", \"compressed\": %s, \"depths\": [", steps_done,
           options.compressed ? "true" : "false");
    for (int part = 0; part < TRANSFERS && !options.compressed; part++) {
        if (transfers[part].depth > 0 && transfers[part].pin == WB_TRISTATE_AUTO &&
            transfers[part].compress == WB_COMPRESS_OFF && !transfers[part].fixed) {
            printf("%s%u", part > 0 ? ", " : "", transfers[part].depth);
        }
    }
    printf("], \"transfer_modes\": [\"prefetch\", \"on demand\", %s\"compressed\", \"windows\"], "
           "\"checksums\": %" PRIu64 ", \"replaced\": %" PRIu64 ", \"resized\": %" PRIu64
           ", \"rebalanced\": %" PRIu64 ", \"mismatches\": %" PRIu64 ", \"seconds\": %.1f, \"device\": \"%s\"}\n",
           options.compressed ? "" : "\"zero-copy\", \"pieces\", ", compared, replaced, resized, rebalanced,
           mismatches, seconds, device_kind());
}

int main(int argc, char **argv)
{
    static struct run run;
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    options_read(argc, argv);
    const double start = seconds_now();
    run.random = random_of(0);
    if (!CHECK_OK(wb_device_open(test_device(), NULL, &run.device, &error))) return 1;
    printf("seed %" PRIu64 ", %" PRIu64 " steps, %s\n", options.seed, options.steps, device_kind());
    if (prepare(&run)) run_all(&run);
    CHECK_OK(wb_device_drain(run.device, 60000, &error));
    CHECK_STATS(run.device, nothing);
    wb_device_release(run.device);
    CHECK(failures() > 0 || steps_done == options.steps);
    report(seconds_now() - start);
    return exit_status();
}
