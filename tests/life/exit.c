/* The end of the process, with everything alive and under way: no hang, no crash, no word, and the exit
 * status that was given. Each end is one of a program of its own, which is this one, run anew. */
#include <pthread.h>
#include <signal.h>

#include "every.h"

enum { GIVEN_STATUS = 42, SLEEP_MS = 200 };

static void sleeps(void *user)
{
    (void)user;
    sleep_ms(SLEEP_MS);
}

/* Until after the other thread has called exit. */
static void sleeps_long(void *user)
{
    (void)user;
    sleep_ms(500);
}

/* What is there when the process ends. */

static void everything_is_held(void) {}

static void work_is_queued(void)
{
    CHECK_OK(wb_device_stream_call(scene.device, scene.stream, sleeps, NULL, &error));
    for (int i = 0; i < 20; i++) CHECK_OK(call_wb_device_copy(&scene));
}

static void references_are_deferred(void)
{
    work_is_queued();
    wb_view_retain(scene.view);
    CHECK_OK(wb_view_release_after(scene.view, scene.stream, &error));
    wb_buffer_retain(scene.buffer);
    CHECK_OK(wb_buffer_release_after(scene.buffer, scene.stream, &error));
    scene.tensor->deleter(scene.tensor);
}

static void a_step_is_under_way(void)
{
    CHECK_OK(wb_device_stream_call(scene.device, scene.stream, sleeps, NULL, &error));
    CHECK_OK(wb_offloader_acquire_group(scene.offloader, 0, scene.stream, &error));
    CHECK_OK(call_wb_device_copy(&scene));
    CHECK_OK(wb_offloader_release_group(scene.offloader, 0, scene.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(scene.offloader, 1, scene.stream, &error));
}

static void *allocates_for_ever(void *user)
{
    (void)user;
    for (;;) {
        wb_buffer *buffer = NULL;
        wb_error mine = WB_ERROR_INIT;
        if (wb_buffer_alloc(scene.device, 1 << 20, NULL, &buffer, &mine) != WB_OK) continue;
        if (wb_buffer_release_after(buffer, scene.stream, &mine) != WB_OK) wb_buffer_release(buffer);
    }
    return NULL;
}

static void threads_are_inside(void)
{
    pthread_t thread;
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&thread, NULL, allocates_for_ever, NULL) == 0);
    sleep_ms(20);
}

static void handler_uses_the_library(void)
{
    wb_buffer *buffer = NULL;
    CHECK_OK(wb_buffer_alloc(scene.device, SCENE_BYTES, NULL, &buffer, &error));
    memset(describe(buffer).data, 1, SCENE_BYTES);
    CHECK(buffer_usage(buffer).resident_bytes == SCENE_BYTES);
    wb_buffer_release(buffer);
    /* What the kernel says of mappings is asked for here, also once the first thread has ended. */
    CHECK_OK(call_wb_buffer_register(&scene));
    scene_end(&scene);
    if (check_failures > 0) _exit(1);
}

static void an_exit_handler_releases_all(void)
{
    references_are_deferred();
    scene.tensor = NULL;
    if (atexit(handler_uses_the_library) != 0) _exit(1);
}

/* How it ends. */

static void by_exit(void) { exit(GIVEN_STATUS); }
static void by_quick_exit(void) { quick_exit(GIVEN_STATUS); }
static void by_underscore_exit(void) { _exit(GIVEN_STATUS); }

static void *exits(void *user)
{
    (void)user;
    sleep_ms(30);
    exit(GIVEN_STATUS);
}

/* From another thread, this one being inside of the library. */
static void by_another_thread(void)
{
    pthread_t thread;
    void *stream = NULL;
    CHECK_OK(wb_device_stream_new(scene.device, &stream, &error));
    CHECK_OK(wb_device_stream_call(scene.device, stream, sleeps_long, NULL, &error));
    CHECK(pthread_create(&thread, NULL, exits, NULL) == 0);
    wb_device_stream_synchronize(scene.device, stream, &error);
    for (;;) pause(); /* an exit handler has waited for that stream too */
}

/* The first thread ends before the others do. */
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
} states[] = {NAMED(everything_is_held), NAMED(work_is_queued), NAMED(references_are_deferred),
              NAMED(a_step_is_under_way), NAMED(threads_are_inside),
              NAMED(an_exit_handler_releases_all)},
  ends[] = {NAMED(by_return), NAMED(by_exit), NAMED(by_quick_exit), NAMED(by_underscore_exit),
            NAMED(by_another_thread), NAMED(by_the_last_thread)};
enum { STATES = sizeof states / sizeof states[0], ENDS = sizeof ends / sizeof ends[0] };

/* This program in a process that ends at once: argv[1] is the state, argv[2] the end. */
static int play(const char *state, const char *end)
{
    if (!scene_begin(&scene)) return 1;
    unlink(scene_path);
    states[atoi(state)].run();
    if (check_failures > 0) return 1;
    ends[atoi(end)].run();
    return check_failures > 0 ? 1 : GIVEN_STATUS;
}

struct player {
    pid_t process;
    int words; /* what it says on standard error */
};

static struct player start(int state, int end)
{
    struct player player = {-1, -1};
    char numbers[2][16];
    int pipes[2];
    snprintf(numbers[0], sizeof numbers[0], "%d", state);
    snprintf(numbers[1], sizeof numbers[1], "%d", end);
    if (!CHECK(pipe2(pipes, O_CLOEXEC) == 0)) return player;
    fflush(NULL);
    player.words = pipes[0];
    player.process = fork();
    if (player.process == 0) {
        dup2(pipes[1], 2);
        alarm(15);
        execl("/proc/self/exe", "exit", numbers[0], numbers[1], (char *)NULL);
        _exit(99);
    }
    close(pipes[1]);
    return player;
}

static void finish(struct player player, int state, int end)
{
    char words[2000] = "";
    size_t length = 0;
    int status = 0;
    for (ssize_t got; length + 1 < sizeof words &&
                      (got = read(player.words, words + length, sizeof words - 1 - length)) > 0;) {
        length += (size_t)got;
    }
    close(player.words);
    CHECK(waitpid(player.process, &status, 0) == player.process);
    if (!CHECK(WIFEXITED(status) && WEXITSTATUS(status) == GIVEN_STATUS && length == 0)) {
        fprintf(stderr, "  %s, %s: %s %d\n%s", states[state].name, ends[end].name,
                WIFSIGNALED(status) ? "signal" : "exit status",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), words);
    }
}

/* The ends of a state are played at the same time: they wait more than they work. */
static void every_end_in_every_state_is_clean(wb_device *device)
{
    struct player players[ENDS];
    (void)device;
    for (int state = 0; state < STATES; state++) {
        for (int end = 0; end < ENDS; end++) players[end] = start(state, end);
        for (int end = 0; end < ENDS; end++) finish(players[end], state, end);
    }
    printf("  %d ends\n", STATES * ENDS);
}

int main(int argc, char **argv)
{
    const struct check_case cases[] = {CASE_ALONE(EVERYWHERE, every_end_in_every_state_is_clean)};
    if (argc == 3) return play(argv[1], argv[2]);
    return check_run(cases, 1);
}
