/* A process that ends with live objects and work in flight does not hang, crash or print, and has the exit
 * status that it was given. This program runs itself again for each combination of a state and an end. */
#include <pthread.h>
#include <signal.h>

#include "every_function.h"

enum { GIVEN_STATUS = 42 };

static void sleeps(void *milliseconds)
{
    sleep_ms(*(const int *)milliseconds);
}

static int short_ms = 200, long_ms = 500;

/* The states of the process when it ends. */

static void objects_are_alive(void) {}

static void work_is_queued(void)
{
    CHECK_OK(wb_device_stream_call(own.device, own.stream, sleeps, &short_ms, &error));
    for (int i = 0; i < 20; i++) CHECK_OK(call_wb_device_copy());
}

static void references_are_deferred(void)
{
    work_is_queued();
    wb_view_retain(own.view);
    CHECK_OK(wb_view_release_after(own.view, own.stream, &error));
    wb_buffer_retain(own.buffer);
    CHECK_OK(wb_buffer_release_after(own.buffer, own.stream, &error));
    own.tensor->deleter(own.tensor);
}

static void a_step_is_in_flight(void)
{
    CHECK_OK(wb_device_stream_call(own.device, own.stream, sleeps, &short_ms, &error));
    CHECK_OK(wb_offloader_acquire_group(own.offloader, 0, own.stream, &error));
    CHECK_OK(call_wb_device_copy());
    CHECK_OK(wb_offloader_release_group(own.offloader, 0, own.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(own.offloader, 1, own.stream, &error));
}

static void *allocates_for_ever(void *user)
{
    (void)user;
    for (;;) {
        wb_buffer *buffer = NULL;
        wb_error mine = WB_ERROR_INIT;
        if (wb_buffer_alloc(own.device, 1 << 20, NULL, &buffer, &mine) != WB_OK) continue;
        if (wb_buffer_release_after(buffer, own.stream, &mine) != WB_OK) wb_buffer_release(buffer);
    }
    return NULL;
}

static void threads_are_in_calls(void)
{
    pthread_t thread;
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&thread, NULL, allocates_for_ever, NULL) == 0);
    sleep_ms(20);
}

static void handler_uses_the_library(void)
{
    wb_buffer *buffer = NULL;
    CHECK_OK(wb_buffer_alloc(own.device, SCENE_BYTES, NULL, &buffer, &error));
    memset(buffer_info(buffer).data, 1, SCENE_BYTES);
    CHECK(buffer_usage(buffer).resident_bytes == SCENE_BYTES);
    wb_buffer_release(buffer);
    /* This reads /proc/self/maps, which must also work after the first thread has ended. */
    CHECK_OK(call_wb_buffer_register());
    scene_end();
    if (check_failures > 0) _exit(1);
}

static void an_exit_handler_releases_everything(void)
{
    references_are_deferred();
    own.tensor = NULL;
    if (atexit(handler_uses_the_library) != 0) _exit(1);
}

/* The ends. */

static void by_exit(void) { exit(GIVEN_STATUS); }
static void by_quick_exit(void) { quick_exit(GIVEN_STATUS); }
static void by_underscore_exit(void) { _exit(GIVEN_STATUS); }

static void *exits(void *user)
{
    (void)user;
    sleep_ms(30);
    exit(GIVEN_STATUS);
}

/* Another thread exits while this one is in a call. */
static void by_another_thread(void)
{
    pthread_t thread;
    void *stream = NULL;
    CHECK_OK(wb_device_stream_new(own.device, &stream, &error));
    CHECK_OK(wb_device_stream_call(own.device, stream, sleeps, &long_ms, &error));
    CHECK(pthread_create(&thread, NULL, exits, NULL) == 0);
    wb_device_stream_synchronize(own.device, stream, &error);
    for (;;) pause(); /* an exit handler may have waited for that stream too */
}

/* The first thread ends before the others. */
static void by_the_last_thread(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, exits, NULL) == 0);
    pthread_exit(NULL);
}

static void by_return(void) {}

#define NAMED(function) {#function, function}
static const struct part {
    const char *name;
    void (*run)(void);
} states[] = {NAMED(objects_are_alive), NAMED(work_is_queued), NAMED(references_are_deferred),
              NAMED(a_step_is_in_flight), NAMED(threads_are_in_calls),
              NAMED(an_exit_handler_releases_everything)},
  ends[] = {NAMED(by_return), NAMED(by_exit), NAMED(by_quick_exit), NAMED(by_underscore_exit),
            NAMED(by_another_thread), NAMED(by_the_last_thread)};
enum { STATES = sizeof states / sizeof states[0], ENDS = sizeof ends / sizeof ends[0] };

/* Enters a state and ends; both are indices. */
static int run_end(const char *state, const char *end)
{
    if (!scene_begin()) return 1;
    unlink(scene_path);
    states[atoi(state)].run();
    if (check_failures > 0) return 1;
    ends[atoi(end)].run();
    return check_failures > 0 ? 1 : GIVEN_STATUS;
}

struct run {
    pid_t process;
    int messages; /* its standard error */
};

static struct run start(int state, int end)
{
    struct run run = {-1, -1};
    char numbers[2][16];
    int pipes[2];
    snprintf(numbers[0], sizeof numbers[0], "%d", state);
    snprintf(numbers[1], sizeof numbers[1], "%d", end);
    if (!CHECK(pipe2(pipes, O_CLOEXEC) == 0)) return run;
    fflush(NULL);
    run.messages = pipes[0];
    run.process = fork();
    if (run.process == 0) {
        dup2(pipes[1], 2);
        alarm(15);
        execl("/proc/self/exe", "exit", numbers[0], numbers[1], (char *)NULL);
        _exit(99);
    }
    close(pipes[1]);
    return run;
}

static void finish(struct run run, int state, int end)
{
    char messages[2000] = "";
    size_t length = 0;
    int status = 0;
    for (ssize_t got; length + 1 < sizeof messages &&
                      (got = read(run.messages, messages + length,
                                  sizeof messages - 1 - length)) > 0;) {
        length += (size_t)got;
    }
    close(run.messages);
    CHECK(waitpid(run.process, &status, 0) == run.process);
    if (!CHECK(WIFEXITED(status) && WEXITSTATUS(status) == GIVEN_STATUS && length == 0)) {
        fprintf(stderr, "  %s, %s: %s %d\n%s", states[state].name, ends[end].name,
                WIFSIGNALED(status) ? "signal" : "exit status",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), messages);
    }
}

/* The ends of a state run at the same time: they mostly sleep. */
static void every_end_in_every_state_is_clean(wb_device *device)
{
    struct run runs[ENDS];
    (void)device;
    for (int state = 0; state < STATES; state++) {
        for (int end = 0; end < ENDS; end++) runs[end] = start(state, end);
        for (int end = 0; end < ENDS; end++) finish(runs[end], state, end);
    }
    printf("  %d ends\n", STATES * ENDS);
}

int main(int argc, char **argv)
{
    const struct check_case cases[] = {CASE_ALONE(EVERYWHERE, every_end_in_every_state_is_clean)};
    if (argc == 3) return run_end(argv[1], argv[2]);
    return check_run(cases, 1);
}
