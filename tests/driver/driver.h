/* What the double's files share. One mutex guards everything here; one
 * condition is broadcast whenever a stream gets further. Speed is no aim. */
#ifndef WB_DOUBLE_DRIVER_H
#define WB_DOUBLE_DRIVER_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "cuda_api.h"

/* calls.c: the prologue of every entry point */

#define FUNCTIONS(F)                                                                              \
    F(cuInit) F(cuDriverGetVersion) F(cuDeviceGetCount) F(cuDeviceGet) F(cuDeviceGetName)         \
    F(cuDeviceTotalMem_v2) F(cuDeviceGetAttribute) F(cuDeviceGetPCIBusId)                         \
    F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxRelease_v2)                                   \
    F(cuDevicePrimaryCtxReset_v2) F(cuCtxCreate_v2)                                                \
    F(cuCtxDestroy_v2) F(cuCtxGetCurrent) F(cuCtxSetCurrent) F(cuCtxPushCurrent_v2)               \
    F(cuCtxPopCurrent_v2) F(cuCtxGetDevice) F(cuCtxSynchronize) F(cuMemGetInfo_v2)                \
    F(cuMemAlloc_v2) F(cuMemFree_v2) F(cuMemHostAlloc) F(cuMemFreeHost) F(cuMemHostRegister_v2)   \
    F(cuMemHostUnregister) F(cuMemHostGetDevicePointer_v2) F(cuPointerGetAttribute)               \
    F(cuMemcpyAsync) F(cuMemcpyHtoDAsync_v2) F(cuMemcpyDtoHAsync_v2) F(cuMemsetD8Async)           \
    F(cuStreamCreate) F(cuStreamDestroy_v2) F(cuStreamSynchronize) F(cuStreamQuery)               \
    F(cuStreamWaitEvent) F(cuStreamIsCapturing) F(cuStreamGetCaptureInfo_v2)                      \
    F(cuStreamBeginCapture_v2) F(cuStreamEndCapture)                                              \
    F(cuGraphDestroy) F(cuThreadExchangeStreamCaptureMode) F(cuEventCreate) F(cuEventDestroy_v2)  \
    F(cuEventRecord) F(cuEventQuery) F(cuEventSynchronize) F(cuEventElapsedTime)                  \
    F(cuModuleLoadData) F(cuModuleUnload) F(cuModuleGetFunction) F(cuLaunchKernel)                \
    F(cuLaunchHostFunc) F(cuGetErrorName) F(cuGetErrorString)

enum function {
#define FUNCTION_NUMBER(name) FUNCTION_##name,
    FUNCTIONS(FUNCTION_NUMBER)
#undef FUNCTION_NUMBER
    FUNCTION_COUNT,
    FUNCTION_ANY
};

/* What must hold before a call is let in. */
enum needs {
    NEEDS_NOTHING = 0,
    NEEDS_INIT = 1,
    NEEDS_CONTEXT = 3,
    UNSAFE_IN_CAPTURE = 4
};

/* Counts the call, injects failures, checks `needs`. On success, and only then,
 * the caller holds driver.lock, which leave() gives back. */
CUresult enter(enum function function, unsigned needs);
#define ENTER(name, needs)                                                                        \
    do {                                                                                          \
        CUresult refused = enter(FUNCTION_##name, needs);                                         \
        if (refused != CUDA_SUCCESS) return refused;                                              \
    } while (0)
CUresult leave(CUresult result);

/* Counts and injects only: for calls that read constants and touch no state. */
CUresult enter_constant(enum function function);

int function_by_name(const char *name, size_t length); /* FUNCTION_COUNT: none */
int process_is_forked_child(void);
void driver_mark_initialized(void);
int driver_is_initialized(void);
long long calls_of(int function); /* FUNCTION_ANY: all */

/* What failed on purpose since the setting was made. */
const char *failed_function(void);      /* the first; NULL: none */
long long failures_of(int function);
int failed_call_was_made_again(void);   /* the first, by its thread */
void failures_forget(void);

/* Says before ENTER what the call is about, where the function alone does not tell two calls apart. */
void call_about(const void *what);

/* Set while a host function runs: it may make no CUDA call. */
extern _Thread_local int inside_host_function;

void *allocate(size_t bytes); /* zeroed; ends the process when there is none */

/* settings.c */

struct failure {
    int function;
    unsigned long nth; /* 0: every call */
    int all_after;     /* and every one after the nth */
    unsigned long seen;
    CUresult code;           /* CUDA_SUCCESS: it hangs, and then does what it is asked */
    unsigned hang_ms;
};

struct attribute_override {
    int attribute, value;
};

#define SETTINGS_MAX 64
#define DEVICES_MAX 16

struct settings {
    int loaded, malformed;
    int devices, version, unmapped;
    size_t capacity;
    unsigned delay_us;
    int override_count, failure_count;
    struct attribute_override overrides[SETTINGS_MAX];
    struct failure failures[SETTINGS_MAX];
};

void settings_load(void); /* the environment, once */
int settings_change(const char *name, const char *value);

/* device.c */

int device_exists(CUdevice device);
int device_attribute(CUdevice device, int attribute);

/* context.c */

struct context {
    struct context *next;
    CUdevice device;
    int alive, primary;
    unsigned references; /* of a primary context */
    struct stream *legacy, *per_thread;
};

int context_depth(void);
struct context *context_current(void); /* as enter() has checked */
CUresult context_check(struct context *context);
CUresult context_check_current(void);

/* ranges.c: every stretch of memory that the driver knows, and no two overlap */

enum range_kind { RANGE_DEVICE, RANGE_HOST, RANGE_REGISTERED };

struct range {
    uintptr_t start;
    size_t bytes;
    enum range_kind kind;
    unsigned flags;
    int marked; /* its device addresses carry DEVICE_ADDRESS_MARK */
    struct context *context;
};

/* A pointer to a range holds until the lock is given back. */
struct range *range_holding(uintptr_t address);
int range_overlaps(uintptr_t start, size_t bytes);
void range_add(struct range range);
void range_remove(uintptr_t start);
size_t ranges_of_kind(enum range_kind kind, size_t *bytes);
size_t ranges_device_bytes(CUdevice device);
struct range *range_of_context(const struct context *context);

/* arena.c: device addresses, none of which is ever given out twice */

void *arena_take(size_t bytes);
void arena_give(uintptr_t start, size_t bytes);
int arena_holds(uintptr_t address);

/* maps.c */

/* Decides as the kernel and driver do whether the range can be registered, and
 * leaves its pages as pinning would: present, private ones copied. */
CUresult maps_pin(uintptr_t start, size_t bytes, int read_only);
int maps_allow(uintptr_t start, size_t bytes, int writing);

/* memory.c */

size_t memory_release_all(struct context *context); /* how many there were */

/* With attribute 91 at 0 the device sees registered memory elsewhere: the same
 * address with this bit, at which the host finds nothing. */
#define DEVICE_ADDRESS_MARK ((uintptr_t)1 << 56)

/* May the device read host memory of this range in place? */
int range_is_mapped(const struct range *range);

/* worker.c: streams and the threads that serve them */

struct task {
    enum { TASK_MARK, TASK_COPY, TASK_FILL, TASK_CALL } kind;
    void *destination;
    const void *source;
    size_t bytes;
    unsigned char value;
    CUhostFn function;
    void *argument;
};

struct work {
    struct work *next; /* in its stream's queue */
    unsigned references;
    int done;
    struct timespec finished;
    struct task task;
    size_t dependency_count;
    struct work *dependencies[];
};

#define CAPTURE_STREAMS 32

struct stream {
    struct stream *next;
    CUstream handle; /* NULL for a context's own two */
    struct context *context;
    unsigned flags;
    int started, destroyed;
    struct work *head;
    struct work *last; /* the newest work ever queued, done or not */
    struct capture *capture;
    unsigned member; /* of that capture */
    unsigned clock[CAPTURE_STREAMS];
};

struct stream *stream_new(struct context *context, unsigned flags, int with_handle);
void stream_retire(struct stream *stream);
CUresult stream_find(CUstream handle, struct stream **stream);
int stream_is_legacy(const struct stream *stream);
int stream_blocks_with(const struct stream *stream, const struct stream *legacy);
size_t streams_retire_all(struct context *context);

/* Queues without looking at capture; the result is the caller's reference. */
struct work *stream_queue(struct stream *stream, struct task task, struct work *after);
void work_unreference(struct work *work);
void work_wait(struct work *work); /* lets the lock go meanwhile */

/* Waits until what is queued now is done; NULL and -1: anywhere. */
void streams_drain(const struct context *context, CUdevice device);

/* stream.c */

/* Queues, or drops the task into the stream's capture; `synchronous` returns
 * only once it has run. */
CUresult stream_submit(struct stream *stream, struct task task, int synchronous);

/* event.c */

struct event {
    struct event *next;
    CUevent handle;
    struct context *context;
    unsigned flags;
    struct work *mark;     /* NULL: never recorded, or captured */
    unsigned long capture; /* number of the capture that recorded it last, or 0 */
    unsigned clock[CAPTURE_STREAMS];
};

struct event *event_find(CUevent handle);
size_t events_destroy_all(struct context *context);

/* capture.c */

size_t captures_live(void);
size_t graphs_live(void);
CUresult capture_check_unsafe(void);
CUresult capture_check_wait(struct stream *stream);
CUresult capture_check_context(const struct context *context);
CUresult capture_take_work(struct stream *stream, int *captured);
CUresult capture_record(struct stream *stream, struct event *event, int *captured);
CUresult capture_wait(struct stream *stream, struct event *event, int *captured);
CUresult capture_query_event(const struct event *event);
void capture_lose_stream(struct stream *stream);

struct driver {
    pthread_mutex_t lock;
    pthread_cond_t progress;
    struct settings settings;
    struct context *contexts; /* dead ones too: their handles stay known as dead */
    struct context *primary[DEVICES_MAX];
    struct stream *streams; /* retired ones until their work is done */
    struct event *events;
    struct capture *captures;
    struct graph *graphs;
    uintptr_t next_handle;
    size_t orphans;
};

extern struct driver driver;

/* Streams, events and graphs are named by numbers that never come back, so
 * that a stale handle is found out. They are no addresses of anything. */
void *handle_new(void);

#endif
