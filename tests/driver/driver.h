/* Declarations shared by the files of the double. driver.lock guards all state
 * here; driver.progress is broadcast whenever work is queued or completes.
 * Speed is not a goal. */
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
    F(cuDevicePrimaryCtxReset_v2) F(cuCtxCreate_v2)                                               \
    F(cuCtxDestroy_v2) F(cuCtxGetCurrent) F(cuCtxSetCurrent) F(cuCtxPushCurrent_v2)               \
    F(cuCtxPopCurrent_v2) F(cuCtxGetDevice) F(cuCtxSynchronize) F(cuMemGetInfo_v2)                \
    F(cuMemAlloc_v2) F(cuMemFree_v2) F(cuMemHostAlloc) F(cuMemFreeHost) F(cuMemHostRegister_v2)   \
    F(cuMemHostUnregister) F(cuMemHostGetDevicePointer_v2) F(cuPointerGetAttribute)               \
    F(cuMemGetAllocationGranularity) F(cuMemAddressReserve) F(cuMemAddressFree) F(cuMemCreate)    \
    F(cuMemRelease) F(cuMemMap) F(cuMemSetAccess) F(cuMemUnmap)                                   \
    F(cuMemcpyAsync) F(cuMemcpyHtoDAsync_v2) F(cuMemcpyDtoHAsync_v2) F(cuMemsetD8Async)           \
    F(cuStreamCreate) F(cuStreamDestroy_v2) F(cuStreamSynchronize) F(cuStreamQuery)               \
    F(cuStreamGetId)                                                                              \
    F(cuStreamWaitEvent) F(cuStreamIsCapturing) F(cuStreamGetCaptureInfo_v2)                      \
    F(cuStreamBeginCapture_v2) F(cuStreamEndCapture)                                              \
    F(cuGraphDestroy) F(cuGraphInstantiateWithFlags) F(cuGraphLaunch) F(cuGraphExecDestroy)       \
    F(cuThreadExchangeStreamCaptureMode) F(cuEventCreate) F(cuEventDestroy_v2)                    \
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

/* Preconditions that enter() checks. */
enum needs {
    NEEDS_NOTHING = 0,
    NEEDS_INIT = 1,
    NEEDS_CONTEXT = 3, /* includes NEEDS_INIT */
    UNSAFE_IN_CAPTURE = 4
};

/* Counts the call, injects failures, checks `needs`. On success, and only then,
 * the caller holds driver.lock; leave() releases it. */
CUresult enter(enum function function, unsigned needs);
#define ENTER(name, needs)                                                                        \
    do {                                                                                          \
        CUresult refused = enter(FUNCTION_##name, needs);                                         \
        if (refused != CUDA_SUCCESS) return refused;                                              \
    } while (0)
CUresult leave(CUresult result);

/* Only counts the call and injects failures: for calls that return constants. */
CUresult enter_constant(enum function function);

const char *function_name(int function); /* NULL: there are fewer */
int function_by_name(const char *name, size_t length); /* FUNCTION_COUNT: not found */
int process_is_forked_child(void);
void driver_mark_initialized(void);
int driver_is_initialized(void);
long long calls_of(int function); /* FUNCTION_ANY: all */

/* Injected failures since the setting was made. */
const char *first_failed_function(void); /* NULL: none */
long long failures_of(int function);
int first_failed_call_repeated(void); /* by the thread whose call failed */
void failures_reset(void);

/* Called before ENTER: names the stream or event that the call waits for. A call is a repetition of
 * another if the function and the subject are the same. */
void set_call_subject(const void *object);

/* Set while a host function runs: CUDA calls fail in it. */
extern _Thread_local int inside_host_function;

void *allocate(size_t bytes); /* zeroed; aborts if out of memory */

/* settings.c */

struct failure {
    int function;
    unsigned long nth; /* 0: every call */
    int all_after;     /* also every later call */
    unsigned long seen;
    CUresult code;    /* CUDA_SUCCESS: the call is delayed by hang_ms instead */
    unsigned hang_ms;
};

struct attribute_override {
    int attribute, value;
};

#define SETTINGS_MAX 64
#define DEVICES_MAX 16

struct settings {
    int loaded, malformed;
    int devices, version, unmapped, reuse_streams;
    size_t capacity;
    unsigned delay_us;
    int override_count, failure_count;
    struct attribute_override overrides[SETTINGS_MAX];
    struct failure failures[SETTINGS_MAX];
};

void settings_load(void); /* reads the environment at the first call */
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
struct context *context_current(void); /* NULL if there is none; enter() checks it */
CUresult context_check(struct context *context);
CUresult context_check_current(void);

/* ranges.c: all memory ranges that the driver knows; no two overlap */

enum range_kind { RANGE_DEVICE, RANGE_HOST, RANGE_REGISTERED };

struct range {
    uintptr_t start;
    size_t bytes;
    enum range_kind kind;
    unsigned flags;
    int aliased; /* its device addresses are the host addresses with DEVICE_ALIAS_BIT */
    struct physical *physical; /* of a mapping; NULL otherwise */
    int accessible;            /* of a mapping */
    struct context *context;
};

/* A pointer to a range is valid until the lock is released. */
struct range *range_containing(uintptr_t address);
int range_overlaps(uintptr_t start, size_t bytes);
void range_add(struct range range);
void range_remove(uintptr_t start);
size_t ranges_of_kind(enum range_kind kind, size_t *bytes);
size_t registrations_unmapped(void);
size_t device_bytes_used(CUdevice device); /* allocations and physical memory */
struct range *range_of_context(const struct context *context);

/* arena.c: device addresses, none of which is reused */

void *arena_allocate(size_t bytes);
uintptr_t arena_reserve(size_t bytes, size_t alignment); /* inaccessible; 0: none left */
void arena_free(uintptr_t start, size_t bytes);
int arena_contains(uintptr_t address);

/* addresses.c */

size_t reservations_live(void);
size_t physical_live(void);
size_t physical_bytes(CUdevice device); /* -1: of the host */

/* mappings.c */

/* Fails where the kernel and the driver refuse to register the range; otherwise
 * makes its pages present and copies private ones, as pinning does. */
CUresult mappings_pin(uintptr_t start, size_t bytes, int read_only);
int mappings_permit(uintptr_t start, size_t bytes, int writing);

/* memory.c */

size_t memory_release_all(struct context *context); /* the number of ranges released */

/* If attribute 91 is 0, the device address of registered memory is its host
 * address with this bit set, which the host cannot access. */
#define DEVICE_ALIAS_BIT ((uintptr_t)1 << 56)

/* Whether the device can access this host memory in place. */
int range_is_mapped(const struct range *range);

/* worker.c: the queues of streams and the threads that run them */

struct task {
    enum { TASK_NONE, TASK_COPY, TASK_FILL, TASK_CALL } kind;
    void *destination;
    const void *source;
    size_t bytes;
    unsigned char value;
    CUhostFn function;
    void *argument;
    int once; /* frees its argument, of `bytes` bytes, when it runs */
};

struct work {
    struct work *next; /* in the queue of its stream */
    unsigned references;
    unsigned waiting;       /* threads in work_wait */
    pthread_cond_t is_done; /* for these alone: most work has none */
    int done;
    struct timespec finished;
    struct task task;
    size_t dependency_count;
    struct work *dependencies[];
};

#define CAPTURE_STREAMS 32

struct stream {
    struct stream *next;
    CUstream handle; /* NULL for the two default streams of a context */
    unsigned long long id;
    struct context *context;
    unsigned flags;
    int started, destroyed;
    pthread_cond_t has_work; /* for its own thread; also when it is destroyed */
    struct work *head;
    struct work *last; /* the work queued last, also after it is done */
    struct capture *capture;
    unsigned member; /* its index in that capture */
    unsigned clock[CAPTURE_STREAMS];
};

struct stream *stream_new(struct context *context, unsigned flags, int with_handle);
void stream_retire(struct stream *stream);
CUresult stream_find(CUstream handle, struct stream **stream);
int stream_is_legacy(const struct stream *stream);
int stream_blocks_with(const struct stream *stream, const struct stream *legacy);
size_t streams_retire_all(struct context *context);

/* Queues work and ignores captures; the caller owns a reference to the result. */
struct work *stream_queue(struct stream *stream, struct task task, struct work *after);
void work_unreference(struct work *work);
void work_wait(struct work *work); /* releases the lock while it waits */

/* Waits for all work queued so far; NULL: of all contexts; -1: of all devices. */
void streams_drain(const struct context *context, CUdevice device);

/* stream.c */

/* Queues the task, or adds it to the stream's capture. With
 * `synchronous`, returns after the task has run. */
CUresult stream_submit(struct stream *stream, struct task task, int synchronous);

/* event.c */

struct event {
    struct event *next;
    CUevent handle;
    struct context *context;
    unsigned flags;
    struct work *recorded; /* NULL: never recorded, or captured */
    unsigned long capture; /* id of the capture that recorded it last, or 0 */
    unsigned clock[CAPTURE_STREAMS];
};

struct event *event_find(CUevent handle);
size_t events_destroy_all(struct context *context);

/* graph.c */

/* What a stream of a capture does, or waits for. */
struct node {
    enum { NODE_TASK, NODE_WAIT, NODE_EXTERNAL_WAIT } kind;
    unsigned member;                 /* the stream's index in the capture */
    unsigned clock[CAPTURE_STREAMS]; /* the stream's, with this node */
    struct task task;
    CUevent event;
};

struct recording {
    struct node *nodes;
    size_t count, capacity;
    unsigned members;
    unsigned progress[CAPTURE_STREAMS];
};

void recording_add(struct recording *recording, struct node node);
void recording_free(struct recording *recording);
CUgraph graph_new(struct recording *recording); /* takes the recording's nodes */
size_t graphs_live(void);
size_t execs_live(void);

/* capture.c */

size_t captures_live(void);
void capture_add_node(struct stream *stream, struct node node);
CUresult capture_check_unsafe(void);
CUresult capture_check_wait(struct stream *stream);
CUresult capture_check_context(const struct context *context);
CUresult capture_add_work(struct stream *stream, int *captured);
CUresult capture_record(struct stream *stream, struct event *event, int *captured);
CUresult capture_wait(struct stream *stream, struct event *event, int *captured);
CUresult capture_check_event(const struct event *event);
void capture_remove_stream(struct stream *stream);

struct driver {
    pthread_mutex_t lock;
    struct settings settings;
    struct context *contexts; /* also destroyed ones, whose handles stay recognizable */
    struct context *primary[DEVICES_MAX];
    struct stream *streams; /* destroyed ones too, until their work is done */
    struct event *events;
    struct capture *captures;
    struct graph *graphs;
    struct exec *execs;
    uintptr_t next_handle;
    CUstream destroyed_stream; /* the handle that was destroyed last */
    unsigned long long streams_made;
    size_t orphans;
};

extern struct driver driver;

/* Handles of streams, events and graphs are never reused, so that a stale one is
 * detected, unless WB_DOUBLE_REUSE_STREAMS is set, and are not valid addresses. */
void *handle_new(void);

#endif
