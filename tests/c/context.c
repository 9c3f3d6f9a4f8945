/* No call changes the current CUDA context, and a context that the caller gives is used. For CUDA
 * devices only. */
#include <pthread.h>

#include "memory.h"

typedef void *context;

static struct {
    int (*init)(unsigned);
    int (*current)(context *);
    int (*set_current)(context);
    int (*create)(context *, unsigned, int);
    int (*destroy)(context);
    int (*retain)(context *, int);
    int (*release)(int);
    int (*begin_capture)(void *, int);
    int (*end_capture)(void *, void **);
    int (*graph_destroy)(void *);
    int (*device_count)(int *);
} cuda;

static int load_driver(void)
{
    return driver_function("cuInit", &cuda.init) &&
           driver_function("cuCtxGetCurrent", &cuda.current) &&
           driver_function("cuCtxSetCurrent", &cuda.set_current) &&
           driver_function("cuCtxCreate_v2", &cuda.create) &&
           driver_function("cuCtxDestroy_v2", &cuda.destroy) &&
           driver_function("cuDevicePrimaryCtxRetain", &cuda.retain) &&
           driver_function("cuDevicePrimaryCtxRelease_v2", &cuda.release) &&
           driver_function("cuStreamBeginCapture_v2", &cuda.begin_capture) &&
           driver_function("cuStreamEndCapture", &cuda.end_capture) &&
           driver_function("cuGraphDestroy", &cuda.graph_destroy) &&
           driver_function("cuDeviceGetCount", &cuda.device_count) && cuda.init(0) == 0;
}

static context current(void)
{
    context found = NULL;
    CHECK(cuda.current(&found) == 0);
    return found;
}

/* Calls and checks that the current context is the same as before. */
#define KEEPS_CONTEXT_VOID(call)    \
    do {                            \
        context found = current();  \
        call;                       \
        CHECK(current() == found);  \
    } while (0)
#define KEEPS_CONTEXT(call) KEEPS_CONTEXT_VOID(CHECK_OK(call))

static void check_all_calls(void *own_context)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device_info info = WB_DEVICE_INFO_INIT;
    wb_device *device = NULL;
    wb_buffer *buffer = NULL, *caller = NULL, *mapped = NULL, *missing = NULL;
    wb_view *view = NULL, *copy = NULL;
    void *stream = NULL;
    void *address = NULL;
    char memory[5000], path[300];
    int64_t shape[] = {100};
    wb_layout layout = bytes_layout(shape);
    int32_t count = 0;
    options.context = own_context;
    REQUIRE(pattern_file(path, sizeof path, "context", 5000));
    KEEPS_CONTEXT(wb_device_get_cuda_count(&count, &error));
    KEEPS_CONTEXT(wb_device_open("cuda:0", &options, &device, &error));
    REQUIRE(device != NULL);
    KEEPS_CONTEXT(wb_device_get_info(device, &info, &error));
    KEEPS_CONTEXT(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    KEEPS_CONTEXT(wb_buffer_register(device, memory, 5000, NULL, NULL, NULL, &caller, &error));
    KEEPS_CONTEXT(wb_buffer_map_file(device, path, 0, 0, NULL, &mapped, &error));
    CHECK(wb_buffer_map_file(device, "/nowhere", 0, 0, NULL, &missing, &error) != WB_OK);
    CHECK(wb_buffer_alloc(device, (uint64_t)1 << 50, NULL, &missing, &error) != WB_OK);
    KEEPS_CONTEXT(wb_device_alloc(device, 5000, &address, &error));
    KEEPS_CONTEXT(wb_device_stream_new(device, &stream, &error));
    KEEPS_CONTEXT(wb_device_copy(device, address, buffer_info(buffer).device_address, 5000, stream,
                                 &error));
    KEEPS_CONTEXT(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    KEEPS_CONTEXT(wb_view_copy_from(device, memory, &layout, WB_ACCESSOR_DEVICE, NULL, &copy,
                                    &error));
    KEEPS_CONTEXT(wb_view_release_after(view, stream, &error));
    KEEPS_CONTEXT(wb_buffer_release_after(buffer, stream, &error));
    KEEPS_CONTEXT(wb_device_stream_synchronize(device, stream, &error));
    KEEPS_CONTEXT(wb_device_drain(device, 10000, &error));
    KEEPS_CONTEXT(wb_device_stream_release(device, stream, &error));
    KEEPS_CONTEXT_VOID(wb_view_release(copy));
    KEEPS_CONTEXT_VOID(wb_buffer_release(caller));
    KEEPS_CONTEXT_VOID(wb_buffer_release(mapped));
    KEEPS_CONTEXT(wb_device_free(device, address, &error));
    CHECK_SAME(device_stats(device).buffers, 0);
    KEEPS_CONTEXT_VOID(wb_device_release(device));
    CHECK(missing == NULL);
    unlink(path);
}

static void no_call_changes_the_current_context(wb_device *device)
{
    context own = NULL;
    (void)device;
    REQUIRE(load_driver());
    CHECK(current() == NULL);
    check_all_calls(NULL);
    CHECK(current() == NULL);
    REQUIRE(cuda.create(&own, 0, 0) == 0);
    CHECK(current() == own);
    check_all_calls(NULL); /* uses the primary context while another one is current */
    check_all_calls(own);
    CHECK(current() == own);
    CHECK(cuda.destroy(own) == 0);
    CHECK(current() == NULL);
}

static void memory_belongs_to_the_given_context(wb_device *device)
{
    int (*attribute)(void *, int, uint64_t);
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *own_device = NULL;
    context own = NULL, found = NULL;
    void *address = NULL;
    (void)device;
    REQUIRE(load_driver() && driver_function("cuPointerGetAttribute", &attribute));
    REQUIRE(cuda.create(&own, 0, 0) == 0);
    CHECK(cuda.set_current(NULL) == 0);
    options.context = own;
    REQUIRE_OK(wb_device_open("cuda:0", &options, &own_device, &error));
    REQUIRE_OK(wb_device_alloc(own_device, 100, &address, &error));
    /* CU_POINTER_ATTRIBUTE_CONTEXT */
    CHECK(attribute(&found, 1, (uint64_t)(uintptr_t)address) == 0);
    CHECK(found == own);
    CHECK_OK(wb_device_free(own_device, address, &error));
    wb_device_release(own_device);
    CHECK(cuda.destroy(own) == 0);
}

/* On the double only: the behaviour of a real driver with such a handle is undefined. */
static void a_destroyed_context_is_an_error(wb_device *device)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *own_device = NULL;
    wb_buffer *buffer = NULL, *more = NULL;
    context own = NULL;
    (void)device;
    REQUIRE(load_driver());
    REQUIRE(cuda.create(&own, 0, 0) == 0);
    options.context = own;
    REQUIRE_OK(wb_device_open("cuda:0", &options, &own_device, &error));
    REQUIRE_OK(wb_buffer_alloc(own_device, 100, NULL, &buffer, &error));
    CHECK(cuda.destroy(own) == 0);
    CHECK_ERROR(WB_ERR_DRIVER, wb_buffer_alloc(own_device, 100, NULL, &more, &error), "709");
    wb_buffer_release(buffer);
    CHECK_SAME(device_stats(own_device).buffers, 0);
    wb_device_release(own_device);
}

static void a_context_of_another_device_is_refused(wb_device *device)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    context own = NULL;
    int count = 0;
    device = NULL;
    setenv("WB_DOUBLE_DEVICES", "2", 1);
    REQUIRE(load_driver());
    CHECK(cuda.device_count(&count) == 0);
    if (count < 2) NOT_RUN("there is only one CUDA device");
    REQUIRE(cuda.create(&own, 0, 1) == 0);
    options.context = own;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("cuda:0", &options, &device, &error),
                "cuda:1|cuda:0");
    CHECK(current() == own);
    CHECK(device == NULL);
    CHECK_OK(wb_device_open("cuda:1", &options, &device, &error));
    wb_device_release(device);
    CHECK(cuda.destroy(own) == 0);
}

static void releasing_after_a_capturing_stream_is_refused(wb_device *device)
{
    context primary = NULL;
    void *stream = NULL, *graph = NULL;
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {100};
    wb_layout layout = bytes_layout(shape);
    REQUIRE(load_driver() && cuda.retain(&primary, 0) == 0 && cuda.set_current(primary) == 0);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    REQUIRE_OK(wb_buffer_alloc(device, 100, NULL, &buffer, &error));
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    REQUIRE(cuda.begin_capture(stream, 0) == 0);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_view_release_after(view, stream, &error), "captured|graph");
    CHECK_ERROR(WB_ERR_CAPTURING, wb_buffer_release_after(buffer, stream, &error), "reference");
    CHECK_SAME(device_stats(device).deferred, 0);
    CHECK(cuda.end_capture(stream, &graph) == 0); /* the capture is still valid */
    CHECK(cuda.graph_destroy(graph) == 0);
    CHECK_SAME(device_stats(device).views, 1);
    memset(view_info(view).data, 1, 100); /* both references are still valid */
    wb_view_release(view);
    wb_buffer_release(buffer);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK(cuda.set_current(NULL) == 0 && cuda.release(0) == 0);
}

static void fail_the_test(void *user)
{
    (void)user;
    CHECK(0); /* it was refused */
}

static void a_host_function_is_refused_on_a_capturing_stream(wb_device *device)
{
    context primary = NULL;
    void *stream = NULL, *graph = NULL;
    REQUIRE(load_driver() && cuda.retain(&primary, 0) == 0 && cuda.set_current(primary) == 0);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    REQUIRE(cuda.begin_capture(stream, 0) == 0);
    CHECK_ERROR(WB_ERR_CAPTURING, wb_device_stream_call(device, stream, fail_the_test, NULL, &error),
                "host function|replayed");
    CHECK(cuda.end_capture(stream, &graph) == 0); /* the capture is still valid */
    CHECK(cuda.graph_destroy(graph) == 0);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK(cuda.set_current(NULL) == 0 && cuda.release(0) == 0);
}

static void allocations_do_not_invalidate_a_capture(wb_device *device)
{
    context primary = NULL;
    void *stream = NULL, *graph = NULL;
    wb_buffer *buffer = NULL, *source = NULL;
    void *address = NULL;
    REQUIRE(load_driver() && cuda.retain(&primary, 0) == 0 && cuda.set_current(primary) == 0);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &source, &error));
    REQUIRE(cuda.begin_capture(stream, 0) == 0);
    CHECK_OK(wb_device_alloc(device, 5000, &address, &error));
    CHECK_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    CHECK_OK(wb_device_copy(device, address, buffer_info(source).device_address, 5000, stream,
                            &error));
    wb_buffer_release(buffer);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK(cuda.end_capture(stream, &graph) == 0);
    CHECK(cuda.graph_destroy(graph) == 0);
    CHECK_OK(wb_device_free(device, address, &error));
    wb_buffer_release(source);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
    CHECK(cuda.set_current(NULL) == 0 && cuda.release(0) == 0);
}

CHECK_MAIN(CASE_ALONE(CUDA_ONLY, a_context_of_another_device_is_refused),
           CASE_ALONE(DOUBLE_ONLY, a_destroyed_context_is_an_error),
           CASE_ALONE(CUDA_ONLY, no_call_changes_the_current_context),
           CASE(memory_belongs_to_the_given_context),
           CASE(releasing_after_a_capturing_stream_is_refused),
           CASE(a_host_function_is_refused_on_a_capturing_stream),
           CASE(allocations_do_not_invalidate_a_capture))
