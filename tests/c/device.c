/* Devices: what they say of themselves, their memory, their life. */
#include "memory.h"

static void a_device_says_what_it_is_and_why_it_pins(wb_device *device)
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

static void the_number_of_cuda_devices_is_known(wb_device *device)
{
    int32_t count = -1;
    (void)device;
    CHECK_OK(wb_device_get_cuda_count(&count, &error));
    CHECK(count >= 1);
}

static void device_memory_is_allocated_counted_and_freed(wb_device *device)
{
    uint64_t first = 0, second = 0;
    REQUIRE_OK(wb_device_alloc(device, 1000, &first, &error));
    REQUIRE_OK(wb_device_alloc(device, 1 << 20, &second, &error));
    CHECK(first != 0 && second != 0 && first != second);
    CHECK_SAME(measure(device).device_bytes, 1000 + (1 << 20));
    CHECK_OK(wb_device_free(device, first, &error));
    CHECK_SAME(measure(device).device_bytes, 1 << 20);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_free(device, first, &error), "freed");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_free(device, second + 1, &error), "0x");
    CHECK_OK(wb_device_free(device, second, &error));
}

static void bytes_copied_to_a_device_and_back_are_the_same(wb_device *device)
{
    enum { BYTES = 100003 };
    wb_buffer *buffer = NULL;
    uint64_t memory = 0;
    unsigned char *back = (unsigned char *)calloc(1, BYTES);
    void *stream = NULL;
    REQUIRE(back != NULL);
    REQUIRE_OK(wb_buffer_alloc(device, BYTES, NULL, &buffer, &error));
    REQUIRE_OK(wb_device_alloc(device, BYTES, &memory, &error));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    fill(describe(buffer).data, BYTES);
    uint64_t from = (uint64_t)(uintptr_t)describe(buffer).data;
    CHECK_OK(wb_device_copy(device, memory, from, BYTES, stream, &error));
    CHECK_OK(wb_device_copy(device, (uint64_t)(uintptr_t)back, memory, BYTES, stream, &error));
    CHECK_OK(wb_device_copy(device, memory, from, 0, stream, &error));
    CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
    CHECK(holds_pattern(back, 0, BYTES));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_free(device, memory, &error));
    wb_buffer_release(buffer);
    free(back);
}

/* CUDA refuses a copy across two registrations; the library splits it. */
static void a_copy_across_registrations_is_whole(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    uint64_t bytes = 8 * page_bytes(), memory = 0;
    unsigned char *back = (unsigned char *)calloc(1, bytes);
    REQUIRE(back != NULL);
    options.pin = WB_TRISTATE_ON;
    options.chunk_bytes = page_bytes();
    REQUIRE_OK(wb_buffer_alloc(device, bytes, &options, &buffer, &error));
    CHECK_SAME(describe(buffer).chunks, 8);
    fill(describe(buffer).data, bytes);
    REQUIRE_OK(wb_device_alloc(device, bytes, &memory, &error));
    uint64_t from = (uint64_t)(uintptr_t)describe(buffer).data + 10;
    CHECK_OK(wb_device_copy(device, memory, from, bytes - 20, NULL, &error));
    CHECK(read_device(device, back, memory, bytes - 20));
    CHECK(holds_pattern(back, 10, bytes - 20));
    CHECK_OK(wb_device_free(device, memory, &error));
    wb_buffer_release(buffer);
    free(back);
}

static void a_capacity_is_a_ceiling(wb_device *device)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *small = NULL;
    uint64_t memory = 0, more = 7;
    (void)device;
    options.capacity_bytes = 1 << 20;
    REQUIRE_OK(wb_device_open("host", &options, &small, &error));
    CHECK_SAME(describe_device(small).total_bytes, 1 << 20);
    CHECK_SAME(describe_device(small).free_bytes, 1 << 20);
    REQUIRE_OK(wb_device_alloc(small, 1 << 20, &memory, &error));
    CHECK_SAME(describe_device(small).free_bytes, 0);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_device_alloc(small, 1, &more, &error),
                "asked 1 bytes|0 bytes of 1.0 MiB (1048576 bytes) are free");
    CHECK_SAME(more, 7);
    CHECK_OK(wb_device_free(small, memory, &error));
    CHECK_SAME(describe_device(small).free_bytes, 1 << 20);
    wb_device_release(small);
}

static void more_device_memory_than_there_is_fails_and_leaves_nothing(wb_device *device)
{
    uint64_t address = 7;
    wb_device_stats before = measure(device);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_device_alloc(device, (uint64_t)1 << 50, &address, &error), "emory");
    CHECK_SAME(address, 7);
    CHECK_USAGE(device, before);
}

static void children_hold_their_device(wb_device *device)
{
    wb_device *own = NULL;
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {100};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    (void)device;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &own, &error));
    REQUIRE_OK(wb_buffer_alloc(own, 100, NULL, &buffer, &error));
    wb_device_release(own);
    CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    wb_buffer_release(buffer);
    memset(describe_view(view).data, 1, 100);
    wb_view_release(view);
}

static void a_reference_more_keeps_the_device(wb_device *device)
{
    wb_device *own = NULL;
    (void)device;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &own, &error));
    wb_device_retain(own);
    wb_device_release(own);
    CHECK(describe_device(own).total_bytes > 0);
    wb_device_release(own);
}

static void device_memory_goes_with_its_device(wb_device *device)
{
    wb_device *own = NULL;
    uint64_t address = 0;
    long long before = double_alive("device_bytes");
    (void)device;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &own, &error));
    REQUIRE_OK(wb_device_alloc(own, 5000, &address, &error));
    wb_device_release(own);
    CHECK_SAME(double_alive("device_bytes"), before);
}

static void counters_are_of_the_handle_that_made_the_memory(wb_device *device)
{
    wb_device *other = NULL;
    wb_buffer *buffer = NULL;
    wb_device_stats before = measure(device);
    REQUIRE_OK(wb_device_open(test_device(), NULL, &other, &error));
    REQUIRE_OK(wb_buffer_alloc(other, 100, NULL, &buffer, &error));
    CHECK_SAME(measure(other).buffers, 1);
    CHECK_USAGE(device, before);
    wb_buffer_release(buffer);
    wb_device_release(other);
}

CHECK_MAIN(CASE(a_device_says_what_it_is_and_why_it_pins),
           CASE_ON(CUDA_ONLY, the_number_of_cuda_devices_is_known),
           CASE(device_memory_is_allocated_counted_and_freed),
           CASE(bytes_copied_to_a_device_and_back_are_the_same),
           CASE(a_copy_across_registrations_is_whole),
           CASE_ON(HOST_ONLY, a_capacity_is_a_ceiling),
           CASE(more_device_memory_than_there_is_fails_and_leaves_nothing),
           CASE(children_hold_their_device),
           CASE(a_reference_more_keeps_the_device),
           CASE(device_memory_goes_with_its_device),
           CASE(counters_are_of_the_handle_that_made_the_memory))
