/* Pinned bytes are the requested bytes rounded up to whole pages, never to a power of two, and the
 * counters agree with the kernel's. */
#include "memory.h"

static const uint64_t sizes[] = {1, 4095, 4096, 4097, (5 << 20) + 1, (300ull << 20) + 1};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void pinned_bytes_are_the_requested_bytes_in_whole_pages(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    options.pin = WB_TRISTATE_ON;
    for (int i = 0; i < SIZES; i++) {
        wb_buffer *buffer = NULL;
        REQUIRE_OK(wb_buffer_alloc(device, sizes[i], &options, &buffer, &error));
        wb_buffer_info info = buffer_info(buffer);
        CHECK_SAME(info.asked_bytes, sizes[i]);
        CHECK_SAME(info.mapped_bytes, whole_pages(sizes[i]));
        CHECK_SAME(info.pinned_bytes, whole_pages(sizes[i]));
        CHECK_SAME(info.chunks, 1);
        CHECK_SAME(device_stats(device).pinned_bytes, whole_pages(sizes[i]));
        CHECK_SAME(device_stats(device).asked_bytes, sizes[i]);
        CHECK_SAME(buffer_usage(buffer).resident_bytes, whole_pages(sizes[i]));
        CHECK_SAME(buffer_usage(buffer).anonymous_bytes, whole_pages(sizes[i]));
        wb_buffer_release(buffer);
    }
}

static void the_kernel_counts_the_same_locked_bytes(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    options.pin = WB_TRISTATE_ON;
    for (int i = 0; i < SIZES; i++) {
        wb_buffer *buffer = NULL;
        uint64_t before = process_bytes("VmLck:");
        REQUIRE_OK(wb_buffer_alloc(device, sizes[i], &options, &buffer, &error));
        CHECK_SAME(buffer_usage(buffer).locked_bytes, whole_pages(sizes[i]));
        CHECK_SAME(process_bytes("VmLck:") - before, whole_pages(sizes[i]));
        wb_buffer_release(buffer);
        CHECK_SAME(process_bytes("VmLck:"), before);
    }
}

static void the_driver_counts_the_same_registered_bytes(wb_device *device)
{
    for (int i = 0; i < SIZES; i++) {
        wb_buffer *buffer = NULL;
        REQUIRE_OK(wb_buffer_alloc(device, sizes[i], NULL, &buffer, &error));
        CHECK_SAME(double_alive("registered_bytes"), whole_pages(sizes[i]));
        CHECK_SAME(double_alive("host_bytes"), 0);
        wb_buffer_release(buffer);
    }
}

static void the_process_grows_by_the_requested_bytes(wb_device *device)
{
    const uint64_t bytes = (300ull << 20) + 1;
    wb_buffer *buffer = NULL;
    uint64_t resident = process_bytes("VmRSS:"), address_space = process_bytes("VmSize:");
    REQUIRE_OK(wb_buffer_alloc(device, bytes, NULL, &buffer, &error));
    uint64_t grown = process_bytes("VmRSS:") - resident;
    CHECK(grown >= bytes - (4 << 20) && grown <= bytes + (16 << 20));
    if (!on_cuda()) CHECK(process_bytes("VmSize:") - address_space <= bytes + (200 << 20));
    wb_buffer_release(buffer);
    CHECK(process_bytes("VmRSS:") <= resident + (16 << 20));
}

static void mapping_a_file_uses_no_anonymous_memory(wb_device *device)
{
    const uint64_t bytes = (64 << 20) + 123;
    char path[300];
    wb_buffer *buffer = NULL;
    unsigned char *content = (unsigned char *)calloc(1, bytes);
    REQUIRE(content != NULL);
    file_name(path, sizeof path, "anonymous");
    REQUIRE(write_file(path, content, bytes));
    free(content);
    uint64_t before = process_bytes("RssAnon:");
    REQUIRE_OK(wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).origin, WB_ORIGIN_FILE_MAPPED);
    CHECK_SAME(buffer_info(buffer).asked_bytes, bytes);
    CHECK_SAME(buffer_info(buffer).mapped_bytes, whole_pages(bytes));
    CHECK_SAME(buffer_info(buffer).pinned_bytes, whole_pages(bytes));
    CHECK_SAME(buffer_usage(buffer).anonymous_bytes, 0);
    CHECK_SAME(buffer_usage(buffer).resident_bytes, whole_pages(bytes));
    CHECK(process_bytes("RssAnon:") <= before + (4 << 20));
    wb_buffer_release(buffer);
    unlink(path);
}

static void registering_pins_the_touched_pages_and_maps_nothing(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char *memory = (char *)pages(4 * page_bytes());
    REQUIRE(memory != NULL);
    options.pin = WB_TRISTATE_ON;
    REQUIRE_OK(wb_buffer_register(device, memory + page_bytes(), 2 * page_bytes(), &options, NULL,
                                  NULL, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).asked_bytes, 2 * page_bytes());
    CHECK_SAME(buffer_info(buffer).pinned_bytes, 2 * page_bytes());
    CHECK_SAME(buffer_info(buffer).mapped_bytes, 0);
    wb_buffer_release(buffer);
    munmap(memory, 4 * page_bytes());
}

static void reading_a_file_pins_its_bytes_in_whole_pages(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    REQUIRE(pattern_file(path, sizeof path, "exact", 4097 + 5000));
    options.file_mode = WB_FILE_MODE_READ;
    options.pin = WB_TRISTATE_ON;
    REQUIRE_OK(wb_buffer_map_file(device, path, 5000, 0, &options, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).asked_bytes, 4097);
    CHECK_SAME(buffer_info(buffer).pinned_bytes, whole_pages(4097));
    CHECK_SAME(buffer_info(buffer).mapped_bytes, whole_pages(4097));
    wb_buffer_release(buffer);
    unlink(path);
}

CHECK_MAIN(CASE(pinned_bytes_are_the_requested_bytes_in_whole_pages),
           CASE_ON(HOST_ONLY, the_kernel_counts_the_same_locked_bytes),
           CASE_ON(DOUBLE_ONLY, the_driver_counts_the_same_registered_bytes),
           CASE(the_process_grows_by_the_requested_bytes),
           CASE(mapping_a_file_uses_no_anonymous_memory),
           CASE(registering_pins_the_touched_pages_and_maps_nothing),
           CASE(reading_a_file_pins_its_bytes_in_whole_pages))
