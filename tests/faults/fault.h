/* A call of the driver or of the system that fails, and the checks that follow. */
#ifndef FAULT_H
#define FAULT_H

#include <errno.h>

#include "observed.h"

enum layer { DRIVER, SYSTEM };

/* The k-th call of a layer fails with `code`, or succeeds after `hang_ms`. */
struct fault {
    enum layer layer;
    const char *function; /* of the driver, whose calls are counted; NULL: the calls of all */
    int kth, code, hang_ms;
    int hints;    /* see system_fail() */
    int for_good; /* every later call fails too, as with a driver that has ended */
};

/* The state of a scenario. */
struct world {
    wb_device *device;
    const struct fault *fault;
    int keeps_workspace; /* its object allocates at the first use, and frees that at its release */
    int failed;          /* calls of the library that failed because of the fault */
    int abandoned;       /* the scenario cannot go on, and ends */
    int not_mapped;      /* a buffer is pinned, but has no device address */
    int opens;           /* the scenario opens the device */
    int reported;        /* a buffer's reason for the fallback names the failed call */
    int waits_idle;      /* what it frees, the device may still use without the library knowing */
    int resizes;         /* a failed call has moved a part, and its retry moves the rest */
    int works_beside;    /* a thread shares the work of its call, and does all of it if it must */
    uint64_t most_device_bytes; /* if not 0: more are not held, also after a failed call */
    char path[300];
};

static inline int starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static void fault_arm(const struct fault *fault)
{
    char setting[64];
    if (fault->layer == SYSTEM) {
        system_fail(fault->kth, fault->code, fault->hints);
        return;
    }
    const char *function = fault->function != NULL ? fault->function : "*";
    if (fault->hang_ms > 0) {
        snprintf(setting, sizeof setting, "%s:%d:hang%d", function, fault->kth, fault->hang_ms);
    } else {
        snprintf(setting, sizeof setting, "%s:%d%s:%d", function, fault->kth, fault->for_good ? "+" : "",
                 fault->code);
    }
    double_set("WB_DOUBLE_FAIL", setting);
}

/* Returns the function that failed; NULL if none has yet. */
static const char *fault_fired(const struct fault *fault)
{
    const char *(*failed)(void);
    if (fault->layer == SYSTEM) return system_failed();
    return driver_function("double_failed", &failed) ? failed() : NULL;
}

/* Returns the status for a code of a driver function. */
static wb_status status_of_driver(const char *function, int code)
{
    switch (code) {
    case 2: return starts_with(function, "cuMemHost") ? WB_ERR_OUT_OF_MEMORY : WB_ERR_DEVICE_MEMORY;
    case 100: return WB_ERR_NO_DEVICE;
    case 712: return WB_ERR_ALREADY_REGISTERED;
    case 801: return WB_ERR_NOT_SUPPORTED;
    default: return WB_ERR_DRIVER;
    }
}

/* Returns the status for an errno of a system call. */
static wb_status status_of_system(const char *function, int code)
{
    int of_proc = starts_with(system_failed_file(), "/proc/");
    if (strcmp(function, "mlock") == 0) return WB_ERR_MEMLOCK;
    if (strcmp(function, "mincore") == 0 && code == ENOMEM) return WB_ERR_UNMAPPED_RANGE;
    if (strcmp(function, "mincore") == 0 || of_proc) return WB_ERR_INTERNAL;
    if (strcmp(function, "mmap") == 0 && (code == ENOMEM || system_failed_file()[0] == '\0')) {
        return WB_ERR_OUT_OF_MEMORY;
    }
    if (code == ENOMEM &&
        (strcmp(function, "memfd_create") == 0 || strcmp(function, "ftruncate") == 0)) {
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

static void print_fault(const struct fault *fault, const char *what)
{
    const char *name = fault_fired(fault);
    fprintf(stderr, "  %s: %s %s, call %d, code %d%s\n", what, name != NULL ? name : "no call",
            fault->layer == SYSTEM ? system_failed_file() : "", fault->kth,
            fault->code, fault->hang_ms > 0 ? " (hang)" : "");
}

/* The driver returned no device address for pinned memory, as on a platform without one. The buffer is
 * valid, and a later call that needs the address fails. */
static int is_not_mapped(const struct fault *fault, wb_status status)
{
    const char *name = fault_fired(fault);
    return fault->layer == DRIVER && (fault->code == 1 || fault->code == 801) && name != NULL &&
           starts_with(name, "cuMemHostGetDevicePointer") && status == WB_ERR_NOT_MAPPED;
}

/* Returns 1 if the message names a call that failed. A driver that has ended failed several. */
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
    wb_status expected = fault->layer == DRIVER ? status_of_driver(name, fault->code)
                                                : status_of_system(name, fault->code);
    CHECK_SAME(error.status, status);
    /* Host memory, too, is created by it. */
    if (strcmp(name, "cuMemCreate") == 0 && status == WB_ERR_OUT_OF_MEMORY) status = WB_ERR_DEVICE_MEMORY;
    /* The host device takes its device memory by mmap. */
    if (status == WB_ERR_DEVICE_MEMORY && !on_cuda()) status = WB_ERR_OUT_OF_MEMORY;
    /* stat is called when a file is opened, and again to see whether it has changed. */
    if (status == WB_ERR_FILE_ACCESS && strcmp(name, "stat") == 0) status = WB_ERR_FILE_IO;
    CHECK_SAME(status, expected);
    CHECK_SAME(error.code, fault->code);
    CHECK_SAME(error.code_domain, fault->layer == DRIVER ? WB_CODE_CUDA : WB_CODE_ERRNO);
    CHECK(names_the_call(fault));
}

/* Checks a call of the library that failed: the error names the fault, and nothing leaks. */
static void check_failed_call(struct world *world, const char *call, wb_status status,
                              struct observed before)
{
    const struct fault *fault = world->fault;
    const int ended = fault->for_good;
    const wb_error failed = error;
    int failures = check_failures;
    world->failed++;
    world->abandoned = ended;
    if (CHECK(fault_fired(fault) != NULL) && CHECK(world->failed == 1)) {
        if (is_not_mapped(fault, status)) {
            world->not_mapped = 1;
            CHECK(names_the_call(fault));
        } else {
            check_error(fault, status);
        }
    }
    struct observed after = observe(world->device);
    const int counts = !world->keeps_workspace && !world->resizes;
    for (int wait = 0; wait < 1000 && counts && !no_more(&after, &before, ended); wait++) {
        sleep_ms(1); /* the thread for deferred releases may be at work */
        after = observe(world->device);
    }
    if (counts && !CHECK(no_more(&after, &before, ended))) print_observed(&after, &before);
    if (world->most_device_bytes > 0) CHECK(after.usage.device_bytes <= world->most_device_bytes);
    if (check_failures > failures) {
        print_fault(fault, "failed");
        fprintf(stderr, "  in %s: \"%s\"\n", call, failed.message);
    }
}

/* Checks the retry of a failed call. Returns 0 if the scenario cannot go on. */
static int check_retry(struct world *world, const char *call, wb_status status)
{
    /* The buffer still has no device address. */
    if (world->not_mapped && status == WB_ERR_NOT_MAPPED &&
        (starts_with(call, "wb_view_new") || starts_with(call, "experts_new"))) {
        world->abandoned = 1;
        return 0;
    }
    return check_status(__FILE__, __LINE__, call, WB_OK, status, NULL);
}

/* The calls whose failure the library handles without failing itself, and how. */
static const struct handling {
    enum layer layer;
    const char *call; /* prefix of its name */
    int code;         /* 0: any */
    enum {
        IGNORED,     /* the library does without it */
        BESIDE,      /* the thread that calls does the work of the one that did not start */
        RETRIED,     /* the thread makes the same call again */
        SUBSTITUTED, /* to wait for the device, pinned host memory is freed instead */
        RELEASED,    /* the device is released anyway, as the driver's counters show */
        LOGGED
    } how;
} handlings[] = {
    {SYSTEM, "madvise(huge pages)", 0, IGNORED}, /* advice */
    {SYSTEM, "open", EINTR, RETRIED},
    {SYSTEM, "read", EINTR, RETRIED},
    {SYSTEM, "pread", EINTR, RETRIED},
    {SYSTEM, "ftruncate", EINTR, RETRIED},
    {SYSTEM, "pthread_create", 0, BESIDE},
    {SYSTEM, "pthread_create", 0, LOGGED}, /* the next call that needs the thread starts it */
    {SYSTEM, "munmap", 0, LOGGED},         /* the memory stays mapped */
    {SYSTEM, "munlock", 0, LOGGED},
    {SYSTEM, "fallocate", 0, LOGGED}, /* the pages are freed by a later call */
    {SYSTEM, "mmap", 0, LOGGED},      /* of addresses that are released: again by a later call */
    {SYSTEM, "memfd_create", EACCES, LOGGED}, /* whether files can be registered stays unknown */
    {SYSTEM, "ftruncate", EACCES, LOGGED},
    {DRIVER, "cuMemHostUnregister", 0, LOGGED},
    {DRIVER, "cuMemFree", 0, LOGGED},
    {DRIVER, "cuMemUnmap", 0, LOGGED}, /* it and the next two are repeated by a later call */
    {DRIVER, "cuMemRelease", 0, LOGGED},
    {DRIVER, "cuMemAddressFree", 0, LOGGED},
    {DRIVER, "cuEventDestroy", 0, LOGGED},
    {DRIVER, "cuStreamDestroy", 0, LOGGED},
    {DRIVER, "cuModuleUnload", 0, LOGGED},
    {DRIVER, "cuMemAlloc", 2, LOGGED}, /* less is compressed by the device, or the host does it */
    {DRIVER, "cuDevicePrimaryCtxRelease", 0, LOGGED},
    {DRIVER, "cuCtxPopCurrent", 0, LOGGED},
    {DRIVER, "cuCtxPushCurrent", 0, LOGGED}, /* before a release */
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, LOGGED},
    {DRIVER, "cuEventQuery", 0, LOGGED},          /* by the thread for deferred releases */
    {DRIVER, "cuGetError", 0, IGNORED},           /* the message has the number alone */
    {DRIVER, "cuDeviceGetPCIBusId", 0, IGNORED},  /* no NUMA node is preferred */
    {DRIVER, "cuDeviceGetAttribute", 1, IGNORED}, /* an unknown capability is treated as absent */
    {DRIVER, "cuDeviceGetAttribute", 801, IGNORED},
    {DRIVER, "cuMemGetAllocationGranularity", 1, IGNORED}, /* without fixed addresses, which the info says */
    {DRIVER, "cuMemGetAllocationGranularity", 801, IGNORED},
    {DRIVER, "cuMemHostGetDevicePointer", 1, IGNORED}, /* pinned, but not device-mapped */
    {DRIVER, "cuMemHostGetDevicePointer", 801, IGNORED},
    /* Not supported, when memory is pinned: the driver allocates it instead. */
    {DRIVER, "cuMemHostRegister", 801, IGNORED},
    {DRIVER, "cuPointerGetAttribute", 801, IGNORED},
    {DRIVER, "cuMemHostRegister", 1, IGNORED},     /* the test of this capability at opening */
    {DRIVER, "cuPointerGetAttribute", 1, IGNORED}, /* memory unknown to the driver */
    /* Before memory that the device may still use is freed. */
    {DRIVER, "cuEventSynchronize", 0, RETRIED},
    {DRIVER, "cuStreamSynchronize", 0, RETRIED},
    {DRIVER, "cuCtxPushCurrent", 0, RETRIED},
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, RETRIED},
    {DRIVER, "cuMemAlloc", 0, SUBSTITUTED},
    /* Before the query whether the context still exists. */
    {DRIVER, "cuCtxPushCurrent", 0, RELEASED},
    {DRIVER, "cuThreadExchangeStreamCaptureMode", 0, RELEASED},
};

/* Whether a later call has released what the failed one was to release. */
static int is_released_later(const struct fault *fault)
{
    static const char *const calls[] = {"fallocate", "cuMemUnmap", "cuMemRelease", "cuMemAddressFree"};
    const char *name = fault_fired(fault);
    for (size_t i = 0; name != NULL && i < sizeof calls / sizeof calls[0]; i++) {
        if (strcmp(name, calls[i]) == 0) return !fault->for_good;
    }
    return 0;
}

static long long calls_of(const char *function)
{
    long long (*calls)(const char *);
    return driver_function("double_calls", &calls) ? calls(function) : 0;
}

static int was_retried(const struct fault *fault)
{
    int (*repeated)(void);
    if (fault->layer == SYSTEM) return system_was_retried();
    return CHECK(driver_function("double_failed_call_repeated", &repeated)) && repeated() == 1;
}

/* Returns 1 if the library handled the fault in this way. */
static int is_handled(const struct handling *handling, const struct world *world, uint64_t logged)
{
    const struct fault *fault = world->fault;
    if (handling->layer != fault->layer || !starts_with(fault_fired(fault), handling->call)) return 0;
    if (handling->code != 0 && handling->code != fault->code) return 0;
    if (handling->how == LOGGED) return logged == 1;
    if (handling->how == BESIDE && !world->works_beside) return 0;
    if (handling->how == RETRIED && !was_retried(fault)) return 0;
    if (handling->how == RELEASED && !world->opens) return 0;
    if (handling->how == SUBSTITUTED && (!world->waits_idle || calls_of("cuMemFreeHost") != 1)) return 0;
    return logged == 0;
}

/* Checks that a fault that made no call of the library fail was handled. `logged` counts the errors logged
 * since. */
static void check_absorbed(const struct world *world, uint64_t logged)
{
    const struct fault *fault = world->fault;
    if ((fault->hang_ms > 0 || world->reported || fault->for_good) && logged == 0) return;
    if (fault->layer == SYSTEM && system_is_hint(system_failed_file()) && logged == 0) return;
    for (size_t i = 0; i < sizeof handlings / sizeof handlings[0]; i++) {
        if (is_handled(&handlings[i], world, logged)) return;
    }
    check_failed(__FILE__, __LINE__, "a call failed, and neither a status nor the log reports it");
    print_fault(fault, logged ? "absorbed and logged" : "absorbed");
}

/* Sees whether the buffer's reason for a fallback names the failed call. */
static void read_reason(struct world *world, const wb_buffer *buffer)
{
    const char *name = fault_fired(world->fault);
    if (name != NULL && strstr(buffer_info(buffer).fallback_reason, name) != NULL) world->reported = 1;
}

/* A call that the fault may make fail, once. The failure is checked, and a retry must succeed. Otherwise
 * the scenario jumps to its label `out` and releases its objects. */
#define STEP(call)                                                                   \
    do {                                                                             \
        struct observed before_ = observe(world->device);                            \
        check_clear();                                                               \
        wb_status status_ = (call);                                                  \
        if (status_ == WB_OK) break;                                                 \
        check_failed_call(world, #call, status_, before_);                           \
        if (world->abandoned) goto out;                                              \
        check_clear();                                                               \
        if (!check_retry(world, #call, (call))) goto out;                            \
    } while (0)

#endif
