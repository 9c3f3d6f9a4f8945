/* Plans 32 layers of 436 MB each for 8 GB of device memory, from what is known of link and kernels. */
#include <stdio.h>
#include <weighbridge.h>

enum { LAYERS = 32, BYTES = 436207616 };

int main(void)
{
    wb_error error = WB_ERROR_INIT;
    wb_device *device = NULL;
    wb_plan *plan = NULL;
    wb_plan_info info = WB_PLAN_INFO_INIT;
    wb_parameter parameters[LAYERS * 4];
    char names[LAYERS * 4][32], groups[LAYERS][32];
    double seconds[LAYERS];
    const int64_t shape[] = {BYTES / 4};
    const wb_layout layout = {
        .struct_size = sizeof layout, .dtype = WB_DTYPE_U8, .ndim = 1, .shape = shape};

    for (int at = 0; at < LAYERS * 4; at++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        snprintf(groups[at / 4], sizeof groups[0], "layers.%d", at / 4);
        snprintf(names[at], sizeof names[0], "layers.%d.w%d", at / 4, at % 4);
        parameters[at] = empty; /* no source: nothing has to be loaded for a plan */
        parameters[at].name = names[at];
        parameters[at].group = groups[at / 4];
        parameters[at].layout = &layout;
        seconds[at / 4] = 2e-3; /* the kernels of a layer */
    }
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = 8000000000;
    options.link_bytes_per_second = 50e9; /* or call wb_device_measure_link once */
    options.group_seconds = seconds;
    options.group_seconds_count = LAYERS;
    options.rows = 2048; /* the tokens of a step */
    if (wb_device_open("host", NULL, &device, &error) || /* or "cuda:0" */
        wb_plan_new(device, parameters, LAYERS * 4, &options, &plan, &error) ||
        wb_plan_get_info(plan, &info, &error))
        return fprintf(stderr, "%s\n", error.message), 1;

    printf("%.1f ms a step: %.1f ms of the link, %.1f ms of kernels\n", 1e3 * info.step_seconds,
           1e3 * info.link_seconds, 1e3 * info.kernel_seconds);
    printf("%.2f GB resident, slots of %.2f GB for %u layers\n", 1e-9 * (double)info.resident_bytes,
           1e-9 * (double)info.slot_bytes, info.depth);
    for (uint64_t at = 0; at < info.warnings; at++) {
        const char *warning = NULL;
        if (!wb_plan_get_warning(plan, at, &warning, &error)) printf("warning: %s\n", warning);
    }
    wb_plan_release(plan);
    wb_device_release(device);
    return 0;
}
