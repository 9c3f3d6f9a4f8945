/* A machine without an NVIDIA driver: the library loads and works. Run without a libcuda.so.1 in
 * the search path of the loader. */
#include "memory.h"

static void opening_a_cuda_device_names_the_missing_driver(wb_device *device)
{
    int32_t count = 7;
    device = NULL;
    for (int attempt = 0; attempt < 2; attempt++) {
        CHECK_ERROR(WB_ERR_NO_DRIVER, wb_device_open("cuda:0", NULL, &device, &error),
                    "CUDA device|libcuda.so.1|install the NVIDIA driver|\"host\"");
        CHECK_ERROR(WB_ERR_NO_DRIVER, wb_device_get_cuda_count(&count, &error), "libcuda.so.1");
    }
    CHECK(device == NULL && count == 7);
}

static void the_host_device_works(wb_device *device)
{
    REQUIRE((device = open_device("host", NULL)) != NULL);
    wb_buffer *buffer = new_buffer(device, 5000);
    REQUIRE(buffer != NULL);
    memset(buffer_info(buffer).data, 1, 5000);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void no_cuda_library_is_loaded(wb_device *device)
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

CHECK_MAIN(CASE_ALONE(EVERYWHERE, opening_a_cuda_device_names_the_missing_driver),
           CASE_ALONE(EVERYWHERE, the_host_device_works),
           CASE_ALONE(EVERYWHERE, no_cuda_library_is_loaded))
