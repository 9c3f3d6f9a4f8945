/* An engine's loop over two layers whose weights stay in host memory: plan, commit, step.
 *
 *     two_layers [device] */
#include <stdio.h>
#include <stdlib.h>
#include <weighbridge.h>

enum { LAYERS = 2, SIDE = 1024, COUNT = SIDE * SIDE };

static wb_error error = WB_ERROR_INIT;

static void must(wb_status status)
{
    if (status == WB_OK) return;
    fprintf(stderr, "%s: %s\n", wb_status_name(status), error.message);
    exit(1);
}

int main(int argc, char **argv)
{
    static float weights[LAYERS][COUNT], seen[COUNT];
    const char *const names[LAYERS] = {"layers.0.weight", "layers.1.weight"};
    const char *const groups[LAYERS] = {"layers.0", "layers.1"};
    const int64_t shape[] = {SIDE, SIDE};
    const wb_layout layout = {
        .struct_size = sizeof layout, .dtype = WB_DTYPE_F32, .ndim = 2, .shape = shape};
    wb_device *device = NULL;
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    void *stream = NULL; /* an engine passes its own CUstream instead */

    must(wb_device_open(argc > 1 ? argv[1] : "host", NULL, &device, &error));
    must(wb_device_stream_new(device, &stream, &error));

    wb_parameter parameters[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        for (int i = 0; i < COUNT; i++) weights[layer][i] = (float)(layer + 1);
        parameters[layer] = empty;
        parameters[layer].name = names[layer];
        parameters[layer].group = groups[layer];
        parameters[layer].layout = &layout;
        parameters[layer].source = weights[layer];
    }
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = sizeof weights;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    must(wb_plan_new(device, parameters, LAYERS, &options, &plan, &error));
    for (uint64_t i = 0; i < LAYERS; i++) {
        wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
        must(wb_plan_get_parameter_info(plan, i, &planned, &error));
        printf("%s: %s\n", planned.name, planned.reason);
    }
    must(wb_offloader_new(plan, stream, NULL, &offloader, &error));

    for (uint64_t layer = 0; layer < LAYERS; layer++) {
        uint64_t index = 0;
        wb_offloader_parameter_info weight = WB_OFFLOADER_PARAMETER_INFO_INIT;
        must(wb_offloader_acquire_group(offloader, layer, stream, &error));
        must(wb_offloader_find_parameter(offloader, names[layer], &index, &error));
        must(wb_offloader_get_parameter_info(offloader, index, &weight, &error));
        /* An engine launches the layer's kernels here; this example copies the weight back. */
        must(wb_device_copy(device, seen, weight.device_address, weight.span_bytes, stream,
                            &error));
        must(wb_offloader_release_group(offloader, layer, stream, &error));
        must(wb_device_stream_synchronize(device, stream, &error));
        if (seen[0] != (float)(layer + 1) || seen[COUNT - 1] != seen[0]) {
            return fprintf(stderr, "wrong weights\n"), 1;
        }
    }
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    must(wb_offloader_get_stats(offloader, &stats, &error));
    printf("%zu bytes offloaded, %zu bytes of slots, %zu bytes copied\n",
           (size_t)stats.offloaded_bytes, (size_t)stats.slot_bytes, (size_t)stats.moved_bytes);

    wb_offloader_release(offloader);
    wb_plan_release(plan);
    must(wb_device_stream_release(device, stream, &error));
    wb_device_release(device);
    return 0;
}
