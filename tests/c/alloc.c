/* Buffers that the library allocates. */
#include "memory.h"

static void memory_is_zeroed_writable_and_of_the_requested_size(wb_device *device)
{
    const uint64_t sizes[] = {1, 2, 4095, 4096, 4097, 100001, (5 << 20) + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        wb_buffer *buffer = NULL;
        REQUIRE_OK(wb_buffer_alloc(device, sizes[i], NULL, &buffer, &error));
        wb_buffer_info info = buffer_info(buffer);
        unsigned char *bytes = (unsigned char *)info.data;
        uint64_t sum = 0;
        REQUIRE(bytes != NULL);
        for (uint64_t at = 0; at < sizes[i]; at++) sum += bytes[at];
        CHECK_SAME(sum, 0);
        bytes[0] = bytes[sizes[i] - 1] = 1;
        CHECK_SAME(info.asked_bytes, sizes[i]);
        CHECK_SAME(info.origin, WB_ORIGIN_ALLOCATED);
        CHECK_SAME(info.read_only, 0);
        CHECK_SAME((uintptr_t)bytes % page_bytes(), 0);
        wb_buffer_release(buffer);
    }
}

static void the_device_reads_what_the_host_writes(wb_device *device)
{
    enum { BYTES = 70000 };
    wb_buffer *buffer = new_buffer(device, BYTES);
    unsigned char *seen = (unsigned char *)calloc(1, BYTES);
    REQUIRE(seen != NULL && buffer != NULL);
    wb_buffer_info info = buffer_info(buffer);
    fill(info.data, BYTES);
    CHECK_SAME(info.pinning, WB_PINNING_REGISTERED);
    CHECK_SAME(info.fallback_reason[0], '\0');
    REQUIRE(info.device_address != NULL);
    CHECK(read_device(device, seen, info.device_address, BYTES));
    CHECK(holds_pattern(seen, 0, BYTES));
    wb_buffer_release(buffer);
    free(seen);
}

static void a_buffer_of_zero_bytes_has_no_memory(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {3, 0};
    wb_layout empty = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    REQUIRE_OK(wb_buffer_alloc(device, 0, NULL, &buffer, &error));
    wb_buffer_info info = buffer_info(buffer);
    CHECK(info.data == NULL);
    CHECK_SAME(info.asked_bytes + info.mapped_bytes + info.pinned_bytes + info.chunks, 0);
    CHECK_SAME(buffer_usage(buffer).resident_bytes, 0);
    CHECK_SAME(device_stats(device).buffers, 1);
    REQUIRE_OK(wb_view_new(buffer, &empty, WB_ACCESSOR_DEVICE, &view, &error));
    CHECK(view_info(view).data == NULL);
    wb_view_release(view);
    wb_buffer_release(buffer);
}

static void each_reference_keeps_the_memory(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 100);
    REQUIRE(buffer != NULL);
    wb_buffer_retain(buffer);
    wb_buffer_release(buffer);
    memset(buffer_info(buffer).data, 1, 100);
    CHECK_SAME(device_stats(device).buffers, 1);
    wb_buffer_release(buffer);
    CHECK_SAME(device_stats(device).buffers, 0);
}

static void unpinned_memory_gives_the_reason(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.pin = WB_TRISTATE_OFF;
    REQUIRE_OK(wb_buffer_alloc(device, 10000, &options, &buffer, &error));
    wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.pinning, WB_PINNING_NONE);
    CHECK_SAME(info.pinned_bytes, 0);
    CHECK_SAME(info.chunks, 0);
    CHECK(strstr(info.fallback_reason, "pageable") != NULL);
    memset(info.data, 1, 10000);
    wb_buffer_release(buffer);
}

static void memory_is_registered_in_chunks(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = 3 * page_bytes() - 1; /* rounded up to whole pages */
    REQUIRE_OK(wb_buffer_alloc(device, 10 * page_bytes() - 5, &options, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).chunks, 4);
    CHECK_SAME(buffer_info(buffer).pinned_bytes, 10 * page_bytes());
    wb_buffer_release(buffer);
}

static void every_combination_of_options_allocates(wb_device *device)
{
    const wb_huge_pages huge[] = {WB_HUGE_PAGES_TRY, WB_HUGE_PAGES_OFF};
    const uint32_t threads[] = {0, 1, 3, 1000};
    const wb_numa_policy policies[] = {WB_NUMA_DEVICE, WB_NUMA_ANY};
    for (int i = 0; i < 16; i++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        options.huge_pages = huge[i & 1];
        options.threads = threads[i >> 2];
        options.numa_policy = policies[i >> 1 & 1];
        options.portable = i & 1 ? WB_TRISTATE_OFF : WB_TRISTATE_ON;
        REQUIRE_OK(wb_buffer_alloc(device, (40 << 20) + 1, &options, &buffer, &error));
        memset(buffer_info(buffer).data, 1, (40 << 20) + 1);
        if (options.huge_pages == WB_HUGE_PAGES_OFF) CHECK_SAME(buffer_usage(buffer).huge_bytes, 0);
        wb_buffer_release(buffer);
    }
}

static void a_numa_node_is_read_only_with_its_policy(wb_device *device)
{
    enum { BYTES = 100000, MISSING = 1000 };
    const struct { wb_numa_policy policy; uint32_t node; wb_status status; } choices[] = {
        {WB_NUMA_DEVICE, 0, WB_OK},
        {WB_NUMA_DEVICE, MISSING, WB_OK},
        {WB_NUMA_ANY, MISSING, WB_OK},
        {WB_NUMA_NODE, 0, WB_OK},
        {WB_NUMA_NODE, MISSING, WB_ERR_INVALID_ARGUMENT}};
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        options.numa_policy = choices[i].policy;
        options.numa_node = choices[i].node;
        if (choices[i].status != WB_OK) {
            CHECK_ERROR(choices[i].status,
                        wb_buffer_alloc(device, BYTES, &options, &buffer, &error), "1000");
            CHECK(buffer == NULL);
            continue;
        }
        REQUIRE_OK(wb_buffer_alloc(device, BYTES, &options, &buffer, &error));
        memset(buffer_info(buffer).data, 1, BYTES);
        wb_buffer_release(buffer);
    }
}

static void write_combined_memory_is_allocated_by_the_driver(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.write_combined = WB_TRISTATE_ON;
    if (!on_cuda()) {
        CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                    wb_buffer_alloc(device, 5000, &options, &buffer, &error),
                    "host device|write-combined");
        CHECK(buffer == NULL);
        return;
    }
    REQUIRE_OK(wb_buffer_alloc(device, 5000, &options, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).pinning, WB_PINNING_DRIVER);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "driver") != NULL);
    CHECK(buffer_info(buffer).pinned_bytes >= 5000);
    memset(buffer_info(buffer).data, 1, 5000);
    wb_buffer_release(buffer);
    check_driver_memory(device, options, "write-combined");
}

struct progress {
    uint64_t done[4];
    int calls, invalid;
};

static int32_t record_progress(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    struct progress *progress = (struct progress *)user;
    const int known = phase >= 1 && phase <= 3;
    progress->calls++;
    if (!known || done > total || done < progress->done[phase]) progress->invalid++;
    if (known) progress->done[phase] = done;
    return 0;
}

static void progress_reaches_the_end_of_each_phase(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    struct progress progress = {{0, 0, 0, 0}, 0, 0};
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = 16 << 20;
    options.progress = record_progress;
    options.progress_user = &progress;
    REQUIRE_OK(wb_buffer_alloc(device, 100 << 20, &options, &buffer, &error));
    CHECK_SAME(progress.done[WB_PHASE_FAULT], 100 << 20);
    CHECK_SAME(progress.done[WB_PHASE_PIN], 100 << 20);
    CHECK_SAME(progress.invalid, 0);
    CHECK(progress.calls >= 8);
    wb_buffer_release(buffer);
}

static void an_overrun_faults(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, page_bytes());
    REQUIRE(buffer != NULL);
    char *behind = (char *)buffer_info(buffer).data + page_bytes();
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    CHECK(write(ends[1], behind, 1) == -1); /* EFAULT: not mapped */
    close(ends[0]);
    close(ends[1]);
    wb_buffer_release(buffer);
}

CHECK_MAIN(CASE(memory_is_zeroed_writable_and_of_the_requested_size),
           CASE(the_device_reads_what_the_host_writes), CASE(a_buffer_of_zero_bytes_has_no_memory),
           CASE(each_reference_keeps_the_memory), CASE(unpinned_memory_gives_the_reason),
           CASE(memory_is_registered_in_chunks), CASE(every_combination_of_options_allocates),
           CASE(a_numa_node_is_read_only_with_its_policy),
           CASE(write_combined_memory_is_allocated_by_the_driver),
           CASE(progress_reaches_the_end_of_each_phase), CASE(an_overrun_faults))
