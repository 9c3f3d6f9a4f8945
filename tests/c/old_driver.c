/* A driver that lacks a function: what does not need it works, what needs it names it. Run over the
 * double without cuMemHostRegister_v2. */
#include "memory.h"

static wb_device *opened(void)
{
    wb_device *device = NULL;
    CHECK_OK(wb_device_open("cuda:0", NULL, &device, &error));
    return device;
}

static void what_needs_the_function_names_it_and_leaves_nothing(wb_device *device)
{
    wb_buffer *buffer = NULL;
    char memory[100];
    REQUIRE((device = opened()) != NULL);
    wb_device_stats before = measure(device);
    CHECK_ERROR(WB_ERR_DRIVER_TOO_OLD, wb_buffer_alloc(device, 5000, NULL, &buffer, &error),
                "cuMemHostRegister_v2|update");
    CHECK_ERROR(WB_ERR_DRIVER_TOO_OLD,
                wb_buffer_register(device, memory, 100, NULL, NULL, NULL, &buffer, &error),
                "cuMemHostRegister_v2");
    CHECK(buffer == NULL);
    CHECK_USAGE(device, before);
    wb_device_release(device);
}

static void what_does_not_need_it_works(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    uint64_t address = 0;
    void *stream = NULL;
    REQUIRE((device = opened()) != NULL);
    CHECK_SAME(describe_device(device).read_only_register, 0);
    options.pin = WB_TRISTATE_OFF;
    REQUIRE_OK(wb_buffer_alloc(device, 5000, &options, &buffer, &error));
    REQUIRE_OK(wb_device_alloc(device, 5000, &address, &error));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    CHECK_OK(wb_device_copy(device, address, (uint64_t)(uintptr_t)describe(buffer).data, 5000,
                            stream, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_free(device, address, &error));
    wb_device_release(device);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, what_needs_the_function_names_it_and_leaves_nothing),
           CASE_ALONE(EVERYWHERE, what_does_not_need_it_works))
