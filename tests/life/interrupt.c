/* Signals: Ctrl-C during a long allocation, and a signal every 300 microseconds. */
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#include "every_function.h"

static volatile sig_atomic_t pressed;
static volatile sig_atomic_t alarms;

static void press(int signal)
{
    (void)signal;
    pressed = 1;
}

static void count(int signal)
{
    (void)signal;
    alarms++;
}

/* Without SA_RESTART, so that system calls are interrupted. */
static void handle(int signal, void (*handler)(int))
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    CHECK(sigaction(signal, &action, NULL) == 0);
}

/* The progress callback of a program that Ctrl-C stops. */
static int32_t cancel_if_pressed(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)total;
    *(uint64_t *)user = done;
    return pressed;
}

static void *presses(void *user)
{
    (void)user;
    sleep_ms(20);
    kill(getpid(), SIGINT);
    return NULL;
}

static void ctrl_c_cancels_a_long_allocation(wb_device *device)
{
    const uint64_t bytes = (uint64_t)4 << 30; /* a second's work */
    const uint64_t resident = process_bytes("VmRSS:");
    wb_device_stats before = device_stats(device);
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    pthread_t thread;
    uint64_t done = 0;
    struct sigaction found;
    sigaction(SIGINT, NULL, &found);
    handle(SIGINT, press);
    options.pin = WB_TRISTATE_OFF;
    options.threads = 1;
    options.huge_pages = WB_HUGE_PAGES_OFF;
    options.progress = cancel_if_pressed;
    options.progress_user = &done;
    REQUIRE(pthread_create(&thread, NULL, presses, NULL) == 0);
    wb_status status = wb_buffer_alloc(device, bytes, &options, &buffer, &error);
    pthread_join(thread, NULL);
    sigaction(SIGINT, &found, NULL);
    if (status == WB_ERR_CGROUP || status == WB_ERR_OUT_OF_MEMORY) {
        NOT_RUN("this machine has too little memory");
    }
    CHECK_SAME(status, WB_ERR_CANCELLED);
    CHECK(strstr(error.message, "cancelled by the progress callback") != NULL);
    CHECK(done < bytes / 2);
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    CHECK(process_bytes("VmRSS:") < resident + (64 << 20));
    pressed = 0;
    CHECK_OK(wb_buffer_alloc(device, 1 << 20, &options, &buffer, &error));
    wb_buffer_release(buffer);
}

static void frequent_signals_do_not_disturb_a_call(wb_device *device)
{
    const struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    (void)device;
    every_begin();
    handle(SIGALRM, count);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int round = 0; round < 5; round++) {
        REQUIRE(scene_begin());
        for (int i = 0; i < EVERY_COUNT; i++) {
            const int late = every[i].undo != NULL; /* its object may be released already */
            const wb_status status = every_call(&every[i]);
            if (!CHECK(status == WB_OK || (late && status == WB_ERR_INVALID_ARGUMENT))) {
                fprintf(stderr, "  %s: \"%s\"\n", every[i].name, error.message);
            }
            scene_release_made(1);
        }
        scene_end();
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(alarms > 10);
    signal(SIGALRM, SIG_DFL);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, frequent_signals_do_not_disturb_a_call),
           CASE(ctrl_c_cancels_a_long_allocation))
