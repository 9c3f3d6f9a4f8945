/* The harness of the self-test. Each test runs in its own process, before any
 * call of cuInit. */
#ifndef WB_DOUBLE_SELFTEST_H
#define WB_DOUBLE_SELFTEST_H

#include <stdint.h>

#include "cuda_api.h"
#include "double.h"

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(name) {#name, name}

/* Each array ends with an entry whose name is NULL. */
extern const struct test capture_tests[], context_tests[], control_tests[], copy_tests[],
    address_tests[], event_tests[], graph_tests[], memory_tests[], register_tests[];

void check_equal(long long actual, long long expected, const char *text, const char *file,
                 int line);
#define CHECK_EQUAL(actual, expected)                                                             \
    check_equal((long long)(actual), (long long)(expected), #actual, __FILE__, __LINE__)
#define CHECK(condition) check_equal((condition) != 0, 1, #condition, __FILE__, __LINE__)
#define OK(call) CHECK_EQUAL(call, CUDA_SUCCESS)
#define REFUSED(code, call) CHECK_EQUAL(call, CUDA_ERROR_##code)

/* Calls cuInit and makes the primary context of device 0 current. */
CUcontext start(void);
void configure(const char *name, const char *value);
void run_in_thread(void *(*function)(void *), void *argument); /* and joins the thread */

CUdeviceptr device_memory(size_t bytes);
CUstream stream(unsigned flags);
CUevent event(unsigned flags);

/* A host function that appends its argument, a character, to call_order. */
void append_call(void *character);
extern char call_order[64];

/* Queues work that ends at the next unblock_stream(). */
void block_stream(CUstream stream);
void unblock_stream(void);

#endif
