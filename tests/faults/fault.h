/* One call of the driver or of the system that fails, and what must hold when it does. */
#ifndef FAULT_H
#define FAULT_H

#include <errno.h>

#include "observed.h"

enum layer { DRIVER, SYSTEM };

/* The k-th call of a layer answers `code`, or takes `hang_ms` and then does what it is asked. */
struct fault {
    enum layer layer;
    int kth, code, hang_ms;
    int hints;    /* system_fail() */
    int for_good; /* every call after it as well: the driver has ended */
};

/* What a scenario works with. */
struct world {
    wb_device *device;
    const struct fault *fault;
    int keeps;     /* its object makes what it needs at the first use, and keeps it to its end */
    int failed;    /* calls of the library that the fault made fail */
    int abandoned; /* the scenario ended there: what it asked for is not to be had any more */
    int unseen;    /* a buffer was pinned that the device cannot see */
    int opens;     /* the scenario opens the device */
    int told;      /* what was made says that the call failed */
    int reads_any; /* the device reads memory that is not pinned */
    char path[300];
};

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

/* The driver gave no address for pinned memory, as where it has none: the buffer is there, and what
 * needs that the device sees it fails later, for itself. */
static int is_unseen(const struct fault *fault, wb_status status)
{
    const char *name = fault_fired(fault);
    return fault->layer == DRIVER && (fault->code == 1 || fault->code == 801) && name != NULL &&
           starts(name, "cuMemHostGetDevicePointer") && status == WB_ERR_NOT_MAPPED;
}

/* Whether the error names a call that failed. A driver that has ended failed several. */
static int names_the_call(const struct fault *fault)
{
    char word[100];
    long long (*failures)(const char *);
    const char *found = error.message;
    if (!fault->for_good) return strstr(error.message, fault_fired(fault)) != NULL;
    while (driver_function("double_failures", &failures) && (found = strstr(found, "cu")) != NULL) {
        size_t length = strspn(found, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
        snprintf(word, sizeof word, "%.*s", (int)length, found);
        if (failures(word) > 0) return 1;
        found += length;
    }
    return 0;
}

static void check_error(const struct fault *fault, wb_status status)
{
    const char *name = fault_fired(fault);
    wb_status expected = fault->layer == DRIVER ? driver_status(name, fault->code)
                                                : system_status(name, fault->code);
    CHECK_SAME(error.status, status);
    /* Memory of the host device is mapped as well. */
    if (status == WB_ERR_DEVICE_MEMORY && !on_cuda()) status = WB_ERR_OUT_OF_MEMORY;
    /* A file is examined when it is opened and when it has changed. */
    if (status == WB_ERR_FILE_ACCESS && strcmp(name, "stat") == 0) status = WB_ERR_FILE_IO;
    CHECK_SAME(status, expected);
    CHECK_SAME(error.driver_code, fault->code);
    CHECK(names_the_call(fault));
}

/* A call of the library failed: the fault is the reason, the error says so, nothing is lost. */
static void failed_well(struct world *world, const char *call, wb_status status, struct observed before)
{
    const struct fault *fault = world->fault;
    const int ended = fault->for_good;
    const wb_error answer = error;
    int failures = check_failures;
    world->failed++;
    world->abandoned = ended;
    if (CHECK(fault_fired(fault) != NULL) && CHECK(world->failed == 1)) {
        if (is_unseen(fault, status)) {
            world->unseen = 1;
            CHECK(names_the_call(fault));
        } else {
            check_error(fault, status);
        }
    }
    struct observed after = observe(world->device);
    for (int wait = 0; wait < 1000 && !world->keeps && !no_more(&after, &before, ended); wait++) {
        sleep_ms(1); /* the thread that gives memory back may be at it */
        after = observe(world->device);
    }
    if (!world->keeps && !CHECK(no_more(&after, &before, ended))) say_more(&after, &before);
    if (check_failures > failures) {
        say(fault, "failed");
        fprintf(stderr, "  in %s: \"%s\"\n", call, answer.message);
    }
}

/* The call that failed was made again. 0: the scenario ends there. */
static int again_well(struct world *world, const char *call, wb_status status)
{
    /* The buffer is as it was made. */
    if (world->unseen && status == WB_ERR_NOT_MAPPED && starts(call, "wb_view_new")) {
        world->abandoned = 1;
        return 0;
    }
    return check_status(__FILE__, __LINE__, call, WB_OK, status, NULL);
}

/* What the library does when a call fails and it can go on. */
static const struct answer {
    enum layer layer;
    const char *call; /* its beginning */
    int code;                /* 0: any */
    enum {
        GOES_ON, /* without it */
        AGAIN,   /* the call is made again */
        INSTEAD, /* memory of the host, to wait for a device that reads memory which is not pinned */
        CLOSES,  /* the device all the same, as the driver's counters show */
        LOGS
    } how;
} answers[] = {
    {SYSTEM, "madvise(huge pages)", 0, GOES_ON}, /* a wish */
    {SYSTEM, "open", EINTR, AGAIN},
    {SYSTEM, "read", EINTR, AGAIN},
    {SYSTEM, "pread", EINTR, AGAIN},
    {SYSTEM, "ftruncate", EINTR, AGAIN},
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
    /* On the way to waiting for what is under way on memory that goes next. */
    {DRIVER, "cuEventSynchronize", 0, AGAIN},
    {DRIVER, "cuStreamSynchronize", 0, AGAIN},
    {DRIVER, "cuCtxPushCurrent", 0, AGAIN},
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, AGAIN},
    {DRIVER, "cuMemAlloc", 0, INSTEAD},
    /* On the way to asking whether there is still a context to release. */
    {DRIVER, "cuCtxPushCurrent", 0, CLOSES},
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, CLOSES},
};

static long long calls_of(const char *function)
{
    long long (*calls)(const char *);
    return driver_function("double_calls", &calls) ? calls(function) : 0;
}

static int asked_again(const struct fault *fault)
{
    int (*again)(void);
    if (fault->layer == SYSTEM) return system_asked_again();
    return driver_function("double_failed_call_repeated", &again) && again() == 1;
}

/* Whether what the library did is this answer to the fault. */
static int is_answer(const struct answer *answer, const struct world *world, uint64_t logged)
{
    const struct fault *fault = world->fault;
    if (answer->layer != fault->layer || !starts(fault_fired(fault), answer->call)) return 0;
    if (answer->code != 0 && answer->code != fault->code) return 0;
    if (answer->how == LOGS) return logged == 1;
    if (answer->how == AGAIN && !asked_again(fault)) return 0;
    if (answer->how == CLOSES && !world->opens) return 0;
    if (answer->how == INSTEAD && (!world->reads_any || calls_of("cuMemFreeHost") != 1)) return 0;
    return logged == 0;
}

/* The fault came up and no call of the library failed: there is a reason why that is right.
 * `logged`: errors that went to the log meanwhile. */
static void absorbed_well(const struct world *world, uint64_t logged)
{
    const struct fault *fault = world->fault;
    if ((fault->hang_ms > 0 || world->told || fault->for_good) && logged == 0) return;
    if (fault->layer == SYSTEM && system_is_hint(system_failed_file()) && logged == 0) return;
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        if (is_answer(&answers[i], world, logged)) return;
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

/* A call that may be made to fail, once: it fails well, and succeeds when it is made again. Where it
 * cannot, the scenario goes to its label `out`, where it gives back what it has. */
#define STEP(call)                                                                   \
    do {                                                                             \
        struct observed before_ = observe(world->device);                            \
        check_clear();                                                               \
        wb_status status_ = (call);                                                  \
        if (status_ == WB_OK) break;                                                 \
        failed_well(world, #call, status_, before_);                                 \
        if (world->abandoned) goto out;                                              \
        check_clear();                                                               \
        if (!again_well(world, #call, (call))) goto out;                             \
    } while (0)

#endif
