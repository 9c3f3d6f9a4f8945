/* The self test's harness. Each test runs in a process of its own, which has
 * not yet called cuInit. */
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

/* Each ends in a test without a name. */
extern const struct test capture_tests[], context_tests[], control_tests[], copy_tests[],
    event_tests[], memory_tests[], register_tests[];

void check_equal(long long actual, long long expected, const char *text, const char *file,
                 int line);
#define CHECK_EQUAL(actual, expected)                                                             \
    check_equal((long long)(actual), (long long)(expected), #actual, __FILE__, __LINE__)
#define CHECK(condition) check_equal((condition) != 0, 1, #condition, __FILE__, __LINE__)
#define OK(call) CHECK_EQUAL(call, CUDA_SUCCESS)
#define REFUSED(code, call) CHECK_EQUAL(call, CUDA_ERROR_##code)

/* cuInit, and device 0's primary context made current. */
CUcontext start(void);
void configure(const char *name, const char *value);
void in_thread(void *(*function)(void *), void *argument); /* and waits for it */

CUdeviceptr device_memory(size_t bytes);
CUstream stream(unsigned flags);
CUevent event(unsigned flags);

/* A host function that appends its argument, a character, to order_of_calls. */
void note(void *character);
extern char order_of_calls[64];

/* Work that ends only at the next let_go(). */
void hold(CUstream stream);
void let_go(void);

#endif
