/* Checks that print what failed and why, and a runner that opens a device for each case and checks
 * that the case leaks nothing. Compiles as C11 and C++17.
 *
 *   static void a_promise_is_kept(wb_device *device) { CHECK(...); }
 *   CHECK_MAIN(CASE(a_promise_is_kept))
 */
#ifndef CHECK_H
#define CHECK_H

#include <dlfcn.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "weighbridge.h"

/* Receives the error of each checked call; one per thread. */
static __thread wb_error error = WB_ERROR_INIT;

static int check_failures;       /* of the current case */
static const char *check_reason; /* why the current case is not run here */
static int check_logged;         /* errors that the current case expects to be logged */

#ifdef CHECK_FAILED_ELSEWHERE /* a program of several files has one count for all */
void check_failed(const char *file, int line, const char *what);
#else
static inline void check_failed(const char *file, int line, const char *what)
{
    __atomic_fetch_add(&check_failures, 1, __ATOMIC_RELAXED);
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
}
#endif

static inline int check_true(const char *file, int line, const char *what, int holds)
{
    if (!holds) check_failed(file, line, what);
    return holds;
}

static inline int check_same(const char *file, int line, const char *what, uint64_t got,
                             uint64_t expected)
{
    char text[600];
    if (got == expected) return 1;
    snprintf(text, sizeof text, "%s: is %" PRIu64 " (%#" PRIx64 "), expected %" PRIu64, what, got,
             got, expected);
    check_failed(file, line, text);
    return 0;
}

static inline void check_clear(void)
{
    error.status = WB_OK;
    error.message[0] = '\0';
}

/* The message of a failed call must contain all of `words`, which are separated by '|'. */
static inline int check_status(const char *file, int line, const char *what, wb_status expected,
                               wb_status got, const char *words)
{
    char text[1400];
    const char *name = wb_status_name(got);
    if (got != expected) {
        snprintf(text, sizeof text, "%s: %s, expected %s: \"%s\"", what, name ? name : "no status",
                 wb_status_name(expected), error.message);
        check_failed(file, line, text);
        return 0;
    }
    if (got != WB_OK && error.status != got) {
        check_failed(file, line, "the status in the error differs from the returned one");
    }
    while (words != NULL && *words != '\0') {
        char word[100];
        size_t length = strcspn(words, "|");
        snprintf(word, sizeof word, "%.*s", (int)length, words);
        if (strstr(error.message, word) == NULL) {
            snprintf(text, sizeof text, "%s: the message lacks \"%s\": \"%s\"", what, word,
                     error.message);
            check_failed(file, line, text);
        }
        words += length + (words[length] == '|');
    }
    return 1;
}

#define CHECK(condition) check_true(__FILE__, __LINE__, #condition, !!(condition))
#define CHECK_SAME(got, expected) \
    check_same(__FILE__, __LINE__, #got, (uint64_t)(got), (uint64_t)(expected))
#define CHECK_OK(call) \
    (check_clear(), check_status(__FILE__, __LINE__, #call, WB_OK, (call), NULL))
/* The call fails with this status and a message that contains these words: "asked|found". */
#define CHECK_ERROR(status, call, words) \
    (check_clear(), check_status(__FILE__, __LINE__, #call, status, (call), words))
/* The same with failures injected into the driver double: see WB_DOUBLE_FAIL. */
#define CHECK_INJECTED(failures, status, call, words)   \
    do {                                                \
        double_set("WB_DOUBLE_FAIL", failures);         \
        CHECK_ERROR(status, call, words);               \
        double_set("WB_DOUBLE_FAIL", "");               \
    } while (0)
/* The call refuses a NULL argument and names it. */
#define CHECK_NULL(call, words) CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, call, words)
/* The value of a pointer that a refused call must not change. */
#define UNTOUCHED(type) ((type *)(void *)&check_failures)
/* As CHECK and CHECK_OK; a failure ends the case. */
#define REQUIRE(condition) do { if (!CHECK(condition)) return; } while (0)
#define REQUIRE_OK(call) do { if (!CHECK_OK(call)) return; } while (0)
/* Ends a case that cannot run here. */
#define NOT_RUN(why) do { check_reason = (why); return; } while (0)

static inline const char *test_device(void)
{
    const char *name = getenv("WEIGHBRIDGE_TEST_DEVICE");
    return name != NULL ? name : "host";
}

static inline int on_cuda(void)
{
    return strncmp(test_device(), "cuda:", 5) == 0;
}

/* Finds a function of the driver or of its double; `function` points to a function pointer. */
static inline int driver_function(const char *name, void *function)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    void *found = library != NULL ? dlsym(library, name) : NULL;
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static inline int on_double(void)
{
    int (*depth)(void);
    return on_cuda() && driver_function("double_context_depth", &depth);
}

/* The driver double's count of live objects of a kind; 0 on other devices. */
static inline long long double_alive(const char *kind)
{
    long long (*live)(const char *);
    return on_cuda() && driver_function("double_live", &live) ? live(kind) : 0;
}

static inline long long double_called(const char *name)
{
    long long (*count)(const char *);
    return driver_function("double_calls", &count) ? count(name) : -1;
}

static inline void double_set(const char *name, const char *value)
{
    int (*configure)(const char *, const char *);
    if (driver_function("double_configure", &configure)) CHECK(configure(name, value) == 0);
}

static inline wb_device_stats device_stats(const wb_device *device)
{
    wb_device_stats usage = WB_DEVICE_STATS_INIT;
    CHECK_OK(wb_device_get_stats(device, &usage, &error));
    return usage;
}

static inline void check_same_usage(const char *file, int line, wb_device_stats now,
                                    wb_device_stats before)
{
    check_same(file, line, "buffers alive", now.buffers, before.buffers);
    check_same(file, line, "views alive", now.views, before.views);
    check_same(file, line, "references deferred", now.deferred, before.deferred);
    check_same(file, line, "asked bytes", now.asked_bytes, before.asked_bytes);
    check_same(file, line, "mapped bytes", now.mapped_bytes, before.mapped_bytes);
    check_same(file, line, "pinned bytes", now.pinned_bytes, before.pinned_bytes);
    check_same(file, line, "device bytes", now.device_bytes, before.device_bytes);
}

#define CHECK_STATS(device, before) \
    check_same_usage(__FILE__, __LINE__, device_stats(device), before)

static inline void sleep_ms(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

enum check_where { EVERYWHERE, HOST_ONLY, CUDA_ONLY, DOUBLE_ONLY };

struct check_case {
    const char *name;
    void (*run)(wb_device *device);
    enum check_where where;
    int alone; /* in its own process, without an open device: `device` is NULL */
};

#define CASE(function) {#function, function, EVERYWHERE, 0}
#define CASE_ON(where, function) {#function, function, where, 0}
#define CASE_ALONE(where, function) {#function, function, where, 1}

static const char *const check_kinds[] = {"registrations", "registered_bytes", "host_allocations",
                                          "host_bytes", "device_allocations", "device_bytes",
                                          "streams", "events", "contexts", "captures", "orphans",
                                          "reservations", "physical_memory"};
enum { CHECK_KINDS = sizeof check_kinds / sizeof check_kinds[0] };

/* The thread that releases memory may keep the device open shortly after the last release. */
static inline void check_driver_empty(const long long before[CHECK_KINDS])
{
    for (int kind = 0; kind < CHECK_KINDS; kind++) {
        for (int wait = 0; wait < 1000 && double_alive(check_kinds[kind]) != before[kind]; wait++) {
            sleep_ms(1);
        }
        check_same(__FILE__, __LINE__, check_kinds[kind], (uint64_t)double_alive(check_kinds[kind]),
                   (uint64_t)before[kind]);
    }
}

static inline void check_with_device(const struct check_case *each)
{
    wb_device *device = NULL;
    wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    int (*depth)(void) = NULL;
    long long before[CHECK_KINDS];
    for (int kind = 0; kind < CHECK_KINDS; kind++) before[kind] = double_alive(check_kinds[kind]);
    if (!CHECK_OK(wb_device_open(test_device(), NULL, &device, &error))) return;
    uint64_t logged = device_stats(device).errors_logged;
    each->run(device);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_STATS(device, nothing);
    CHECK_SAME(device_stats(device).errors_logged - logged, check_logged);
    wb_device_release(device);
    check_driver_empty(before);
    if (on_double() && driver_function("double_context_depth", &depth)) CHECK_SAME(depth(), 0);
}

/* Returns 1 if the case ran, in this process or in its own. */
static inline int check_one(const struct check_case *each)
{
    check_failures = check_logged = 0;
    check_reason = NULL;
    if (!each->alone) {
        check_with_device(each);
        return check_reason == NULL;
    }
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        each->run(NULL);
        if (check_reason != NULL) printf("--   %s: not run: %s\n", each->name, check_reason);
        fflush(NULL);
        _exit(check_failures > 0 ? 1 : check_reason != NULL ? 77 : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) fprintf(stderr, "  ended by signal %d\n", WTERMSIG(status));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return 0;
    check_failures = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    return 1;
}

static inline const char *check_not_here(const struct check_case *each)
{
    switch (each->where) {
    case HOST_ONLY: return on_cuda() ? "it needs the host device" : NULL;
    case CUDA_ONLY: return on_cuda() ? NULL : "it needs a CUDA device";
    case DOUBLE_ONLY: return on_double() ? NULL : "it needs the driver double";
    default: return NULL;
    }
}

static inline int check_run(const struct check_case *cases, size_t count)
{
    int passed = 0, failed = 0, not_run = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < count; i++) {
        const char *why = check_not_here(&cases[i]);
        int ran = why == NULL && check_one(&cases[i]);
        if (check_failures > 0 && why == NULL) {
            failed++;
            printf("FAIL %s\n", cases[i].name);
        } else if (ran) {
            passed++;
            printf("ok   %s\n", cases[i].name);
        } else {
            not_run++;
            why = why != NULL ? why : check_reason; /* NULL: its own process printed it */
            if (why != NULL) printf("--   %s: not run: %s\n", cases[i].name, why);
        }
    }
    printf("%s: %d passed, %d failed", test_device(), passed, failed);
    if (not_run > 0) printf(", %d not run here", not_run);
    printf("\n");
    return failed > 0 || passed == 0;
}

#define CHECK_MAIN(...)                                                  \
    int main(void)                                                       \
    {                                                                    \
        const struct check_case cases[] = {__VA_ARGS__};                 \
        return check_run(cases, sizeof cases / sizeof cases[0]);         \
    }

#endif
