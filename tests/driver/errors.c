/* Names and descriptions of the results that the double returns. */
#include "driver.h"

#define ERRORS(E)                                                                                 \
    E(CUDA_SUCCESS, "no error")                                                                   \
    E(CUDA_ERROR_INVALID_VALUE, "an argument is out of its range")                                \
    E(CUDA_ERROR_OUT_OF_MEMORY, "not enough memory is available")                                 \
    E(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called in this process")                   \
    E(CUDA_ERROR_DEINITIALIZED, "the driver has shut down")                                       \
    E(CUDA_ERROR_NO_DEVICE, "no device is available")                                             \
    E(CUDA_ERROR_INVALID_DEVICE, "no device has this ordinal")                                    \
    E(CUDA_ERROR_INVALID_CONTEXT, "no context is current, or it is invalid")                      \
    E(CUDA_ERROR_INVALID_HANDLE, "the handle is invalid or was destroyed")                        \
    E(CUDA_ERROR_ILLEGAL_STATE, "the state of the object forbids the call")                       \
    E(CUDA_ERROR_NOT_READY, "work is still running")                                              \
    E(CUDA_ERROR_NOT_FOUND, "nothing has this name")                                              \
    E(CUDA_ERROR_ILLEGAL_ADDRESS, "the device accessed an invalid address")                       \
    E(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context has been destroyed")                          \
    E(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part of the range is already registered")       \
    E(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "no registration starts at this address")            \
    E(CUDA_ERROR_LAUNCH_FAILED, "a kernel failed")                                                \
    E(CUDA_ERROR_NOT_PERMITTED, "the call is not permitted")                                      \
    E(CUDA_ERROR_NOT_SUPPORTED, "the device does not support it")                                 \
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not allowed while a stream captures")               \
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error invalidated the capture")          \
    E(CUDA_ERROR_STREAM_CAPTURE_MERGE, "two captures would merge")                                \
    E(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "another stream began the capture")                    \
    E(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "a stream was not joined to the origin")                \
    E(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a dependency is outside the capture")                 \
    E(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream would join the capture")             \
    E(CUDA_ERROR_CAPTURED_EVENT, "the event belongs to a capture")                                \
    E(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture")                 \
    E(CUDA_ERROR_UNKNOWN, "unknown error")

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
