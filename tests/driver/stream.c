/* Entry points for streams. */
#include "driver.h"

CUresult stream_submit(struct stream *stream, struct task task, int synchronous)
{
    int captured;
    CUresult result = capture_add_work(stream, &captured);
    if (result == CUDA_SUCCESS && captured) {
        capture_add_node(stream, (struct node){.kind = NODE_TASK, .task = task});
    }
    if (result != CUDA_SUCCESS || captured) return result;
    struct work *work = stream_queue(stream, task, NULL);
    if (synchronous) work_wait(work);
    work_unreference(work);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    ENTER(cuStreamCreate, NEEDS_CONTEXT);
    if (stream == NULL || (flags & ~(unsigned)CU_STREAM_NON_BLOCKING)) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    *stream = stream_new(context_current(), flags, 1)->handle;
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamDestroy_v2(CUstream handle)
{
    ENTER(cuStreamDestroy_v2, NEEDS_CONTEXT);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (stream->handle == NULL) return leave(CUDA_ERROR_INVALID_HANDLE);
    driver.destroyed_stream = stream->handle;
    stream_retire(stream);
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamSynchronize(CUstream handle)
{
    set_call_subject(handle);
    ENTER(cuStreamSynchronize, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result == CUDA_SUCCESS) result = capture_check_wait(stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (stream_is_legacy(stream)) {
        /* Work in the legacy stream is ordered after that of every blocking stream. */
        return leave(stream_submit(stream, (struct task){.kind = TASK_NONE}, 1));
    }
    if (stream->last != NULL) work_wait(stream->last);
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamQuery(CUstream handle)
{
    ENTER(cuStreamQuery, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result == CUDA_SUCCESS) result = capture_check_wait(stream);
    if (result != CUDA_SUCCESS) return leave(result);
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        int included = each == stream ||
                       (stream_is_legacy(stream) && stream_blocks_with(each, stream));
        if (included && each->last != NULL && !each->last->done) return leave(CUDA_ERROR_NOT_READY);
    }
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamGetId(CUstream handle, unsigned long long *id)
{
    ENTER(cuStreamGetId, NEEDS_CONTEXT);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (id == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (stream->capture != NULL) return leave(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    *id = stream->id;
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags)
{
    ENTER(cuStreamWaitEvent, NEEDS_CONTEXT);
    struct stream *stream;
    int captured;
    struct event *event = event_find(event_handle);
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (event == NULL) return leave(CUDA_ERROR_INVALID_HANDLE);
    if (flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL) return leave(CUDA_ERROR_INVALID_VALUE);
    if ((flags & CU_EVENT_WAIT_EXTERNAL) && stream->capture != NULL) {
        result = capture_add_work(stream, &captured);
        if (result != CUDA_SUCCESS) return leave(result);
        capture_add_node(stream, (struct node){.kind = NODE_EXTERNAL_WAIT, .event = event_handle});
        return leave(CUDA_SUCCESS);
    }
    result = capture_wait(stream, event, &captured);
    if (result != CUDA_SUCCESS || captured || event->recorded == NULL) return leave(result);
    work_unreference(stream_queue(stream, (struct task){.kind = TASK_NONE}, event->recorded));
    return leave(CUDA_SUCCESS);
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument)
{
    ENTER(cuLaunchHostFunc, NEEDS_CONTEXT);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (function == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    struct task task = {.kind = TASK_CALL, .function = function, .argument = argument};
    return leave(stream_submit(stream, task, 0));
}
