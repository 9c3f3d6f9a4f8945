/* NULL for each pointer that must not be NULL: the error names it, and nothing is written. */
#include "dlpack_structs.h"
#include "memory.h"

static void nothing(void *user)
{
    (void)user;
}

static void device_functions_refuse_null(wb_device *device)
{
    wb_device *opened = UNTOUCHED(wb_device);
    wb_device_info info = WB_DEVICE_INFO_INIT;
    wb_device_stats usage = WB_DEVICE_STATS_INIT;
    void *address = UNTOUCHED(void);
    void *stream = UNTOUCHED(void);
    info.ordinal = 77;
    usage.buffers = 77;
    CHECK_NULL(wb_device_get_cuda_count(NULL, &error), "count");
    CHECK_NULL(wb_device_open(NULL, NULL, &opened, &error), "name");
    CHECK_NULL(wb_device_open("host", NULL, NULL, &error), "device");
    CHECK_NULL(wb_device_get_info(NULL, &info, &error), "wb_device");
    CHECK_NULL(wb_device_get_info(device, NULL, &error), "info");
    CHECK_NULL(wb_device_get_stats(NULL, &usage, &error), "wb_device");
    CHECK_NULL(wb_device_get_stats(device, NULL, &error), "stats");
    CHECK_NULL(wb_device_drain(NULL, 0, &error), "wb_device");
    CHECK_NULL(wb_device_alloc(NULL, 1, &address, &error), "wb_device");
    CHECK_NULL(wb_device_alloc(device, 1, NULL, &error), "address");
    CHECK_NULL(wb_device_free(NULL, &info, &error), "wb_device");
    CHECK_NULL(wb_device_copy(NULL, &info, &usage, 1, NULL, &error), "wb_device");
    CHECK_NULL(wb_device_copy(device, NULL, &info, 9, NULL, &error), "9 bytes|to 0x0");
    CHECK_NULL(wb_device_copy(device, &info, NULL, 9, NULL, &error), "9 bytes|from 0x0");
    CHECK_NULL(wb_device_stream_new(NULL, &stream, &error), "wb_device");
    CHECK_NULL(wb_device_stream_new(device, NULL, &error), "stream");
    CHECK_NULL(wb_device_stream_release(NULL, NULL, &error), "wb_device");
    CHECK_NULL(wb_device_stream_synchronize(NULL, NULL, &error), "wb_device");
    CHECK_NULL(wb_device_stream_call(NULL, NULL, nothing, NULL, &error), "wb_device");
    CHECK_NULL(wb_device_stream_call(device, NULL, NULL, NULL, &error), "function");
    CHECK(opened == UNTOUCHED(wb_device) && stream == UNTOUCHED(void));
    CHECK(address == UNTOUCHED(void) && info.ordinal == 77 && usage.buffers == 77);
}

static void buffer_functions_refuse_null(wb_device *device)
{
    wb_buffer *buffer = UNTOUCHED(wb_buffer), *real = NULL;
    wb_buffer_info info = WB_BUFFER_INFO_INIT;
    wb_buffer_stats usage = WB_BUFFER_STATS_INIT;
    char memory[10];
    info.chunks = usage.huge_bytes = 77;
    CHECK_NULL(wb_buffer_alloc(NULL, 1, NULL, &buffer, &error), "wb_device");
    CHECK_NULL(wb_buffer_alloc(device, 1, NULL, NULL, &error), "buffer");
    CHECK_NULL(wb_buffer_register(NULL, memory, 10, NULL, NULL, NULL, &buffer, &error),
               "wb_device");
    CHECK_NULL(wb_buffer_register(device, NULL, 10, NULL, NULL, NULL, &buffer, &error), "data");
    CHECK_NULL(wb_buffer_register(device, memory, 10, NULL, NULL, NULL, NULL, &error), "buffer");
    CHECK_NULL(wb_buffer_map_file(NULL, "x", 0, 0, NULL, &buffer, &error), "wb_device");
    CHECK_NULL(wb_buffer_map_file(device, NULL, 0, 0, NULL, &buffer, &error), "path");
    CHECK_NULL(wb_buffer_map_file(device, "x", 0, 0, NULL, NULL, &error), "buffer");
    CHECK_NULL(wb_buffer_release_after(NULL, NULL, &error), "wb_buffer");
    CHECK_NULL(wb_buffer_get_info(NULL, &info, &error), "wb_buffer");
    CHECK_NULL(wb_buffer_get_stats(NULL, &usage, &error), "wb_buffer");
    REQUIRE_OK(wb_buffer_alloc(device, 1, NULL, &real, &error));
    CHECK_NULL(wb_buffer_get_info(real, NULL, &error), "wb_buffer_info");
    CHECK_NULL(wb_buffer_get_stats(real, NULL, &error), "stats");
    wb_buffer_release(real);
    CHECK(buffer == UNTOUCHED(wb_buffer));
    CHECK(info.chunks == 77 && usage.huge_bytes == 77);
}

static void view_functions_refuse_null(wb_device *device)
{
    wb_view *view = UNTOUCHED(wb_view), *real = NULL;
    wb_buffer *buffer = NULL, *under = UNTOUCHED(wb_buffer);
    wb_view_info info = WB_VIEW_INFO_INIT;
    DLManagedTensor *tensor = UNTOUCHED(DLManagedTensor);
    DLManagedTensorVersioned *versioned = UNTOUCHED(DLManagedTensorVersioned);
    DLManagedTensor given;
    int64_t shape[] = {4};
    wb_layout layout = bytes_layout(shape);
    wb_layout no_shape = bytes_layout(NULL);
    memset(&given, 0, sizeof given);
    info.elements = 77;
    REQUIRE_OK(wb_buffer_alloc(device, 4, NULL, &buffer, &error));
    CHECK_NULL(wb_view_new(NULL, &layout, WB_ACCESSOR_HOST, &view, &error), "wb_buffer");
    CHECK_NULL(wb_view_new(buffer, NULL, WB_ACCESSOR_HOST, &view, &error), "layout");
    CHECK_NULL(wb_view_new(buffer, &no_shape, WB_ACCESSOR_HOST, &view, &error),
               "shape of 1 dimensions");
    CHECK_NULL(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, NULL, &error), "view");
    CHECK_NULL(wb_view_copy_from(NULL, shape, &layout, WB_ACCESSOR_HOST, NULL, &view, &error),
               "wb_device");
    CHECK_NULL(wb_view_copy_from(device, NULL, &layout, WB_ACCESSOR_HOST, NULL, &view, &error),
               "data|4 bytes");
    CHECK_NULL(wb_view_copy_from(device, shape, NULL, WB_ACCESSOR_HOST, NULL, &view, &error),
               "layout");
    CHECK_NULL(wb_view_copy_from(device, shape, &layout, WB_ACCESSOR_HOST, NULL, NULL, &error),
               "view");
    CHECK_NULL(wb_view_release_after(NULL, NULL, &error), "wb_view");
    CHECK_NULL(wb_view_get_info(NULL, &info, &error), "wb_view");
    CHECK_NULL(wb_view_get_buffer(NULL, &under, &error), "wb_view");
    CHECK_NULL(wb_view_to_dlpack(NULL, &tensor, &error), "wb_view");
    CHECK_NULL(wb_view_to_dlpack_for_reading(NULL, &tensor, &error), "wb_view");
    CHECK_NULL(wb_view_to_dlpack_versioned(NULL, &versioned, &error), "wb_view");
    CHECK_NULL(wb_view_from_dlpack(NULL, &given, WB_ACCESSOR_HOST, NULL, &view, &error),
               "wb_device");
    CHECK_NULL(wb_view_from_dlpack(device, NULL, WB_ACCESSOR_HOST, NULL, &view, &error), "tensor");
    CHECK_NULL(wb_view_from_dlpack(device, &given, WB_ACCESSOR_HOST, NULL, NULL, &error), "view");
    CHECK_NULL(wb_view_from_dlpack_versioned(device, NULL, WB_ACCESSOR_HOST, NULL, &view, &error),
               "tensor");
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &real, &error));
    CHECK_NULL(wb_view_get_info(real, NULL, &error), "wb_view_info");
    CHECK_NULL(wb_view_get_buffer(real, NULL, &error), "buffer");
    CHECK_NULL(wb_view_to_dlpack(real, NULL, &error), "tensor");
    CHECK_NULL(wb_view_to_dlpack_for_reading(real, NULL, &error), "tensor");
    CHECK_NULL(wb_view_to_dlpack_versioned(real, NULL, &error), "tensor");
    wb_view_release(real);
    wb_buffer_release(buffer);
    CHECK(view == UNTOUCHED(wb_view) && under == UNTOUCHED(wb_buffer));
    CHECK(tensor == UNTOUCHED(DLManagedTensor) && info.elements == 77);
    CHECK(versioned == UNTOUCHED(DLManagedTensorVersioned));
}

static void safetensors_functions_refuse_null(wb_device *device)
{
    const char content[] = "\x02\0\0\0\0\0\0\0{}";
    wb_safetensors *file = UNTOUCHED(wb_safetensors), *real = NULL;
    wb_safetensors_tensor_info info = WB_SAFETENSORS_TENSOR_INFO_INIT;
    wb_parameter parameter = WB_PARAMETER_INIT;
    wb_view *view = UNTOUCHED(wb_view);
    wb_buffer *buffer = UNTOUCHED(wb_buffer);
    uint64_t index = 7;
    int32_t copied = 7;
    const char *name = NULL;
    char path[300];
    info.bytes = 77;
    file_name(path, sizeof path, "null");
    REQUIRE(write_file(path, content, 10));
    CHECK_NULL(wb_safetensors_open(NULL, path, NULL, &file, &error), "wb_device");
    CHECK_NULL(wb_safetensors_open(device, NULL, NULL, &file, &error), "path");
    CHECK_NULL(wb_safetensors_open(device, path, NULL, NULL, &error), "file");
    CHECK_NULL(wb_safetensors_get_tensor_info(NULL, 0, &info, &error), "wb_safetensors");
    CHECK_NULL(wb_safetensors_find_tensor(NULL, "x", &index, &error), "wb_safetensors");
    CHECK_NULL(wb_safetensors_get_names(NULL, 0, 1, &name, &error), "wb_safetensors");
    CHECK_NULL(wb_safetensors_get_parameters(NULL, WB_GROUPING_LAYER, 0, 1, &parameter, &error),
               "wb_safetensors");
    CHECK_NULL(wb_safetensors_get_view(NULL, 0, WB_ACCESSOR_HOST, 1, &view, &error),
               "wb_safetensors");
    CHECK_NULL(wb_safetensors_load_view(NULL, 0, WB_ACCESSOR_HOST, 1, NULL, &view, &copied, &error),
               "wb_safetensors");
    CHECK_NULL(wb_safetensors_get_buffer(NULL, &buffer, &error), "wb_safetensors");
    REQUIRE_OK(wb_safetensors_open(device, path, NULL, &real, &error));
    CHECK_NULL(wb_safetensors_find_tensor(real, NULL, &index, &error), "name");
    CHECK_NULL(wb_safetensors_find_tensor(real, "x", NULL, &error), "index");
    CHECK_NULL(wb_safetensors_get_names(real, 0, 1, NULL, &error), "names");
    CHECK_NULL(wb_safetensors_get_parameters(real, WB_GROUPING_LAYER, 0, 1, NULL, &error),
               "parameters");
    CHECK_NULL(wb_safetensors_get_view(real, 0, WB_ACCESSOR_HOST, 1, NULL, &error), "view");
    CHECK_NULL(wb_safetensors_load_view(real, 0, WB_ACCESSOR_HOST, 1, NULL, NULL, &copied, &error),
               "view");
    CHECK_NULL(wb_safetensors_load_view(real, 0, WB_ACCESSOR_HOST, 1, NULL, &view, NULL, &error),
               "copied");
    CHECK_NULL(wb_safetensors_get_buffer(real, NULL, &error), "buffer");
    wb_safetensors_release(real);
    unlink(path);
    CHECK(file == UNTOUCHED(wb_safetensors) && view == UNTOUCHED(wb_view));
    CHECK(buffer == UNTOUCHED(wb_buffer) && index == 7 && copied == 7 && info.bytes == 77);
}

/* KiB of address space at the most so far. */
static uint64_t peak_kib(void)
{
    char line[200];
    uint64_t kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        if (strncmp(line, "VmPeak:", 7) == 0) kib = strtoull(line + 7, NULL, 10);
    }
    if (status != NULL) fclose(status);
    return kib;
}

/* An allocation for as many would end a process that has not that much memory. */
static void a_count_of_a_null_array_takes_no_memory(wb_device *device)
{
    wb_plan *plan = NULL;
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    const uint64_t before = peak_kib();
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    CHECK_NULL(wb_plan_new(device, NULL, UINT64_MAX, &options, &plan, &error), "parameters");
    CHECK(before > 0 && peak_kib() - before < 16 << 10);
}

CHECK_MAIN(CASE(a_count_of_a_null_array_takes_no_memory), CASE(device_functions_refuse_null),
           CASE(buffer_functions_refuse_null), CASE(view_functions_refuse_null),
           CASE(safetensors_functions_refuse_null))
