/* Structs of other sizes, unknown constants, reserved fields, device names. */
#include "memory.h"

static void struct_sizes_of_zero_or_of_a_newer_header_are_refused(wb_device *device)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_buffer_options buffer_options = WB_BUFFER_OPTIONS_INIT;
    wb_device_info info = WB_DEVICE_INFO_INIT;
    wb_device_stats usage = WB_DEVICE_STATS_INIT;
    wb_buffer_info buffer_info = WB_BUFFER_INFO_INIT;
    wb_buffer_stats counters = WB_BUFFER_STATS_INIT;
    wb_view_info view_info = WB_VIEW_INFO_INIT;
    int64_t shape[] = {1};
    wb_layout layout = bytes_layout(shape);
    wb_device *opened = NULL;
    wb_buffer *buffer = NULL, *other = NULL;
    wb_view *view = NULL, *no_view = NULL;
    REQUIRE_OK(wb_buffer_alloc(device, 1, NULL, &buffer, &error));
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error));
    for (int newer = 0; newer < 2; newer++) {
        const char *words =
            newer ? "struct_size|this library knows up to" : "struct_size is 0|WB_*_INIT";
        options.struct_size = newer ? (uint32_t)sizeof options + 8 : 0;
        buffer_options.struct_size = newer ? (uint32_t)sizeof buffer_options + 8 : 0;
        info.struct_size = newer ? (uint32_t)sizeof info + 8 : 0;
        usage.struct_size = newer ? (uint32_t)sizeof usage + 8 : 0;
        buffer_info.struct_size = newer ? (uint32_t)sizeof buffer_info + 8 : 0;
        counters.struct_size = newer ? (uint32_t)sizeof counters + 8 : 0;
        view_info.struct_size = newer ? (uint32_t)sizeof view_info + 8 : 0;
        layout.struct_size = newer ? (uint32_t)sizeof layout + 8 : 0;
        CHECK_ERROR(WB_ERR_STRUCT_SIZE, wb_device_open("host", &options, &opened, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                    wb_buffer_alloc(device, 1, &buffer_options, &other, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE, wb_device_get_info(device, &info, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE, wb_device_get_stats(device, &usage, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE, wb_buffer_get_info(buffer, &buffer_info, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE, wb_buffer_get_stats(buffer, &counters, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE, wb_view_get_info(view, &view_info, &error), words);
        CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                    wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &no_view, &error), words);
    }
    CHECK(opened == NULL && other == NULL && no_view == NULL);
    CHECK(buffer_info.data == NULL && info.name[0] == '\0' && view_info.data == NULL);
    wb_view_release(view);
    wb_buffer_release(buffer);
}

static void structs_of_an_older_header_are_accepted(wb_device *device)
{
    struct { uint32_t struct_size; wb_huge_pages huge_pages; uint32_t threads; } older = {12, 1, 1};
    struct { uint32_t struct_size; wb_origin origin; wb_pinning pinning; int32_t next; } info = {
        12, 0, 0, 77};
    wb_buffer *buffer = NULL;
    REQUIRE_OK(
        wb_buffer_alloc(device, 10, (const wb_buffer_options *)(void *)&older, &buffer, &error));
    CHECK_OK(wb_buffer_get_info(buffer, (wb_buffer_info *)(void *)&info, &error));
    CHECK_SAME(info.struct_size, 12);
    CHECK_SAME(info.origin, WB_ORIGIN_ALLOCATED);
    CHECK_SAME(info.next, 77); /* nothing is written past the caller's struct */
    wb_buffer_release(buffer);
}

static void unknown_constants_are_refused_and_named(wb_device *device)
{
    const int32_t unknown[] = {-1, 4, 1000, INT32_MIN, INT32_MAX};
    wb_buffer *buffer = NULL, *real = NULL;
    wb_device *opened = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {1};
    REQUIRE_OK(wb_buffer_alloc(device, 8, NULL, &real, &error));
    wb_device_stats before = device_stats(device);
    for (int i = 0; i < 5; i++) {
        char number[60];
        snprintf(number, sizeof number, "%d|[0, 1, 2", unknown[i]);
#define CHECK_OPTION(field)                                                                      \
    do {                                                                                         \
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;                                      \
        options.field = unknown[i];                                                              \
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,                                                     \
                    wb_buffer_alloc(device, 8, &options, &buffer, &error), number);              \
        CHECK(strstr(error.message, "wb_buffer_options." #field) != NULL);                       \
    } while (0)
        CHECK_OPTION(huge_pages);
        CHECK_OPTION(pin);
        CHECK_OPTION(write_combined);
        CHECK_OPTION(portable);
        CHECK_OPTION(numa_policy);
        CHECK_OPTION(file_mode);
        wb_device_options options = WB_DEVICE_OPTIONS_INIT;
        options.pin = unknown[i];
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                    wb_device_open("host", &options, &opened, &error), number);
        options.pin = WB_TRISTATE_AUTO;
        options.views = unknown[i];
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("host", &options, &opened, &error),
                    "wb_device_options.views");
        wb_layout layout = bytes_layout(shape);
        snprintf(number, sizeof number, "accessor is %d|[0, 1]", unknown[i]);
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                    wb_view_new(real, &layout, unknown[i], &view, &error), number);
    }
    for (int dtype = -1; dtype <= 1000; dtype += dtype == 0 ? 19 : dtype > 0 ? 981 : 1) {
        wb_layout layout = layout_of(dtype, 1, shape, NULL, 0);
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                    wb_view_new(real, &layout, WB_ACCESSOR_HOST, &view, &error),
                    "WB_DTYPE_*");
    }
    CHECK(buffer == NULL && opened == NULL && view == NULL);
    CHECK_STATS(device, before);
    wb_buffer_release(real);
}

static void nonzero_reserved_fields_are_refused(wb_device *device)
{
    wb_device *opened = NULL;
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {1};
    char byte = 0;
    for (int i = 0; i < 4; i++) {
        wb_device_options options = WB_DEVICE_OPTIONS_INIT;
        wb_buffer_options buffer_options = WB_BUFFER_OPTIONS_INIT;
        options.reserved[i] = 1;
        buffer_options.reserved[i] = UINT64_MAX;
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("host", &options, &opened, &error),
                    "wb_device_options|reserved");
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                    wb_buffer_alloc(device, 1, &buffer_options, &buffer, &error),
                    "wb_buffer_options|reserved");
    }
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    options.reserved0 = 1;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_device_open("host", &options, &opened, &error), "reserved");
    wb_layout layout = bytes_layout(shape);
    layout.reserved0 = 1;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_view_copy_from(device, &byte, &layout, WB_ACCESSOR_HOST, NULL, &view, &error),
                "wb_layout.reserved0");
    CHECK(opened == NULL && buffer == NULL && view == NULL);
}

static void unknown_device_names_are_refused(wb_device *device)
{
    const char *names[] = {"", "tpu:0", "hosts", "HOST", "cuda", "cuda0", "host:0"};
    wb_device *opened = NULL;
    (void)device;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char quoted[60];
        snprintf(quoted, sizeof quoted, "\"%s\"|cuda:0", names[i]);
        CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open(names[i], NULL, &opened, &error), quoted);
    }
    CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open("cuda:", NULL, &opened, &error), "cuda:");
    CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open("cuda:-1", NULL, &opened, &error), "cuda:-1");
    CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open("cuda:0x1", NULL, &opened, &error), "cuda:0x1");
    if (on_cuda()) {
        CHECK_ERROR(WB_ERR_NO_DEVICE, wb_device_open("cuda:1000", NULL, &opened, &error),
                    "asked for cuda:1000|CUDA_VISIBLE_DEVICES");
    }
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("\xff\xfe", NULL, &opened, &error),
                "UTF-8");
    CHECK(opened == NULL);
}

static void an_option_of_another_kind_of_device_is_refused(wb_device *device)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *opened = NULL;
    (void)device;
    options.context = &options;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("host", &options, &opened, &error),
                "host device|context");
    options.context = NULL;
    options.capacity_bytes = 1;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("cuda:0", &options, &opened, &error),
                "capacity");
    CHECK(opened == NULL);
}

CHECK_MAIN(CASE(struct_sizes_of_zero_or_of_a_newer_header_are_refused),
           CASE(structs_of_an_older_header_are_accepted),
           CASE(unknown_constants_are_refused_and_named), CASE(nonzero_reserved_fields_are_refused),
           CASE(unknown_device_names_are_refused),
           CASE(an_option_of_another_kind_of_device_is_refused))
