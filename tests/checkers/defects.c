/* Makes the named defect: a checker that is on reports it, and the program fails. For a defect "in the
 * library" the library gets freed memory: the access to report is in the library's code, which proves that
 * the library is instrumented too. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weighbridge.h"

static volatile int sink;

static void heap_overflow(void)
{
    char *memory = (char *)malloc(16);
    volatile int end = 16;
    memory[end] = 1;
    sink = memory[end];
    free(memory);
}

static void leak(void)
{
    char *volatile memory = (char *)malloc(4321);
    memory[0] = 1;
    memory = NULL;
}

static void signed_overflow(void)
{
    volatile int most = INT_MAX;
    sink = most + 1;
}

static void uninitialised(void)
{
    int *volatile memory = (int *)malloc(sizeof *memory);
    if (*memory == 7) sink = 1;
    free(memory);
}

static void freed_in_the_library(void)
{
    wb_device *device = NULL;
    wb_device_stats *usage = (wb_device_stats *)malloc(sizeof *usage);
    wb_device_stats empty = WB_DEVICE_STATS_INIT;
    if (wb_device_open("host", NULL, &device, NULL) != WB_OK) exit(0);
    *usage = empty;
    free(usage);
    wb_device_get_stats(device, usage, NULL);
    wb_device_release(device);
}

int main(int count, char **arguments)
{
    const struct {
        const char *name;
        void (*run)(void);
    } defects[] = {{"heap_overflow", heap_overflow},
                   {"leak", leak},
                   {"signed_overflow", signed_overflow},
                   {"uninitialised", uninitialised},
                   {"freed_in_the_library", freed_in_the_library}};
    for (size_t i = 0; count == 2 && i < sizeof defects / sizeof defects[0]; i++) {
        if (strcmp(defects[i].name, arguments[1]) == 0) {
            defects[i].run();
            return 0;
        }
    }
    fprintf(stderr, "usage: %s DEFECT\n", arguments[0]);
    return 0;
}
