/* Threads that end, or are cancelled, while objects are alive or a call is running. */
#include <pthread.h>

#include "every_function.h"

static int run_thread(void *(*run)(void *), void *user, void **result)
{
    pthread_t thread;
    return CHECK(pthread_create(&thread, NULL, run, user) == 0) &&
           CHECK(pthread_join(thread, result) == 0);
}

/* Returns 1 if the thread was cancelled. */
static int is_cancelled(void *(*run)(void *), void *user)
{
    void *result = NULL;
    return run_thread(run, user, &result) && result == PTHREAD_CANCELED;
}

static void use_and_release_everything(void)
{
    memset(buffer_info(own.buffer).data, 1, SCENE_BYTES);
    CHECK_OK(call_wb_device_copy());
    CHECK_OK(call_wb_offloader_release_group());
    CHECK_OK(call_wb_quantizer_quantize());
    scene_end();
}

static void *makes_everything(void *user)
{
    (void)user;
    scene_begin();
    CHECK_OK(wb_device_stream_call(own.device, own.stream, scene_called, &scene.called, &error));
    pthread_exit(NULL);
}

static void objects_outlive_the_thread_that_made_them(wb_device *device)
{
    (void)device;
    every_begin();
    REQUIRE(run_thread(makes_everything, NULL, NULL));
    use_and_release_everything();
}

static pthread_key_t key;

static void releases_at_thread_exit(void *user)
{
    (void)user;
    use_and_release_everything();
}

static void *leaves_release_to_a_destructor(void *user)
{
    (void)user;
    scene_begin();
    pthread_setspecific(key, &scene);
    return NULL;
}

static void a_thread_local_destructor_can_call_the_library(wb_device *device)
{
    (void)device;
    every_begin();
    REQUIRE(pthread_key_create(&key, releases_at_thread_exit) == 0);
    REQUIRE(run_thread(leaves_release_to_a_destructor, NULL, NULL));
    pthread_key_delete(key);
}

struct cancelled {
    const struct every *each;
    int returned;
    wb_status status;
};

/* The cancellation is pending at every cancellation point of the call; files have many. */
static void *calls_while_cancelled(void *user)
{
    struct cancelled *cancelled = (struct cancelled *)user;
    pthread_cancel(pthread_self());
    cancelled->status = every_call(cancelled->each);
    cancelled->returned = 1;
    pthread_testcancel();
    return NULL;
}

static void a_cancelled_thread_ends_after_its_call(wb_device *device)
{
    (void)device;
    every_begin();
    REQUIRE(scene_begin());
    for (int i = 0; i < EVERY_COUNT; i++) {
        struct cancelled cancelled = {&every[i], 0, WB_OK};
        const int ended = is_cancelled(calls_while_cancelled, &cancelled);
        /* The object of a call that comes later may be released already. */
        const int valid = cancelled.status == WB_OK || every[i].undo != NULL;
        if (!CHECK(ended && cancelled.returned && valid)) {
            fprintf(stderr, "  %s\n", every[i].name);
        }
        scene_release_made(1);
    }
    scene_end();
}

static int32_t cancels_its_thread(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    ++*(int *)user;
    pthread_cancel(pthread_self());
    pthread_testcancel();
    return 0;
}

static void *reads_a_file(void *user)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    options.file_mode = WB_FILE_MODE_READ;
    options.progress = cancels_its_thread;
    options.progress_user = user;
    CHECK_OK(wb_buffer_map_file(own.device, scene_path, 0, 0, &options, &made.buffer, &error));
    pthread_testcancel();
    return NULL;
}

static void a_callback_that_cancels_its_thread_does_not_unwind_the_library(wb_device *device)
{
    int calls = 0;
    (void)device;
    every_begin();
    REQUIRE(scene_begin());
    CHECK(is_cancelled(reads_a_file, &calls));
    CHECK(calls > 0);
    CHECK(made.buffer != NULL);
    scene_end();
}

static void counts_unless_cancelled(void *user, const wb_error *failure)
{
    (void)failure;
    pthread_testcancel(); /* as a callback that writes to a file */
    ++*(int *)user;
}

static void *logs_while_cancelled(void *user)
{
    (void)user;
    pthread_cancel(pthread_self());
    wb_buffer_retain(NULL); /* has no status, so the error is logged */
    scene.called++;
    pthread_testcancel();
    return NULL;
}

static void a_log_callback_is_not_cancelled(wb_device *device)
{
    int logged = 0;
    (void)device;
    CHECK_OK(wb_log_set_callback(counts_unless_cancelled, &logged));
    CHECK(is_cancelled(logs_while_cancelled, NULL));
    CHECK_SAME(logged, 1);
    CHECK_SAME(scene.called, 1);
    CHECK_OK(wb_log_set_callback(NULL, NULL));
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, objects_outlive_the_thread_that_made_them),
           CASE_ALONE(EVERYWHERE, a_thread_local_destructor_can_call_the_library),
           CASE_ALONE(EVERYWHERE, a_cancelled_thread_ends_after_its_call),
           CASE_ALONE(EVERYWHERE,
                      a_callback_that_cancels_its_thread_does_not_unwind_the_library),
           CASE_ALONE(EVERYWHERE, a_log_callback_is_not_cancelled))
