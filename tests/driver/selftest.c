/* Runs each test in its own process and counts the results. */
#include "selftest.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Ends a deadlock; long enough for a memory checker on a slow machine. */
#define SECONDS_PER_TEST 120

static int checks_failed;

char call_order[64];

void append_call(void *character)
{
    call_order[strlen(call_order)] = *(const char *)character;
}

static sem_t unblocked;

static void wait_until_unblocked(void *unused)
{
    (void)unused;
    while (sem_wait(&unblocked) != 0) continue;
}

void block_stream(CUstream stream)
{
    OK(cuLaunchHostFunc(stream, wait_until_unblocked, NULL));
}

void unblock_stream(void)
{
    sem_post(&unblocked);
}

void check_equal(long long actual, long long expected, const char *text, const char *file,
                 int line)
{
    if (actual == expected) return;
    checks_failed++;
    printf("%s:%d: %s is %lld, expected %lld\n", file, line, text, actual, expected);
    fflush(stdout);
}

CUcontext start(void)
{
    CUcontext context = NULL;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    return context;
}

void configure(const char *name, const char *value)
{
    CHECK_EQUAL(double_configure(name, value), 0);
}

void run_in_thread(void *(*function)(void *), void *argument)
{
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, function, argument), 0);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
}

CUdeviceptr device_memory(size_t bytes)
{
    CUdeviceptr pointer = 0;
    OK(cuMemAlloc_v2(&pointer, bytes));
    return pointer;
}

CUstream stream(unsigned flags)
{
    CUstream made = NULL;
    OK(cuStreamCreate(&made, flags));
    return made;
}

CUevent event(unsigned flags)
{
    CUevent made = NULL;
    OK(cuEventCreate(&made, flags));
    return made;
}

static int passes(const struct test *test)
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS_PER_TEST);
        sem_init(&unblocked, 0, 0);
        test->run();
        exit(checks_failed > 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return 0;
    if (WIFSIGNALED(status)) printf("%s: ended by signal %d\n", test->name, WTERMSIG(status));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int count, char **arguments)
{
    static const struct test *const groups[] = {control_tests,  context_tests, memory_tests,
                                                register_tests, copy_tests,    event_tests,
                                                capture_tests,  graph_tests,   address_tests};
    const char *only = count > 1 ? arguments[1] : "";
    int passed = 0, failed = 0;
    for (size_t g = 0; g < sizeof groups / sizeof groups[0]; g++) {
        for (const struct test *test = groups[g]; test->name != NULL; test++) {
            if (strstr(test->name, only) == NULL) continue;
            int good = passes(test);
            printf("%s %s\n", good ? "ok    " : "FAILED", test->name);
            good ? passed++ : failed++;
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
