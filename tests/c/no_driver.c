/* A machine with no NVIDIA driver: the library loads and works there. Run with no libcuda.so.1 on
 * the loader's path. */
#include "memory.h"

static void a_cuda_device_is_a_named_error(wb_device *device)
{
    int32_t count = 7;
    device = NULL;
    for (int again = 0; again < 2; again++) {
        CHECK_ERROR(WB_ERR_NO_DRIVER, wb_device_open("cuda:0", NULL, &device, &error),
                    "CUDA device|libcuda.so.1|install the NVIDIA driver|\"host\"");
        CHECK_ERROR(WB_ERR_NO_DRIVER, wb_device_get_cuda_count(&count, &error), "libcuda.so.1");
    }
    CHECK(device == NULL && count == 7);
}

static void the_host_device_works(wb_device *device)
{
    wb_buffer *buffer = NULL;
    REQUIRE_OK(wb_device_open("host", NULL, &device, &error));
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    memset(describe(buffer).data, 1, 5000);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void nothing_of_cuda_is_loaded(wb_device *device)
{
    char line[400];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    (void)device;
    REQUIRE(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) found += strstr(line, "libcuda") != NULL;
    fclose(maps);
    CHECK_SAME(found, 0);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, a_cuda_device_is_a_named_error),
           CASE_ALONE(EVERYWHERE, the_host_device_works),
           CASE_ALONE(EVERYWHERE, nothing_of_cuda_is_loaded))
