/* Stream capture: captured work does not run; it is recorded for a graph (graph.c).
 *
 * Vector clocks decide whether a stream was joined. progress[m] counts the
 * operations of the capture's m-th stream; a stream's clock[m] is the number of
 * them that it is ordered after. The capture may end when its origin stream is
 * ordered after every operation. */
#include <stdlib.h>
#include <string.h>

#include "driver.h"

struct capture {
    struct capture *next;
    unsigned long id; /* from 1, never reused */
    int mode, invalidated;
    const char *thread; /* the thread that began it */
    struct stream *origin;
    struct recording recording;
};

static unsigned long captures_started;
static _Thread_local char this_thread; /* its address identifies the thread */
static _Thread_local int thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

size_t captures_live(void)
{
    size_t count = 0;
    for (struct capture *each = driver.captures; each != NULL; each = each->next) count++;
    return count;
}

static void capture_end(struct capture *capture)
{
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        if (each->capture == capture) each->capture = NULL;
    }
    struct capture **link = &driver.captures;
    while (*link != capture) link = &(*link)->next;
    *link = capture->next;
    recording_free(&capture->recording);
    free(capture);
}

void capture_remove_stream(struct stream *stream)
{
    struct capture *capture = stream->capture;
    stream->capture = NULL;
    if (capture != NULL && capture->origin == stream) capture_end(capture);
}

static CUresult invalidate(struct capture *capture, CUresult result)
{
    if (capture != NULL) capture->invalidated = 1;
    return result;
}

static void advance_clock(struct stream *stream)
{
    stream->clock[stream->member] = ++stream->capture->recording.progress[stream->member];
}

static void join(struct stream *stream, struct capture *capture)
{
    stream->capture = capture;
    stream->member = capture->recording.members++;
    memset(stream->clock, 0, sizeof stream->clock);
    advance_clock(stream);
}

/* Fails if a capture forbids this thread to block or to change memory. */
CUresult capture_check_unsafe(void)
{
    CUresult result = CUDA_SUCCESS;
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return result;
    for (struct capture *each = driver.captures; each != NULL; each = each->next) {
        int own = each->thread == &this_thread && each->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        int global = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                     each->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (own || global) result = invalidate(each, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return result;
}

/* Work in the legacy stream is ordered after every blocking stream, so it would join the capture of
 * one; NULL if none captures. */
static struct capture *implied_by_legacy(const struct stream *stream)
{
    if (!stream_is_legacy(stream)) return NULL;
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        if (each->capture != NULL && stream_blocks_with(each, stream)) return each->capture;
    }
    return NULL;
}

/* Waiting for a capturing stream fails in every mode: captured work does not run. */
CUresult capture_check_wait(struct stream *stream)
{
    struct capture *implied = implied_by_legacy(stream);
    if (stream->capture != NULL) {
        return invalidate(stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return implied == NULL ? CUDA_SUCCESS
                           : invalidate(implied, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
}

CUresult capture_check_context(const struct context *context)
{
    CUresult result = CUDA_SUCCESS;
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        if (each->context != context || each->capture == NULL) continue;
        result = invalidate(each->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return result;
}

CUresult capture_add_work(struct stream *stream, int *captured)
{
    struct capture *implied = implied_by_legacy(stream);
    *captured = stream->capture != NULL;
    if (implied != NULL) return invalidate(implied, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    if (!*captured) return CUDA_SUCCESS;
    if (stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    advance_clock(stream);
    return CUDA_SUCCESS;
}

void capture_add_node(struct stream *stream, struct node node)
{
    node.member = stream->member;
    memcpy(node.clock, stream->clock, sizeof node.clock);
    recording_add(&stream->capture->recording, node);
}

CUresult capture_record(struct stream *stream, struct event *event, int *captured)
{
    struct capture *implied = implied_by_legacy(stream);
    *captured = stream->capture != NULL;
    if (implied != NULL) return invalidate(implied, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    if (*captured && stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    event->capture = *captured ? stream->capture->id : 0;
    memcpy(event->clock, stream->clock, sizeof event->clock);
    return CUDA_SUCCESS;
}

static struct capture *capture_of_event(const struct event *event)
{
    struct capture *each = driver.captures;
    while (each != NULL && each->id != event->capture) each = each->next;
    return each;
}

static CUresult wait_for_uncaptured(struct stream *stream, const struct event *event)
{
    struct capture *implied = implied_by_legacy(stream);
    if (implied != NULL) return invalidate(implied, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    if (stream->capture == NULL || event->recorded == NULL) return CUDA_SUCCESS;
    if (stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    return invalidate(stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
}

CUresult capture_wait(struct stream *stream, struct event *event, int *captured)
{
    *captured = stream->capture != NULL;
    if (event->capture == 0) return wait_for_uncaptured(stream, event);

    struct capture *capture = capture_of_event(event);
    if (capture == NULL) {
        return *captured ? invalidate(stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
                         : CUDA_ERROR_CAPTURED_EVENT;
    }
    if (stream->capture != NULL && stream->capture != capture) {
        invalidate(stream->capture, 0);
        return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
    }
    if (capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream_is_legacy(stream)) return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    if (stream->capture == NULL) {
        if (capture->recording.members == CAPTURE_STREAMS) return CUDA_ERROR_OUT_OF_MEMORY;
        join(stream, capture);
    }
    for (unsigned m = 0; m < CAPTURE_STREAMS; m++) {
        if (event->clock[m] > stream->clock[m]) stream->clock[m] = event->clock[m];
    }
    capture_add_node(stream, (struct node){.kind = NODE_WAIT});
    *captured = 1;
    return CUDA_SUCCESS;
}

CUresult capture_check_event(const struct event *event)
{
    if (event->capture == 0) return capture_check_unsafe();
    return invalidate(capture_of_event(event), CUDA_ERROR_CAPTURED_EVENT);
}

CUresult cuStreamBeginCapture_v2(CUstream handle, int mode)
{
    ENTER(cuStreamBeginCapture_v2, NEEDS_CONTEXT);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    if (stream_is_legacy(stream)) return leave(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (stream->capture != NULL) return leave(CUDA_ERROR_ILLEGAL_STATE);
    struct capture *capture = allocate(sizeof *capture);
    capture->id = ++captures_started;
    capture->mode = mode;
    capture->thread = &this_thread;
    capture->origin = stream;
    capture->next = driver.captures;
    driver.captures = capture;
    join(stream, capture);
    return leave(CUDA_SUCCESS);
}

static int all_joined(const struct capture *capture)
{
    for (unsigned m = 0; m < capture->recording.members; m++) {
        if (capture->recording.progress[m] > capture->origin->clock[m]) return 0;
    }
    return 1;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph)
{
    ENTER(cuStreamEndCapture, NEEDS_CONTEXT);
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (graph == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    struct capture *capture = stream->capture;
    *graph = NULL;
    if (capture == NULL) return leave(CUDA_ERROR_ILLEGAL_STATE);
    if (capture->origin != stream) return leave(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != &this_thread) {
        return leave(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }
    if (capture->invalidated) {
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    } else if (!all_joined(capture)) {
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    } else {
        *graph = graph_new(&capture->recording);
    }
    capture_end(capture);
    return leave(result);
}

static CUresult capture_info(CUstream handle, int *status, uint64_t *id)
{
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return result;
    if (status == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (implied_by_legacy(stream) != NULL) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (stream->capture != NULL) {
        *status = stream->capture->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                               : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        if (id != NULL) *id = stream->capture->id;
    }
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream handle, int *status)
{
    ENTER(cuStreamIsCapturing, NEEDS_CONTEXT);
    return leave(capture_info(handle, status, NULL));
}

CUresult cuStreamGetCaptureInfo_v2(CUstream handle, int *status, uint64_t *id, CUgraph *graph,
                                   const void **dependencies, size_t *count)
{
    ENTER(cuStreamGetCaptureInfo_v2, NEEDS_CONTEXT);
    /* The double keeps no graph nodes to return. */
    if (graph != NULL || dependencies != NULL || count != NULL) {
        return leave(CUDA_ERROR_NOT_SUPPORTED);
    }
    return leave(capture_info(handle, status, id));
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    ENTER(cuThreadExchangeStreamCaptureMode, NEEDS_INIT);
    if (mode == NULL || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL ||
        *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return leave(CUDA_SUCCESS);
}
