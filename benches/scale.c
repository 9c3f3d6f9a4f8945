/*
 * Measures how an offloader's calls cost with the number of its parameters, of 1 KiB each. Prints a
 * line for each: its name, and seconds, nanoseconds or bytes.
 *
 *   scale DEVICE groups|group|resident|budget|depth|json COUNT
 *
 * groups: each in a group of its own, prefetched; group: all in one; resident: all but one stay on
 * the device; budget: each in a group of its own, under a budget of device memory; depth: two groups
 * at a time in slots of the least memory; json: a plan's text.
 */
#include "weighbridge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 1024, NAME = 32, CALLS = 20000 };

static wb_error error = WB_ERROR_INIT;
static double began;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void start(void) { began = seconds(); }

static void took(const char *what) { printf("%s %.9f\n", what, seconds() - began); }

static void check(wb_status status) {
    if (status != WB_OK) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
}

static double resident_bytes(void) {
    unsigned long long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%llu %llu", &size, &resident) != 2) abort();
    fclose(file);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static double peak_bytes(void) {
    char line[256];
    unsigned long long kibibytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    if (file == NULL) abort();
    while (fgets(line, sizeof line, file) != NULL) sscanf(line, "VmHWM: %llu", &kibibytes);
    fclose(file);
    return (double)kibibytes * 1024;
}

static void reset_peak(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file == NULL || fputs("5", file) < 0 || fclose(file) != 0) abort();
}

static void *allocate(size_t count, size_t bytes) {
    void *memory = calloc(count, bytes);
    if (memory == NULL) abort();
    return memory;
}

struct model {
    uint64_t count;
    wb_parameter *parameters;
    char (*names)[2][NAME];
    unsigned char *bytes[2]; /* two values of every parameter, of twice BYTES each */
};

static struct model model_of(uint64_t count, uint64_t groups, const wb_layout *layout) {
    const wb_parameter empty = WB_PARAMETER_INIT;
    struct model model = {count, NULL, NULL, {NULL, NULL}};
    /* As many again, to be added. */
    model.parameters = allocate(2 * count, sizeof *model.parameters);
    model.names = allocate(2 * count, sizeof *model.names);
    for (int value = 0; value < 2; value++) {
        model.bytes[value] = allocate(count, 2 * BYTES);
        memset(model.bytes[value], value + 1, count * 2 * BYTES);
    }
    for (uint64_t i = 0; i < 2 * count; i++) {
        wb_parameter *parameter = &model.parameters[i];
        snprintf(model.names[i][0], NAME, "layers.%llu.w", (unsigned long long)i);
        snprintf(model.names[i][1], NAME, "layers.%llu", (unsigned long long)(i % count % groups));
        *parameter = empty;
        parameter->name = model.names[i][0];
        parameter->group = model.names[i][1];
        parameter->layout = layout;
        parameter->source = model.bytes[0] + i % count * 2 * BYTES;
    }
    return model;
}

static void set_sources(struct model *model, int value, const wb_layout *layout) {
    for (uint64_t i = 0; i < model->count; i++) {
        model->parameters[i].source = model->bytes[value] + i * 2 * BYTES;
        model->parameters[i].layout = layout;
    }
}

static void reconcile(const char *what, wb_offloader *offloader, struct model *model,
                      uint64_t count) {
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    start();
    check(wb_offloader_reconcile(offloader, model->parameters, count, NULL, &done, &error));
    took(what);
}

/* The parameters with the addresses that the offloader gave. */
static void use_addresses(wb_offloader *offloader, struct model *model) {
    const wb_offloader_parameter_info empty = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_parameter_info *infos = allocate(model->count, sizeof *infos);
    for (uint64_t i = 0; i < model->count; i++) infos[i] = empty;
    start();
    check(wb_offloader_get_parameter_infos(offloader, 0, model->count, infos, &error));
    took("infos");
    for (uint64_t i = 0; i < model->count; i++) {
        const void *host = infos[i].host_address;
        model->parameters[i].source = host != NULL ? host : infos[i].device_address;
    }
    free(infos);
}

/* Nanoseconds to acquire and release a group, once the copies of the step before have ended. */
static void step(wb_device *device, wb_offloader *offloader, uint64_t groups) {
    double took = 0;
    uint64_t count = 0;
    for (int warm = 1; warm >= 0 || count < CALLS; warm--) {
        const double from = seconds();
        for (uint64_t group = 0; group < groups; group++) {
            check(wb_offloader_acquire_group(offloader, group, NULL, &error));
            check(wb_offloader_release_group(offloader, group, NULL, &error));
        }
        took += warm > 0 ? 0 : seconds() - from;
        count += warm > 0 ? 0 : groups;
        check(wb_device_stream_synchronize(device, NULL, &error));
    }
    printf("step %.3f\n", 1e9 * took / (double)count);
}

static void get_stats(wb_offloader *offloader) {
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    start();
    check(wb_offloader_get_stats(offloader, &stats, &error));
    took("stats");
}

static void offload(wb_device *device, uint64_t count, uint64_t groups, int resident) {
    static const int64_t shapes[] = {BYTES / 2, BYTES, 2 * BYTES};
    wb_layout layouts[3];
    for (int i = 0; i < 3; i++) {
        const wb_layout empty = WB_LAYOUT_INIT;
        layouts[i] = empty;
        layouts[i].dtype = WB_DTYPE_U8;
        layouts[i].ndim = 1;
        layouts[i].shape = &shapes[i];
    }
    struct model model = model_of(count, groups, &layouts[1]);
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = count << 20;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    options.allow = WB_ALLOW_EVERYTHING_FITS;
    for (uint64_t i = 1; i < count && resident; i++) {
        model.parameters[i].placement = WB_PLACEMENT_RESIDENT;
    }
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    start();
    check(wb_plan_new(device, model.parameters, count, &options, &plan, &error));
    took("plan");
    const double before = resident_bytes();
    start();
    check(wb_offloader_new(plan, NULL, NULL, &offloader, &error));
    took("commit");
    printf("memory %.0f\n", resident_bytes() - before - (double)(count * BYTES));
    wb_plan_release(plan);

    if (groups == count && !resident) step(device, offloader, groups);
    use_addresses(offloader, &model);
    reconcile("kept", offloader, &model, count);
    set_sources(&model, 1, &layouts[1]);
    reconcile("same_size", offloader, &model, count);
    /* One by one: a replacement copies its group to the slot, so each has a group of its own. */
    if (groups == count) {
        start();
        for (uint64_t i = 0; i < count; i++) {
            check(wb_offloader_replace(offloader, model.names[i][0],
                                       model.bytes[0] + i * 2 * BYTES, &layouts[1], NULL, &error));
        }
        took("replace");
    }
    if (resident) goto end; /* others get device memory of their own, each a mapping on the host */
    set_sources(&model, 0, &layouts[0]);
    reconcile("smaller", offloader, &model, count);
    set_sources(&model, 1, &layouts[2]);
    reconcile("larger", offloader, &model, count);
    reconcile("added", offloader, &model, 2 * count);
    start();
    check(wb_offloader_replace(offloader, model.names[0][0], model.bytes[0], &layouts[0], NULL,
                               &error));
    took("one_smaller");
    start();
    check(wb_offloader_remove(offloader, model.names[1][0], NULL, &error));
    took("one_removed");
    start();
    check(wb_offloader_add(offloader, &model.parameters[1], NULL, &error));
    took("one_added");
    start();
    check(wb_offloader_compact(offloader, NULL, &error));
    took("compact");
    get_stats(offloader);
    reconcile("removed", offloader, &model, 1);
end:
    start();
    wb_offloader_release(offloader);
    took("release");
}

/* Every tenth grows, and the slots of the grown ones still fit the budget. */
static void grow(wb_device *device, uint64_t count, uint32_t depth) {
    static const int64_t shapes[] = {BYTES, 2 * BYTES};
    wb_layout layouts[2];
    for (int i = 0; i < 2; i++) {
        const wb_layout empty = WB_LAYOUT_INIT;
        layouts[i] = empty;
        layouts[i].dtype = WB_DTYPE_U8;
        layouts[i].ndim = 1;
        layouts[i].shape = &shapes[i];
    }
    struct model model = model_of(count, count, &layouts[0]);
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = depth > 0 ? WB_BUDGET_OFFLOAD_BYTES : WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = depth > 0 ? count << 20 : 4 * BYTES;
    options.slot_bytes = depth > 0 ? 3 * BYTES : 0;
    options.depth = depth;
    options.allow = WB_ALLOW_EVERYTHING_FITS;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    check(wb_plan_new(device, model.parameters, count, &options, &plan, &error));
    check(wb_offloader_new(plan, NULL, NULL, &offloader, &error));
    wb_plan_release(plan);
    set_sources(&model, 1, &layouts[0]);
    for (uint64_t i = 0; i < count; i += 10) model.parameters[i].layout = &layouts[1];
    reconcile("grown", offloader, &model, count);
    wb_offloader_release(offloader);
}

static void text(wb_device *device, uint64_t count) {
    static const int64_t shape[] = {BYTES};
    wb_layout layout = WB_LAYOUT_INIT;
    layout.dtype = WB_DTYPE_U8;
    layout.ndim = 1;
    layout.shape = shape;
    struct model model = model_of(count, 1000, &layout);
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = count * BYTES;
    options.allow = WB_ALLOW_EVERYTHING_FITS;
    wb_plan *plan = NULL;
    const char *json = NULL;
    check(wb_plan_new(device, model.parameters, count, &options, &plan, &error));
    reset_peak();
    const double before = resident_bytes();
    start();
    check(wb_plan_to_json(plan, &json, &error));
    took("json");
    printf("json_memory %.0f\njson_bytes %zu\n", peak_bytes() - before, strlen(json));
    wb_plan_release(plan);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const uint64_t count = strtoull(argv[3], NULL, 10);
    wb_device *device = NULL;
    check(wb_device_open(argv[1], NULL, &device, &error));
    if (strcmp(argv[2], "json") == 0) {
        text(device, count);
    } else if (strcmp(argv[2], "budget") == 0) {
        grow(device, count, 0);
    } else if (strcmp(argv[2], "depth") == 0) {
        grow(device, count, 2);
    } else {
        const int one = strcmp(argv[2], "group") == 0;
        offload(device, count, one ? 1 : count, strcmp(argv[2], "resident") == 0);
    }
    wb_device_release(device);
    return 0;
}
