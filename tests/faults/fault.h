/* One call of the driver or of the system that fails, and what must hold when it does. */
#ifndef FAULT_H
#define FAULT_H

#include <errno.h>

#include "memory.h"
#include "system.h"

enum layer { DRIVER, SYSTEM };

/* The k-th call of a layer answers `code`, or takes `hang_ms` and then does what it is asked. */
struct fault {
    enum layer layer;
    int kth, code, hang_ms;
    int hints;    /* system_fail() */
    int for_good; /* every call after it as well: the driver has ended */
};

enum { LIVE_KINDS = 5 };

/* What is alive: the library's own counters, and the driver's. */
struct observed {
    wb_device_usage usage;
    long long live[LIVE_KINDS];
};

/* What a scenario works with. */
struct world {
    wb_device *device;
    const struct fault *fault;
    int keeps;     /* its object makes what it needs at the first use, and keeps it to its end */
    int failed;    /* calls of the library that the fault made fail */
    int abandoned; /* the scenario ended there: what it asked for is not to be had any more */
    int opens;     /* the scenario opens the device */
    int told;      /* what was made says that the call failed */
    char path[300];
};

static const char *const live_kinds[LIVE_KINDS] = {
    "registrations", "host_allocations", "device_allocations", "streams", "contexts"};

static inline int starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

static void fault_arm(const struct fault *fault)
{
    char setting[64];
    if (fault->layer == SYSTEM) {
        system_fail(fault->kth, fault->code, fault->hints);
        return;
    }
    if (fault->hang_ms > 0) {
        snprintf(setting, sizeof setting, "*:%d:hang%d", fault->kth, fault->hang_ms);
    } else {
        snprintf(setting, sizeof setting, "*:%d%s:%d", fault->kth, fault->for_good ? "+" : "",
                 fault->code);
    }
    double_set("WB_DOUBLE_FAIL", setting);
}

/* The name of the function that failed; NULL: the fault has not come up. */
static const char *fault_fired(const struct fault *fault)
{
    const char *(*failed)(void);
    if (fault->layer == SYSTEM) return system_failed();
    return driver_function("double_failed", &failed) ? failed() : NULL;
}

static struct observed observe(const wb_device *device)
{
    struct observed now = {WB_DEVICE_USAGE_INIT, {0}};
    if (device != NULL) now.usage = measure(device);
    for (int kind = 0; kind < LIVE_KINDS; kind++) now.live[kind] = double_alive(live_kinds[kind]);
    return now;
}

/* Less is right: what is kept for the next time may have been let go. Events, which are made when they
 * are first used and kept, are looked at when the scenario has ended. */
static int no_more(const struct observed *now, const struct observed *before)
{
    for (int kind = 0; kind < LIVE_KINDS; kind++) {
        if (now->live[kind] > before->live[kind]) return 0;
    }
    return now->usage.buffers <= before->usage.buffers &&
           now->usage.views <= before->usage.views &&
           now->usage.deferred <= before->usage.deferred &&
           now->usage.asked_bytes <= before->usage.asked_bytes &&
           now->usage.mapped_bytes <= before->usage.mapped_bytes &&
           now->usage.pinned_bytes <= before->usage.pinned_bytes &&
           now->usage.device_bytes <= before->usage.device_bytes;
}

/* The status that a driver's answer is, whatever was asked of it. */
static wb_status driver_status(const char *function, int code)
{
    switch (code) {
    case 2: return starts(function, "cuMemHost") ? WB_ERR_OUT_OF_MEMORY : WB_ERR_DEVICE_MEMORY;
    case 100: return WB_ERR_NO_DEVICE;
    case 712: return WB_ERR_ALREADY_REGISTERED;
    case 801: return WB_ERR_NOT_SUPPORTED;
    default: return WB_ERR_DRIVER;
    }
}

static wb_status system_status(const char *function, int code)
{
    int of_proc = starts(system_failed_file(), "/proc/");
    if (strcmp(function, "mlock") == 0) return WB_ERR_MEMLOCK;
    if (strcmp(function, "mincore") == 0 || of_proc) return WB_ERR_INTERNAL;
    if (strcmp(function, "mmap") == 0 && (code == ENOMEM || system_failed_file()[0] == '\0')) {
        return WB_ERR_OUT_OF_MEMORY;
    }
    if (strcmp(function, "mprotect") == 0 || strcmp(function, "pthread_create") == 0 ||
        (strcmp(function, "madvise") == 0 && code != EFAULT)) {
        return WB_ERR_OUT_OF_MEMORY;
    }
    if (strcmp(function, "madvise") == 0) return WB_ERR_FILE_TRUNCATED;
    if (strcmp(function, "open") == 0 && code == ENOENT) return WB_ERR_FILE_MISSING;
    if (strcmp(function, "open") == 0 && code == EACCES) return WB_ERR_FILE_ACCESS;
    return WB_ERR_FILE_IO;
}

static void say(const struct fault *fault, const char *what)
{
    const char *name = fault_fired(fault);
    fprintf(stderr, "  %s: %s %s, call %d, code %d%s\n", what, name != NULL ? name : "no call",
            fault->layer == SYSTEM ? system_failed_file() : "", fault->kth,
            fault->code, fault->hang_ms > 0 ? " (hang)" : "");
}

/* The driver said that it cannot do this here, as it does where it never can. */
static int says_never(const struct fault *fault, wb_status status)
{
    const char *name = fault_fired(fault);
    return fault->layer == DRIVER && (fault->code == 1 || fault->code == 801) && name != NULL &&
           (starts(name, "cuMemHost") || starts(name, "cuDeviceGetAttribute")) &&
           (status == WB_ERR_NOT_MAPPED || status == WB_ERR_NOT_SUPPORTED);
}

/* A call of the library failed: the fault is the reason, the error says so, nothing is lost. */
static void failed_well(struct world *world, const char *call, wb_status status, struct observed before)
{
    const struct fault *fault = world->fault;
    const char *name = fault_fired(fault);
    int failures = check_failures;
    world->failed++;
    world->abandoned = fault->for_good || says_never(fault, status);
    if (world->abandoned) return;
    if (CHECK(name != NULL) && CHECK(world->failed == 1)) {
        wb_status expected = fault->layer == DRIVER ? driver_status(name, fault->code)
                                                    : system_status(name, fault->code);
        /* Memory of the host device is mapped as well. */
        if (status == WB_ERR_DEVICE_MEMORY && !on_cuda()) status = WB_ERR_OUT_OF_MEMORY;
        /* A file is examined when it is opened and when it has changed. */
        if (status == WB_ERR_FILE_ACCESS && strcmp(name, "stat") == 0) status = WB_ERR_FILE_IO;
        CHECK_SAME(status, expected);
        CHECK_SAME(error.driver_code, fault->code);
        CHECK(strstr(error.message, name) != NULL);
    }
    struct observed after = observe(world->device);
    for (int wait = 0; wait < 1000 && !world->keeps && !no_more(&after, &before); wait++) {
        sleep_ms(1); /* the thread that gives memory back may be at it */
        after = observe(world->device);
    }
    if (!world->keeps) CHECK(no_more(&after, &before));
    if (check_failures > failures) {
        say(fault, "failed");
        fprintf(stderr, "  in %s: \"%s\"\n", call, error.message);
    }
}

/* What the library does when a call fails and it can go on. */
static const struct answer {
    enum layer layer;
    const char *call; /* its beginning */
    int code;                /* 0: any */
    enum { GOES_ON, LOGS } how;
} answers[] = {
    {SYSTEM, "madvise(huge pages)", 0, GOES_ON}, /* a wish */
    {SYSTEM, "open", EINTR, GOES_ON},            /* asked again */
    {SYSTEM, "read", EINTR, GOES_ON},
    {SYSTEM, "pread", EINTR, GOES_ON},
    {SYSTEM, "ftruncate", EINTR, GOES_ON},
    {SYSTEM, "pthread_create", 0, LOGS}, /* started by the next who needs it */
    {SYSTEM, "munmap", 0, LOGS},         /* what cannot be given back stays */
    {SYSTEM, "munlock", 0, LOGS},
    {SYSTEM, "memfd_create", EACCES, LOGS}, /* forbidden: not known whether files can be registered */
    {SYSTEM, "ftruncate", EACCES, LOGS},
    {DRIVER, "cuMemHostUnregister", 0, LOGS},
    {DRIVER, "cuMemFree", 0, LOGS},
    {DRIVER, "cuEventDestroy", 0, LOGS},
    {DRIVER, "cuStreamDestroy", 0, LOGS},
    {DRIVER, "cuModuleUnload", 0, LOGS},
    {DRIVER, "cuDevicePrimaryCtxRelease", 0, LOGS},
    {DRIVER, "cuCtxPopCurrent", 0, LOGS},
    {DRIVER, "cuCtxPushCurrent", 0, LOGS}, /* on the way to giving something back */
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, LOGS},
    {DRIVER, "cuEventQuery", 0, LOGS},            /* by the thread that gives memory back */
    {DRIVER, "cuDeviceGetPCIBusId", 0, GOES_ON},  /* no node of memory is preferred */
    {DRIVER, "cuDeviceGetAttribute", 1, GOES_ON}, /* what is not known is not there */
    {DRIVER, "cuDeviceGetAttribute", 801, GOES_ON},
    {DRIVER, "cuMemHostGetDevicePointer", 1, GOES_ON}, /* pinned, and not seen by the device */
    {DRIVER, "cuMemHostGetDevicePointer", 801, GOES_ON},
    /* Not supported, said while memory is pinned: it is taken from the driver. */
    {DRIVER, "cuMemHostRegister", 801, GOES_ON},
    {DRIVER, "cuPointerGetAttribute", 801, GOES_ON},
    {DRIVER, "cuMemHostRegister", 1, GOES_ON}, /* asked when the device is opened: it cannot */
    {DRIVER, "cuPointerGetAttribute", 1, GOES_ON}, /* memory that the driver does not know */
    /* On the way to waiting for what is under way on memory that goes next, which is asked again. */
    {DRIVER, "cuEventSynchronize", 0, GOES_ON},
    {DRIVER, "cuStreamSynchronize", 0, GOES_ON},
    {DRIVER, "cuCtxPushCurrent", 0, GOES_ON},
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, GOES_ON},
};

/* Whether the call that failed was to give something back: the driver keeps it then. */
static int gives_back(const struct fault *fault)
{
    const char *name = fault_fired(fault);
    for (size_t i = 0; name != NULL && i < sizeof answers / sizeof answers[0]; i++) {
        const struct answer *each = &answers[i];
        if (each->how == LOGS && starts(name, each->call) &&
            (each->code == 0 || each->code == fault->code)) {
            return 1;
        }
    }
    return 0;
}

/* The fault came up and no call of the library failed: there is a reason why that is right.
 * `logged`: errors that went to the log meanwhile. */
static void absorbed_well(const struct world *world, uint64_t logged)
{
    const struct fault *fault = world->fault;
    const char *name = fault_fired(fault);
    if ((fault->hang_ms > 0 || world->told || fault->for_good) && logged == 0) return;
    if (fault->layer == SYSTEM && system_is_hint(system_failed_file()) && logged == 0) return;
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        const struct answer *each = &answers[i];
        if (each->layer == fault->layer && starts(name, each->call) &&
            (each->code == 0 || each->code == fault->code) && (each->how == LOGS) == (logged == 1) &&
            logged < 2) {
            return;
        }
    }
    check_failed(__FILE__, __LINE__, "nothing says that a call failed");
    say(fault, logged ? "absorbed and logged" : "absorbed");
}

/* Sees whether the buffer says that it came about in another way since a call failed. */
static void hear(struct world *world, const wb_buffer *buffer)
{
    const char *name = fault_fired(world->fault);
    if (name != NULL && strstr(describe(buffer).note, name) != NULL) world->told = 1;
}

/* A call that may be made to fail, once: it fails well, and succeeds when it is made again. */
#define STEP(call)                                                                   \
    do {                                                                             \
        struct observed before_ = observe(world->device);                            \
        check_clear();                                                               \
        wb_status status_ = (call);                                                  \
        if (status_ != WB_OK) {                                                      \
            failed_well(world, #call, status_, before_);                             \
            if (world->abandoned || !CHECK_OK(call)) return;                         \
        }                                                                            \
    } while (0)

#endif
