/* One defect on purpose in each run, by name: a checker that is on reports it and fails the program.
 * A defect "in the library" hands it memory that is not the caller's to give: the access that must be
 * reported is the library's own code, so the library is instrumented as well. */
#include <limits.h>
#include <pthread.h>
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

static int raced;

static void *race_once(void *user)
{
    (void)user;
    for (int i = 0; i < 1000; i++) raced++;
    return NULL;
}

static void in_two_threads(void *(*work)(void *), void *user)
{
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        if (pthread_create(&threads[i], NULL, work, user) != 0) exit(0);
    }
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

static void race(void)
{
    in_two_threads(race_once, NULL);
}

static wb_device_stats shared = WB_DEVICE_STATS_INIT;

static void *measure_into_one(void *device)
{
    for (int i = 0; i < 1000; i++) wb_device_get_stats((wb_device *)device, &shared, NULL);
    return NULL;
}

static void race_in_the_library(void)
{
    wb_device *device = NULL;
    if (wb_device_open("host", NULL, &device, NULL) != WB_OK) exit(0);
    in_two_threads(measure_into_one, device);
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
                   {"freed_in_the_library", freed_in_the_library},
                   {"race", race},
                   {"race_in_the_library", race_in_the_library}};
    for (size_t i = 0; count == 2 && i < sizeof defects / sizeof defects[0]; i++) {
        if (strcmp(defects[i].name, arguments[1]) == 0) {
            defects[i].run();
            return 0;
        }
    }
    fprintf(stderr, "usage: %s DEFECT\n", arguments[0]);
    return 0;
}
