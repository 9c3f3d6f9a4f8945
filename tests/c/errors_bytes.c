/* Invalid shapes, ranges and sizes: the error says what was asked and found, and nothing leaks. */
#include "memory.h"

static void a_shape_that_overflows_is_refused(wb_device *device)
{
    const int64_t large = INT64_MAX, half = (int64_t)1 << 32;
    const struct { int64_t shape[2], strides[2]; int with_strides; } layouts[] = {
        {{large, large}, {0, 0}, 0}, {{half, half}, {0, 0}, 0}, {{large, 1}, {0, 0}, 0},
        {{large, 0}, {0, 0}, 0},     {{3, 3}, {large, 1}, 1},   {{3, 3}, {INT64_MIN, 1}, 1},
        {{large, 1}, {large, 1}, 1}, {{half, half}, {1, 1}, 1}, {{2, 2}, {large, large}, 1},
    };
    wb_buffer *buffer = new_buffer(device, 100);
    wb_view *view = NULL;
    wb_device_stats before = measure(device);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        wb_layout layout = layout_of(WB_DTYPE_F64, 2, layouts[i].shape,
                                     layouts[i].with_strides ? layouts[i].strides : NULL, 0);
        CHECK_ERROR(WB_ERR_OVERFLOW, wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error),
                    "shape [|float64");
        CHECK_ERROR(WB_ERR_OVERFLOW,
                    wb_view_copy_from(device, &before, &layout, WB_ACCESSOR_HOST, NULL, &view,
                                      &error),
                    "2^63");
    }
    CHECK(view == NULL);
    CHECK_USAGE(device, before);
    wb_buffer_release(buffer);
}

static void invalid_dimensions_are_refused(wb_device *device)
{
    int64_t shape[65], negative[] = {3, -1};
    wb_buffer *buffer = new_buffer(device, 100);
    wb_view *view = NULL;
    for (int i = 0; i < 65; i++) shape[i] = 1;
    wb_layout most = layout_of(WB_DTYPE_U8, 64, shape, NULL, 0);
    wb_layout more = layout_of(WB_DTYPE_U8, 65, shape, NULL, 0);
    wb_layout fewer = layout_of(WB_DTYPE_U8, -1, shape, NULL, 0);
    wb_layout below = layout_of(WB_DTYPE_U8, 2, negative, NULL, 0);
    wb_view_release(new_view(buffer, most, WB_ACCESSOR_HOST));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_view_new(buffer, &more, WB_ACCESSOR_HOST, &view, &error),
                "65 dimensions|64");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_view_new(buffer, &fewer, WB_ACCESSOR_HOST, &view, &error),
                "-1 dimensions");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_view_new(buffer, &below, WB_ACCESSOR_HOST, &view, &error),
                "[3, -1]|negative");
    CHECK(view == NULL);
    wb_buffer_release(buffer);
}

static void a_view_past_its_buffer_is_refused(wb_device *device)
{
    const struct { int64_t size, stride; uint64_t offset; } layouts[] = {
        {101, 1, 0}, {100, 1, 1}, {2, 100, 0}, {1, 1, 100}, {0, 1, 101}, {1, 1, UINT64_MAX},
        {2, -1, 0},  {101, -1, 99}, {1, 1, (uint64_t)1 << 63}, {2, INT64_MAX / 2, 0}};
    wb_buffer *buffer = new_buffer(device, 100);
    wb_view *view = NULL;
    wb_device_stats before = measure(device);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        char offset[100];
        wb_layout layout = layout_of(WB_DTYPE_U8, 1, &layouts[i].size, &layouts[i].stride,
                                     layouts[i].offset);
        snprintf(offset, sizeof offset, "at byte %" PRIu64 " |the memory has 100",
                 layouts[i].offset);
        CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                    wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error), offset);
    }
    CHECK(view == NULL);
    CHECK_USAGE(device, before);
    wb_buffer_release(buffer);
}

static void impossible_sizes_are_refused(wb_device *device)
{
    const uint64_t sizes[] = {(uint64_t)1 << 50, (uint64_t)1 << 62, INT64_MAX, UINT64_MAX};
    wb_buffer *buffer = NULL;
    wb_device_stats before = measure(device);
    for (int pin = WB_TRISTATE_AUTO; pin <= WB_TRISTATE_OFF; pin++) {
        for (int i = 0; i < 4; i++) {
            char asked[40];
            wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
            options.pin = pin;
            snprintf(asked, sizeof asked, "asked|%" PRIu64, sizes[i]);
            wb_status status = wb_buffer_alloc(device, sizes[i], &options, &buffer, &error);
            /* The limit of a control group is checked first. */
            CHECK_ERROR(status == WB_ERR_CGROUP ? WB_ERR_CGROUP : WB_ERR_OUT_OF_MEMORY,
                        wb_buffer_alloc(device, sizes[i], &options, &buffer, &error), asked);
        }
    }
    CHECK(buffer == NULL);
    CHECK_USAGE(device, before);
}

static void device_memory_and_registrations_of_zero_bytes_are_refused(wb_device *device)
{
    wb_buffer *buffer = NULL;
    void *address = UNTOUCHED(void);
    char byte = 0;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_alloc(device, 0, &address, &error), "0 bytes");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_buffer_register(device, &byte, 0, NULL, NULL, NULL, &buffer, &error),
                "0 bytes|allocate");
    CHECK(buffer == NULL && address == UNTOUCHED(void));
}

static void a_range_past_the_last_address_is_refused(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    void *address = UNTOUCHED(void);
    char byte = 0;
    int64_t shape[] = {1};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, UINT64_MAX);
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_buffer_register(device, &byte, UINT64_MAX, NULL, NULL, NULL, &buffer, &error),
                "last address");
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_view_copy_from(device, &byte, &layout, WB_ACCESSOR_HOST, NULL, &view, &error),
                "last address");
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_device_copy(device, to_pointer(UINT64_MAX), &byte, 2, NULL, &error), "2 bytes");
    CHECK_ERROR(WB_ERR_OVERFLOW, wb_device_alloc(device, UINT64_MAX, &address, &error), "2^63");
    CHECK(buffer == NULL && view == NULL && address == UNTOUCHED(void));
}

/* The last page of the address space: rounding up to whole pages would overflow. */
static void a_range_in_the_last_page_is_refused_without_a_panic(wb_device *device)
{
    wb_buffer *buffer = NULL;
    uintptr_t last = UINTPTR_MAX - 100;
    CHECK_ERROR(WB_ERR_UNMAPPED_RANGE,
                wb_buffer_register(device, (void *)last, 50, NULL, NULL, NULL, &buffer, &error),
                "no readable memory");
    CHECK(buffer == NULL);
}

static void a_missing_numa_node_is_refused(wb_device *device)
{
    const uint32_t nodes[] = {1000, INT32_MAX, UINT32_MAX};
    wb_buffer *buffer = NULL;
    wb_device_stats before = measure(device);
    for (int i = 0; i < 3; i++) {
        char number[40];
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        options.numa_policy = WB_NUMA_NODE;
        options.numa_node = nodes[i];
        snprintf(number, sizeof number, "%u", nodes[i]);
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                    wb_buffer_alloc(device, 10000, &options, &buffer, &error), number);
    }
    CHECK(buffer == NULL);
    CHECK_USAGE(device, before);
}

CHECK_MAIN(CASE(a_shape_that_overflows_is_refused), CASE(invalid_dimensions_are_refused),
           CASE(a_view_past_its_buffer_is_refused), CASE(impossible_sizes_are_refused),
           CASE(device_memory_and_registrations_of_zero_bytes_are_refused),
           CASE(a_range_past_the_last_address_is_refused),
           CASE(a_range_in_the_last_page_is_refused_without_a_panic),
           CASE(a_missing_numa_node_is_refused))
