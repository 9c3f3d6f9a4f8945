/* Handles may be used from any thread, concurrently. */
#include <pthread.h>

#include "dlpack_structs.h"
#include "memory.h"

enum { THREADS = 8, ROUNDS = 400, HELD = 6 };

struct worker {
    pthread_t thread;
    wb_device *device;
    wb_buffer *shared;
    void *stream;
    const char *path;
    uint32_t random;
};

static uint32_t random_below(struct worker *worker, uint32_t below)
{
    worker->random = worker->random * 1664525u + 1013904223u;
    return (worker->random >> 8) % below;
}

static wb_view *random_view(struct worker *worker, wb_buffer *buffer)
{
    int64_t shape[] = {64};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, random_below(worker, 64));
    wb_view *view = NULL;
    CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    return view;
}

/* Releases a view in one of four ways. */
static void release_view(struct worker *worker, wb_view *view)
{
    DLManagedTensorVersioned *tensor = NULL;
    wb_buffer *buffer = NULL;
    switch (random_below(worker, 4)) {
    case 0:
        wb_view_release(view);
        break;
    case 1:
        CHECK_OK(wb_view_release_after(view, worker->stream, &error));
        break;
    case 2:
        CHECK_OK(wb_view_to_dlpack_versioned(view, &tensor, &error));
        wb_view_release(view);
        if (tensor != NULL) tensor->deleter(tensor);
        break;
    default:
        CHECK_OK(wb_view_get_buffer(view, &buffer, &error));
        wb_view_retain(view);
        wb_view_release(view);
        wb_view_release(view);
        if (buffer != NULL) wb_buffer_release(buffer);
    }
}

static void *work(void *user)
{
    struct worker *worker = (struct worker *)user;
    wb_view *held[HELD] = {NULL};
    for (int round = 0; round < ROUNDS; round++) {
        wb_buffer *buffer = worker->shared;
        uint32_t slot = random_below(worker, HELD), kind = random_below(worker, 4);
        if (held[slot] != NULL) release_view(worker, held[slot]);
        if (kind == 0) {
            CHECK_OK(wb_buffer_alloc(worker->device, 128 + random_below(worker, 20000), NULL,
                                     &buffer, &error));
        } else if (kind == 1) {
            CHECK_OK(wb_buffer_map_file(worker->device, worker->path, 0, 0, NULL, &buffer, &error));
        } else {
            wb_buffer_retain(buffer);
        }
        held[slot] = random_view(worker, buffer);
        CHECK(view_info(held[slot]).data != NULL);
        CHECK(device_stats(worker->device).buffers >= 1);
        wb_buffer_release(buffer);
    }
    for (int slot = 0; slot < HELD; slot++) {
        if (held[slot] != NULL) release_view(worker, held[slot]);
    }
    return NULL;
}

static void threads_create_and_release_without_a_leak(wb_device *device)
{
    struct worker workers[THREADS];
    wb_buffer *shared = NULL;
    void *stream = NULL;
    char path[300];
    REQUIRE(pattern_file(path, sizeof path, "threads", 9000));
    REQUIRE_OK(wb_buffer_alloc(device, 256, NULL, &shared, &error));
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    for (int i = 0; i < THREADS; i++) {
        struct worker worker = {0, device, shared, stream, path, (uint32_t)i + 1};
        workers[i] = worker;
        REQUIRE(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(workers[i].thread, NULL);
    CHECK_OK(wb_device_drain(device, 30000, &error));
    CHECK_SAME(device_stats(device).buffers, 1);
    CHECK_SAME(device_stats(device).views, 0);
    CHECK_SAME(device_stats(device).asked_bytes, 256);
    wb_buffer_release(shared);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    unlink(path);
}

static void *open_and_release(void *user)
{
    (void)user;
    for (int i = 0; i < 20; i++) {
        wb_device *device = NULL;
        wb_buffer *buffer = NULL;
        if (!CHECK_OK(wb_device_open(test_device(), NULL, &device, &error))) return NULL;
        CHECK_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
        wb_device_release(device);
        wb_buffer_release(buffer);
    }
    return NULL;
}

static void threads_open_a_device_concurrently(wb_device *device)
{
    pthread_t threads[THREADS];
    (void)device;
    for (int i = 0; i < THREADS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, open_and_release, NULL) == 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

struct competitor {
    wb_device *device;
    void *memory;
    int won;
};

static void *register_range(void *user)
{
    struct competitor *competitor = (struct competitor *)user;
    wb_buffer *buffer = NULL;
    wb_status status = wb_buffer_register(competitor->device, competitor->memory, 4096, NULL, NULL,
                                          NULL, &buffer, &error);
    CHECK(status == WB_OK || status == WB_ERR_ALREADY_REGISTERED);
    competitor->won = status == WB_OK;
    sleep_ms(50);
    if (buffer != NULL) wb_buffer_release(buffer);
    return NULL;
}

static void one_of_several_threads_registers_a_range(wb_device *device)
{
    pthread_t threads[THREADS];
    struct competitor competitors[THREADS];
    void *memory = pages(4096);
    int winners = 0;
    REQUIRE(memory != NULL);
    for (int i = 0; i < THREADS; i++) {
        competitors[i].device = device;
        competitors[i].memory = memory;
        competitors[i].won = 0;
        REQUIRE(pthread_create(&threads[i], NULL, register_range, &competitors[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        winners += competitors[i].won;
    }
    CHECK(winners >= 1);
    munmap(memory, 4096);
}

CHECK_MAIN(CASE(threads_create_and_release_without_a_leak),
           CASE(threads_open_a_device_concurrently), CASE(one_of_several_threads_registers_a_range))
