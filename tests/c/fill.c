/* How a new offloader fills device memory: through staging memory in pieces, while others travel. */
#include "model.h"

/* Large parameters take many pieces, small ones share a piece. All sizes and sources are odd. */
enum {
    LARGE = 3,
    SMALL = 150,
    ALL = LARGE + SMALL,
    LARGE_BYTES = (20 << 20) + 13,
    SMALL_BYTES = 1001,
    GAP = 7,
    SOURCE_BYTES = LARGE * (LARGE_BYTES + GAP) + SMALL * (SMALL_BYTES + GAP)
};

struct filled {
    wb_plan *plan;
    wb_offloader *offloader;
    wb_parameter parameters[ALL];
    char names[ALL][16], groups[ALL][16];
    wb_layout layouts[2];
    int64_t shapes[2][1];
};

static int64_t bytes_of(int parameter)
{
    return parameter < LARGE ? LARGE_BYTES : SMALL_BYTES;
}

/* Bytes without a period that is a divisor of a piece. */
static unsigned char byte_at(int parameter, int64_t at)
{
    return (unsigned char)(at % 251 + at / 4099 + parameter * 17);
}

/* Describes the parameters, whose bytes are in `memory`, and plans the first `count`. */
static int filled_begin(struct filled *f, wb_device *device, unsigned char *memory, uint64_t count)
{
    unsigned char *source = memory + 1;
    /* One large parameter, or small ones. */
    const uint64_t budget = count == LARGE ? LARGE_BYTES + 8192 : 1 << 16;
    wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, budget);
    options.transfer_mode = WB_TRANSFER_MODE_ON_DEMAND;
    f->plan = NULL;
    f->offloader = NULL;
    for (int kind = 0; kind < 2; kind++) {
        f->shapes[kind][0] = bytes_of(kind == 0 ? 0 : LARGE);
        f->layouts[kind] = layout_of(WB_DTYPE_U8, 1, f->shapes[kind], NULL, 0);
    }
    for (int i = 0; i < ALL; i++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        snprintf(f->names[i], sizeof f->names[i], "layers.%d.w", i);
        snprintf(f->groups[i], sizeof f->groups[i], "layers.%d", i);
        f->parameters[i] = empty;
        f->parameters[i].name = f->names[i];
        f->parameters[i].group = f->groups[i];
        f->parameters[i].layout = &f->layouts[i >= LARGE];
        f->parameters[i].source = source;
        for (int64_t at = 0; at < bytes_of(i); at++) source[at] = byte_at(i, at);
        source += bytes_of(i) + GAP;
    }
    return CHECK_OK(wb_plan_new(device, f->parameters, count, &options, &f->plan, &error));
}

static void filled_end(struct filled *f)
{
    wb_plan_release(f->plan);
    wb_offloader_release(f->offloader);
}

/* Checks the bytes of every parameter where kernels would read them. */
static void check_filled(struct filled *f, wb_device *device, int count)
{
    wb_buffer *back = new_buffer(device, LARGE_BYTES);
    void *stream = NULL;
    int resident = 0;
    REQUIRE(back != NULL);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    unsigned char *got = (unsigned char *)buffer_info(back).data;
    for (int i = 0; i < count; i++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        uint64_t index = 0, group = 0;
        int64_t wrong = 0;
        CHECK_OK(wb_offloader_find_parameter(f->offloader, f->names[i], &index, &error));
        CHECK_OK(wb_offloader_find_group(f->offloader, f->groups[i], &group, &error));
        CHECK_OK(wb_offloader_acquire_group(f->offloader, group, stream, &error));
        CHECK_OK(wb_offloader_get_parameter_info(f->offloader, index, &info, &error));
        CHECK_OK(wb_device_copy(device, got, info.device_address, info.span_bytes, stream, &error));
        CHECK_OK(wb_offloader_release_group(f->offloader, group, stream, &error));
        CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
        for (int64_t at = 0; at < bytes_of(i); at++) wrong += got[at] != byte_at(i, at);
        CHECK_SAME(wrong, 0);
        resident += info.host_address == NULL;
    }
    CHECK(resident >= 2);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    wb_buffer_release(back);
}

static struct filled filled;

static void every_byte_arrives_from_pageable_memory(wb_device *device)
{
    unsigned char *memory = (unsigned char *)malloc(SOURCE_BYTES + 1);
    REQUIRE(memory != NULL);
    if (filled_begin(&filled, device, memory, ALL)) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        options.threads = 4;
        /* Every copy is late: a piece of staging memory that is not waited for is overwritten. */
        double_set("WB_DOUBLE_DELAY_US", "2000");
        CHECK_OK(wb_offloader_new(filled.plan, NULL, &options, &filled.offloader, &error));
        double_set("WB_DOUBLE_DELAY_US", "");
        /* Sources in host memory are no longer needed. */
        memset(memory, 0, SOURCE_BYTES);
        if (filled.offloader != NULL) check_filled(&filled, device, ALL);
    }
    filled_end(&filled);
    free(memory);
}

static void the_calling_thread_waits_for_no_piece(wb_device *device)
{
    unsigned char *memory = (unsigned char *)malloc(SOURCE_BYTES + 1);
    REQUIRE(memory != NULL);
    if (filled_begin(&filled, device, memory, ALL)) {
        long long waits = double_called("cuStreamSynchronize");
        long long copies = double_called("cuMemcpyHtoDAsync_v2") + double_called("cuMemcpyAsync");
        CHECK_OK(wb_offloader_new(filled.plan, NULL, NULL, &filled.offloader, &error));
        waits = double_called("cuStreamSynchronize") - waits;
        copies = double_called("cuMemcpyHtoDAsync_v2") + double_called("cuMemcpyAsync") - copies;
        /* 60 MiB are 8 pieces of 8 MiB, of which small parameters share one. */
        CHECK(copies >= 8 && copies < 20);
        CHECK(waits < 8);
    }
    filled_end(&filled);
    free(memory);
}

static void large_pinned_sources_need_no_staging(wb_device *device)
{
    wb_buffer *memory = new_buffer(device, SOURCE_BYTES + 1);
    REQUIRE(memory != NULL);
    unsigned char *bytes = (unsigned char *)buffer_info(memory).data;
    if (filled_begin(&filled, device, bytes, LARGE)) {
        long long calls = double_called("cuMemHostRegister_v2");
        CHECK_OK(wb_offloader_new(filled.plan, NULL, NULL, &filled.offloader, &error));
        /* That of its arena. */
        if (on_double()) CHECK_SAME(double_called("cuMemHostRegister_v2"), calls + 1);
        if (filled.offloader != NULL) check_filled(&filled, device, LARGE);
    }
    filled_end(&filled);
    wb_buffer_release(memory);
}

static void every_byte_arrives_from_device_memory_in_pageable_memory(wb_device *device)
{
    wb_device_options pageable = WB_DEVICE_OPTIONS_INIT;
    unsigned char *memory = (unsigned char *)malloc(SOURCE_BYTES + 1);
    void *on_device = NULL;
    REQUIRE(memory != NULL);
    pageable.pin = WB_TRISTATE_OFF;
    REQUIRE((device = open_device(test_device(), &pageable)) != NULL);
    if (filled_begin(&filled, device, memory, ALL) &&
        CHECK_OK(wb_device_alloc(device, SOURCE_BYTES + 1, &on_device, &error))) {
        wb_plan_options all = budget_options(WB_BUDGET_OFFLOAD_BYTES, 2 * (uint64_t)SOURCE_BYTES);
        all.transfer_mode = WB_TRANSFER_MODE_ON_DEMAND;
        CHECK_OK(wb_device_copy(device, on_device, memory, SOURCE_BYTES + 1, NULL, &error));
        for (int i = 0; i < ALL; i++) {
            const unsigned char *source = (const unsigned char *)filled.parameters[i].source;
            filled.parameters[i].source = (unsigned char *)on_device + (source - memory);
        }
        wb_plan_release(filled.plan);
        CHECK_OK(wb_plan_new(device, filled.parameters, ALL, &all, &filled.plan, &error));
        double_set("WB_DOUBLE_DELAY_US", "2000");
        CHECK_OK(wb_offloader_new(filled.plan, NULL, NULL, &filled.offloader, &error));
        double_set("WB_DOUBLE_DELAY_US", "");
        for (uint64_t i = 0; i < ALL && filled.offloader != NULL; i++) {
            wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
            CHECK_OK(wb_offloader_get_parameter_info(filled.offloader, i, &info, &error));
            REQUIRE(info.host_address != NULL);
            int64_t wrong = 0;
            for (int64_t at = 0; at < bytes_of((int)i); at++) {
                wrong += ((unsigned char *)info.host_address)[at] != byte_at((int)i, at);
            }
            CHECK_SAME(wrong, 0);
        }
        CHECK_OK(wb_device_free(device, on_device, &error));
    }
    filled_end(&filled);
    wb_device_release(device);
    free(memory);
}

struct cancelled {
    int reports, at;
};

static int32_t cancel(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    struct cancelled *cancelled = (struct cancelled *)user;
    CHECK(done <= total);
    return phase == WB_PHASE_READ && cancelled->reports++ == cancelled->at;
}

static void a_cancelled_fill_leaves_nothing(wb_device *device)
{
    unsigned char *memory = (unsigned char *)malloc(SOURCE_BYTES + 1);
    REQUIRE(memory != NULL);
    if (filled_begin(&filled, device, memory, ALL)) {
        const wb_device_stats before = device_stats(device);
        for (int at = 0; at < 8; at += 3) {
            struct cancelled cancelled = {0, at};
            wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
            options.progress = cancel;
            options.progress_user = &cancelled;
            CHECK_ERROR(WB_ERR_CANCELLED,
                        wb_offloader_new(filled.plan, NULL, &options, &filled.offloader, &error),
                        "cancelled");
            CHECK_SAME(cancelled.reports, at + 1);
            CHECK_STATS(device, before);
        }
    }
    filled_end(&filled);
    free(memory);
}

static void a_failed_copy_of_a_fill_leaves_nothing(wb_device *device)
{
    unsigned char *memory = (unsigned char *)malloc(SOURCE_BYTES + 1);
    REQUIRE(memory != NULL);
    if (filled_begin(&filled, device, memory, ALL)) {
        const char *failures[] = {"cuMemcpyAsync:5:700", "cuEventRecord:3:700", "cuEventCreate:4:2",
                                  "cuEventSynchronize:2:700", "cuMemHostRegister_v2:2:2"};
        const wb_device_stats before = device_stats(device);
        for (size_t i = 0; i < sizeof failures / sizeof *failures; i++) {
            wb_status status;
            double_set("WB_DOUBLE_FAIL", failures[i]);
            status = wb_offloader_new(filled.plan, NULL, NULL, &filled.offloader, &error);
            double_set("WB_DOUBLE_FAIL", "");
            CHECK(status == WB_ERR_DRIVER || status == WB_ERR_OUT_OF_MEMORY ||
                  status == WB_ERR_DEVICE_MEMORY);
            CHECK(filled.offloader == NULL);
            CHECK_STATS(device, before);
        }
    }
    filled_end(&filled);
    free(memory);
}

enum { MATRICES = 40, ROWS = 256, COLS = 96 };

/* A plan that keeps so many matrices in FP8. */
static wb_plan *plan_of_matrices(wb_device *device, uint64_t count)
{
    static float numbers[MATRICES][ROWS * COLS];
    static wb_parameter parameters[MATRICES];
    static char names[MATRICES][16];
    const int64_t shape[] = {ROWS, COLS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 16);
    wb_plan *plan = NULL;
    quantize.reject_nonfinite = 1;
    options.transfer_mode = WB_TRANSFER_MODE_ON_DEMAND;
    options.quantize = &quantize;
    for (uint64_t i = 0; i < count; i++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        for (int at = 0; at < ROWS * COLS; at++) numbers[i][at] = (float)at;
        snprintf(names[i], sizeof names[i], "layers.%d.w", (int)i);
        parameters[i] = empty;
        parameters[i].name = parameters[i].group = names[i];
        parameters[i].layout = &layout;
        parameters[i].source = numbers[i];
    }
    CHECK_OK(wb_plan_new(device, parameters, count, &options, &plan, &error));
    return plan;
}

/* How often the host waits for a stream while so many matrices are quantized. */
static long long waits_for_matrices(wb_device *device, uint64_t count)
{
    wb_plan *plan = plan_of_matrices(device, count);
    wb_offloader *offloader = NULL;
    long long waits = double_called("cuStreamSynchronize");
    CHECK_OK(wb_offloader_new(plan, NULL, NULL, &offloader, &error));
    waits = double_called("cuStreamSynchronize") - waits;
    wb_offloader_release(offloader);
    wb_plan_release(plan);
    return waits;
}

static void the_calling_thread_waits_for_no_matrix(wb_device *device)
{
    CHECK_SAME(waits_for_matrices(device, MATRICES), waits_for_matrices(device, MATRICES / 4));
}

static void a_failed_fill_of_matrices_leaves_nothing(wb_device *device)
{
    static const char *const functions[] = {"cuMemAlloc_v2",   "cuStreamCreate", "cuEventCreate",
                                            "cuMemcpyAsync",   "cuLaunchKernel", "cuMemsetD8Async",
                                            "cuEventRecord",   "cuMemHostRegister_v2",
                                            "cuStreamSynchronize"};
    enum { MOST = 6 };
    wb_plan *plan = plan_of_matrices(device, MATRICES / 4);
    const wb_device_stats before = device_stats(device);
    int failed = 0;
    for (size_t i = 0; i < MOST * sizeof functions / sizeof *functions; i++) {
        wb_offloader *offloader = NULL;
        char failure[64];
        snprintf(failure, sizeof failure, "%s:%d:2", functions[i / MOST], (int)(i % MOST) + 1);
        double_set("WB_DOUBLE_DELAY_US", "200");
        double_set("WB_DOUBLE_FAIL", failure);
        failed += wb_offloader_new(plan, NULL, NULL, &offloader, &error) != WB_OK;
        double_set("WB_DOUBLE_FAIL", "");
        double_set("WB_DOUBLE_DELAY_US", "");
        wb_offloader_release(offloader);
        CHECK_STATS(device, before);
    }
    CHECK(failed >= 40);
    wb_plan_release(plan);
}

CHECK_MAIN(CASE(every_byte_arrives_from_pageable_memory),
           CASE_ON(DOUBLE_ONLY, the_calling_thread_waits_for_no_piece),
           CASE(large_pinned_sources_need_no_staging),
           CASE(every_byte_arrives_from_device_memory_in_pageable_memory),
           CASE(a_cancelled_fill_leaves_nothing),
           CASE_ON(DOUBLE_ONLY, a_failed_copy_of_a_fill_leaves_nothing),
           CASE_ON(DOUBLE_ONLY, the_calling_thread_waits_for_no_matrix),
           CASE_ON(DOUBLE_ONLY, a_failed_fill_of_matrices_leaves_nothing))
