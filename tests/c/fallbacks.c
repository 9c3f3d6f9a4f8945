/* Drivers that lack something or fail: the second best way is taken and said, and a failure leaves
 * nothing behind. For the driver double only, which can be told to be such a driver. */
#include <errno.h>

#include "captures.h"
#include "dlpack_structs.h"
#include "gate.h"

static wb_device *opened(void)
{
    wb_device *device = NULL;
    CHECK_OK(wb_device_open("cuda:0", NULL, &device, &error));
    return device;
}

static void without_registration_the_driver_allocates(wb_device *device)
{
    wb_buffer *buffer = NULL, *other = NULL;
    char memory[100];
    unsigned char seen[5000];
    setenv("WB_DOUBLE_ATTRIBUTES", "99=0", 1);
    REQUIRE((device = opened()) != NULL);
    CHECK_SAME(describe_device(device).host_register, 0);
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    wb_buffer_info info = describe(buffer);
    CHECK_SAME(info.pinning, WB_PINNING_DRIVER);
    CHECK_SAME(info.origin, WB_ORIGIN_ALLOCATED);
    CHECK(strstr(info.note, "allocated by the driver") != NULL);
    CHECK(strstr(info.note, "register") != NULL);
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

/* With confidential computing the attribute says yes and every registration answers 801. */
static void a_registration_that_is_not_supported_after_all_falls_back(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened()) != NULL);
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:0:801");
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_DRIVER);
    CHECK(strstr(describe(buffer).note, "801") != NULL);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void without_read_only_registration_a_file_is_read(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL, *other = NULL;
    char path[300];
    unsigned char seen[5000];
    setenv("WB_DOUBLE_ATTRIBUTES", "113=0", 1);
    file_name(path, sizeof path, "fallback");
    REQUIRE(write_pattern(path, 5100));
    REQUIRE((device = opened()) != NULL);
    CHECK_SAME(describe_device(device).read_only_register, 0);
    REQUIRE_OK(wb_buffer_map_file(device, path, 100, 0, NULL, &buffer, &error));
    wb_buffer_info info = describe(buffer);
    CHECK_SAME(info.origin, WB_ORIGIN_FILE_READ);
    CHECK_SAME(info.pinning, WB_PINNING_REGISTERED);
    CHECK_SAME(info.pinned_bytes, whole_pages(5000));
    CHECK(strstr(info.note, "cannot register read-only memory") != NULL);
    CHECK(read_device(device, seen, info.device_address, 5000));
    CHECK(holds_pattern(seen, 100, 5000));
    wb_buffer_release(buffer);
    options.file_mode = WB_FILE_MODE_MAP;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_buffer_map_file(device, path, 0, 0, &options, &other, &error),
                "asked to map and not to read|read-only");
    CHECK(other == NULL);
    CHECK_SAME(measure(device).buffers, 0);
    wb_device_release(device);
    unlink(path);
}

static void a_file_that_the_driver_refuses_to_register_is_read(wb_device *device)
{
    wb_buffer *buffer = NULL;
    char path[300];
    file_name(path, sizeof path, "refused");
    REQUIRE(write_pattern(path, 5000));
    REQUIRE((device = opened()) != NULL);
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:1:1");
    REQUIRE_OK(wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error));
    CHECK_SAME(describe(buffer).origin, WB_ORIGIN_FILE_READ);
    CHECK(strstr(describe(buffer).note, "cuMemHostRegister_v2") != NULL);
    CHECK(holds_pattern(describe(buffer).data, 0, 5000));
    wb_buffer_release(buffer);
    wb_device_release(device);
    unlink(path);
}

static void without_device_pointers_there_are_no_device_views(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {100};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    setenv("WB_DOUBLE_UNMAPPED", "1", 1);
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    CHECK_SAME(describe(buffer).pinned_bytes, whole_pages(100));
    CHECK_SAME(describe(buffer).device_address, 0);
    CHECK_ERROR(WB_ERR_NOT_MAPPED, wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error),
                "cannot see|cuMemHostGetDevicePointer|WB_ACCESSOR_HOST");
    CHECK(view == NULL);
    CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error));
    CHECK(describe_view(view).data == describe(buffer).data);
    wb_view_release(view);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void a_device_pointer_that_differs_is_the_drivers(wb_device *device)
{
    wb_buffer *buffer = NULL;
    setenv("WB_DOUBLE_ATTRIBUTES", "91=0", 1);
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    CHECK(describe(buffer).device_address != 0);
    CHECK(describe(buffer).device_address != (uint64_t)(uintptr_t)describe(buffer).data);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void a_device_that_reads_any_memory_needs_no_pinning(wb_device *device)
{
    wb_buffer *buffer = NULL;
    setenv("WB_DOUBLE_ATTRIBUTES", "88=1", 1);
    REQUIRE((device = opened()) != NULL);
    wb_device_info info = describe_device(device);
    CHECK(info.pageable_access == 1 && info.pin == 0 && info.views == 1);
    CHECK(strstr(info.pin_reason, "pageable") != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_NONE);
    CHECK(describe(buffer).device_address == (uint64_t)(uintptr_t)describe(buffer).data);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

enum source { ALLOCATED, REGISTERED, MAPPED };

/* Memory that such a device reads where it lies, and its last reference. */
struct lent {
    char *memory;
    wb_buffer *buffer;
    DLManagedTensor *tensor; /* instead */
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

static int lend(wb_device *device, struct lent *lent, enum source source, int by_dlpack)
{
    const uint64_t bytes = 2 * page_bytes();
    const int64_t shape[] = {(int64_t)bytes};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    char path[300];
    wb_view *view = NULL;
    wb_status status = WB_OK;
    memset(lent, 0, sizeof *lent);
    if (source == ALLOCATED) {
        status = wb_buffer_alloc(device, bytes, NULL, &lent->buffer, &error);
    } else if (source == REGISTERED) {
        status = wb_buffer_register(device, pages(bytes), bytes, NULL, count_deleted,
                                    &lent->deleted, &lent->buffer, &error);
    } else {
        file_name(path, sizeof path, "lent");
        if (!CHECK(write_pattern(path, bytes))) return 0;
        status = wb_buffer_map_file(device, path, 0, 0, NULL, &lent->buffer, &error);
        unlink(path);
    }
    if (!CHECK_OK(status)) return 0;
    lent->memory = (char *)describe(lent->buffer).data;
    CHECK_SAME(describe(lent->buffer).pinning, WB_PINNING_NONE);
    CHECK(describe(lent->buffer).device_address == (uint64_t)(uintptr_t)lent->memory);
    if (!by_dlpack) return 1;
    if (!CHECK_OK(wb_view_new(lent->buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error))) return 0;
    CHECK_OK(wb_view_to_dlpack(view, &lent->tensor, &error));
    wb_view_release(view);
    wb_buffer_release(lent->buffer);
    return 1;
}

static void *give_back(void *user)
{
    struct lent *lent = (struct lent *)user;
    if (lent->tensor != NULL) {
        lent->tensor->deleter(lent->tensor);
    } else {
        wb_buffer_release(lent->buffer);
    }
    return NULL;
}

/* Gives memory back with work queued on a stream, and sees that it stays until that has run. */
static void check_stays(wb_device *device, void *stream, enum source source, int by_dlpack)
{
    struct gate gate = GATE_INIT;
    struct lent lent;
    pthread_t thread;
    if (!lend(device, &lent, source, by_dlpack)) return;
    REQUIRE_OK(wb_device_stream_call(device, stream, gate_wait, &gate, &error));
    gate_await(&gate);
    REQUIRE(pthread_create(&thread, NULL, give_back, &lent) == 0);
    sleep_ms(50);
    CHECK_SAME(measure(device).buffers, 1);
    CHECK(is_mapped(lent.memory));
    CHECK_SAME(__atomic_load_n(&lent.deleted, __ATOMIC_ACQUIRE), 0);
    gate_open(&gate);
    pthread_join(thread, NULL);
    CHECK_OK(wb_device_stream_synchronize(device, stream, &error)); /* out of the gate */
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(measure(device).buffers, 0);
    CHECK_SAME(measure(device).device_bytes, 0);
    CHECK_SAME(lent.deleted, source == REGISTERED);
    if (source == REGISTERED) munmap(lent.memory, 2 * page_bytes());
}

static void memory_that_a_device_reads_without_pinning_stays_until_its_work_has_run(
    wb_device *device)
{
    /* The second: where device memory cannot be had. The third: where it does not go back. */
    const char *failures[] = {"", "cuMemAlloc_v2:0:2", "cuMemFree_v2:1:999"};
    void *stream = NULL;
    setenv("WB_DOUBLE_ATTRIBUTES", "88=1", 1);
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    for (int i = 0; i < 3; i++) {
        for (int source = ALLOCATED; source <= MAPPED; source++) {
            for (int by_dlpack = 0; by_dlpack < 2; by_dlpack++) {
                uint64_t logged = measure(device).errors_logged;
                double_set("WB_DOUBLE_FAIL", failures[i]);
                check_stays(device, stream, (enum source)source, by_dlpack);
                CHECK_SAME(measure(device).errors_logged - logged, i == 2);
            }
        }
    }
    double_set("WB_DOUBLE_FAIL", "");
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    wb_device_release(device);
}

static void a_wait_for_the_device_spoils_no_capture(wb_device *device)
{
    struct captures captures;
    struct lent lent;
    void *stream = NULL, *graph = NULL;
    setenv("WB_DOUBLE_ATTRIBUTES", "88=1", 1);
    REQUIRE((device = opened()) != NULL);
    REQUIRE(captures_begin(&captures));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    for (int by_dlpack = 0; by_dlpack < 2; by_dlpack++) {
        REQUIRE(lend(device, &lent, ALLOCATED, by_dlpack));
        CHECK(captures.begin(stream, 0) == 0);
        give_back(&lent);
        CHECK_OK(wb_device_drain(device, 10000, &error));
        CHECK(captures.end(stream, &graph) == 0 && captures.destroy(graph) == 0);
        CHECK_SAME(measure(device).buffers, 0);
    }
    CHECK_SAME(measure(device).errors_logged, 0);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    captures_end(&captures);
    wb_device_release(device);
}

static void memory_that_cannot_be_waited_for_is_nobodys(wb_device *device)
{
    struct lent lent;
    setenv("WB_DOUBLE_ATTRIBUTES", "88=1", 1);
    REQUIRE((device = opened()) != NULL);
    for (int source = ALLOCATED; source <= MAPPED; source++) {
        REQUIRE(lend(device, &lent, (enum source)source, 0));
        double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:0:2,cuMemHostAlloc:0:2");
        give_back(&lent);
        double_set("WB_DOUBLE_FAIL", "");
        CHECK_SAME(measure(device).errors_logged, source + 1);
        CHECK(is_mapped(lent.memory));
        CHECK_SAME(lent.deleted, 0);
        CHECK_SAME(measure(device).buffers, 0);
    }
    /* A driver that has ended runs nothing any more. */
    REQUIRE(lend(device, &lent, REGISTERED, 0));
    double_set("WB_DOUBLE_FAIL", "*:0:4");
    give_back(&lent);
    CHECK_SAME(measure(device).errors_logged, 3);
    CHECK_SAME(lent.deleted, 1);
    wb_device_release(device);
}

static void huge_pages_and_nodes_are_not_the_drivers_to_promise(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    setenv("WB_DOUBLE_ATTRIBUTES", "99=0", 1);
    REQUIRE((device = opened()) != NULL);
    options.huge_pages = WB_HUGE_PAGES_REQUIRE;
    CHECK_ERROR(WB_ERR_HUGE_PAGES, wb_buffer_alloc(device, 4 << 20, &options, &buffer, &error),
                "huge pages were required|cannot register memory|WB_HUGE_PAGES_TRY");
    options.huge_pages = WB_HUGE_PAGES_TRY;
    options.numa_node = 0;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_buffer_alloc(device, 4096, &options, &buffer, &error),
                "NUMA node 0|cannot register memory|WB_NUMA_DEVICE");
    CHECK(buffer == NULL);
    CHECK_SAME(double_alive("host_allocations"), 0);
    wb_device_release(device);
}

static void memory_that_the_driver_does_not_let_go_is_nobodys(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    char *memory = (char *)describe(buffer).data;
    double_set("WB_DOUBLE_FAIL", "cuMemHostUnregister:1:999");
    wb_buffer_release(buffer);
    CHECK_SAME(measure(device).errors_logged, 1);
    CHECK_SAME(double_alive("registrations"), 1);
    memory[0] = 1; /* still mapped: the device may still read it */
    wb_device_release(device);
}

static int32_t cancels_at_the_second_piece(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)user;
    return phase == WB_PHASE_PIN && done > total / 4;
}

/* Nor is what a driver keeps of memory that could not be pinned to the end. */
static void a_piece_that_the_driver_does_not_let_go_is_nobodys(wb_device *device)
{
    enum { PIECE = 4 << 20, ALL = 4 * PIECE };
    static const struct {
        const char *failures;
        wb_status status;
        uint64_t piece;
    } ways[] = {
        {"cuMemHostRegister_v2:2:2,cuMemHostUnregister:1:999", WB_ERR_OUT_OF_MEMORY, PIECE},
        {"cuMemHostUnregister:1:999", WB_ERR_CANCELLED, PIECE},
        {"cuMemHostGetDevicePointer_v2:1:999,cuMemHostUnregister:1:999", WB_ERR_DRIVER, 0},
    };
    REQUIRE((device = opened()) != NULL);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        wb_buffer *buffer = NULL, *next = NULL;
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        options.chunk_bytes = ways[i].piece;
        if (ways[i].status == WB_ERR_CANCELLED) options.progress = cancels_at_the_second_piece;
        const uint64_t mapped = process_bytes("VmSize:");
        double_set("WB_DOUBLE_FAIL", ways[i].failures);
        CHECK_ERROR(ways[i].status, wb_buffer_alloc(device, ALL, &options, &buffer, &error), "");
        double_set("WB_DOUBLE_FAIL", "");
        CHECK(buffer == NULL);
        CHECK_SAME(double_alive("registrations"), i + 1);
        CHECK_SAME(measure(device).errors_logged, i + 1);
        CHECK(process_bytes("VmSize:") >= mapped + ALL);
        CHECK_OK(wb_buffer_alloc(device, ALL, NULL, &next, &error)); /* not at that address */
        wb_buffer_release(next);
    }
    CHECK_SAME(measure(device).buffers, 0);
    wb_device_release(device);
}

static void at_the_end_of_the_process_a_driver_that_is_gone_is_no_error(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE((device = opened()) != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    double_set("WB_DOUBLE_FAIL", "*:0:4");
    wb_buffer_release(buffer);
    CHECK_SAME(measure(device).errors_logged, 0);
    wb_device_release(device);
}

static void no_devices_are_no_device(wb_device *device)
{
    device = NULL;
    setenv("WB_DOUBLE_DEVICES", "0", 1);
    CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open("cuda:0", NULL, &device, &error), "cuInit|100");
    CHECK(device == NULL);
}

CHECK_MAIN(CASE_ALONE(DOUBLE_ONLY, without_registration_the_driver_allocates),
           CASE_ALONE(DOUBLE_ONLY, a_registration_that_is_not_supported_after_all_falls_back),
           CASE_ALONE(DOUBLE_ONLY, without_read_only_registration_a_file_is_read),
           CASE_ALONE(DOUBLE_ONLY, a_file_that_the_driver_refuses_to_register_is_read),
           CASE_ALONE(DOUBLE_ONLY, without_device_pointers_there_are_no_device_views),
           CASE_ALONE(DOUBLE_ONLY, a_device_pointer_that_differs_is_the_drivers),
           CASE_ALONE(DOUBLE_ONLY, a_device_that_reads_any_memory_needs_no_pinning),
           CASE_ALONE(DOUBLE_ONLY,
                      memory_that_a_device_reads_without_pinning_stays_until_its_work_has_run),
           CASE_ALONE(DOUBLE_ONLY, a_wait_for_the_device_spoils_no_capture),
           CASE_ALONE(DOUBLE_ONLY, memory_that_cannot_be_waited_for_is_nobodys),
           CASE_ALONE(DOUBLE_ONLY, huge_pages_and_nodes_are_not_the_drivers_to_promise),
           CASE_ALONE(DOUBLE_ONLY, memory_that_the_driver_does_not_let_go_is_nobodys),
           CASE_ALONE(DOUBLE_ONLY, a_piece_that_the_driver_does_not_let_go_is_nobodys),
           CASE_ALONE(DOUBLE_ONLY, at_the_end_of_the_process_a_driver_that_is_gone_is_no_error),
           CASE_ALONE(DOUBLE_ONLY, no_devices_are_no_device))
