/* Initialization, settings, failure injection, forked children, devices. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "selftest.h"

static const char *const entry_points[] = {
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName",
    "cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxReset_v2", "cuCtxCreate_v2",
    "cuCtxDestroy_v2", "cuCtxGetCurrent", "cuCtxSetCurrent", "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2", "cuCtxGetDevice", "cuCtxSynchronize", "cuMemGetInfo_v2",
    "cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost", "cuMemHostUnregister",
    "cuMemHostGetDevicePointer_v2", "cuPointerGetAttribute", "cuMemcpyAsync",
    "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemsetD8Async", "cuStreamCreate",
    "cuStreamDestroy_v2", "cuStreamSynchronize", "cuStreamQuery", "cuStreamGetId", "cuStreamWaitEvent",
    "cuStreamIsCapturing", "cuStreamGetCaptureInfo_v2", "cuStreamBeginCapture_v2",
    "cuStreamEndCapture", "cuGraphDestroy",
    "cuThreadExchangeStreamCaptureMode", "cuEventCreate", "cuEventDestroy_v2", "cuEventRecord",
    "cuEventQuery", "cuEventSynchronize", "cuEventElapsedTime", "cuLaunchHostFunc",
    "cuGetErrorName", "cuGetErrorString", "double_configure", "double_calls", "double_live",
    "double_context_depth", "double_function", "double_failed", "double_failures", "double_failed_call_repeated",
};

static void check_exports(void *library)
{
    for (size_t i = 0; i < sizeof entry_points / sizeof entry_points[0]; i++) {
        if (dlsym(library, entry_points[i]) == NULL) printf("missing: %s\n", entry_points[i]);
        CHECK(dlsym(library, entry_points[i]) != NULL);
    }
}

static void every_entry_point_is_exported(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library != NULL);
    if (library == NULL) return;
    check_exports(library);
    int functions = 0;
    for (; double_function(functions) != NULL; functions++) {
        CHECK(dlsym(library, double_function(functions)) != NULL);
        CHECK_EQUAL(double_calls(double_function(functions)) >= 0, 1);
    }
    CHECK(functions > 50 && double_function(-1) == NULL);
    CHECK(dlsym(library, "cuMemHostRegister_v2") != NULL);
    CHECK(dlsym(library, "context_current") == NULL);
}

static void the_old_driver_lacks_only_cuMemHostRegister(void)
{
    void *library = dlopen(OLD_DRIVER, RTLD_NOW);
    CHECK(library != NULL);
    if (library == NULL) return;
    check_exports(library);
    CHECK(dlsym(library, "cuMemHostRegister_v2") == NULL);
}

/* Every call that needs an initialized driver, with valid arguments, fails with `code`. */
static void check_all_fail(CUresult code)
{
    int number = 0;
    size_t bytes;
    char text[64];
    void *pointer;
    float milliseconds;
    CUcontext context = NULL;
    CUdeviceptr address;
    unsigned long long id;
    CUstream made_stream;
    CUevent made_event;
    CUgraph graph;
    CHECK_EQUAL(cuDeviceGetCount(&number), code);
    CHECK_EQUAL(cuDeviceGet(&number, 0), code);
    CHECK_EQUAL(cuDeviceGetName(text, 64, 0), code);
    CHECK_EQUAL(cuDeviceTotalMem_v2(&bytes, 0), code);
    CHECK_EQUAL(cuDeviceGetAttribute(&number, 41, 0), code);
    CHECK_EQUAL(cuDeviceGetPCIBusId(text, 64, 0), code);
    CHECK_EQUAL(cuDevicePrimaryCtxRetain(&context, 0), code);
    CHECK_EQUAL(cuDevicePrimaryCtxRelease_v2(0), code);
    CHECK_EQUAL(cuCtxCreate_v2(&context, 0, 0), code);
    CHECK_EQUAL(cuCtxDestroy_v2(context), code);
    CHECK_EQUAL(cuCtxGetCurrent(&context), code);
    CHECK_EQUAL(cuCtxSetCurrent(NULL), code);
    CHECK_EQUAL(cuCtxPushCurrent_v2(context), code);
    CHECK_EQUAL(cuCtxPopCurrent_v2(&context), code);
    CHECK_EQUAL(cuCtxGetDevice(&number), code);
    CHECK_EQUAL(cuCtxSynchronize(), code);
    CHECK_EQUAL(cuMemGetInfo_v2(&bytes, &bytes), code);
    CHECK_EQUAL(cuMemAlloc_v2(&address, 1), code);
    CHECK_EQUAL(cuMemFree_v2(0), code);
    CHECK_EQUAL(cuMemHostAlloc(&pointer, 1, 0), code);
    CHECK_EQUAL(cuMemFreeHost(text), code);
    CHECK_EQUAL(cuMemHostRegister_v2(text, 64, 0), code);
    CHECK_EQUAL(cuMemHostUnregister(text), code);
    CHECK_EQUAL(cuMemHostGetDevicePointer_v2(&address, text, 0), code);
    CHECK_EQUAL(cuPointerGetAttribute(&number, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 0), code);
    CHECK_EQUAL(cuMemcpyAsync((uintptr_t)text, (uintptr_t)text, 1, NULL), code);
    CHECK_EQUAL(cuMemcpyHtoDAsync_v2(0, text, 1, NULL), code);
    CHECK_EQUAL(cuMemcpyDtoHAsync_v2(text, 0, 1, NULL), code);
    CHECK_EQUAL(cuMemsetD8Async(0, 0, 1, NULL), code);
    CHECK_EQUAL(cuStreamCreate(&made_stream, 0), code);
    CHECK_EQUAL(cuStreamDestroy_v2(NULL), code);
    CHECK_EQUAL(cuStreamSynchronize(NULL), code);
    CHECK_EQUAL(cuStreamQuery(NULL), code);
    CHECK_EQUAL(cuStreamGetId(NULL, &id), code);
    CHECK_EQUAL(cuStreamWaitEvent(NULL, NULL, 0), code);
    CHECK_EQUAL(cuStreamIsCapturing(NULL, &number), code);
    CHECK_EQUAL(cuStreamBeginCapture_v2(CU_STREAM_PER_THREAD, 0), code);
    CHECK_EQUAL(cuStreamEndCapture(NULL, &graph), code);
    CHECK_EQUAL(cuGraphDestroy(NULL), code);
    CHECK_EQUAL(cuThreadExchangeStreamCaptureMode(&number), code);
    CHECK_EQUAL(cuEventCreate(&made_event, 0), code);
    CHECK_EQUAL(cuEventDestroy_v2(NULL), code);
    CHECK_EQUAL(cuEventRecord(NULL, NULL), code);
    CHECK_EQUAL(cuEventQuery(NULL), code);
    CHECK_EQUAL(cuEventSynchronize(NULL), code);
    CHECK_EQUAL(cuEventElapsedTime(&milliseconds, NULL, NULL), code);
    CHECK_EQUAL(cuLaunchHostFunc(NULL, append_call, "x"), code);
}

static void calls_before_init_fail(void)
{
    check_all_fail(CUDA_ERROR_NOT_INITIALIZED);
    CHECK_EQUAL(double_calls(NULL), 47);
}

static void version_and_error_names_need_no_init(void)
{
    int version = 0;
    const char *text = NULL;
    OK(cuDriverGetVersion(&version));
    CHECK_EQUAL(version, 13000);
    OK(cuGetErrorName(712, &text));
    CHECK(strcmp(text, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED") == 0);
    OK(cuGetErrorString(3, &text));
    CHECK(text != NULL && strstr(text, "cuInit") != NULL);
    REFUSED(INVALID_VALUE, cuGetErrorName(123456, &text));
    CHECK(text == NULL);
}

static void calls_in_a_forked_child_fail_without_hanging(void)
{
    start();
    int version, status = -1;
    pid_t child = fork();
    if (child == 0) {
        check_all_fail(CUDA_ERROR_NOT_INITIALIZED);
        REFUSED(NOT_INITIALIZED, cuInit(0));
        REFUSED(NOT_INITIALIZED, cuDriverGetVersion(&version));
        CHECK_EQUAL(double_live("streams"), -1);
        CHECK_EQUAL(double_calls("cuInit"), -1);
        CHECK_EQUAL(double_configure("WB_DOUBLE_FAIL", ""), -1);
        CHECK_EQUAL(double_context_depth(), -1);
        return;
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    OK(cuCtxSynchronize());
}

static void *keep_the_lock_busy(void *stop)
{
    while (!atomic_load((atomic_int *)stop)) double_calls(NULL);
    return NULL;
}

/* The child must not need the lock, which another thread may hold at the fork. */
static void calls_in_children_forked_under_load_do_not_hang(void)
{
    atomic_int stop = 0;
    pthread_t thread;
    start();
    CHECK_EQUAL(pthread_create(&thread, NULL, keep_the_lock_busy, &stop), 0);
    for (int i = 0; i < 40; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0) _exit(cuCtxSynchronize() == CUDA_ERROR_NOT_INITIALIZED ? 0 : 1);
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, 0);
    }
    atomic_store(&stop, 1);
    pthread_join(thread, NULL);
}

static void settings_come_from_the_environment(void)
{
    int number;
    size_t bytes;
    char text[64];
    setenv("WB_DOUBLE_DEVICES", "3", 1);
    setenv("WB_DOUBLE_CAPACITY", "12345678", 1);
    setenv("WB_DOUBLE_VERSION", "12080", 1);
    setenv("WB_DOUBLE_ATTRIBUTES", "99=0,113=7", 1);
    setenv("WB_DOUBLE_FAIL", "cuDeviceGetName:2:719", 1);
    OK(cuInit(0));
    OK(cuDeviceGetCount(&number));
    CHECK_EQUAL(number, 3);
    REFUSED(INVALID_DEVICE, cuDeviceGet(&number, 3));
    REFUSED(INVALID_DEVICE, cuDeviceTotalMem_v2(&bytes, -1));
    OK(cuDeviceTotalMem_v2(&bytes, 2));
    CHECK_EQUAL(bytes, 12345678);
    OK(cuDriverGetVersion(&number));
    CHECK_EQUAL(number, 12080);
    OK(cuDeviceGetAttribute(&number, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1));
    CHECK_EQUAL(number, 0);
    OK(cuDeviceGetAttribute(&number, 113, 1));
    CHECK_EQUAL(number, 7);
    OK(cuDeviceGetAttribute(&number, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1));
    CHECK_EQUAL(number, 1);
    OK(cuDeviceGetPCIBusId(text, 64, 2));
    CHECK(strcmp(text, "0000:03:00.0") == 0);
    REFUSED(INVALID_VALUE, cuDeviceGetPCIBusId(text, 12, 2));
    OK(cuDeviceGetName(text, 7, 0));
    CHECK(strcmp(text, "Driver") == 0);
    REFUSED(LAUNCH_FAILED, cuDeviceGetName(text, 64, 0));
    CHECK_EQUAL(double_configure("WB_DOUBLE_DEVICES", "2"), -1);
}

static void init_fails_with_an_invalid_setting(void)
{
    setenv("WB_DOUBLE_FAIL", "cuMemAlloc:1:2", 1); /* no such symbol */
    CHECK(freopen("/dev/null", "w", stderr) != NULL);
    REFUSED(INVALID_VALUE, cuInit(0));
    CHECK_EQUAL(double_configure("WB_DOUBLE_FAIL", "*:1"), -1);
    CHECK_EQUAL(double_configure("WB_DOUBLE_CAPACITY", "1G"), -1);
    CHECK_EQUAL(double_configure("WB_DOUBLE_ATTRIBUTES", "99"), -1);
    CHECK_EQUAL(double_configure("WB_DOUBLE_SPEED", "1"), -1);
}

static void init_fails_without_devices(void)
{
    int number;
    configure("WB_DOUBLE_DEVICES", "0");
    REFUSED(NO_DEVICE, cuInit(0));
    REFUSED(NOT_INITIALIZED, cuDeviceGetCount(&number));
}

static void only_the_chosen_call_fails(void)
{
    CUdeviceptr pointer;
    start();
    configure("WB_DOUBLE_FAIL", "cuMemAlloc_v2:2:2,cuMemFree_v2:0:999");
    OK(cuMemAlloc_v2(&pointer, 64));
    REFUSED(OUT_OF_MEMORY, cuMemAlloc_v2(&pointer, 64));
    OK(cuMemAlloc_v2(&pointer, 64));
    REFUSED(UNKNOWN, cuMemFree_v2(pointer));
    REFUSED(UNKNOWN, cuMemFree_v2(pointer));
    CHECK_EQUAL(double_live("device_allocations"), 2);
    configure("WB_DOUBLE_FAIL", "*:2:801");
    OK(cuMemFree_v2(pointer));
    REFUSED(NOT_SUPPORTED, cuCtxSynchronize());
    OK(cuCtxSynchronize());
    CHECK_EQUAL(double_calls("cuMemAlloc_v2"), 3);
    CHECK_EQUAL(double_calls("cuMemFree_v2"), 3);
    CHECK_EQUAL(double_calls("cuNothing"), -1);
    CHECK_EQUAL(double_live("nothing"), -1);
}

static void the_repetition_of_a_failed_call_is_reported(void)
{
    CUstream one, other;
    start();
    OK(cuStreamCreate(&one, 0));
    OK(cuStreamCreate(&other, 0));
    configure("WB_DOUBLE_FAIL", "cuStreamSynchronize:1:999");
    CHECK(double_failed() == NULL);
    REFUSED(UNKNOWN, cuStreamSynchronize(one));
    CHECK(strcmp(double_failed(), "cuStreamSynchronize") == 0);
    CHECK_EQUAL(double_failures("cuStreamSynchronize"), 1);
    OK(cuStreamSynchronize(other));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(double_failed_call_repeated(), 0);
    OK(cuStreamSynchronize(one));
    CHECK_EQUAL(double_failed_call_repeated(), 1);
    configure("WB_DOUBLE_FAIL", "*:1+:4");
    CHECK(double_failed() == NULL);
    REFUSED(DEINITIALIZED, cuCtxSynchronize());
    REFUSED(DEINITIALIZED, cuStreamSynchronize(one));
    CHECK(strcmp(double_failed(), "cuCtxSynchronize") == 0);
    CHECK_EQUAL(double_failed_call_repeated(), 0);
    REFUSED(DEINITIALIZED, cuCtxSynchronize());
    CHECK_EQUAL(double_failed_call_repeated(), 1);
    CHECK_EQUAL(double_failures("cuCtxSynchronize"), 2);
    CHECK_EQUAL(double_failures("cuStreamSynchronize"), 1);
    CHECK_EQUAL(double_failures("cuMemAlloc_v2"), 0);
    CHECK_EQUAL(double_failures("cuNothing"), -1);
}

static void set_flag(void *flag)
{
    *(int *)flag = 1;
}

static void no_work_is_in_flight_after_a_shutdown(void)
{
    int ran = 0;
    start();
    configure("WB_DOUBLE_DELAY_US", "20000");
    OK(cuLaunchHostFunc(NULL, set_flag, &ran));
    configure("WB_DOUBLE_FAIL", "*:1+:4");
    REFUSED(DEINITIALIZED, cuStreamSynchronize(NULL));
    CHECK_EQUAL(ran, 1);
}

static void call_in_host_function(void *result)
{
    *(CUresult *)result = cuCtxSynchronize();
}

static void a_host_function_cannot_call_the_driver(void)
{
    CUresult result = CUDA_SUCCESS;
    start();
    OK(cuLaunchHostFunc(NULL, call_in_host_function, &result));
    OK(cuStreamSynchronize(NULL));
    REFUSED(NOT_PERMITTED, result);
}

const struct test control_tests[] = {
    TEST(every_entry_point_is_exported),
    TEST(the_old_driver_lacks_only_cuMemHostRegister),
    TEST(calls_before_init_fail),
    TEST(version_and_error_names_need_no_init),
    TEST(calls_in_a_forked_child_fail_without_hanging),
    TEST(calls_in_children_forked_under_load_do_not_hang),
    TEST(settings_come_from_the_environment),
    TEST(init_fails_with_an_invalid_setting),
    TEST(init_fails_without_devices),
    TEST(only_the_chosen_call_fails),
    TEST(the_repetition_of_a_failed_call_is_reported),
    TEST(no_work_is_in_flight_after_a_shutdown),
    TEST(a_host_function_cannot_call_the_driver),
    {0},
};
