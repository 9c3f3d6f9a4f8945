/* Files in memory: mapped where the platform can register a mapping, else read. */
#include "memory.h"

enum { BYTES = 3 * 65536 + 777 };

static wb_buffer *map(wb_device *device, const char *path, uint64_t offset, uint64_t bytes,
                      wb_file_mode mode)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.file_mode = mode;
    CHECK_OK(wb_buffer_map_file(device, path, offset, bytes, &options, &buffer, &error));
    return buffer;
}

static void a_file_is_mapped_whole_and_read_only(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "whole");
    REQUIRE(write_pattern(path, BYTES));
    wb_buffer *buffer = map(device, path, 0, 0, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL);
    wb_buffer_info info = describe(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_MAPPED);
    CHECK_SAME(info.pinning, WB_PINNING_REGISTERED);
    CHECK_SAME(info.read_only, 1);
    CHECK_SAME(info.asked_bytes, BYTES);
    CHECK_SAME(info.note[0], '\0');
    CHECK(holds_pattern(info.data, 0, BYTES));
    wb_buffer_release(buffer);
    unlink(path);
}

static void any_range_of_a_file_is_mapped(wb_device *device)
{
    const uint64_t ranges[][2] = {
        {0, 1}, {1, 0}, {4095, 2}, {4096, 4096}, {70000, 5}, {BYTES - 1, 1}, {BYTES - 1, 0}};
    char path[300];
    file_name(path, sizeof path, "range");
    REQUIRE(write_pattern(path, BYTES));
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        for (wb_file_mode mode = WB_FILE_MODE_AUTO; mode <= WB_FILE_MODE_READ; mode++) {
            uint64_t offset = ranges[i][0];
            uint64_t bytes = ranges[i][1] > 0 ? ranges[i][1] : BYTES - offset;
            wb_buffer *buffer = map(device, path, offset, ranges[i][1], mode);
            REQUIRE(buffer != NULL);
            CHECK_SAME(describe(buffer).asked_bytes, bytes);
            CHECK(holds_pattern(describe(buffer).data, offset, bytes));
            wb_buffer_release(buffer);
        }
    }
    unlink(path);
}

static void the_device_reads_the_file_in_place(wb_device *device)
{
    char path[300];
    unsigned char *seen = (unsigned char *)calloc(1, BYTES);
    file_name(path, sizeof path, "device");
    REQUIRE(seen != NULL && write_pattern(path, BYTES));
    wb_buffer *buffer = map(device, path, 100, 0, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL && describe(buffer).device_address != 0);
    CHECK(read_device(device, seen, describe(buffer).device_address, BYTES - 100));
    CHECK(holds_pattern(seen, 100, BYTES - 100));
    wb_buffer_release(buffer);
    unlink(path);
    free(seen);
}

static void a_file_that_is_read_says_why_and_may_be_written(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "read");
    REQUIRE(write_pattern(path, BYTES));
    wb_buffer *buffer = map(device, path, 10, 0, WB_FILE_MODE_READ);
    REQUIRE(buffer != NULL);
    wb_buffer_info info = describe(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_READ);
    CHECK_SAME(info.read_only, 0);
    CHECK(strstr(info.note, "options") != NULL);
    CHECK(holds_pattern(info.data, 10, BYTES - 10));
    memset(info.data, 0, BYTES - 10);
    wb_buffer_release(buffer);
    buffer = map(device, path, 0, 0, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL);
    CHECK(holds_pattern(describe(buffer).data, 0, BYTES)); /* the file is as it was */
    wb_buffer_release(buffer);
    unlink(path);
}

static void a_mapping_shows_what_others_write_to_the_file(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "shared");
    REQUIRE(write_pattern(path, BYTES));
    wb_buffer *buffer = map(device, path, 0, 0, WB_FILE_MODE_MAP);
    REQUIRE(buffer != NULL);
    int file = open(path, O_RDWR);
    REQUIRE(pwrite(file, "weigh", 5, 1000) == 5);
    CHECK(memcmp((char *)describe(buffer).data + 1000, "weigh", 5) == 0);
    close(file);
    wb_buffer_release(buffer);
    unlink(path);
}

static void a_mapping_outlives_its_files_name(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "unlinked");
    REQUIRE(write_pattern(path, BYTES));
    wb_buffer *buffer = map(device, path, 0, 0, WB_FILE_MODE_AUTO);
    unlink(path);
    REQUIRE(buffer != NULL);
    CHECK(holds_pattern(describe(buffer).data, 0, BYTES));
    wb_buffer_release(buffer);
}

static void a_mapping_that_is_not_pinned_says_why(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    file_name(path, sizeof path, "pageable");
    REQUIRE(write_pattern(path, BYTES));
    options.pin = WB_TRISTATE_OFF;
    if (CHECK_OK(wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error))) {
        wb_buffer_info info = describe(buffer);
        CHECK_SAME(info.origin, WB_ORIGIN_FILE_MAPPED);
        CHECK_SAME(info.pinning, WB_PINNING_NONE);
        CHECK_SAME(info.pinned_bytes, 0);
        CHECK(strstr(info.note, "options") != NULL);
        CHECK(holds_pattern(info.data, 0, BYTES));
        wb_buffer_release(buffer);
    }
    unlink(path);
}

static void a_file_mapped_twice_is_two_buffers(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "twice");
    REQUIRE(write_pattern(path, BYTES));
    wb_buffer *first = map(device, path, 0, 0, WB_FILE_MODE_AUTO);
    wb_buffer *second = map(device, path, 0, 0, WB_FILE_MODE_AUTO);
    REQUIRE(first != NULL && second != NULL);
    CHECK(describe(first).data != describe(second).data);
    wb_buffer_release(first);
    CHECK(holds_pattern(describe(second).data, 0, BYTES));
    wb_buffer_release(second);
    unlink(path);
}

static void a_mapped_file_is_registered_in_chunks(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    file_name(path, sizeof path, "chunks");
    REQUIRE(write_pattern(path, BYTES));
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = 65536;
    REQUIRE_OK(wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error));
    CHECK_SAME(describe(buffer).chunks, 4);
    wb_buffer_release(buffer);
    unlink(path);
}

static void a_large_file_is_read_by_many_threads_in_order(wb_device *device)
{
    const uint64_t bytes = (100 << 20) + 4321;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    file_name(path, sizeof path, "large");
    REQUIRE(write_pattern(path, bytes));
    options.file_mode = WB_FILE_MODE_READ;
    options.threads = 4;
    if (CHECK_OK(wb_buffer_map_file(device, path, 33, 0, &options, &buffer, &error))) {
        CHECK(holds_pattern(describe(buffer).data, 33, bytes - 33));
        wb_buffer_release(buffer);
    }
    unlink(path);
}

/* A file of the kernel's own that is read and not mapped. */
static void a_file_that_cannot_be_mapped_is_read(wb_device *device)
{
    static const char path[] = "/sys/kernel/notes";
    unsigned char expected[65536];
    wb_buffer *buffer = NULL;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    int file = open(path, O_RDONLY);
    if (file < 0) NOT_RUN("there is no /sys/kernel/notes");
    ssize_t bytes = read(file, expected, sizeof expected);
    void *mapped = mmap(NULL, page_bytes(), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) munmap(mapped, page_bytes());
    if (mapped != MAP_FAILED || bytes <= 0) NOT_RUN("/sys/kernel/notes can be mapped");
    buffer = map(device, path, 0, (uint64_t)bytes, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL);
    CHECK_SAME(describe(buffer).origin, WB_ORIGIN_FILE_READ);
    CHECK(strstr(describe(buffer).note, "read into memory") != NULL);
    CHECK(strstr(describe(buffer).note, "mmap") != NULL);
    CHECK(memcmp(describe(buffer).data, expected, (size_t)bytes) == 0);
    wb_buffer_release(buffer);
    buffer = NULL;
    options.file_mode = WB_FILE_MODE_MAP;
    CHECK_ERROR(WB_ERR_FILE_IO,
                wb_buffer_map_file(device, path, 0, (uint64_t)bytes, &options, &buffer, &error),
                "asked to map and not to read|mmap");
    CHECK(buffer == NULL);
}

/* Huge pages or a node: the pages of a mapping are the kernel's cache. */
static void pages_that_a_mapping_cannot_have_are_read_into(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "pages");
    REQUIRE(write_pattern(path, BYTES));
    for (int node = 0; node < 2; node++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        if (node) options.numa_node = 0;
        else options.huge_pages = WB_HUGE_PAGES_REQUIRE;
        REQUIRE_OK(wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error));
        CHECK_SAME(describe(buffer).origin, WB_ORIGIN_FILE_READ);
        CHECK(strstr(describe(buffer).note, "huge pages or a node") != NULL);
        CHECK(holds_pattern(describe(buffer).data, 0, BYTES));
        wb_buffer_release(buffer);
        buffer = NULL;
        options.file_mode = WB_FILE_MODE_MAP;
        CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                    "asked to map and not to read|huge pages or a node");
        CHECK(buffer == NULL);
    }
    unlink(path);
}

CHECK_MAIN(CASE(a_file_is_mapped_whole_and_read_only), CASE(any_range_of_a_file_is_mapped),
           CASE(the_device_reads_the_file_in_place),
           CASE(a_file_that_is_read_says_why_and_may_be_written),
           CASE(a_mapping_shows_what_others_write_to_the_file),
           CASE(a_mapping_outlives_its_files_name), CASE(a_mapping_that_is_not_pinned_says_why),
           CASE(a_file_mapped_twice_is_two_buffers), CASE(a_mapped_file_is_registered_in_chunks),
           CASE(a_large_file_is_read_by_many_threads_in_order),
           CASE(a_file_that_cannot_be_mapped_is_read),
           CASE(pages_that_a_mapping_cannot_have_are_read_into))
