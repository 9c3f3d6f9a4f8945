/* Drivers with missing capabilities or failing calls: the library falls back and gives the reason,
 * and a failure leaks nothing. For the driver double only, which can be configured so. */
#include <errno.h>

#include "captures.h"
#include "dlpack_structs.h"
#include "gate.h"

static wb_device *opened(void)
{
    return open_device("cuda:0", NULL);
}

/* Opens the device with these attributes of the driver double. */
static wb_device *opened_with(const char *attributes)
{
    setenv("WB_DOUBLE_ATTRIBUTES", attributes, 1);
    return opened();
}

static void without_registration_the_driver_allocates(wb_device *device)
{
    wb_buffer *buffer = NULL, *other = NULL;
    char memory[100];
    unsigned char seen[5000];
    REQUIRE((device = opened_with("99=0")) != NULL);
    CHECK_SAME(describe_device(device).host_register, 0);
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.pinning, WB_PINNING_DRIVER);
    CHECK_SAME(info.origin, WB_ORIGIN_ALLOCATED);
    CHECK(strstr(info.fallback_reason, "allocated by the driver") != NULL);
    CHECK(strstr(info.fallback_reason, "register") != NULL);
    CHECK(info.pinned_bytes >= 5000 && info.pinned_bytes <= whole_pages(5000));
    CHECK_SAME(double_alive("host_allocations"), 1);
    for (int at = 0; at < 5000; at++) REQUIRE(((unsigned char *)info.data)[at] == 0);
    fill(info.data, 5000);
    CHECK(read_device(device, seen, info.device_address, 5000));
    CHECK(holds_pattern(seen, 0, 5000));
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_buffer_register(device, memory, 100, NULL, NULL, NULL, &other, &error), "801");
    wb_buffer_release(buffer);
    CHECK_SAME(double_alive("host_allocations"), 0);
    wb_device_release(device);
}

/* With confidential computing the attribute is 1, but each registration fails with 801. */
static void without_a_working_registration_the_driver_allocates(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened()) != NULL);
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:0:801");
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).pinning, WB_PINNING_DRIVER);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "801") != NULL);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void without_read_only_registration_a_file_is_read(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL, *other = NULL;
    char path[300];
    unsigned char seen[5000];
    REQUIRE(pattern_file(path, sizeof path, "fallback", 5100));
    REQUIRE((device = opened_with("113=0")) != NULL);
    CHECK_SAME(describe_device(device).read_only_register, 0);
    REQUIRE_OK(wb_buffer_map_file(device, path, 100, 0, NULL, &buffer, &error));
    wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_READ);
    CHECK_SAME(info.pinning, WB_PINNING_REGISTERED);
    CHECK_SAME(info.pinned_bytes, whole_pages(5000));
    CHECK(strstr(info.fallback_reason, "cannot register read-only memory") != NULL);
    CHECK(read_device(device, seen, info.device_address, 5000));
    CHECK(holds_pattern(seen, 100, 5000));
    wb_buffer_release(buffer);
    options.file_mode = WB_FILE_MODE_MAP;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_buffer_map_file(device, path, 0, 0, &options, &other, &error),
                "asked to map and not to read|read-only");
    CHECK(other == NULL);
    CHECK_SAME(device_stats(device).buffers, 0);
    wb_device_release(device);
    unlink(path);
}

static void a_file_that_the_driver_refuses_to_register_is_read(wb_device *device)
{
    wb_buffer *buffer = NULL;
    char path[300];
    REQUIRE(pattern_file(path, sizeof path, "refused", 5000));
    REQUIRE((device = opened()) != NULL);
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:1:1");
    REQUIRE_OK(wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).origin, WB_ORIGIN_FILE_READ);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "cuMemHostRegister_v2") != NULL);
    CHECK(holds_pattern(buffer_info(buffer).data, 0, 5000));
    wb_buffer_release(buffer);
    wb_device_release(device);
    unlink(path);
}

static void without_device_pointers_there_are_no_device_views(wb_device *device)
{
    setenv("WB_DOUBLE_UNMAPPED", "1", 1);
    REQUIRE((device = opened()) != NULL);
    wb_buffer *buffer = new_buffer(device, 100);
    REQUIRE(buffer != NULL);
    CHECK_SAME(buffer_info(buffer).pinned_bytes, whole_pages(100));
    check_only_host_views(buffer, "cannot access|cuMemHostGetDevicePointer|WB_ACCESSOR_HOST");
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void a_separate_device_address_is_reported(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened_with("91=0")) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    CHECK(buffer_info(buffer).device_address != NULL);
    CHECK(buffer_info(buffer).device_address != buffer_info(buffer).data);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void pageable_access_needs_no_pinning(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened_with("88=1")) != NULL);
    wb_device_info info = describe_device(device);
    CHECK(info.pageable_access == 1 && info.pin == 0 && info.views == 1);
    CHECK(strstr(info.pin_reason, "pageable") != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).pinning, WB_PINNING_NONE);
    CHECK(buffer_info(buffer).device_address == buffer_info(buffer).data);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

enum source { ALLOCATED, REGISTERED, MAPPED };

/* Unpinned memory that the device reads in place, and its last reference. */
struct last_reference {
    char *memory;
    wb_buffer *buffer;
    DLManagedTensorVersioned *tensor; /* if not NULL, it replaces the reference to the buffer */
    int deleted;
};

static void count_deleted(void *deleted)
{
    __atomic_fetch_add((int *)deleted, 1, __ATOMIC_RELEASE);
}

static int is_mapped(char *memory)
{
    unsigned char present;
    return mincore(memory, page_bytes(), &present) == 0 || errno != ENOMEM;
}

static int make_last_reference(wb_device *device, struct last_reference *last,
                               enum source source, int by_dlpack)
{
    const uint64_t bytes = 2 * page_bytes();
    const int64_t count = (int64_t)bytes;
    char path[300];
    wb_status status = WB_OK;
    memset(last, 0, sizeof *last);
    if (source == ALLOCATED) {
        status = wb_buffer_alloc(device, bytes, NULL, &last->buffer, &error);
    } else if (source == REGISTERED) {
        status = wb_buffer_register(device, pages(bytes), bytes, NULL, count_deleted,
                                    &last->deleted, &last->buffer, &error);
    } else {
        file_name(path, sizeof path, "last");
        if (!CHECK(write_pattern(path, bytes))) return 0;
        status = wb_buffer_map_file(device, path, 0, 0, NULL, &last->buffer, &error);
        unlink(path);
    }
    if (!CHECK_OK(status)) return 0;
    last->memory = (char *)buffer_info(last->buffer).data;
    CHECK_SAME(buffer_info(last->buffer).pinning, WB_PINNING_NONE);
    CHECK(buffer_info(last->buffer).device_address == last->memory);
    if (!by_dlpack) return 1;
    wb_view *view = new_view(last->buffer, bytes_layout(&count), WB_ACCESSOR_DEVICE);
    if (view == NULL) return 0;
    CHECK_OK(wb_view_to_dlpack_versioned(view, &last->tensor, &error));
    wb_view_release(view);
    wb_buffer_release(last->buffer);
    return 1;
}

static void *release_last_reference(void *user)
{
    struct last_reference *last = (struct last_reference *)user;
    if (last->tensor != NULL) {
        last->tensor->deleter(last->tensor);
    } else {
        wb_buffer_release(last->buffer);
    }
    return NULL;
}

/* Releases memory while work is queued in a stream: the memory is freed after that work. */
static void check_freed_after_work(wb_device *device, void *stream, enum source source,
                                   int by_dlpack)
{
    struct gate gate = GATE_INIT;
    struct last_reference last;
    pthread_t thread;
    if (!make_last_reference(device, &last, source, by_dlpack)) return;
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    gate_await(&gate);
    REQUIRE(pthread_create(&thread, NULL, release_last_reference, &last) == 0);
    sleep_ms(50);
    CHECK_SAME(device_stats(device).buffers, 1);
    CHECK(is_mapped(last.memory));
    CHECK_SAME(__atomic_load_n(&last.deleted, __ATOMIC_ACQUIRE), 0);
    gate_open(&gate);
    pthread_join(thread, NULL);
    CHECK_OK(wb_device_stream_synchronize(device, stream, &error)); /* the gate is unused now */
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(device_stats(device).buffers, 0);
    CHECK_SAME(device_stats(device).device_bytes, 0);
    CHECK_SAME(last.deleted, source == REGISTERED);
    if (source == REGISTERED) munmap(last.memory, 2 * page_bytes());
}

static void unpinned_memory_is_freed_after_the_work_in_flight(
    wb_device *device)
{
    /* With the second, no device memory is available; with the third, it cannot be freed. */
    const char *failures[] = {"", "cuMemAlloc_v2:0:2", "cuMemFree_v2:1:999"};
    void *stream = NULL;
    REQUIRE((device = opened_with("88=1")) != NULL);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    for (int i = 0; i < 3; i++) {
        for (int source = ALLOCATED; source <= MAPPED; source++) {
            for (int by_dlpack = 0; by_dlpack < 2; by_dlpack++) {
                uint64_t logged = device_stats(device).errors_logged;
                double_set("WB_DOUBLE_FAIL", failures[i]);
                check_freed_after_work(device, stream, (enum source)source, by_dlpack);
                CHECK_SAME(device_stats(device).errors_logged - logged, i == 2);
            }
        }
    }
    double_set("WB_DOUBLE_FAIL", "");
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    wb_device_release(device);
}

static void waiting_for_the_device_does_not_invalidate_a_capture(wb_device *device)
{
    struct captures captures;
    struct last_reference last;
    void *stream = NULL, *graph = NULL;
    REQUIRE((device = opened_with("88=1")) != NULL);
    REQUIRE(captures_begin(&captures));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    for (int by_dlpack = 0; by_dlpack < 2; by_dlpack++) {
        REQUIRE(make_last_reference(device, &last, ALLOCATED, by_dlpack));
        CHECK(captures.begin(stream, 0) == 0);
        release_last_reference(&last);
        CHECK_OK(wb_device_drain(device, 10000, &error));
        CHECK(captures.end(stream, &graph) == 0 && captures.destroy(graph) == 0);
        CHECK_SAME(device_stats(device).buffers, 0);
    }
    CHECK_SAME(device_stats(device).errors_logged, 0);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    captures_end(&captures);
    wb_device_release(device);
}

static void memory_is_leaked_if_the_wait_for_its_use_fails(wb_device *device)
{
    struct last_reference last;
    REQUIRE((device = opened_with("88=1")) != NULL);
    for (int source = ALLOCATED; source <= MAPPED; source++) {
        REQUIRE(make_last_reference(device, &last, (enum source)source, 0));
        double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:0:2,cuMemHostAlloc:0:2");
        release_last_reference(&last);
        double_set("WB_DOUBLE_FAIL", "");
        CHECK_SAME(device_stats(device).errors_logged, source + 1);
        CHECK(is_mapped(last.memory));
        CHECK_SAME(last.deleted, 0);
        CHECK_SAME(device_stats(device).buffers, 0);
    }
    /* After a shutdown no work is in flight. */
    REQUIRE(make_last_reference(device, &last, REGISTERED, 0));
    double_set("WB_DOUBLE_FAIL", "*:0:4");
    release_last_reference(&last);
    CHECK_SAME(device_stats(device).errors_logged, 3);
    CHECK_SAME(last.deleted, 1);
    wb_device_release(device);
}

static void copies_from_a_mapped_file_are_staged_if_it_is_not_registered(wb_device *device)
{
    enum { FILE_BYTES = (50 << 20) + 5, FIRST = 3, COPIED = FILE_BYTES - FIRST };
    char path[300];
    void *memory = NULL, *stream = NULL;
    unsigned char *seen = (unsigned char *)calloc(COPIED, 1);
    REQUIRE(seen != NULL);
    REQUIRE((device = opened_with("88=1")) != NULL);
    REQUIRE(pattern_file(path, sizeof path, "staged", FILE_BYTES));
    wb_buffer *buffer = map_file(device, path, 0, 0, NULL);
    REQUIRE(buffer != NULL);
    REQUIRE_OK(wb_device_alloc(device, COPIED, &memory, &error));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    CHECK_SAME(buffer_info(buffer).pinned_bytes, 0);
    const unsigned char *from = (const unsigned char *)buffer_info(buffer).data + FIRST;
    long long pinned = double_called("cuMemHostRegister_v2");
    /* Few bytes, or of memory without a file, are left to the driver. */
    CHECK_OK(wb_device_copy(device, memory, from, 1 << 16, stream, &error));
    CHECK_OK(wb_device_copy(device, memory, seen, COPIED, stream, &error));
    CHECK_SAME(double_called("cuMemHostRegister_v2"), pinned);
    long long alive = double_alive("registrations");
    /* More pieces than staging memory, each copied late. */
    double_set("WB_DOUBLE_DELAY_US", "2000");
    CHECK_OK(wb_device_copy(device, memory, from, COPIED, stream, &error));
    double_set("WB_DOUBLE_DELAY_US", "");
    CHECK_SAME(double_called("cuMemHostRegister_v2"), pinned + 1);
    CHECK_SAME(double_alive("registrations"), alive);
    CHECK(read_device(device, seen, memory, COPIED));
    CHECK(holds_pattern(seen, FIRST, COPIED));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_free(device, memory, &error));
    wb_buffer_release(buffer);
    wb_device_release(device);
    unlink(path);
    free(seen);
}

static void driver_memory_has_no_huge_pages_and_no_numa_node(wb_device *device)
{
    const wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    REQUIRE((device = opened_with("99=0")) != NULL);
    check_driver_memory(device, options, "cannot register memory");
    CHECK_SAME(double_alive("host_allocations"), 0);
    wb_device_release(device);
}

static void memory_is_leaked_if_it_cannot_be_unregistered(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    char *memory = (char *)buffer_info(buffer).data;
    double_set("WB_DOUBLE_FAIL", "cuMemHostUnregister:1:999");
    wb_buffer_release(buffer);
    CHECK_SAME(device_stats(device).errors_logged, 1);
    CHECK_SAME(double_alive("registrations"), 1);
    memory[0] = 1; /* still mapped, since the device may still read it */
    wb_device_release(device);
}

static int32_t cancel_at_second_chunk(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)user;
    return phase == WB_PHASE_PIN && done > total / 4;
}

/* A chunk of an allocation that failed later cannot be unregistered. */
static void a_failed_allocation_is_leaked_if_a_chunk_stays_registered(wb_device *device)
{
    enum { CHUNK = 4 << 20, ALL = 4 * CHUNK };
    static const struct {
        const char *failures;
        wb_status status;
        uint64_t chunk;
    } failing[] = {
        {"cuMemHostRegister_v2:2:2,cuMemHostUnregister:1:999", WB_ERR_OUT_OF_MEMORY, CHUNK},
        {"cuMemHostUnregister:1:999", WB_ERR_CANCELLED, CHUNK},
        {"cuMemHostGetDevicePointer_v2:1:999,cuMemHostUnregister:1:999", WB_ERR_DRIVER, 0},
    };
    REQUIRE((device = opened()) != NULL);
    for (size_t i = 0; i < sizeof failing / sizeof failing[0]; i++) {
        wb_buffer *buffer = NULL, *next = NULL;
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        options.chunk_bytes = failing[i].chunk;
        if (failing[i].status == WB_ERR_CANCELLED) options.progress = cancel_at_second_chunk;
        CHECK_INJECTED(failing[i].failures, failing[i].status,
                       wb_buffer_alloc(device, ALL, &options, &buffer, &error), "");
        CHECK(buffer == NULL);
        CHECK_SAME(double_alive("registrations"), i + 1);
        CHECK_SAME(device_stats(device).errors_logged, i + 1);
        CHECK_SAME(double_alive("unmapped_registrations"), 0);
        CHECK_OK(wb_buffer_alloc(device, ALL, NULL, &next, &error)); /* not at that address */
        wb_buffer_release(next);
    }
    CHECK_SAME(device_stats(device).buffers, 0);
    wb_device_release(device);
}

static void a_release_after_the_driver_has_shut_down_is_not_an_error(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    double_set("WB_DOUBLE_FAIL", "*:0:4");
    wb_buffer_release(buffer);
    CHECK_SAME(device_stats(device).errors_logged, 0);
    wb_device_release(device);
}

static void a_driver_without_devices_is_an_error(wb_device *device)
{
    device = NULL;
    setenv("WB_DOUBLE_DEVICES", "0", 1);
    CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open("cuda:0", NULL, &device, &error), "cuInit|100");
    CHECK(device == NULL);
}

CHECK_MAIN(CASE_ALONE(DOUBLE_ONLY, without_registration_the_driver_allocates),
           CASE_ALONE(DOUBLE_ONLY, without_a_working_registration_the_driver_allocates),
           CASE_ALONE(DOUBLE_ONLY, without_read_only_registration_a_file_is_read),
           CASE_ALONE(DOUBLE_ONLY, a_file_that_the_driver_refuses_to_register_is_read),
           CASE_ALONE(DOUBLE_ONLY, without_device_pointers_there_are_no_device_views),
           CASE_ALONE(DOUBLE_ONLY, a_separate_device_address_is_reported),
           CASE_ALONE(DOUBLE_ONLY, pageable_access_needs_no_pinning),
           CASE_ALONE(DOUBLE_ONLY, unpinned_memory_is_freed_after_the_work_in_flight),
           CASE_ALONE(DOUBLE_ONLY, waiting_for_the_device_does_not_invalidate_a_capture),
           CASE_ALONE(DOUBLE_ONLY, memory_is_leaked_if_the_wait_for_its_use_fails),
           CASE_ALONE(DOUBLE_ONLY, copies_from_a_mapped_file_are_staged_if_it_is_not_registered),
           CASE_ALONE(DOUBLE_ONLY, driver_memory_has_no_huge_pages_and_no_numa_node),
           CASE_ALONE(DOUBLE_ONLY, memory_is_leaked_if_it_cannot_be_unregistered),
           CASE_ALONE(DOUBLE_ONLY, a_failed_allocation_is_leaked_if_a_chunk_stays_registered),
           CASE_ALONE(DOUBLE_ONLY, a_release_after_the_driver_has_shut_down_is_not_an_error),
           CASE_ALONE(DOUBLE_ONLY, a_driver_without_devices_is_an_error))
