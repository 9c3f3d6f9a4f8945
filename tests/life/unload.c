/* The library stays loaded after dlclose, with its threads and objects. It is opened by name, as a plugin of
 * an engine does. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "weighbridge.h"

#define REQUIRE(condition)                                                   \
    do {                                                                     \
        if (!(condition)) {                                                  \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                         \
        }                                                                    \
    } while (0)

static wb_status (*device_open)(const char *, const wb_device_options *, wb_device **, wb_error *);
static void (*device_release)(wb_device *);
static wb_status (*device_measure)(const wb_device *, wb_device_stats *, wb_error *);
static wb_status (*device_drain)(const wb_device *, uint64_t, wb_error *);
static wb_status (*stream_new)(const wb_device *, void **, wb_error *);
static wb_status (*stream_release)(const wb_device *, void *, wb_error *);
static wb_status (*stream_call)(const wb_device *, void *, wb_host_function, void *, wb_error *);
static wb_status (*buffer_alloc)(const wb_device *, uint64_t, const wb_buffer_options *, wb_buffer **,
                                 wb_error *);
static wb_status (*buffer_release_after)(wb_buffer *, void *, wb_error *);

static void find(void *library, const char *name, void *function)
{
    void *found = dlsym(library, name);
    REQUIRE(found != NULL);
    memcpy(function, &found, sizeof found);
}

static void *load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library != NULL);
    find(library, "wb_device_open", &device_open);
    find(library, "wb_device_release", &device_release);
    find(library, "wb_device_get_stats", &device_measure);
    find(library, "wb_device_drain", &device_drain);
    find(library, "wb_device_stream_new", &stream_new);
    find(library, "wb_device_stream_release", &stream_release);
    find(library, "wb_device_stream_call", &stream_call);
    find(library, "wb_buffer_alloc", &buffer_alloc);
    find(library, "wb_buffer_release_after", &buffer_release_after);
    return library;
}

static void sleeps(void *slept)
{
    const struct timespec pause = {0, 100000000};
    nanosleep(&pause, NULL);
    *(volatile int *)slept = 1;
}

static uint64_t buffers_of(const wb_device *device)
{
    wb_device_stats usage = WB_DEVICE_STATS_INIT;
    REQUIRE(device_measure(device, &usage, NULL) == WB_OK);
    return usage.buffers;
}

int main(void)
{
    const char *name = getenv("WEIGHBRIDGE_TEST_DEVICE");
    wb_device *device = NULL;
    void *stream = NULL;
    wb_buffer *buffer = NULL;
    volatile int slept = 0;
    void *library = load();
    void *at = dlsym(library, "wb_version");
    REQUIRE(device_open(name != NULL ? name : "host", NULL, &device, NULL) == WB_OK);
    REQUIRE(stream_new(device, &stream, NULL) == WB_OK);
    REQUIRE(buffer_alloc(device, 4096, NULL, &buffer, NULL) == WB_OK);
    REQUIRE(stream_call(device, stream, sleeps, (void *)&slept, NULL) == WB_OK);
    REQUIRE(buffer_release_after(buffer, stream, NULL) == WB_OK);
    REQUIRE(dlclose(library) == 0); /* while its threads work */
    REQUIRE(dlopen(LIBRARY, RTLD_NOW | RTLD_NOLOAD) != NULL);
    library = load();
    REQUIRE(dlsym(library, "wb_version") == at);
    REQUIRE(slept || buffers_of(device) == 1);
    REQUIRE(device_drain(device, 10000, NULL) == WB_OK);
    REQUIRE(slept);
    REQUIRE(buffers_of(device) == 0);
    REQUIRE(dlclose(library) == 0);
    REQUIRE(stream_release(device, stream, NULL) == WB_OK);
    device_release(device);
    printf("ok   a_closed_library_stays_loaded\n%s: 1 passed, 0 failed\n", name ? name : "host");
    return 0;
}
