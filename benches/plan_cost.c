/*
 * Measures a plan: thread seconds to make it and to write it as JSON, bytes of the JSON, and bytes by which
 * the process grew meanwhile. Prints these four numbers for each run.
 *
 *   plan_cost DEVICE PARAMETERS GROUPS BUDGET RUNS
 *
 * BUDGET is "offload" (half of the bytes may leave), "device" (half of them fit) or "short" (all but one
 * byte fit). Sizes differ from parameter to parameter, so that no order of leaving equals another.
 */
#include "weighbridge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void check(wb_status status, const wb_error *error) {
    if (status != WB_OK) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

/* Bytes of a line of /proc/self/status. */
static double status_bytes(const char *name) {
    char line[256];
    double found = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0) found = 1024 * atof(line + strlen(name));
    if (file != NULL) fclose(file);
    return found;
}

/* Makes VmHWM the memory that the process has now. */
static void forget_peak(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file != NULL) {
        fputs("5", file);
        fclose(file);
    }
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: plan_cost DEVICE PARAMETERS GROUPS BUDGET RUNS\n");
        return 2;
    }
    const int count = atoi(argv[2]), groups = atoi(argv[3]), each = count / groups;
    char(*names)[2][32] = malloc((size_t)count * sizeof *names);
    wb_parameter *parameters = malloc((size_t)count * sizeof *parameters);
    wb_layout *layouts = malloc((size_t)count * sizeof *layouts);
    int64_t *shapes = malloc((size_t)count * sizeof *shapes);
    if (names == NULL || parameters == NULL || layouts == NULL || shapes == NULL) abort();
    uint64_t total = 0;
    for (int i = 0; i < count; i++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        const wb_layout none = WB_LAYOUT_INIT;
        snprintf(names[i][0], sizeof names[i][0], "layers.%d.w%d", i / each, i % each);
        snprintf(names[i][1], sizeof names[i][1], "layers.%d", i / each);
        shapes[i] = 256 * (1 + (int64_t)i * 7919 % 31);
        total += (uint64_t)shapes[i];
        layouts[i] = none;
        layouts[i].dtype = WB_DTYPE_U8;
        layouts[i].ndim = 1;
        layouts[i].shape = &shapes[i];
        parameters[i] = empty;
        parameters[i].name = names[i][0];
        parameters[i].group = names[i][1];
        parameters[i].layout = &layouts[i];
    }
    wb_error error = WB_ERROR_INIT;
    wb_device *device = NULL;
    check(wb_device_open(argv[1], NULL, &device, &error), &error);
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    const int by_host = strcmp(argv[4], "offload") == 0;
    options.budget_kind = by_host ? WB_BUDGET_OFFLOAD_BYTES : WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = strcmp(argv[4], "short") == 0 ? total - 1 : total / 2;
    for (int run = 0; run < atoi(argv[5]); run++) {
        wb_plan *plan = NULL;
        const char *json = NULL;
        double start = seconds();
        check(wb_plan_new(device, parameters, (uint64_t)count, &options, &plan, &error), &error);
        const double planned = seconds() - start;
        forget_peak();
        const double before = status_bytes("VmRSS:");
        start = seconds();
        check(wb_plan_to_json(plan, &json, &error), &error);
        const double written = seconds() - start, grown = status_bytes("VmHWM:") - before;
        printf("%.5f %.5f %zu %.0f\n", planned, written, strlen(json), grown);
        wb_plan_release(plan);
    }
    wb_device_release(device);
    free(shapes);
    free(layouts);
    free(parameters);
    free(names);
    return 0;
}
