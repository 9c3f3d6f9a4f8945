/*
 * Measures the host time of a step on a CUDA device: microseconds to acquire and release a group with one
 * parameter and with many, of the driver's calls that copy as much through two slots, and seconds to plan a
 * million parameters. Prints one line for each run: few, many, calls, plan.
 *
 *   offload_cost DEVICE RUNS
 */
#define _GNU_SOURCE
#include "weighbridge.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GROUPS = 8, STEPS = 40, MANY = 1000, MILLION = 1000000, BYTES = 4096 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void check(wb_status status, const wb_error *error) {
    if (status != WB_OK) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

/* Makes a plan of `groups` groups with `each` parameters. A group's bytes do not depend on `each`. */
static wb_plan *plan(wb_device *device, int groups, int each, double *took) {
    wb_error error = WB_ERROR_INIT;
    const int count = groups * each;
    char(*names)[2][32] = malloc((size_t)count * sizeof *names);
    wb_parameter *parameters = malloc((size_t)count * sizeof *parameters);
    if (names == NULL || parameters == NULL) abort();
    const int64_t shape[1] = {each < 1000 ? (int64_t)BYTES * MANY / each : BYTES};
    wb_layout layout = WB_LAYOUT_INIT;
    layout.dtype = WB_DTYPE_U8;
    layout.ndim = 1;
    layout.shape = shape;
    for (int i = 0; i < count; i++) {
        const wb_parameter empty = WB_PARAMETER_INIT;
        snprintf(names[i][0], sizeof names[i][0], "layers.%d.w%d", i / each, i % each);
        snprintf(names[i][1], sizeof names[i][1], "layers.%d", i / each);
        parameters[i] = empty;
        parameters[i].name = names[i][0];
        parameters[i].group = names[i][1];
        parameters[i].layout = &layout;
    }
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = UINT64_MAX;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    wb_plan *made = NULL;
    const double start = seconds();
    check(wb_plan_new(device, parameters, (uint64_t)count, &options, &made, &error), &error);
    *took = seconds() - start;
    free(parameters);
    free(names);
    return made;
}

static double cost(wb_device *device, int each) {
    wb_error error = WB_ERROR_INIT;
    double unused, total = 0;
    wb_plan *made = plan(device, GROUPS, each, &unused);
    void *stream = NULL;
    check(wb_device_stream_new(device, &stream, &error), &error);
    wb_offloader *offloader = NULL;
    check(wb_offloader_new(made, stream, NULL, &offloader, &error), &error);
    for (int step = 0; step < STEPS; step++) {
        const double start = seconds();
        for (uint64_t group = 0; group < GROUPS; group++) {
            check(wb_offloader_acquire_group(offloader, group, stream, &error), &error);
            check(wb_offloader_release_group(offloader, group, stream, &error), &error);
        }
        total += step > 0 ? seconds() - start : 0;
        /* Not measured: the driver's queues must not fill up. */
        check(wb_offloader_join(offloader, stream, &error), &error);
        check(wb_device_stream_synchronize(device, stream, &error), &error);
    }
    wb_offloader_release(offloader);
    wb_plan_release(made);
    check(wb_device_stream_release(device, stream, &error), &error);
    return total * 1e6 / (STEPS - 1) / GROUPS;
}

/* The driver's calls of a copy that waits for its slot and that work waits for. */
static struct {
    int (*context)(void **, int);
    int (*use)(void *);
    int (*new_stream)(void **, unsigned);
    int (*new_event)(void **, unsigned);
    int (*copy)(uint64_t, const void *, size_t, void *);
    int (*record)(void *, void *);
    int (*wait)(void *, void *, unsigned);
    int (*synchronize)(void *);
    int (*destroy_stream)(void *);
    int (*destroy_event)(void *);
} driver;

enum { NON_BLOCKING = 1, NO_TIMING = 2 };

static void find(void *function, void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) {
        fprintf(stderr, "the driver has no %s\n", name);
        exit(1);
    }
    memcpy(function, &found, sizeof found);
}

static void find_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    find(&driver.context, library, "cuDevicePrimaryCtxRetain");
    find(&driver.use, library, "cuCtxSetCurrent");
    find(&driver.new_stream, library, "cuStreamCreate");
    find(&driver.new_event, library, "cuEventCreate");
    find(&driver.copy, library, "cuMemcpyHtoDAsync_v2");
    find(&driver.record, library, "cuEventRecord");
    find(&driver.wait, library, "cuStreamWaitEvent");
    find(&driver.synchronize, library, "cuStreamSynchronize");
    find(&driver.destroy_stream, library, "cuStreamDestroy_v2");
    find(&driver.destroy_event, library, "cuEventDestroy_v2");
}

static void require(int code) {
    if (code != 0) {
        fprintf(stderr, "the driver failed with %d\n", code);
        exit(1);
    }
}

/* As cost(), with nothing but the calls of the driver of device 0: a slot is filled again as soon as it is
 * released. */
static double calls(wb_device *device) {
    enum { SLOTS = 2, SLOT = BYTES * MANY };
    wb_error error = WB_ERROR_INIT;
    wb_buffer_info host = WB_BUFFER_INFO_INIT;
    wb_buffer *buffer = NULL;
    void *context, *streams[2], *full[SLOTS], *empty[SLOTS], *slots[SLOTS];
    double total = 0;
    require(driver.context(&context, 0));
    require(driver.use(context));
    check(wb_buffer_alloc(device, SLOT, NULL, &buffer, &error), &error);
    check(wb_buffer_get_info(buffer, &host, &error), &error);
    for (int at = 0; at < SLOTS; at++) {
        check(wb_device_alloc(device, SLOT, &slots[at], &error), &error);
        require(driver.new_stream(&streams[at], NON_BLOCKING));
        require(driver.new_event(&full[at], NO_TIMING));
        require(driver.new_event(&empty[at], NO_TIMING));
    }
    void *copies = streams[0], *work = streams[1];
    for (int step = 0; step < STEPS; step++) {
        const double start = seconds();
        for (int group = 0; group < GROUPS; group++) {
            const int at = group % SLOTS;
            require(driver.wait(work, full[at], 0));
            require(driver.record(empty[at], work));
            require(driver.wait(copies, empty[at], 0));
            require(driver.copy((uint64_t)(uintptr_t)slots[at], host.data, SLOT, copies));
            require(driver.record(full[at], copies));
        }
        total += step > 0 ? seconds() - start : 0;
        require(driver.synchronize(copies));
        require(driver.synchronize(work));
    }
    for (int at = 0; at < SLOTS; at++) {
        require(driver.destroy_stream(streams[at]));
        require(driver.destroy_event(full[at]));
        require(driver.destroy_event(empty[at]));
        check(wb_device_free(device, slots[at], &error), &error);
    }
    wb_buffer_release(buffer);
    return total * 1e6 / (STEPS - 1) / GROUPS;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: offload_cost DEVICE RUNS\n");
        return 2;
    }
    wb_error error = WB_ERROR_INIT;
    wb_device *device = NULL;
    check(wb_device_open(argv[1], NULL, &device, &error), &error);
    find_driver();
    for (int run = 0; run < atoi(argv[2]); run++) {
        const double few = cost(device, 1), many = cost(device, MANY), alone = calls(device);
        double took;
        wb_plan_release(plan(device, MILLION / MANY, MANY, &took));
        printf("%.3f %.3f %.3f %.4f\n", few, many, alone, took);
    }
    wb_device_release(device);
    return 0;
}
