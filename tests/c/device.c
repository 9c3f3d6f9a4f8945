/* Devices: properties, memory, copies, lifetime. */
#include "memory.h"

static void a_device_reports_its_capabilities_and_policy(wb_device *device)
{
    wb_device_info info = describe_device(device);
    CHECK_SAME(info.kind, on_cuda() ? WB_DEVICE_CUDA : WB_DEVICE_HOST);
    CHECK_SAME(info.ordinal, 0);
    CHECK(info.name[0] != '\0' && info.pin_reason[0] != '\0' && info.views_reason[0] != '\0');
    CHECK(info.total_bytes > 0 && info.free_bytes > 0 && info.free_bytes <= info.total_bytes);
    CHECK(info.memlock_limit > 0);
    CHECK(info.numa_node >= -1);
    if (on_cuda()) {
        CHECK(info.driver_version >= 11000 && info.compute_capability >= 50);
    } else {
        CHECK(info.driver_version == 0 && info.compute_capability == 0);
        CHECK(info.pageable_access && info.integrated && info.unified_addressing && info.views);
    }
}

static void cuda_devices_are_counted(wb_device *device)
{
    int32_t count = -1;
    (void)device;
    CHECK_OK(wb_device_get_cuda_count(&count, &error));
    CHECK(count >= 1);
}

static void device_memory_is_allocated_counted_and_freed(wb_device *device)
{
    void *first = NULL, *second = NULL;
    REQUIRE_OK(wb_device_alloc(device, 1000, &first, &error));
    REQUIRE_OK(wb_device_alloc(device, 1 << 20, &second, &error));
    CHECK(first != NULL && second != NULL && first != second);
    CHECK_SAME(device_stats(device).device_bytes, 1000 + (1 << 20));
    CHECK_OK(wb_device_free(device, first, &error));
    CHECK_SAME(device_stats(device).device_bytes, 1 << 20);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_free(device, first, &error), "freed");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_free(device, (char *)second + 1, &error), "0x");
    CHECK_OK(wb_device_free(device, second, &error));
}

/* Copies the buffer, except for its first and last `margin` bytes, to the device and back. */
static void check_copies(wb_device *device, wb_buffer *buffer, uint64_t margin)
{
    const uint64_t bytes = buffer_info(buffer).asked_bytes - 2 * margin;
    const char *from = (const char *)buffer_info(buffer).data + margin;
    void *memory = NULL, *stream = NULL;
    unsigned char *back = (unsigned char *)calloc(1, bytes);
    REQUIRE(back != NULL);
    REQUIRE_OK(wb_device_alloc(device, bytes, &memory, &error));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    fill(buffer_info(buffer).data, bytes + 2 * margin);
    CHECK_OK(wb_device_copy(device, memory, from, bytes, stream, &error));
    CHECK_OK(wb_device_copy(device, back, memory, bytes, stream, &error));
    CHECK_OK(wb_device_copy(device, memory, from, 0, stream, &error));
    CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
    CHECK(holds_pattern(back, margin, bytes));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_free(device, memory, &error));
    free(back);
}

static void bytes_copied_to_a_device_and_back_are_the_same(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 100003);
    REQUIRE(buffer != NULL);
    check_copies(device, buffer, 0);
    wb_buffer_release(buffer);
}

/* CUDA refuses a copy across two registrations; the library splits it. */
static void a_copy_across_registrations_is_complete(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = page_bytes();
    REQUIRE_OK(wb_buffer_alloc(device, 8 * page_bytes(), &options, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).chunks, 8);
    check_copies(device, buffer, 10);
    wb_buffer_release(buffer);
}

static void the_capacity_limits_device_memory(wb_device *device)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    void *memory = NULL, *more = UNTOUCHED(void);
    (void)device;
    options.capacity_bytes = 1 << 20;
    wb_device *small = open_device("host", &options);
    REQUIRE(small != NULL);
    CHECK_SAME(describe_device(small).total_bytes, 1 << 20);
    CHECK_SAME(describe_device(small).free_bytes, 1 << 20);
    REQUIRE_OK(wb_device_alloc(small, 1 << 20, &memory, &error));
    CHECK_SAME(describe_device(small).free_bytes, 0);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_device_alloc(small, 1, &more, &error),
                "asked 1 bytes|in whole pages|0 bytes of 1.0 MiB (1048576 bytes) are free");
    CHECK(more == UNTOUCHED(void));
    CHECK_OK(wb_device_free(small, memory, &error));
    CHECK_SAME(describe_device(small).free_bytes, 1 << 20);
    wb_device_release(small);
}

static void too_much_device_memory_fails_without_a_leak(wb_device *device)
{
    void *address = UNTOUCHED(void);
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_device_alloc(device, (uint64_t)1 << 50, &address, &error), "emory");
    CHECK(address == UNTOUCHED(void));
    CHECK_STATS(device, before);
}

static void children_keep_their_device(wb_device *device)
{
    const int64_t count = 100;
    (void)device;
    wb_device *own = open_device(test_device(), NULL);
    REQUIRE(own != NULL);
    wb_buffer *buffer = new_buffer(own, 100);
    REQUIRE(buffer != NULL);
    wb_device_release(own);
    wb_view *view = new_view(buffer, bytes_layout(&count), WB_ACCESSOR_DEVICE);
    wb_buffer_release(buffer);
    REQUIRE(view != NULL);
    memset(view_info(view).data, 1, 100);
    wb_view_release(view);
}

static void a_retained_device_stays_open(wb_device *device)
{
    wb_device *own = open_device(test_device(), NULL);
    (void)device;
    REQUIRE(own != NULL);
    wb_device_retain(own);
    wb_device_release(own);
    CHECK(describe_device(own).total_bytes > 0);
    wb_device_release(own);
}

static void device_memory_is_freed_with_its_device(wb_device *device)
{
    void *address = NULL;
    long long before = double_alive("device_bytes");
    (void)device;
    wb_device *own = open_device(test_device(), NULL);
    REQUIRE(own != NULL);
    REQUIRE_OK(wb_device_alloc(own, 5000, &address, &error));
    wb_device_release(own);
    CHECK_SAME(double_alive("device_bytes"), before);
}

static void counters_belong_to_the_handle_that_allocated(wb_device *device)
{
    wb_device_stats before = device_stats(device);
    wb_device *other = open_device(test_device(), NULL);
    REQUIRE(other != NULL);
    wb_buffer *buffer = new_buffer(other, 100);
    REQUIRE(buffer != NULL);
    CHECK_SAME(device_stats(other).buffers, 1);
    CHECK_STATS(device, before);
    wb_buffer_release(buffer);
    wb_device_release(other);
}

CHECK_MAIN(CASE(a_device_reports_its_capabilities_and_policy),
           CASE_ON(CUDA_ONLY, cuda_devices_are_counted),
           CASE(device_memory_is_allocated_counted_and_freed),
           CASE(bytes_copied_to_a_device_and_back_are_the_same),
           CASE(a_copy_across_registrations_is_complete),
           CASE_ON(HOST_ONLY, the_capacity_limits_device_memory),
           CASE(too_much_device_memory_fails_without_a_leak), CASE(children_keep_their_device),
           CASE(a_retained_device_stays_open), CASE(device_memory_is_freed_with_its_device),
           CASE(counters_belong_to_the_handle_that_allocated))
