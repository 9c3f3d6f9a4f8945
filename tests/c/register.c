/* Registered memory of the caller. */
#include "memory.h"

static void count(void *owner)
{
    ++*(int *)owner;
}

/* Registers memory without a deleter. */
static wb_status register_memory(wb_device *device, void *memory, uint64_t bytes,
                                 const wb_buffer_options *options, wb_buffer **buffer)
{
    return wb_buffer_register(device, memory, bytes, options, NULL, NULL, buffer, &error);
}

static void the_deleter_is_called_once_after_the_last_release(wb_device *device)
{
    enum { BYTES = 10000 };
    unsigned char *memory = (unsigned char *)malloc(BYTES);
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int deleted = 0;
    int64_t shape[] = {BYTES};
    wb_layout layout = bytes_layout(shape);
    REQUIRE(memory != NULL);
    REQUIRE_OK(wb_buffer_register(device, memory, BYTES, NULL, count, &deleted, &buffer, &error));
    wb_buffer_info info = buffer_info(buffer);
    CHECK(info.data == memory);
    CHECK_SAME(info.origin, WB_ORIGIN_REGISTERED);
    CHECK_SAME(info.asked_bytes, BYTES);
    CHECK_SAME(info.read_only, 0);
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    wb_buffer_retain(buffer);
    wb_buffer_release(buffer);
    wb_buffer_release(buffer);
    CHECK_SAME(deleted, 0);
    wb_view_release(view);
    CHECK_SAME(deleted, 1);
    free(memory);
}

static void release_buffer(void *buffer)
{
    wb_buffer_release((wb_buffer *)buffer);
}

/* On the caller's thread, and on the library's behind a stream. */
static void a_deleter_may_release_handles(wb_device *device)
{
    void *stream = NULL;
    char *memory = (char *)pages(2 * page_bytes());
    REQUIRE(memory != NULL);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    const wb_device_stats before = device_stats(device);
    for (int behind = 0; behind < 2; behind++) {
        wb_buffer *held = NULL, *holder = NULL;
        REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &held, &error));
        REQUIRE_OK(wb_buffer_register(device, memory, page_bytes(), NULL, release_buffer, held,
                                      &holder, &error));
        if (behind) {
            CHECK_OK(wb_buffer_release_after(holder, stream, &error));
            CHECK_OK(wb_device_drain(device, 10000000, &error));
        } else {
            wb_buffer_release(holder);
        }
        CHECK_STATS(device, before);
    }
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    munmap(memory, 2 * page_bytes());
}

static void after_a_failure_the_deleter_is_never_called(wb_device *device)
{
    wb_buffer *first = NULL, *second = NULL;
    int deleted = 0;
    char *memory = (char *)pages(2 * page_bytes());
    REQUIRE(memory != NULL);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_buffer_register(device, memory, 0, NULL, count, &deleted, &second, &error), "0");
    REQUIRE_OK(register_memory(device, memory, page_bytes(), NULL, &first));
    CHECK_ERROR(WB_ERR_ALREADY_REGISTERED,
                wb_buffer_register(device, memory, 2 * page_bytes(), NULL, count, &deleted, &second,
                                   &error),
                "overlaps");
    wb_buffer_release(first);
    CHECK_SAME(deleted, 0);
    CHECK(second == NULL);
    munmap(memory, 2 * page_bytes());
}

static void the_device_reads_the_callers_memory_in_place(wb_device *device)
{
    enum { BYTES = 20001 };
    unsigned char *memory = (unsigned char *)malloc(BYTES);
    unsigned char *seen = (unsigned char *)calloc(1, BYTES);
    wb_buffer *buffer = NULL;
    REQUIRE(memory != NULL && seen != NULL);
    REQUIRE_OK(register_memory(device, memory + 1, BYTES - 1, NULL, &buffer));
    fill(memory + 1, BYTES - 1);
    REQUIRE(buffer_info(buffer).device_address != NULL);
    CHECK(read_device(device, seen, buffer_info(buffer).device_address, BYTES - 1));
    CHECK(holds_pattern(seen, 0, BYTES - 1));
    wb_buffer_release(buffer);
    free(memory);
    free(seen);
}

static void overlapping_ranges_are_refused_and_named(wb_device *device)
{
    const uint64_t page = page_bytes();
    char *memory = (char *)pages(6 * page), named[100];
    wb_buffer *buffer = NULL, *other = NULL;
    const uint64_t ranges[][2] = {{0, 6}, {2, 2}, {1, 2}, {3, 2}, {2, 1}, {3, 1}};
    REQUIRE(memory != NULL);
    REQUIRE_OK(register_memory(device, memory + 2 * page, 2 * page, NULL, &buffer));
    snprintf(named, sizeof named, "%#" PRIxPTR "..%#" PRIxPTR "|registered already",
             (uintptr_t)memory + 2 * page, (uintptr_t)memory + 4 * page);
    wb_device_stats before = device_stats(device);
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        CHECK_ERROR(WB_ERR_ALREADY_REGISTERED,
                    register_memory(device, memory + ranges[i][0] * page, ranges[i][1] * page, NULL,
                                    &other),
                    named);
    }
    CHECK(other == NULL);
    CHECK_STATS(device, before);
    wb_buffer_release(buffer);
    CHECK_OK(register_memory(device, memory, 6 * page, NULL, &buffer));
    wb_buffer_release(buffer);
    munmap(memory, 6 * page);
}

static void memory_of_the_library_cannot_be_registered(wb_device *device)
{
    wb_buffer *buffer = NULL, *other = NULL;
    REQUIRE_OK(wb_buffer_alloc(device, 10000, NULL, &buffer, &error));
    CHECK_ERROR(WB_ERR_ALREADY_REGISTERED,
                register_memory(device, buffer_info(buffer).data, 10000, NULL, &other),
                "a weighbridge allocation");
    wb_buffer_release(buffer);
}

static void disjoint_ranges_may_share_a_page(wb_device *device)
{
    char *memory = (char *)pages(page_bytes());
    wb_buffer *first = NULL, *second = NULL;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    uint64_t locked = process_bytes("VmLck:");
    REQUIRE(memory != NULL);
    options.pin = WB_TRISTATE_ON;
    REQUIRE_OK(register_memory(device, memory, 100, &options, &first));
    REQUIRE_OK(register_memory(device, memory + 100, 100, &options, &second));
    wb_buffer_release(first);
    if (!on_cuda()) CHECK_SAME(process_bytes("VmLck:") - locked, page_bytes());
    wb_buffer_release(second);
    CHECK_SAME(process_bytes("VmLck:"), locked);
    munmap(memory, page_bytes());
}

static void chunks_end_at_page_boundaries(wb_device *device)
{
    const uint64_t page = page_bytes(), locked = process_bytes("VmLck:");
    char *memory = (char *)pages(4 * page);
    wb_buffer *buffer = NULL;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    REQUIRE(memory != NULL);
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = page;
    REQUIRE_OK(register_memory(device, memory + 100, 3 * page, &options, &buffer));
    CHECK_SAME(buffer_info(buffer).chunks, 4);
    CHECK_SAME(buffer_info(buffer).pinned_bytes, on_cuda() ? 3 * page : 4 * page);
    if (!on_cuda()) CHECK_SAME(process_bytes("VmLck:") - locked, 4 * page);
    wb_buffer_release(buffer);
    CHECK_SAME(process_bytes("VmLck:"), locked);
    munmap(memory, 4 * page);
}

static void an_unmapped_range_is_refused(wb_device *device)
{
    const uint64_t page = page_bytes();
    char *memory = (char *)pages(3 * page), gap[40];
    wb_buffer *buffer = NULL;
    wb_device_stats before = device_stats(device);
    REQUIRE(memory != NULL);
    munmap(memory + page, page);
    snprintf(gap, sizeof gap, "asked|%#" PRIxPTR, (uintptr_t)memory + page);
    CHECK_ERROR(WB_ERR_UNMAPPED_RANGE,
                register_memory(device, memory, 3 * page, NULL, &buffer),
                gap);
    CHECK_ERROR(WB_ERR_UNMAPPED_RANGE,
                register_memory(device, memory + page, 1, NULL, &buffer),
                gap);
    mprotect(memory, page, PROT_NONE);
    CHECK_ERROR(WB_ERR_UNMAPPED_RANGE,
                register_memory(device, memory, page, NULL, &buffer),
                "readable");
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    munmap(memory, page);
    munmap(memory + 2 * page, page);
}

static void private_mappings_that_pinning_would_copy_are_refused(wb_device *device)
{
    wb_buffer *buffer = NULL;
    char path[300];
    REQUIRE(pattern_file(path, sizeof path, "private", 3 * page_bytes()));
    int file = open(path, O_RDWR);
    void *private_mapping = mmap(NULL, page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    void *read_only_mapping =
        mmap(NULL, page_bytes(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(private_mapping != MAP_FAILED && read_only_mapping != MAP_FAILED);
    CHECK_ERROR(WB_ERR_WOULD_COPY,
                register_memory(device, private_mapping, page_bytes(), NULL, &buffer),
                "private|wb_buffer_map_file");
    CHECK_ERROR(
        WB_ERR_WOULD_COPY,
        register_memory(device, read_only_mapping, page_bytes(), NULL, &buffer),
        "may not be written");
    CHECK(buffer == NULL);
    munmap(private_mapping, page_bytes());
    munmap(read_only_mapping, page_bytes());
    close(file);
    unlink(path);
}

static void a_read_only_shared_mapping_is_registered_read_only(wb_device *device)
{
    wb_buffer *buffer = NULL;
    char path[300];
    unsigned char *seen = (unsigned char *)calloc(1, 3 * page_bytes());
    file_name(path, sizeof path, "shared");
    REQUIRE(seen != NULL && write_pattern(path, 3 * page_bytes()));
    int file = open(path, O_RDONLY);
    void *shared_mapping = mmap(NULL, 3 * page_bytes(), PROT_READ, MAP_SHARED, file, 0);
    REQUIRE(shared_mapping != MAP_FAILED);
    if (CHECK_OK(register_memory(device, shared_mapping, 3 * page_bytes(), NULL, &buffer))) {
        CHECK_SAME(buffer_info(buffer).read_only, 1);
        CHECK_SAME(buffer_usage(buffer).anonymous_bytes, 0);
        CHECK(read_device(device, seen, buffer_info(buffer).device_address, 3 * page_bytes()));
        CHECK(holds_pattern(seen, 0, 3 * page_bytes()));
        wb_buffer_release(buffer);
    }
    munmap(shared_mapping, 3 * page_bytes());
    close(file);
    unlink(path);
    free(seen);
}

static void registering_without_pinning_gives_the_reason(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char memory[100];
    options.pin = WB_TRISTATE_OFF;
    REQUIRE_OK(register_memory(device, memory, sizeof memory, &options, &buffer));
    CHECK_SAME(buffer_info(buffer).pinning, WB_PINNING_NONE);
    CHECK_SAME(buffer_info(buffer).pinned_bytes, 0);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "options") != NULL);
    wb_buffer_release(buffer);
}

/* Mappings that look like file mappings in /proc/self/maps. */
static void private_zero_and_huge_page_mappings_can_be_registered(wb_device *device)
{
    const uint64_t bytes = 2 << 20;
    const int private_memory = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    wb_buffer *buffer = NULL;
    int zeros = open("/dev/zero", O_RDWR);
    REQUIRE(zeros >= 0);
    void *each[] = {mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, zeros, 0),
                    mmap(NULL, bytes, PROT_READ | PROT_WRITE, private_memory, -1, 0)};
    close(zeros);
    REQUIRE(each[0] != MAP_FAILED);
    if (each[1] == MAP_FAILED) printf("     no huge pages are reserved: testing /dev/zero only\n");
    for (int i = 0; i < 2 && each[i] != MAP_FAILED; i++) {
        if (CHECK_OK(register_memory(device, each[i], bytes, NULL, &buffer))) {
            CHECK_SAME(buffer_info(buffer).read_only, 0);
            fill(each[i], bytes);
            CHECK(holds_pattern(buffer_info(buffer).data, 0, bytes));
            wb_buffer_release(buffer);
        }
        munmap(each[i], bytes);
    }
}

static void options_that_existing_memory_cannot_have_are_refused(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char memory[100];
    int deleted = 0;
#define REFUSED(words)                                                                            \
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,                                                             \
                wb_buffer_register(device, memory, sizeof memory, &options, count, &deleted,      \
                                   &buffer, &error),                                              \
                words)
    options.write_combined = WB_TRISTATE_ON;
    REFUSED("write-combined|wb_buffer_alloc");
    options.write_combined = WB_TRISTATE_AUTO;
    options.huge_pages = WB_HUGE_PAGES_REQUIRE;
    REFUSED("huge pages|WB_HUGE_PAGES_TRY");
    options.huge_pages = WB_HUGE_PAGES_TRY;
    options.numa_policy = WB_NUMA_NODE;
    REFUSED("node 0|WB_NUMA_DEVICE");
    CHECK(buffer == NULL);
    CHECK_SAME(deleted, 0);
}

/* The range is free again, whole or with a hole that its owner made, and no page stays locked. */
static void memory_that_its_owner_unmapped_can_be_registered_again(wb_device *device)
{
    const uint64_t page = page_bytes(), locked = process_bytes("VmLck:");
    const struct {
        uint64_t from, bytes;
    } holes[] = {{0, 4 * page}, {page, page}, {0, page}, {3 * page, page}};
    for (size_t i = 0; i < sizeof holes / sizeof holes[0]; i++) {
        wb_buffer *buffer = NULL;
        char *memory = (char *)pages(4 * page);
        REQUIRE(memory != NULL);
        REQUIRE_OK(wb_buffer_register(device, memory, 4 * page, NULL, NULL, NULL, &buffer, &error));
        munmap(memory + holes[i].from, holes[i].bytes);
        wb_buffer_stats stats = WB_BUFFER_STATS_INIT;
        CHECK_ERROR(WB_ERR_UNMAPPED_RANGE, wb_buffer_get_stats(buffer, &stats, &error), "not mapped");
        wb_buffer_release(buffer);
        CHECK_SAME(device_stats(device).errors_logged, 0);
        CHECK_SAME(device_stats(device).pinned_bytes, 0);
        CHECK_SAME(process_bytes("VmLck:"), locked);
        CHECK(mmap(memory, 4 * page, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
        REQUIRE_OK(wb_buffer_register(device, memory, 4 * page, NULL, NULL, NULL, &buffer, &error));
        CHECK_SAME(buffer_info(buffer).pinned_bytes, 4 * page);
        if (!on_cuda()) CHECK_SAME(buffer_usage(buffer).locked_bytes, 4 * page);
        wb_buffer_release(buffer);
        CHECK_SAME(process_bytes("VmLck:"), locked);
        munmap(memory, 4 * page);
    }
}

CHECK_MAIN(CASE(the_deleter_is_called_once_after_the_last_release),
           CASE(a_deleter_may_release_handles),
           CASE(after_a_failure_the_deleter_is_never_called),
           CASE(the_device_reads_the_callers_memory_in_place),
           CASE(overlapping_ranges_are_refused_and_named),
           CASE(memory_of_the_library_cannot_be_registered), CASE(disjoint_ranges_may_share_a_page),
           CASE(chunks_end_at_page_boundaries), CASE(an_unmapped_range_is_refused),
           CASE(private_mappings_that_pinning_would_copy_are_refused),
           CASE(private_zero_and_huge_page_mappings_can_be_registered),
           CASE(options_that_existing_memory_cannot_have_are_refused),
           CASE(a_read_only_shared_mapping_is_registered_read_only),
           CASE(registering_without_pinning_gives_the_reason),
           CASE(memory_that_its_owner_unmapped_can_be_registered_again))
