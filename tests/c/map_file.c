/* Files: mapped if the platform can register the mapping, otherwise read into memory. */
#include "memory.h"

enum { BYTES = 3 * 65536 + 777 };

static char path[300];

/* Writes a new file of BYTES bytes. */
static int begin_file(const char *name)
{
    return pattern_file(path, sizeof path, name, BYTES);
}

static wb_buffer *map(wb_device *device, uint64_t offset, uint64_t bytes, wb_file_mode mode)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    options.file_mode = mode;
    return map_file(device, path, offset, bytes, &options);
}

/* Releases the buffer and removes the file. */
static void end_file(wb_buffer *buffer)
{
    wb_buffer_release(buffer);
    unlink(path);
}

static void a_file_is_mapped_whole_and_read_only(wb_device *device)
{
    REQUIRE(begin_file("whole"));
    wb_buffer *buffer = map(device, 0, 0, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL);
    wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_MAPPED);
    CHECK_SAME(info.pinning, WB_PINNING_REGISTERED);
    CHECK_SAME(info.read_only, 1);
    CHECK_SAME(info.asked_bytes, BYTES);
    CHECK_SAME(info.fallback_reason[0], '\0');
    CHECK(holds_pattern(info.data, 0, BYTES));
    end_file(buffer);
}

static void any_range_of_a_file_can_be_mapped(wb_device *device)
{
    const uint64_t ranges[][2] = {
        {0, 1}, {1, 0}, {4095, 2}, {4096, 4096}, {70000, 5}, {BYTES - 1, 1}, {BYTES - 1, 0}};
    REQUIRE(begin_file("range"));
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        for (wb_file_mode mode = WB_FILE_MODE_AUTO; mode <= WB_FILE_MODE_READ; mode++) {
            uint64_t offset = ranges[i][0];
            uint64_t bytes = ranges[i][1] > 0 ? ranges[i][1] : BYTES - offset;
            wb_buffer *buffer = map(device, offset, ranges[i][1], mode);
            REQUIRE(buffer != NULL);
            CHECK_SAME(buffer_info(buffer).asked_bytes, bytes);
            CHECK(holds_pattern(buffer_info(buffer).data, offset, bytes));
            wb_buffer_release(buffer);
        }
    }
    unlink(path);
}

static void the_device_reads_the_file_in_place(wb_device *device)
{
    unsigned char *seen = (unsigned char *)calloc(1, BYTES);
    REQUIRE(seen != NULL && begin_file("device"));
    wb_buffer *buffer = map(device, 100, 0, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL && buffer_info(buffer).device_address != NULL);
    CHECK(read_device(device, seen, buffer_info(buffer).device_address, BYTES - 100));
    CHECK(holds_pattern(seen, 100, BYTES - 100));
    end_file(buffer);
    free(seen);
}

static void a_file_that_is_read_gives_the_reason_and_is_writable(wb_device *device)
{
    REQUIRE(begin_file("read"));
    wb_buffer *buffer = map(device, 10, 0, WB_FILE_MODE_READ);
    REQUIRE(buffer != NULL);
    wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_READ);
    CHECK_SAME(info.read_only, 0);
    CHECK(strstr(info.fallback_reason, "options") != NULL);
    CHECK(holds_pattern(info.data, 10, BYTES - 10));
    memset(info.data, 0, BYTES - 10);
    wb_buffer_release(buffer);
    buffer = map(device, 0, 0, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL);
    CHECK(holds_pattern(buffer_info(buffer).data, 0, BYTES)); /* the file is unchanged */
    end_file(buffer);
}

static void a_mapping_shows_later_writes_to_the_file(wb_device *device)
{
    REQUIRE(begin_file("shared"));
    wb_buffer *buffer = map(device, 0, 0, WB_FILE_MODE_MAP);
    REQUIRE(buffer != NULL);
    int file = open(path, O_RDWR);
    REQUIRE(pwrite(file, "weigh", 5, 1000) == 5);
    CHECK(memcmp((char *)buffer_info(buffer).data + 1000, "weigh", 5) == 0);
    close(file);
    end_file(buffer);
}

static void a_mapping_outlives_the_unlinking_of_its_file(wb_device *device)
{
    REQUIRE(begin_file("unlinked"));
    wb_buffer *buffer = map(device, 0, 0, WB_FILE_MODE_AUTO);
    unlink(path);
    REQUIRE(buffer != NULL);
    CHECK(holds_pattern(buffer_info(buffer).data, 0, BYTES));
    wb_buffer_release(buffer);
}

static void an_unpinned_mapping_gives_the_reason(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    REQUIRE(begin_file("pageable"));
    options.pin = WB_TRISTATE_OFF;
    wb_buffer *buffer = map_file(device, path, 0, 0, &options);
    REQUIRE(buffer != NULL);
    wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_MAPPED);
    CHECK_SAME(info.pinning, WB_PINNING_NONE);
    CHECK_SAME(info.pinned_bytes, 0);
    CHECK(strstr(info.fallback_reason, "options") != NULL);
    CHECK(holds_pattern(info.data, 0, BYTES));
    end_file(buffer);
}

static void a_file_mapped_twice_has_two_independent_buffers(wb_device *device)
{
    REQUIRE(begin_file("twice"));
    wb_buffer *first = map(device, 0, 0, WB_FILE_MODE_AUTO);
    wb_buffer *second = map(device, 0, 0, WB_FILE_MODE_AUTO);
    REQUIRE(first != NULL && second != NULL);
    CHECK(buffer_info(first).data != buffer_info(second).data);
    wb_buffer_release(first);
    CHECK(holds_pattern(buffer_info(second).data, 0, BYTES));
    end_file(second);
}

static void a_mapped_file_is_registered_in_chunks(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    REQUIRE(begin_file("chunks"));
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = 65536;
    wb_buffer *buffer = map_file(device, path, 0, 0, &options);
    REQUIRE(buffer != NULL);
    CHECK_SAME(buffer_info(buffer).chunks, 4);
    end_file(buffer);
}

static void a_large_file_is_read_by_several_threads(wb_device *device)
{
    const uint64_t bytes = (100 << 20) + 4321;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    REQUIRE(pattern_file(path, sizeof path, "large", bytes));
    options.file_mode = WB_FILE_MODE_READ;
    options.threads = 4;
    wb_buffer *buffer = map_file(device, path, 33, 0, &options);
    REQUIRE(buffer != NULL);
    CHECK(holds_pattern(buffer_info(buffer).data, 33, bytes - 33));
    end_file(buffer);
}

/* A file of sysfs, which supports read but not mmap. */
static void a_file_that_cannot_be_mapped_is_read(wb_device *device)
{
    unsigned char expected[65536];
    wb_buffer *buffer = NULL;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    snprintf(path, sizeof path, "/sys/kernel/notes");
    int file = open(path, O_RDONLY);
    if (file < 0) NOT_RUN("there is no /sys/kernel/notes");
    ssize_t bytes = read(file, expected, sizeof expected);
    void *mapped = mmap(NULL, page_bytes(), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) munmap(mapped, page_bytes());
    if (mapped != MAP_FAILED || bytes <= 0) NOT_RUN("/sys/kernel/notes can be mapped");
    buffer = map(device, 0, (uint64_t)bytes, WB_FILE_MODE_AUTO);
    REQUIRE(buffer != NULL);
    CHECK_SAME(buffer_info(buffer).origin, WB_ORIGIN_FILE_READ);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "read into memory") != NULL);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "mmap") != NULL);
    CHECK(memcmp(buffer_info(buffer).data, expected, (size_t)bytes) == 0);
    wb_buffer_release(buffer);
    buffer = NULL;
    options.file_mode = WB_FILE_MODE_MAP;
    CHECK_ERROR(WB_ERR_FILE_IO,
                wb_buffer_map_file(device, path, 0, (uint64_t)bytes, &options, &buffer, &error),
                "asked to map and not to read|mmap");
    CHECK(buffer == NULL);
}

/* A mapping uses the pages of the kernel's page cache, which have neither. */
static void huge_pages_or_a_numa_node_make_a_file_be_read(wb_device *device)
{
    REQUIRE(begin_file("pages"));
    for (int node = 0; node < 2; node++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        if (node) options.numa_policy = WB_NUMA_NODE;
        else options.huge_pages = WB_HUGE_PAGES_REQUIRE;
        REQUIRE_OK(wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error));
        CHECK_SAME(buffer_info(buffer).origin, WB_ORIGIN_FILE_READ);
        CHECK(strstr(buffer_info(buffer).fallback_reason, "huge pages or a node") != NULL);
        CHECK(holds_pattern(buffer_info(buffer).data, 0, BYTES));
        wb_buffer_release(buffer);
        buffer = NULL;
        options.file_mode = WB_FILE_MODE_MAP;
        CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                    wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                    "asked to map and not to read|huge pages or a node");
        CHECK(buffer == NULL);
    }
    unlink(path);
}

CHECK_MAIN(CASE(a_file_is_mapped_whole_and_read_only), CASE(any_range_of_a_file_can_be_mapped),
           CASE(the_device_reads_the_file_in_place),
           CASE(a_file_that_is_read_gives_the_reason_and_is_writable),
           CASE(a_mapping_shows_later_writes_to_the_file),
           CASE(a_mapping_outlives_the_unlinking_of_its_file),
           CASE(an_unpinned_mapping_gives_the_reason),
           CASE(a_file_mapped_twice_has_two_independent_buffers),
           CASE(a_mapped_file_is_registered_in_chunks),
           CASE(a_large_file_is_read_by_several_threads),
           CASE(a_file_that_cannot_be_mapped_is_read),
           CASE(huge_pages_or_a_numa_node_make_a_file_be_read))
