/* A driver that lacks a function: calls that need it name it, and other calls work. Run on the
 * driver double without cuMemHostRegister_v2. */
#include "memory.h"

static void calls_that_need_the_function_name_it(wb_device *device)
{
    wb_buffer *buffer = NULL;
    char memory[100];
    REQUIRE((device = open_device("cuda:0", NULL)) != NULL);
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_DRIVER_TOO_OLD, wb_buffer_alloc(device, 5000, NULL, &buffer, &error),
                "cuMemHostRegister_v2|update");
    CHECK_ERROR(WB_ERR_DRIVER_TOO_OLD,
                wb_buffer_register(device, memory, 100, NULL, NULL, NULL, &buffer, &error),
                "cuMemHostRegister_v2");
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    wb_device_release(device);
}

static void other_calls_work(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    void *address = NULL, *stream = NULL;
    REQUIRE((device = open_device("cuda:0", NULL)) != NULL);
    CHECK_SAME(describe_device(device).read_only_register, 0);
    options.pin = WB_TRISTATE_OFF;
    REQUIRE_OK(wb_buffer_alloc(device, 5000, &options, &buffer, &error));
    REQUIRE_OK(wb_device_alloc(device, 5000, &address, &error));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    CHECK_OK(wb_device_copy(device, address, buffer_info(buffer).data, 5000, stream, &error));
    CHECK_OK(wb_buffer_release_after(buffer, stream, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK_OK(wb_device_free(device, address, &error));
    wb_device_release(device);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, calls_that_need_the_function_name_it),
           CASE_ALONE(EVERYWHERE, other_calls_work))
