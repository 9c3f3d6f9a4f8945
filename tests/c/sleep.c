/* Large parameters without host copies go to sleep: threads bring them through staging memory to pageable host
 * memory, and back, the caller waits for that only when it asks to, and what is allocated in vain is freed. */
#include "model.h"

enum { LARGE = 3, SMALL_BYTES = 4096, MINUTE = 60000 };
#define LARGE_BYTES ((uint64_t)9 << 20)

struct bench {
    wb_device *device;
    void *stream;
    wb_offloader *offloader;
    unsigned char *bytes; /* of all parameters */
    uint64_t whole;       /* device memory of the offloader, awake */
};

static int begin(struct bench *b, wb_device *device)
{
    static const char *const names[] = {"large.0", "large.1", "large.2", "small"};
    const int64_t large[] = {(int64_t)LARGE_BYTES}, small[] = {SMALL_BYTES};
    const wb_layout layouts[] = {layout_of(WB_DTYPE_U8, 1, large, NULL, 0),
                                 layout_of(WB_DTYPE_U8, 1, small, NULL, 0)};
    wb_parameter parameters[LARGE + 1];
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_plan *plan = NULL;
    memset(b, 0, sizeof *b);
    b->device = device;
    b->bytes = (unsigned char *)malloc(LARGE * LARGE_BYTES + SMALL_BYTES);
    if (!CHECK(b->bytes != NULL)) return 0;
    for (uint64_t at = 0; at < LARGE * LARGE_BYTES + SMALL_BYTES; at++) b->bytes[at] = (unsigned char)(at * 7 / 4099);
    for (int at = 0; at <= LARGE; at++) {
        const wb_parameter none = WB_PARAMETER_INIT;
        parameters[at] = none;
        parameters[at].name = parameters[at].group = names[at];
        parameters[at].layout = &layouts[at == LARGE];
        parameters[at].source = b->bytes + (uint64_t)at * LARGE_BYTES;
    }
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = SMALL_BYTES;
    options.select = &names[LARGE];
    options.select_count = 1;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    options.fixed_addresses = WB_TRISTATE_ON;
    const int made = CHECK_OK(wb_device_stream_new(device, &b->stream, &error)) &&
                     CHECK_OK(wb_plan_new(device, parameters, LARGE + 1, &options, &plan, &error)) &&
                     CHECK_OK(wb_offloader_new(plan, b->stream, NULL, &b->offloader, &error)) &&
                     CHECK_OK(wb_offloader_resize_advance(b->offloader, b->stream, &progress, &error));
    wb_plan_release(plan);
    b->whole = progress.device_bytes;
    return CHECK(made && b->whole > LARGE * LARGE_BYTES);
}

static void end(struct bench *b)
{
    wb_offloader_release(b->offloader);
    wb_device_stream_release(b->device, b->stream, &error);
    free(b->bytes);
}

static wb_status begin_resize(struct bench *b, uint64_t bytes, wb_offloader_resize_progress *progress)
{
    const wb_offloader_resize_progress none = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = bytes;
    *progress = none;
    return wb_offloader_resize(b->offloader, &options, b->stream, progress, &error);
}

static wb_status resize(struct bench *b, uint64_t bytes, wb_offloader_resize_progress *progress)
{
    const wb_status status = begin_resize(b, bytes, progress);
    if (status != WB_OK) return status;
    return wb_offloader_resize_wait(b->offloader, b->stream, MINUTE, progress, &error);
}

static void check_awake(struct bench *b)
{
    wb_buffer *back = NULL;
    if (!CHECK_OK(wb_buffer_alloc(b->device, LARGE_BYTES, NULL, &back, &error))) return;
    unsigned char *seen = (unsigned char *)buffer_info(back).data;
    for (uint64_t at = 0; at < LARGE; at++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(b->offloader, at, &info, &error));
        CHECK_OK(wb_offloader_acquire_group(b->offloader, at, b->stream, &error));
        CHECK_OK(wb_device_copy(b->device, seen, info.device_address, LARGE_BYTES, b->stream, &error));
        CHECK_OK(wb_offloader_release_group(b->offloader, at, b->stream, &error));
        CHECK_OK(wb_device_stream_synchronize(b->device, b->stream, &error));
        CHECK(memcmp(seen, b->bytes + at * LARGE_BYTES, LARGE_BYTES) == 0);
    }
    wb_buffer_release(back);
}

static void the_bytes_are_there_after_each_night(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress;
    if (!begin(&b, device)) return;
    const wb_device_stats awake = device_stats(device);
    for (int night = 0; night < 3; night++) {
        CHECK_OK(resize(&b, 0, &progress));
        CHECK_SAME(progress.device_bytes, 0);
        CHECK(progress.host_bytes >= LARGE * LARGE_BYTES);
        CHECK(device_stats(device).device_bytes == awake.device_bytes - b.whole);
        CHECK_OK(resize(&b, b.whole, &progress));
        CHECK_SAME(progress.host_bytes, 0);
        check_awake(&b);
    }
    CHECK_OK(wb_device_drain(device, MINUTE, &error)); /* buffers are freed by a thread */
    CHECK_STATS(device, awake);
    end(&b);
}

/* Pinning takes as long as the copies: only staging memory is pinned, which is gone afterwards. */
static void asleep_nothing_is_pinned(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress;
    if (!begin(&b, device)) return;
    const wb_device_stats awake = device_stats(device);
    const long long calls = double_called("cuMemHostRegister_v2");
    CHECK_OK(resize(&b, 0, &progress));
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    const wb_device_stats asleep = device_stats(device);
    CHECK_SAME(asleep.asked_bytes - awake.asked_bytes, progress.host_bytes);
    CHECK_SAME(asleep.mapped_bytes - awake.mapped_bytes, progress.host_bytes);
    /* The small parameter, which is not worth a thread, has a slot and a host copy. */
    CHECK_SAME(asleep.pinned_bytes, awake.pinned_bytes);
    if (on_double()) CHECK_SAME(double_called("cuMemHostRegister_v2"), calls + 1);
    CHECK_OK(resize(&b, b.whole, &progress));
    if (on_double()) CHECK_SAME(double_called("cuMemHostRegister_v2"), calls + 2);
    check_awake(&b);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    CHECK_STATS(device, awake);
    end(&b);
}

/* At any moment: while memory is allocated, copied to, or freed again. */
static void minds_may_change(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress;
    if (!begin(&b, device)) return;
    const wb_device_stats awake = device_stats(device);
    for (int turn = 0; turn < 16; turn++) {
        CHECK_OK(begin_resize(&b, 0, &progress));
        for (int looks = turn % 6; looks > 0; looks--) {
            CHECK_OK(wb_offloader_resize_advance(b.offloader, b.stream, &progress, &error));
            if (turn % 4 > 1) sleep_ms(1);
        }
        CHECK_OK(resize(&b, b.whole, &progress));
        CHECK_SAME(progress.pending_units, 0);
    }
    check_awake(&b);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    CHECK_STATS(device, awake);
    end(&b);
}

static void an_offloader_may_end_in_a_resize(wb_device *device)
{
    const wb_device_stats before = device_stats(device);
    for (int turn = 0; turn < 4; turn++) {
        struct bench b;
        wb_offloader_resize_progress progress;
        if (!begin(&b, device)) return;
        CHECK_OK(begin_resize(&b, 0, &progress));
        CHECK(progress.pending_units > 0);
        if (turn % 2) CHECK_OK(wb_offloader_resize_advance(b.offloader, b.stream, &progress, &error));
        end(&b);
        CHECK_OK(wb_device_drain(device, MINUTE, &error));
        CHECK_STATS(device, before);
    }
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The driver takes two seconds for a registration, which is that of staging memory. */
static void the_caller_does_not_wait(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress;
    if (!begin(&b, device)) return;
    const uint64_t sizes[] = {0, b.whole};
    for (int at = 0; at < 2; at++) {
        double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:1:hang2000");
        const double began = seconds();
        CHECK_OK(begin_resize(&b, sizes[at], &progress));
        CHECK(seconds() - began < 1.6);
        CHECK(progress.pending_units > 0);
        CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
        CHECK(seconds() - began > 1.6);
        CHECK_SAME(progress.pending_units, 0);
        double_set("WB_DOUBLE_FAIL", "");
    }
    check_awake(&b);
    end(&b);
}

/* The driver takes two seconds for a copy that is not queued any more when the mind has changed. */
static void a_resize_to_elsewhere_ends_the_copies(wb_device *device)
{
    struct bench b;
    wb_offloader_resize_progress progress;
    if (!begin(&b, device)) return;
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:1:hang200,cuMemcpyAsync:1:hang2000");
    const double began = seconds();
    CHECK_OK(begin_resize(&b, 0, &progress));
    CHECK_OK(resize(&b, b.whole, &progress));
    CHECK_SAME(progress.pending_units, 0);
    CHECK(seconds() - began < 1.6);
    double_set("WB_DOUBLE_FAIL", "");
    check_awake(&b);
    end(&b);
}

/* Both ways: what has moved stays where it is, and the call goes on when it is repeated. */
static void a_resize_that_fails_goes_on(wb_device *device)
{
    static const char *const failures[] = {"cuMemHostRegister_v2:1:2", "cuMemcpyAsync:1:700", "cuMemcpyAsync:4:700",
                                           "cuMemcpyAsync:6:700",      "cuEventRecord:3:700", "cuEventRecord:7:700",
                                           "cuEventCreate:7:2"};
    for (size_t at = 0; at < sizeof failures / sizeof *failures; at++) {
        struct bench b;
        wb_offloader_resize_progress progress;
        if (!begin(&b, device)) return;
        const wb_device_stats awake = device_stats(device);
        const uint64_t sizes[] = {0, b.whole};
        for (int way = 0; way < 2; way++) {
            double_set("WB_DOUBLE_FAIL", failures[at]);
            CHECK(resize(&b, sizes[way], &progress) != WB_OK);
            double_set("WB_DOUBLE_FAIL", "");
            CHECK_OK(wb_offloader_resize_wait(b.offloader, b.stream, MINUTE, &progress, &error));
            CHECK_SAME(progress.device_bytes, sizes[way]);
        }
        check_awake(&b);
        CHECK_OK(wb_device_drain(device, MINUTE, &error));
        CHECK_STATS(device, awake);
        end(&b);
    }
}

CHECK_MAIN(CASE(the_bytes_are_there_after_each_night), CASE(asleep_nothing_is_pinned), CASE(minds_may_change),
           CASE(an_offloader_may_end_in_a_resize), CASE_ON(DOUBLE_ONLY, the_caller_does_not_wait),
           CASE_ON(DOUBLE_ONLY, a_resize_to_elsewhere_ends_the_copies),
           CASE_ON(DOUBLE_ONLY, a_resize_that_fails_goes_on))
