/* Events: each refers to the point in a stream's queue where it was last recorded. */
#include <stdlib.h>

#include "driver.h"

struct event *event_find(CUevent handle)
{
    struct event *each = driver.events;
    while (each != NULL && each->handle != handle) each = each->next;
    return each;
}

static void event_free(struct event **link)
{
    struct event *event = *link;
    *link = event->next;
    work_unreference(event->recorded);
    free(event);
}

size_t events_destroy_all(struct context *context)
{
    size_t destroyed = 0;
    for (struct event **link = &driver.events; *link != NULL;) {
        if ((*link)->context == context) {
            event_free(link);
            destroyed++;
        } else {
            link = &(*link)->next;
        }
    }
    return destroyed;
}

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    ENTER(cuEventCreate, NEEDS_CONTEXT);
    unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    int interprocess_with_timing =
        (flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING);
    if (event == NULL || (flags & ~known) || interprocess_with_timing) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    struct event *made = allocate(sizeof *made);
    made->handle = handle_new();
    made->context = context_current();
    made->flags = flags;
    made->next = driver.events;
    driver.events = made;
    *event = made->handle;
    return leave(CUDA_SUCCESS);
}

CUresult cuEventDestroy_v2(CUevent handle)
{
    ENTER(cuEventDestroy_v2, NEEDS_CONTEXT);
    struct event **link = &driver.events;
    while (*link != NULL && (*link)->handle != handle) link = &(*link)->next;
    if (*link == NULL) return leave(CUDA_ERROR_INVALID_HANDLE);
    event_free(link);
    return leave(CUDA_SUCCESS);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle)
{
    ENTER(cuEventRecord, NEEDS_CONTEXT);
    struct stream *stream;
    int captured;
    struct event *event = event_find(handle);
    CUresult result = stream_find(stream_handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (event == NULL || event->context != stream->context) {
        return leave(CUDA_ERROR_INVALID_HANDLE);
    }
    result = capture_record(stream, event, &captured);
    if (result != CUDA_SUCCESS) return leave(result);
    work_unreference(event->recorded);
    event->recorded =
        captured ? NULL : stream_queue(stream, (struct task){.kind = TASK_NONE}, NULL);
    return leave(CUDA_SUCCESS);
}

CUresult cuEventQuery(CUevent handle)
{
    ENTER(cuEventQuery, NEEDS_INIT);
    struct event *event = event_find(handle);
    if (event == NULL) return leave(CUDA_ERROR_INVALID_HANDLE);
    CUresult result = capture_check_event(event);
    if (result != CUDA_SUCCESS) return leave(result);
    int done = event->recorded == NULL || event->recorded->done;
    return leave(done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY);
}

CUresult cuEventSynchronize(CUevent handle)
{
    set_call_subject(handle);
    ENTER(cuEventSynchronize, NEEDS_CONTEXT);
    struct event *event = event_find(handle);
    if (event == NULL) return leave(CUDA_ERROR_INVALID_HANDLE);
    CUresult result = capture_check_event(event);
    if (result == CUDA_SUCCESS && event->recorded != NULL) work_wait(event->recorded);
    return leave(result);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle)
{
    ENTER(cuEventElapsedTime, NEEDS_CONTEXT);
    struct event *start = event_find(start_handle), *end = event_find(end_handle);
    if (milliseconds == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (start == NULL || end == NULL || start->context != end->context ||
        ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING)) {
        return leave(CUDA_ERROR_INVALID_HANDLE);
    }
    if (start->capture != 0 || end->capture != 0) return leave(CUDA_ERROR_CAPTURED_EVENT);
    if (start->recorded == NULL || end->recorded == NULL) return leave(CUDA_ERROR_INVALID_HANDLE);
    if (!start->recorded->done || !end->recorded->done) return leave(CUDA_ERROR_NOT_READY);
    const struct timespec *from = &start->recorded->finished, *to = &end->recorded->finished;
    *milliseconds = (float)((double)(to->tv_sec - from->tv_sec) * 1e3 +
                            (double)(to->tv_nsec - from->tv_nsec) / 1e6);
    return leave(CUDA_SUCCESS);
}
