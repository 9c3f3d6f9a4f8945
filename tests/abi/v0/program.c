/* An engine that was compiled with the header of 0.1.0, which lies beside this file, and runs with
 * today's library: memory, views, DLPack, a model of which all is offloaded, 8 bits. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weighbridge.h"

#if WB_VERSION_MAJOR != 0
#error the header is not the frozen one
#endif

#include "dlpack_structs.h"

static wb_error error = WB_ERROR_INIT;
static wb_device *device;
static void *stream;

static void end(int line, const char *what)
{
    fprintf(stderr, "program.c:%d: %s: status %d: %s\n", line, what, error.status, error.message);
    exit(1);
}

#define OK(call) do { if ((call) != WB_OK) end(__LINE__, #call); } while (0)
#define HOLDS(condition) do { if (!(condition)) end(__LINE__, #condition); } while (0)

/* What the device reads at an address, as the host sees it. */
static void read_device(void *to, uint64_t from, uint64_t bytes)
{
    OK(wb_device_copy(device, (uint64_t)(uintptr_t)to, from, bytes, stream, &error));
    OK(wb_device_stream_synchronize(device, stream, &error));
}

static void a_buffer_is_viewed_and_exported(void)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer_info info = WB_BUFFER_INFO_INIT;
    wb_layout layout = WB_LAYOUT_INIT;
    wb_view_info seen = WB_VIEW_INFO_INIT;
    const int64_t shape[] = {3, 4}, strides[] = {-4, 1};
    float numbers[12];
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    struct DLManagedTensorVersioned *tensor = NULL;
    options.huge_pages = WB_HUGE_PAGES_OFF;
    options.threads = 1;
    OK(wb_buffer_alloc(device, sizeof numbers, &options, &buffer, &error));
    OK(wb_buffer_describe(buffer, &info, &error));
    HOLDS(info.asked_bytes == sizeof numbers && info.origin == WB_ORIGIN_ALLOCATED);
    for (int i = 0; i < 12; i++) ((float *)info.data)[i] = (float)i;
    /* Rows from the last to the first. */
    layout.dtype = WB_DTYPE_F32;
    layout.ndim = 2;
    layout.shape = shape;
    layout.strides = strides;
    layout.offset_bytes = 8 * sizeof *numbers;
    OK(wb_view_new(buffer, &layout, WB_ACCESS_DEVICE, &view, &error));
    OK(wb_view_describe(view, &seen, &error));
    HOLDS(seen.elements == 12 && seen.span_bytes == sizeof numbers && seen.strides[0] == -4);
    read_device(numbers, seen.device_address - 8 * sizeof *numbers, sizeof numbers);
    HOLDS(numbers[11] == 11.0f);
    OK(wb_view_to_dlpack_versioned(view, &tensor, &error));
    wb_view_release(view);
    wb_buffer_release(buffer);
    HOLDS(tensor->dl_tensor.ndim == 2 && tensor->dl_tensor.shape[1] == 4);
    tensor->deleter(tensor);
}

static int deleted;

static void count(void *owner)
{
    *(int *)owner += 1;
}

static void a_caller_s_memory_is_registered_and_given_back(void)
{
    wb_device_usage usage = WB_DEVICE_USAGE_INIT;
    wb_buffer *buffer = NULL;
    char *memory = (char *)malloc(10000);
    OK(wb_buffer_register(device, memory, 10000, NULL, count, &deleted, &buffer, &error));
    OK(wb_buffer_release_after(buffer, stream, &error));
    OK(wb_device_drain(device, 10000, &error));
    OK(wb_device_measure(device, &usage, &error));
    HOLDS(deleted == 1 && usage.buffers == 0 && usage.asked_bytes == 0);
    free(memory);
}

enum { LAYERS = 4, NUMBERS = 1024 };

static void a_model_is_offloaded_step_by_step(void)
{
    static uint32_t weights[LAYERS][NUMBERS], fresh[NUMBERS], back[NUMBERS];
    static char names[LAYERS][16];
    const int64_t shape[] = {32, 32};
    const char *select[] = {"layers.*"};
    wb_layout layout = WB_LAYOUT_INIT;
    wb_parameter parameters[LAYERS];
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    wb_plan_info planned = WB_PLAN_INFO_INIT;
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    layout.dtype = WB_DTYPE_U32;
    layout.ndim = 2;
    layout.shape = shape;
    for (int layer = 0; layer < LAYERS; layer++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        snprintf(names[layer], sizeof names[layer], "layers.%d", layer);
        for (uint32_t i = 0; i < NUMBERS; i++) weights[layer][i] = (uint32_t)layer << 16 | i;
        parameters[layer] = empty;
        parameters[layer].name = parameters[layer].group = names[layer];
        parameters[layer].layout = &layout;
        parameters[layer].source = (uint64_t)(uintptr_t)weights[layer];
    }
    options.offload_bytes = 1 << 20;
    options.carrier = WB_CARRIER_PREFETCH;
    options.select = select;
    options.select_count = 1;
    OK(wb_plan_new(device, parameters, LAYERS, &options, &plan, &error));
    OK(wb_plan_describe(plan, &planned, &error));
    HOLDS(planned.groups == LAYERS && planned.offloaded_bytes == sizeof weights);
    OK(wb_offloader_new(plan, stream, NULL, &offloader, &error));
    for (uint32_t i = 0; i < NUMBERS; i++) fresh[i] = ~i;
    for (int step = 0; step < 3; step++) {
        for (int layer = 0; layer < LAYERS; layer++) {
            wb_offloaded_info info = WB_OFFLOADED_INFO_INIT;
            OK(wb_offloader_acquire_group(offloader, (uint64_t)layer, stream, &error));
            OK(wb_offloader_parameter(offloader, names[layer], &info, &error));
            HOLDS(info.carrier == WB_CARRIER_PREFETCH && info.span_bytes == sizeof back);
            read_device(back, info.device_address, sizeof back);
            HOLDS(memcmp(back, layer == 2 && step > 1 ? fresh : weights[layer], sizeof back) == 0);
            OK(wb_offloader_release_group(offloader, (uint64_t)layer, stream, &error));
        }
        if (step == 1) {
            OK(wb_offloader_replace(offloader, names[2], (uint64_t)(uintptr_t)fresh, &layout,
                                    stream, &error));
        }
    }
    OK(wb_offloader_measure(offloader, &stats, &error));
    HOLDS(stats.acquires == 3 * LAYERS && stats.resident_bytes == 0);
    wb_plan_release(plan);
    wb_offloader_release(offloader);
}

static void numbers_go_to_8_bits_and_back(void)
{
    const int64_t shape[] = {2, 64};
    static float numbers[128], back[128];
    static unsigned char codes[128];
    float scales[2] = {0, 0};
    wb_layout layout = WB_LAYOUT_INIT;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    wb_scales_info info = WB_SCALES_INFO_INIT;
    wb_quantized done = WB_QUANTIZED_INIT;
    wb_quantizer *quantizer = NULL;
    layout.dtype = WB_DTYPE_F32;
    layout.ndim = 2;
    layout.shape = shape;
    options.block_rows = 1;
    for (int i = 0; i < 128; i++) numbers[i] = (float)(i % 8);
    numbers[0] = numbers[64] = 448.0f; /* e4m3's largest: both scales are 1, and nothing is rounded */
    OK(wb_quantize_scales(&layout, &options, &info, &error));
    HOLDS(info.rows == 2 && info.cols == 1 && info.bytes == sizeof scales);
    OK(wb_quantizer_new(device, 1 << 20, &quantizer, &error));
    OK(wb_quantizer_quantize(quantizer, (uint64_t)(uintptr_t)numbers, &layout,
                             (uint64_t)(uintptr_t)codes, (uint64_t)(uintptr_t)scales, &options,
                             &done, &error));
    HOLDS(scales[0] == 1.0f && scales[1] == 1.0f && codes[0] == 0x7e && done.nonfinite == 0);
    OK(wb_quantizer_dequantize(quantizer, (uint64_t)(uintptr_t)codes, (uint64_t)(uintptr_t)scales,
                               (uint64_t)(uintptr_t)back, &layout, &options, NULL, &error));
    HOLDS(memcmp(back, numbers, sizeof back) == 0);
    wb_quantizer_release(quantizer);
}

int main(void)
{
    const char *name = getenv("WEIGHBRIDGE_TEST_DEVICE");
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    options.views = WB_ON;
    OK(wb_device_open(name != NULL ? name : "host", &options, &device, &error));
    OK(wb_device_stream_new(device, &stream, &error));
    a_buffer_is_viewed_and_exported();
    a_caller_s_memory_is_registered_and_given_back();
    a_model_is_offloaded_step_by_step();
    numbers_go_to_8_bits_and_back();
    OK(wb_device_stream_release(device, stream, &error));
    wb_device_release(device);
    HOLDS(wb_device_open("host", NULL, NULL, &error) == WB_ERR_NULL);
    printf("compiled with %d.%d.%d, runs with %u.%u.%u\n", WB_VERSION_MAJOR, WB_VERSION_MINOR,
           WB_VERSION_PATCH, wb_version() >> 16, wb_version() >> 8 & 255, wb_version() & 255);
    return 0;
}
