/* Threads that end while they hold something, or inside of a call. */
#include <pthread.h>

#include "every.h"

static void uses_and_releases_all(void)
{
    memset(describe(scene.buffer).data, 1, SCENE_BYTES);
    CHECK_OK(call_wb_device_copy(&scene));
    CHECK_OK(call_wb_offloader_release_group(&scene));
    CHECK_OK(call_wb_quantizer_quantize(&scene));
    scene_end(&scene);
}

static void *makes_all_and_ends(void *user)
{
    (void)user;
    scene_begin(&scene);
    CHECK_OK(wb_device_stream_call(scene.device, scene.stream, scene_called, &scene.called, &error));
    pthread_exit(NULL);
}

static void what_a_thread_made_outlives_it(wb_device *device)
{
    pthread_t thread;
    (void)device;
    every_begin();
    REQUIRE(pthread_create(&thread, NULL, makes_all_and_ends, NULL) == 0);
    pthread_join(thread, NULL);
    uses_and_releases_all();
}

static pthread_key_t last_words;

static void releases_at_the_end(void *user)
{
    (void)user;
    uses_and_releases_all();
}

static void *leaves_it_to_its_destructor(void *user)
{
    (void)user;
    scene_begin(&scene);
    pthread_setspecific(last_words, &scene);
    return NULL;
}

static void a_threads_destructor_may_call_all(wb_device *device)
{
    pthread_t thread;
    (void)device;
    every_begin();
    REQUIRE(pthread_key_create(&last_words, releases_at_the_end) == 0);
    REQUIRE(pthread_create(&thread, NULL, leaves_it_to_its_destructor, NULL) == 0);
    pthread_join(thread, NULL);
    pthread_key_delete(last_words);
}

/* A thread that is to be cancelled at every cancellation point, of which files have many. */
static void *calls_everything_while_cancelled(void *index)
{
    const struct every *each = &every[*(int *)index];
    pthread_cancel(pthread_self());
    const wb_status status = every_call(each, &scene);
    *(int *)index = (int)status - 1000; /* it came back */
    pthread_testcancel();
    return NULL;
}

static void a_cancelled_thread_ends_behind_its_call(wb_device *device)
{
    (void)device;
    every_begin();
    REQUIRE(scene_begin(&scene));
    for (int i = 0; i < EVERY_COUNT; i++) {
        pthread_t thread;
        void *result = NULL;
        int index = i;
        REQUIRE(pthread_create(&thread, NULL, calls_everything_while_cancelled, &index) == 0);
        pthread_join(thread, &result);
        const int late = every[i].undo != NULL && index != WB_OK - 1000; /* its handle is gone */
        if (!CHECK(result == PTHREAD_CANCELED && (index == WB_OK - 1000 || late))) {
            fprintf(stderr, "  %s\n", every[i].name);
        }
        scene_release_made(&scene, 1);
    }
    scene_end(&scene);
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
    CHECK_OK(wb_buffer_map_file(scene.device, scene_path, 0, 0, &options, &scene.made.buffer, &error));
    pthread_testcancel();
    return NULL;
}

static void a_callback_that_cancels_its_thread_does_not_unwind_the_library(wb_device *device)
{
    pthread_t thread;
    void *result = NULL;
    int told = 0;
    (void)device;
    every_begin();
    REQUIRE(scene_begin(&scene));
    REQUIRE(pthread_create(&thread, NULL, reads_a_file, &told) == 0);
    pthread_join(thread, &result);
    CHECK(result == PTHREAD_CANCELED);
    CHECK(told > 0);
    CHECK(scene.made.buffer != NULL);
    scene_end(&scene);
}

static void cancels_and_hears(void *user, wb_status status, int32_t code, const char *message)
{
    (void)status, (void)code, (void)message;
    pthread_testcancel(); /* as a sink that writes */
    ++*(int *)user;
}

static void *logs_while_cancelled(void *user)
{
    (void)user;
    pthread_cancel(pthread_self());
    wb_buffer_retain(NULL); /* returns nothing: it is logged */
    scene.called++;
    pthread_testcancel();
    return NULL;
}

static void a_log_sink_is_no_place_to_be_cancelled_in(wb_device *device)
{
    pthread_t thread;
    void *result = NULL;
    int heard = 0;
    (void)device;
    CHECK_OK(wb_log_set_callback(cancels_and_hears, &heard));
    REQUIRE(pthread_create(&thread, NULL, logs_while_cancelled, NULL) == 0);
    pthread_join(thread, &result);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_SAME(heard, 1);
    CHECK_SAME(scene.called, 1);
    CHECK_OK(wb_log_set_callback(NULL, NULL));
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, what_a_thread_made_outlives_it),
           CASE_ALONE(EVERYWHERE, a_threads_destructor_may_call_all),
           CASE_ALONE(EVERYWHERE, a_cancelled_thread_ends_behind_its_call),
           CASE_ALONE(EVERYWHERE,
                      a_callback_that_cancels_its_thread_does_not_unwind_the_library),
           CASE_ALONE(EVERYWHERE, a_log_sink_is_no_place_to_be_cancelled_in))
