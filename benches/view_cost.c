/*
 * Measures the host time to make and release a view. Prints nanoseconds for a pair, one line a run.
 *
 *   view_cost DEVICE RUNS
 */
#include "weighbridge.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { PAIRS = 200000 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: view_cost DEVICE RUNS\n");
        return 2;
    }
    wb_error error = WB_ERROR_INIT;
    wb_device *device = NULL;
    wb_buffer *buffer = NULL;
    if (wb_device_open(argv[1], NULL, &device, &error) != WB_OK ||
        wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error) != WB_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    const int64_t shape[2] = {256, 512};
    wb_layout layout = WB_LAYOUT_INIT;
    layout.dtype = WB_DTYPE_BF16;
    layout.ndim = 2;
    layout.shape = shape;
    for (int run = 0; run < atoi(argv[2]); run++) {
        const double start = seconds();
        for (int pair = 0; pair < PAIRS; pair++) {
            wb_view *view = NULL;
            if (wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error) != WB_OK) {
                fprintf(stderr, "%s\n", error.message);
                return 1;
            }
            wb_view_release(view);
        }
        printf("%.2f\n", (seconds() - start) * 1e9 / PAIRS);
    }
    wb_buffer_release(buffer);
    wb_device_release(device);
    return 0;
}
