/* Weights that are carried compressed: the device finds their bytes, and the plan says how many cross the
 * link. */
#include "compressed.h"

static void every_weight_is_what_it_was(wb_device *device)
{
    static const wb_transfer_mode modes[] = {WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND};
    for (int mode = 0; mode < 2; mode++) {
        weights_init(WEIGHTS);
        REQUIRE(compressed_begin(device, compressed_options(modes[mode])));
        for (int step = 0; step < 3; step++) check_all();
        compressed_end();
    }
}

/* What the plan expects, what the offloader has and what it has moved are the same. */
static void the_counters_reconcile(wb_device *device)
{
    wb_plan_info plan = WB_PLAN_INFO_INIT;
    uint64_t expected = 0, encoded = 0, decoded = 0, payload = 0;
    weights_init(WEIGHTS);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_ON_DEMAND)));
    CHECK_OK(wb_plan_get_info(all.plan, &plan, &error));
    for (int at = 0; at < WEIGHTS; at++) {
        const uint64_t is = info_at(at).encoded_bytes, was = planned_at(at).encoded_bytes;
        const int content = at % CONTENTS, compresses = is > 0;
        if (content == TRAINED || content == ZEROS) CHECK(compresses);
        if (content == RANDOM_BITS) CHECK(!compresses);
        CHECK_SAME(was, is); /* so small that the sample is all of it */
        CHECK(strstr(planned_at(at).reason, compresses ? "; compressed to " : "; not compressed: its "));
        expected += was;
        encoded += is;
        decoded += compresses ? all.weights[at].bytes : 0;
        payload += all.weights[at].bytes;
    }
    CHECK_SAME(plan.encoded_bytes, expected);
    CHECK_SAME(plan.decoded_bytes, decoded);
    CHECK_SAME(plan.offloaded_bytes, payload);
    CHECK_SAME(stats_now().encoded_bytes, encoded);
    CHECK_SAME(stats_now().decoded_bytes, decoded);
    CHECK_SAME(stats_now().offloaded_bytes, payload);
    CHECK(encoded < decoded * 9 / 10);
    const wb_offloader_stats before = stats_now();
    for (uint64_t group = 0; group < WEIGHTS - 1; group++) {
        CHECK_OK(wb_offloader_acquire_group(all.offloader, group, all.stream, &error));
        CHECK_OK(wb_offloader_release_group(all.offloader, group, all.stream, &error));
    }
    CHECK_SAME(stats_now().moved_encoded_bytes - before.moved_encoded_bytes, encoded);
    CHECK_SAME(stats_now().moved_decoded_bytes - before.moved_decoded_bytes, decoded);
    CHECK_SAME(stats_now().moved_bytes - before.moved_bytes, plan.step_bytes);
    compressed_end();
}

static void views_of_compressed_weights_are_refused(wb_device *device)
{
    wb_view *view = UNTOUCHED(wb_view);
    weights_init(2);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK(info_at(0).host_address == NULL && info_at(0).encoded_bytes > 0);
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_offloader_get_host_view(all.offloader, 0, &view, &error),
                "layers.0.w|compressed|wb_offloader_read_parameter");
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_offloader_get_zero_copy_view(all.offloader, 0, &view, &error),
                "layers.0.w|compressed|wb_offloader_read_parameter");
    CHECK(view == UNTOUCHED(wb_view));
    CHECK_OK(wb_offloader_get_view(all.offloader, 0, &view, &error)); /* of its slot */
    wb_view_release(view);
    /* The second, of random bits, is not compressed. */
    CHECK(info_at(1).host_address != NULL && info_at(1).encoded_bytes == 0);
    CHECK_OK(wb_offloader_get_host_view(all.offloader, 1, &view, &error));
    wb_view_release(view);
    compressed_end();
}

static void reading_checks_its_arguments(wb_device *device)
{
    static unsigned char read[MOST_BYTES];
    weights_init(3);
    all.parameters[2].placement = WB_PLACEMENT_RESIDENT;
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_read_parameter(all.offloader, 0, read, all.weights[0].bytes - 1, &error),
                "layers.0.w|32768 bytes|32767");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_read_parameter(all.offloader, 3, read, 1, &error), "parameter 3|3");
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_offloader_read_parameter(all.offloader, 2, read, all.weights[2].bytes, &error),
                "layers.2.w|resident");
    CHECK_NULL(wb_offloader_read_parameter(all.offloader, 0, NULL, all.weights[0].bytes, &error),
               "target");
    compressed_end();
}

static uint64_t compressed_done, compressed_total;

static int32_t note_progress(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    if (phase != WB_PHASE_COMPRESS) return 0;
    compressed_done = done;
    compressed_total = total;
    return *(const int32_t *)user;
}

static void a_commit_reports_what_is_compressed_and_can_be_cancelled(wb_device *device)
{
    static const int32_t goes_on = 0, cancels = 1;
    wb_buffer_options buffers = WB_BUFFER_OPTIONS_INIT;
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    weights_init(5);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    wb_offloader_release(all.offloader);
    all.offloader = NULL;
    buffers.progress = note_progress;
    buffers.progress_user = (void *)(uintptr_t)&cancels;
    CHECK_ERROR(WB_ERR_CANCELLED,
                wb_offloader_new(all.plan, all.stream, &buffers, &offloader, &error), "cancelled");
    CHECK(offloader == UNTOUCHED(wb_offloader) && compressed_done < compressed_total);
    buffers.progress_user = (void *)(uintptr_t)&goes_on;
    CHECK_OK(wb_offloader_new(all.plan, all.stream, &buffers, &all.offloader, &error));
    CHECK_SAME(compressed_done, stats_now().decoded_bytes);
    CHECK_SAME(compressed_total, compressed_done);
    check_all();
    compressed_end();
}

/* Kernels of the device and cores of the host write the same bytes at a commit, from sources in host memory and in
 * device memory; by default a CUDA device does it. */
static void the_device_compresses_what_a_commit_compresses(wb_device *device)
{
    static const wb_tristate asked[] = {WB_TRISTATE_OFF, WB_TRISTATE_ON, WB_TRISTATE_AUTO};
    for (int given = 0; given < 2; given++) {
        uint64_t bytes[WEIGHTS] = {0};
        void *sources[WEIGHTS] = {NULL};
        for (int turn = 0; turn < 3; turn++) {
            wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
            options.encode_on_device = asked[turn];
            weights_init(WEIGHTS);
            /* The last two are in device memory, where sources are at first. */
            for (int at = given ? 6 : WEIGHTS; at < WEIGHTS; at++) {
                void *stream = NULL;
                REQUIRE_OK(wb_device_alloc(device, all.weights[at].bytes, &sources[at], &error));
                CHECK_OK(wb_device_copy(device, sources[at], all.weights[at].content, all.weights[at].bytes,
                                        stream, &error));
                CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
                all.parameters[at].source = sources[at];
            }
            REQUIRE(compressed_begin(device, options));
            const wb_offloader_stats stats = stats_now();
            const int by_device = turn == 1 || (turn == 2 && on_cuda());
            CHECK_SAME(stats.encoded_by_device_bytes, by_device ? stats.decoded_bytes : 0);
            CHECK_SAME(stats.encoded_by_host_bytes, by_device ? 0 : stats.decoded_bytes);
            CHECK_SAME(device_stats(device).device_bytes,
                       stats.slot_bytes + (given ? all.weights[6].bytes + all.weights[7].bytes : 0));
            for (int at = 0; at < WEIGHTS; at++) {
                if (turn > 0) CHECK_SAME(info_at(at).encoded_bytes, bytes[at]);
                bytes[at] = info_at(at).encoded_bytes;
            }
            check_all();
            compressed_end();
            for (int at = 0; at < WEIGHTS; at++) {
                if (sources[at] != NULL) CHECK_OK(wb_device_free(device, sources[at], &error));
                sources[at] = NULL;
            }
        }
    }
}

/* A slot that has no space for raw and compressed bytes, and a budget that has no other memory. */
static void the_host_compresses_what_the_device_cannot(wb_device *device)
{
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    weights_init(2);
    for (int at = 0; at < 2; at++) {
        set_weight(at, WB_DTYPE_BF16, 4 * TILE, TRAINED, (uint64_t)at);
        memcpy(all.weights[at].group, all.weights[at].name, sizeof all.weights[at].name);
    }
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = 4 * TILE + 256;
    options.depth = 1;
    REQUIRE(compressed_begin(device, options));
    CHECK_SAME(stats_now().encoded_by_device_bytes, 0);
    CHECK_SAME(stats_now().encoded_by_host_bytes, 8 * TILE);
    check_all();
    compressed_end();
    options.encode_on_device = WB_TRISTATE_ON;
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    REQUIRE_OK(wb_plan_new(device, all.parameters, 2, &options, &all.plan, &error));
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_offloader_new(all.plan, NULL, NULL, &offloader, &error),
                "encode_on_device|layers.0.w|65792|33024");
    CHECK(offloader == UNTOUCHED(wb_offloader) && device_stats(device).device_bytes == 0);
    wb_plan_release(all.plan);
}

/* Strides with gaps and a negative one: what is compressed is the span. */
static void strided_weights_are_compressed_with_their_gaps(wb_device *device)
{
    static const int64_t shape[] = {40, 100}, strides[] = {-200, 1};
    weights_init(1);
    set_weight(0, WB_DTYPE_F32, (39 * 200 + 100) * 4, TRAINED, 3);
    all.layouts[0] = layout_of(WB_DTYPE_F32, 2, shape, strides, 39 * 200 * 4);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_SAME(info_at(0).span_bytes, all.weights[0].bytes);
    CHECK(info_at(0).encoded_bytes > 0);
    unsigned char *back = (unsigned char *)buffer_info(all.back).data;
    CHECK_OK(wb_offloader_acquire_group(all.offloader, 0, all.stream, &error));
    CHECK_OK(wb_device_copy(device, back,
                            (const unsigned char *)info_at(0).device_address - 39 * 200 * 4,
                            all.weights[0].bytes, all.stream, &error));
    CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
    CHECK_OK(wb_offloader_release_group(all.offloader, 0, all.stream, &error));
    CHECK(memcmp(back, all.weights[0].content, all.weights[0].bytes) == 0);
    compressed_end();
}

static void what_does_not_compress_stays_raw_with_a_reason(wb_device *device)
{
    static const struct {
        wb_dtype dtype;
        uint64_t bytes;
        const char *reason;
    } cases[] = {
        {WB_DTYPE_U8, 4 * TILE, "not compressed: values of uint8"},
        {WB_DTYPE_F4_E2M1X2, 4 * TILE, "not compressed: values of float4"},
        {WB_DTYPE_BF16, TILE - 2, "not compressed: its 8190 bytes are too few"},
    };
    for (int at = 0; at < 3; at++) {
        weights_init(2);
        set_weight(1, cases[at].dtype, cases[at].bytes, TRAINED, 1);
        REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
        CHECK_SAME(planned_at(1).encoded_bytes, 0);
        if (!CHECK(strstr(planned_at(1).reason, cases[at].reason) != NULL)) puts(planned_at(1).reason);
        CHECK_SAME(info_at(1).encoded_bytes, 0);
        check_all();
        compressed_end();
    }
    /* The device reads it in place. */
    weights_init(2);
    all.parameters[1].transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
    set_weight(1, WB_DTYPE_BF16, 4 * TILE, TRAINED, 1);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK(strstr(planned_at(1).reason, "not compressed: the device reads it in place") != NULL);
    CHECK_SAME(info_at(1).encoded_bytes, 0);
    compressed_end();
    /* Chosen by size. */
    weights_init(2);
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    options.compress = WB_COMPRESS_AUTO;
    options.compress_select_count = 0;
    REQUIRE(compressed_begin(device, options));
    CHECK(strstr(planned_at(0).reason, "not compressed: its 32768 bytes are too few") != NULL);
    CHECK_SAME(stats_now().encoded_bytes, 0);
    check_all();
    compressed_end();
}

static void a_large_weight_is_compressed_if_that_is_faster(wb_device *device)
{
    enum { LARGE = 512 << 10 };
    static unsigned char content[2][LARGE];
    static const int64_t shape[] = {LARGE / 2};
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    options.compress = WB_COMPRESS_AUTO;
    options.compress_select_count = 0;
    options.link_bytes_per_second = 1e9;
    weights_init(2);
    for (int at = 0; at < 2; at++) {
        make_content(content[at], WB_DTYPE_BF16, LARGE, at == 0 ? TRAINED : RANDOM_BITS, 1);
        all.layouts[at] = layout_of(WB_DTYPE_BF16, 1, shape, NULL, 0);
        all.parameters[at].source = content[at];
        all.parameters[at].group = at == 0 ? "a" : "b";
    }
    REQUIRE(compressed_begin(device, options));
    wb_plan_info plan = WB_PLAN_INFO_INIT;
    CHECK_OK(wb_plan_get_info(all.plan, &plan, &error));
    CHECK(planned_at(0).encoded_bytes > LARGE / 2 && planned_at(0).encoded_bytes < LARGE * 3 / 4);
    CHECK(planned_at(1).encoded_bytes == 0 && strstr(planned_at(1).reason, "would become") != NULL);
    /* By a sample: within two percent. */
    const double off = (double)info_at(0).encoded_bytes / (double)planned_at(0).encoded_bytes - 1;
    CHECK(off > -0.02 && off < 0.02);
    CHECK_SAME(plan.step_bytes, 0); /* each has a slot of its own */
    compressed_end();
}

static void options_are_checked(wb_device *device)
{
    static const char *const unmatched[] = {"layers.0", "no.such"};
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    wb_plan *plan = UNTOUCHED(wb_plan);
    weights_init(2);
#define REFUSED(status, words) \
    CHECK_ERROR(status, wb_plan_new(device, all.parameters, 2, &options, &plan, &error), words)
    options.encode_on_device = 3;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "encode_on_device is 3");
    options.encode_on_device = WB_TRISTATE_AUTO;
    options.compress = 3;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "compress is 3|[0, 1, 2]");
    options.compress = WB_COMPRESS_OFF;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "compress_select has 1|WB_COMPRESS_OFF|WB_COMPRESS_SELECTED");
    options.compress = WB_COMPRESS_SELECTED;
    options.compress_select_count = 0;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "compress_select has no selector|WB_COMPRESS_AUTO");
    options.compress_select = unmatched;
    options.compress_select_count = 2;
    REFUSED(WB_ERR_SELECTOR, "no.such|matches none of the 2 parameters");
    CHECK(plan == UNTOUCHED(wb_plan));
    options.allow = WB_ALLOW_UNMATCHED_SELECTOR;
    CHECK_OK(wb_plan_new(device, all.parameters, 2, &options, &plan, &error));
    wb_plan_release(plan);
#undef REFUSED
}

/* The budgets count what compressed weights have space for, and are never exceeded. */
static void budgets_hold(wb_device *device)
{
    for (uint64_t bytes = 64 << 10; bytes <= 448 << 10; bytes += 20480) {
        for (int kind = WB_BUDGET_OFFLOAD_BYTES; kind <= WB_BUDGET_DEVICE_BYTES; kind++) {
            wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
            wb_plan *plan = NULL;
            weights_init(WEIGHTS);
            options.budget_kind = kind;
            options.budget_bytes = bytes;
            options.allow = WB_ALLOW_EVERYTHING_FITS | WB_ALLOW_NOTHING_OFFLOADED;
            const wb_status status =
                wb_plan_new(device, all.parameters, WEIGHTS, &options, &plan, &error);
            wb_plan_release(plan);
            if (status == WB_ERR_BUDGET && kind == WB_BUDGET_DEVICE_BYTES) continue;
            CHECK_SAME(status, WB_OK);
            REQUIRE(compressed_begin(device, options));
            check_all();
            const wb_offloader_stats stats = stats_now();
            if (kind == WB_BUDGET_DEVICE_BYTES) {
                CHECK(stats.resident_bytes + stats.slot_bytes <= bytes);
                CHECK(device_stats(device).device_bytes <= bytes);
            } else {
                CHECK(stats.mapped_bytes <= bytes);
            }
            compressed_end();
        }
    }
}

/* Weights in FP8 are compressed once they are quantized, and are the same numbers. */
static void quantized_weights_are_the_same_numbers(wb_device *device)
{
    enum { ROWS = 128, COLS = 256 };
    static float source[2][ROWS * COLS];
    static unsigned char found[3][2][ROWS * COLS];
    static const int64_t shape[] = {ROWS, COLS};
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    for (int compressed = 0; compressed < 2; compressed++) {
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        options.quantize = &quantize;
        options.compress = compressed ? WB_COMPRESS_SELECTED : WB_COMPRESS_OFF;
        options.compress_select_count = (uint32_t)compressed;
        weights_init(1);
        set_weight(0, WB_DTYPE_BF16, TILE, TRAINED, 1);
        all.layouts[0] = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
        for (int version = 0; version < 2; version++) {
            make_content((unsigned char *)source[version], WB_DTYPE_F32, sizeof source[version],
                         TRAINED, 40 + (uint64_t)version);
        }
        all.parameters[0].source = source[0];
        REQUIRE(compressed_begin(device, options));
        CHECK_SAME(info_at(0).encoded_bytes > 0, (uint64_t)compressed);
        for (int version = 0; version < 2; version++) {
            if (version == 1) {
                CHECK_OK(wb_offloader_replace(all.offloader, "layers.0.w", source[1], &all.layouts[0],
                                              all.stream, &error));
            }
            CHECK_OK(wb_offloader_read_parameter(all.offloader, 0, found[compressed][version],
                                                 ROWS * COLS, &error));
            unsigned char *back = (unsigned char *)buffer_info(all.back).data;
            CHECK_OK(wb_offloader_acquire_group(all.offloader, 0, all.stream, &error));
            CHECK_OK(wb_device_copy(device, back, info_at(0).device_address, ROWS * COLS, all.stream,
                                    &error));
            CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
            CHECK_OK(wb_offloader_release_group(all.offloader, 0, all.stream, &error));
            CHECK(memcmp(back, found[compressed][version], ROWS * COLS) == 0);
        }
        compressed_end();
    }
    CHECK(memcmp(found[0], found[1], sizeof found[0]) == 0);
    CHECK(memcmp(found[0][0], found[0][1], ROWS * COLS) != 0);
}

CHECK_MAIN(CASE(every_weight_is_what_it_was), CASE(the_counters_reconcile),
           CASE(views_of_compressed_weights_are_refused), CASE(reading_checks_its_arguments),
           CASE(a_commit_reports_what_is_compressed_and_can_be_cancelled),
           CASE(the_device_compresses_what_a_commit_compresses),
           CASE(the_host_compresses_what_the_device_cannot),
           CASE(strided_weights_are_compressed_with_their_gaps),
           CASE(what_does_not_compress_stays_raw_with_a_reason),
           CASE(a_large_weight_is_compressed_if_that_is_faster), CASE(options_are_checked),
           CASE(budgets_hold), CASE(quantized_weights_are_the_same_numbers))
