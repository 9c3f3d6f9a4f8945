/* The prologue of every entry point: checks for a fork, counts the call, injects failures, checks
 * initialization and context. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"

struct driver driver = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .next_handle = (uintptr_t)0xdb << 48,
};

_Thread_local int inside_host_function;

/* Atomic instead of guarded by the lock: in a forked child the lock may stay held for ever. */
static _Atomic pid_t initialized_by;

static long long calls[FUNCTION_COUNT];

/* The stream or event that a call waits for: see set_call_subject(). */
static _Thread_local const void *subject;

/* The first call that an injected failure matched, and whether its thread has repeated it. */
static struct {
    const char *name;
    const void *subject;
    pthread_t thread;
    int repeated;
} first_failed;

static long long failures[FUNCTION_COUNT];

static const char *const function_names[FUNCTION_COUNT] = {
#define FUNCTION_NAME(name) #name,
    FUNCTIONS(FUNCTION_NAME)
#undef FUNCTION_NAME
};

const char *function_name(int function)
{
    return function >= 0 && function < FUNCTION_COUNT ? function_names[function] : NULL;
}

int function_by_name(const char *name, size_t length)
{
    int function = 0;
    while (function < FUNCTION_COUNT && (strlen(function_names[function]) != length ||
                                         memcmp(function_names[function], name, length) != 0)) {
        function++;
    }
    return function;
}

int process_is_forked_child(void)
{
    pid_t owner = atomic_load(&initialized_by);
    return owner != 0 && owner != getpid();
}

void driver_mark_initialized(void)
{
    atomic_store(&initialized_by, getpid());
}

int driver_is_initialized(void)
{
    return atomic_load(&initialized_by) != 0;
}

long long calls_of(int function)
{
    if (function != FUNCTION_ANY) return calls[function];
    long long sum = 0;
    for (int each = 0; each < FUNCTION_COUNT; each++) sum += calls[each];
    return sum;
}

static const struct failure *matching_failure(int function, int counts_for_any)
{
    const struct failure *injected = NULL;
    for (int i = 0; i < driver.settings.failure_count; i++) {
        struct failure *failure = &driver.settings.failures[i];
        int matches = failure->function == function ||
                      (failure->function == FUNCTION_ANY && counts_for_any);
        if (!matches) continue;
        failure->seen++;
        int due = failure->all_after ? failure->seen >= failure->nth
                                     : failure->nth == 0 || failure->nth == failure->seen;
        if (injected == NULL && due) injected = failure;
    }
    if (injected == NULL) return NULL;
    failures[function]++;
    if (first_failed.name == NULL) {
        first_failed.name = function_names[function];
        first_failed.subject = subject;
        first_failed.thread = pthread_self();
    }
    return injected;
}

void failures_reset(void)
{
    memset(&first_failed, 0, sizeof first_failed);
    memset(failures, 0, sizeof failures);
}

const char *first_failed_function(void)
{
    return first_failed.name;
}

long long failures_of(int function)
{
    return failures[function];
}

int first_failed_call_repeated(void)
{
    return first_failed.repeated;
}

void set_call_subject(const void *object)
{
    subject = object;
}

static void note_repetition(int function)
{
    if (first_failed.name == function_names[function] && first_failed.subject == subject &&
        pthread_equal(first_failed.thread, pthread_self())) {
        first_failed.repeated = 1;
    }
}

/* Fails the call or delays it where the settings say so; the lock is free during the delay. */
static CUresult apply_failure(enum function function)
{
    const struct failure *failure = matching_failure(function, 1);
    if (failure == NULL) return CUDA_SUCCESS;
    if (failure->hang_ms == 0) {
        /* After a shutdown no queued work may still use memory that the caller frees next. */
        if (failure->code == CUDA_ERROR_DEINITIALIZED) streams_drain(NULL, -1);
        return failure->code;
    }
    const struct timespec time = {failure->hang_ms / 1000, failure->hang_ms % 1000 * 1000000L};
    pthread_mutex_unlock(&driver.lock);
    nanosleep(&time, NULL);
    pthread_mutex_lock(&driver.lock);
    return CUDA_SUCCESS;
}

static CUresult check_call(enum function function, unsigned needs)
{
    settings_load();
    calls[function]++;
    note_repetition(function);
    CUresult result = apply_failure(function);
    subject = NULL;
    if (result != CUDA_SUCCESS) return result;
    if ((needs & NEEDS_INIT) && !driver_is_initialized()) return CUDA_ERROR_NOT_INITIALIZED;
    if ((needs & NEEDS_CONTEXT) == NEEDS_CONTEXT) {
        result = context_check_current();
        if (result != CUDA_SUCCESS) return result;
    }
    return (needs & UNSAFE_IN_CAPTURE) ? capture_check_unsafe() : CUDA_SUCCESS;
}

CUresult enter(enum function function, unsigned needs)
{
    if (process_is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    if (inside_host_function) return CUDA_ERROR_NOT_PERMITTED;
    pthread_mutex_lock(&driver.lock);
    CUresult result = check_call(function, needs);
    return result == CUDA_SUCCESS ? result : leave(result);
}

CUresult leave(CUresult result)
{
    pthread_mutex_unlock(&driver.lock);
    return result;
}

CUresult enter_constant(enum function function)
{
    if (process_is_forked_child()) return CUDA_SUCCESS;
    pthread_mutex_lock(&driver.lock);
    settings_load();
    calls[function]++;
    const struct failure *failure = matching_failure(function, 0);
    return leave(failure == NULL ? CUDA_SUCCESS : failure->code);
}

void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (memory == NULL) {
        fputs("driver double: out of memory\n", stderr);
        abort();
    }
    return memory;
}

void *handle_new(void)
{
    driver.next_handle += 16;
    return (void *)driver.next_handle;
}
