/* Streams as queues: one thread for each stream runs its work in order. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"

static void work_reference(struct work *work)
{
    work->references++;
}

void work_unreference(struct work *work)
{
    if (work != NULL && --work->references == 0) free(work);
}

void work_wait(struct work *work)
{
    work_reference(work);
    work->waiting++;
    while (!work->done) pthread_cond_wait(&work->is_done, &driver.lock);
    work->waiting--;
    work_unreference(work);
}

static void run(const struct task *task)
{
    switch (task->kind) {
    case TASK_NONE:
        return;
    case TASK_COPY:
        memmove(task->destination, task->source, task->bytes);
        return;
    case TASK_FILL:
        memset(task->destination, task->value, task->bytes);
        return;
    case TASK_CALL:
        inside_host_function = 1;
        task->function(task->argument);
        inside_host_function = 0;
        return;
    }
}

static void finish_dependencies(struct work *work)
{
    for (size_t i = 0; i < work->dependency_count; i++) {
        work_wait(work->dependencies[i]);
        work_unreference(work->dependencies[i]);
    }
    work->dependency_count = 0;
}

static void stream_free(struct stream *stream)
{
    struct stream **link = &driver.streams;
    while (*link != stream) link = &(*link)->next;
    *link = stream->next;
    work_unreference(stream->last);
    free(stream);
}

static void *run_stream(void *argument)
{
    struct stream *stream = argument;
    pthread_mutex_lock(&driver.lock);
    for (;;) {
        while (stream->head == NULL && !stream->destroyed) {
            pthread_cond_wait(&stream->has_work, &driver.lock);
        }
        struct work *work = stream->head;
        if (work == NULL) break;
        finish_dependencies(work);
        unsigned delay = driver.settings.delay_us;
        pthread_mutex_unlock(&driver.lock);
        struct timespec pause = {delay / 1000000, (long)(delay % 1000000) * 1000};
        if (delay > 0) nanosleep(&pause, NULL);
        run(&work->task);
        pthread_mutex_lock(&driver.lock);
        clock_gettime(CLOCK_MONOTONIC, &work->finished);
        work->done = 1;
        stream->head = work->next;
        if (work->waiting > 0) pthread_cond_broadcast(&work->is_done);
        work_unreference(work);
    }
    stream_free(stream);
    pthread_mutex_unlock(&driver.lock);
    return NULL;
}

static void stream_start(struct stream *stream)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    if (stream->started) return;
    stream->started = 1;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* Signals for the program must not be delivered to this thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, &attributes, run_stream, stream);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (failed) {
        fputs("driver double: cannot start the thread of a stream\n", stderr);
        abort();
    }
}

struct stream *stream_new(struct context *context, unsigned flags, int with_handle)
{
    struct stream *stream = allocate(sizeof *stream);
    const int reused = driver.settings.reuse_streams && driver.destroyed_stream != NULL;
    if (with_handle) stream->handle = reused ? driver.destroyed_stream : handle_new();
    if (with_handle) driver.destroyed_stream = NULL;
    stream->id = ++driver.streams_made;
    stream->context = context;
    stream->flags = flags;
    pthread_cond_init(&stream->has_work, NULL);
    stream->next = driver.streams;
    driver.streams = stream;
    return stream;
}

/* The stream's thread finishes the queued work, then frees the stream. */
void stream_retire(struct stream *stream)
{
    capture_remove_stream(stream);
    stream->destroyed = 1;
    if (stream->started) {
        pthread_cond_signal(&stream->has_work);
    } else {
        stream_free(stream);
    }
}

size_t streams_retire_all(struct context *context)
{
    size_t with_handle = 0;
    for (struct stream *each = driver.streams, *next; each != NULL; each = next) {
        next = each->next;
        if (each->context != context || each->destroyed) continue;
        with_handle += each->handle != NULL;
        stream_retire(each);
    }
    return with_handle;
}

CUresult stream_find(CUstream handle, struct stream **stream)
{
    if (handle == NULL || handle == CU_STREAM_LEGACY) {
        *stream = context_current()->legacy;
        return CUDA_SUCCESS;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        *stream = context_current()->per_thread;
        return CUDA_SUCCESS;
    }
    struct stream *each = driver.streams;
    while (each != NULL && (each->handle != handle || each->destroyed)) each = each->next;
    *stream = each;
    return each == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

int stream_is_legacy(const struct stream *stream)
{
    return stream == stream->context->legacy;
}

int stream_blocks_with(const struct stream *stream, const struct stream *legacy)
{
    return stream != legacy && stream->context == legacy->context &&
           !(stream->flags & CU_STREAM_NON_BLOCKING);
}

/* Work in the legacy stream is ordered after all work queued in blocking streams, and their later
 * work after it. */
static int is_ordered_after(const struct stream *stream, const struct stream *other)
{
    if (other->last == NULL || other->last->done) return 0;
    return (stream_is_legacy(stream) && stream_blocks_with(other, stream)) ||
           (stream_is_legacy(other) && stream_blocks_with(stream, other));
}

struct work *stream_queue(struct stream *stream, struct task task, struct work *after)
{
    size_t stream_count = 1;
    for (struct stream *each = driver.streams; each != NULL; each = each->next) stream_count++;
    struct work *work = allocate(sizeof *work + stream_count * sizeof work->dependencies[0]);
    work->task = task;
    pthread_cond_init(&work->is_done, NULL);
    if (after != NULL) work->dependencies[work->dependency_count++] = after;
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        if (!is_ordered_after(stream, each)) continue;
        work->dependencies[work->dependency_count++] = each->last;
    }
    for (size_t i = 0; i < work->dependency_count; i++) work_reference(work->dependencies[i]);

    if (stream->head == NULL) {
        stream->head = work;
    } else {
        stream->last->next = work;
    }
    work_unreference(stream->last);
    stream->last = work;
    work->references = 3; /* of the queue, of the stream's `last`, and of the caller */
    stream_start(stream);
    pthread_cond_signal(&stream->has_work);
    return work;
}

void streams_drain(const struct context *context, CUdevice device)
{
    size_t stream_count = 0, found = 0;
    for (struct stream *each = driver.streams; each != NULL; each = each->next) stream_count++;
    struct work **last = allocate((stream_count + 1) * sizeof(struct work *));
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        int wanted = (context == NULL || each->context == context) &&
                     (device == -1 || each->context->device == device);
        if (!wanted || each->last == NULL) continue;
        work_reference(each->last);
        last[found++] = each->last;
    }
    for (size_t i = 0; i < found; i++) {
        work_wait(last[i]);
        work_unreference(last[i]);
    }
    free(last);
}
