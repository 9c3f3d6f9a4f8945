/* Names and descriptions of the results that the double knows. */
#include "driver.h"

#define ERRORS(E)                                                                                 \
    E(CUDA_SUCCESS, "it worked")                                                                  \
    E(CUDA_ERROR_INVALID_VALUE, "an argument is out of its range")                                \
    E(CUDA_ERROR_OUT_OF_MEMORY, "the memory asked for is not there")                              \
    E(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called in this process")                   \
    E(CUDA_ERROR_DEINITIALIZED, "the driver has shut down")                                       \
    E(CUDA_ERROR_NO_DEVICE, "there is no device")                                                 \
    E(CUDA_ERROR_INVALID_DEVICE, "there is no device of that number")                             \
    E(CUDA_ERROR_INVALID_CONTEXT, "no context is current, or it is none")                         \
    E(CUDA_ERROR_INVALID_HANDLE, "the handle names nothing that is alive")                        \
    E(CUDA_ERROR_ILLEGAL_STATE, "the object is in a state that forbids this")                     \
    E(CUDA_ERROR_NOT_READY, "work is still under way")                                            \
    E(CUDA_ERROR_NOT_FOUND, "there is nothing of that name")                                      \
    E(CUDA_ERROR_ILLEGAL_ADDRESS, "the device touched an address it may not touch")               \
    E(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context has been destroyed")                          \
    E(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part of the range is registered")               \
    E(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "no registration starts there")                      \
    E(CUDA_ERROR_LAUNCH_FAILED, "a kernel broke off")                                             \
    E(CUDA_ERROR_NOT_PERMITTED, "this may not be done here")                                      \
    E(CUDA_ERROR_NOT_SUPPORTED, "this device or driver cannot do it")                             \
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not allowed while a stream captures")               \
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier failure spoiled the capture")            \
    E(CUDA_ERROR_STREAM_CAPTURE_MERGE, "two captures would become one")                           \
    E(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began in another stream")                 \
    E(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "a side stream was not joined to the first")            \
    E(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a dependency would leave the capture")                \
    E(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream would join the capture")             \
    E(CUDA_ERROR_CAPTURED_EVENT, "the event belongs to a capture")                                \
    E(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began in another thread")              \
    E(CUDA_ERROR_UNKNOWN, "a failure without a name")

static CUresult look_up(CUresult error, const char **name, const char **text)
{
    static const struct {
        CUresult error;
        const char *name, *text;
    } table[] = {
#define ROW(error, text) {error, #error, text},
        ERRORS(ROW)
#undef ROW
    };
    *name = *text = NULL;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].error != error) continue;
        *name = table[i].name;
        *text = table[i].text;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    const char *text;
    CUresult refused = enter_constant(FUNCTION_cuGetErrorName);
    if (refused != CUDA_SUCCESS) return refused;
    return name == NULL ? CUDA_ERROR_INVALID_VALUE : look_up(error, name, &text);
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    const char *name;
    CUresult refused = enter_constant(FUNCTION_cuGetErrorString);
    if (refused != CUDA_SUCCESS) return refused;
    return text == NULL ? CUDA_ERROR_INVALID_VALUE : look_up(error, &name, text);
}
