/* Contexts, and the context stack of each thread. */
#include "driver.h"

/* The real stack has no such limit; this depth means that pops are missing. */
#define DEPTH_MAX 64

static _Thread_local struct context *stack[DEPTH_MAX];
static _Thread_local int depth;

struct context *context_current(void)
{
    return depth > 0 ? stack[depth - 1] : NULL;
}

int context_depth(void)
{
    return depth;
}

CUresult context_check(struct context *context)
{
    struct context *each = driver.contexts;
    while (each != NULL && each != context) each = each->next;
    if (each == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    return each->alive ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult context_check_current(void)
{
    return context_check(context_current());
}

static struct context *context_new(CUdevice device)
{
    struct context *context = allocate(sizeof *context);
    context->device = device;
    context->alive = 1;
    context->legacy = stream_new(context, CU_STREAM_DEFAULT, 0);
    context->per_thread = stream_new(context, CU_STREAM_DEFAULT, 0);
    context->next = driver.contexts;
    driver.contexts = context;
    return context;
}

/* Not alive before the drain, so that no other thread queues work meanwhile. */
static void context_destroy(struct context *context)
{
    context->alive = 0;
    streams_drain(context, -1);
    driver.orphans += events_destroy_all(context);
    driver.orphans += streams_retire_all(context);
    driver.orphans += memory_release_all(context);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    ENTER(cuDevicePrimaryCtxRetain, NEEDS_INIT);
    if (context == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    struct context **primary = &driver.primary[device];
    if (*primary == NULL) *primary = context_new(device);
    (*primary)->references++;
    *context = *primary;
    return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    ENTER(cuDevicePrimaryCtxRelease_v2, NEEDS_INIT);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    struct context *primary = driver.primary[device];
    if (primary == NULL) return leave(CUDA_ERROR_INVALID_CONTEXT);
    if (--primary->references == 0) {
        driver.primary[device] = NULL;
        context_destroy(primary);
    }
    return leave(CUDA_SUCCESS);
}

/* Handles retained before name a destroyed context; the next retain creates a new one. */
CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    ENTER(cuDevicePrimaryCtxReset_v2, NEEDS_INIT);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    struct context *primary = driver.primary[device];
    driver.primary[device] = NULL;
    if (primary != NULL) context_destroy(primary);
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device)
{
    ENTER(cuCtxCreate_v2, NEEDS_INIT);
    if (context == NULL || flags > 0xff) return leave(CUDA_ERROR_INVALID_VALUE);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    if (depth == DEPTH_MAX) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    *context = stack[depth++] = context_new(device);
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxDestroy_v2(CUcontext context)
{
    ENTER(cuCtxDestroy_v2, NEEDS_INIT);
    CUresult result = context_check(context);
    if (result != CUDA_SUCCESS) return leave(result);
    if (context == driver.primary[context->device]) return leave(CUDA_ERROR_INVALID_CONTEXT);
    context_destroy(context);
    if (context_current() == context) depth--;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    ENTER(cuCtxGetCurrent, NEEDS_INIT);
    if (context == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    *context = context_current();
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    ENTER(cuCtxSetCurrent, NEEDS_INIT);
    if (context == NULL) {
        if (depth > 0) depth--;
        return leave(CUDA_SUCCESS);
    }
    CUresult result = context_check(context);
    if (result != CUDA_SUCCESS) return leave(result);
    if (depth == 0) depth = 1;
    stack[depth - 1] = context;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    ENTER(cuCtxPushCurrent_v2, NEEDS_INIT);
    CUresult result = context_check(context);
    if (result != CUDA_SUCCESS) return leave(result);
    if (depth == DEPTH_MAX) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    stack[depth++] = context;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    ENTER(cuCtxPopCurrent_v2, NEEDS_INIT);
    if (depth == 0) return leave(CUDA_ERROR_INVALID_CONTEXT);
    depth--;
    if (context != NULL) *context = stack[depth];
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    ENTER(cuCtxGetDevice, NEEDS_CONTEXT);
    if (device == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    *device = context_current()->device;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxSynchronize(void)
{
    ENTER(cuCtxSynchronize, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    CUresult result = capture_check_context(context_current());
    if (result == CUDA_SUCCESS) streams_drain(context_current(), -1);
    return leave(result);
}
