/* Shared by the files of the program soak. */
#ifndef SOAK_H
#define SOAK_H

#include <pthread.h>

#include "../c/dlpack_structs.h"
#include "weights.h"

/* soak.c: counts of the operations. The first round lasts until each was done once. */

#define OPERATION_LIST(OPERATION)                        \
    OPERATION(ALLOCATED, "buffers allocated")            \
    OPERATION(REGISTERED, "buffers registered")          \
    OPERATION(MAPPED, "files mapped or read")            \
    OPERATION(OPENED, "safetensors files opened")        \
    OPERATION(LOADED, "tensors loaded")                  \
    OPERATION(VIEWED, "views made")                      \
    OPERATION(COPIED_FROM, "views of copies made")       \
    OPERATION(EXPORTED, "DLPack tensors exported")       \
    OPERATION(IMPORTED, "DLPack tensors imported")       \
    OPERATION(RETAINED, "handles retained")              \
    OPERATION(HANDED_OVER, "handles given to a thread")  \
    OPERATION(RELEASED, "handles released")              \
    OPERATION(RELEASED_AFTER, "released after a stream") \
    OPERATION(READ_BY_DEVICE, "read by the device")      \
    OPERATION(DEVICE_MEMORY, "device memory allocated")  \
    OPERATION(QUANTIZED, "matrices quantized")           \
    OPERATION(STREAM_MADE, "streams made")               \
    OPERATION(DEVICE_OPENED, "devices opened")           \
    OPERATION(REFUSED, "invalid calls refused")          \
    OPERATION(PLANNED, "plans committed")                \
    OPERATION(ACQUIRED, "groups acquired")               \
    OPERATION(STEPPED, "steps")                          \
    OPERATION(LISTED, "weights listed in one call")      \
    OPERATION(ABANDONED, "steps abandoned")              \
    OPERATION(REPLACED, "weights replaced")              \
    OPERATION(ADDED, "weights added")                    \
    OPERATION(REMOVED, "weights removed")                \
    OPERATION(COMPACTED, "arenas compacted")             \
    OPERATION(COMPRESSED, "compressed weights read")     \
    OPERATION(RESIZED, "budgets changed")                \
    OPERATION(REBALANCED, "pieces rebalanced")           \
    OPERATION(CHANGE_REFUSED, "changes refused")

#define OPERATION_ENUMERATOR(operation, name) operation,
enum operation { OPERATION_LIST(OPERATION_ENUMERATOR) OPERATIONS };

void count(enum operation operation);

/* handle.c: handles to memory with known content. */

/* Memory that the library uses until it calls a deleter; the deleter checks the content. */
struct borrowed;

struct borrowed *borrowed_new(uint64_t bytes, uint64_t key);
void *borrowed_memory(struct borrowed *borrowed);
/* The deleter for wb_buffer_register, whose user data is the struct. */
void borrowed_delete(void *borrowed);
/* The memory as a DLPack tensor with its deleter. */
DLManagedTensor *borrowed_tensor(struct borrowed *borrowed);
DLManagedTensorVersioned *borrowed_versioned_tensor(struct borrowed *borrowed);
/* Calls the deleter once, and counts two calls. */
void borrowed_delete_twice(struct borrowed *borrowed);
/* Returns the deleters not called yet; negative if one was called twice. */
int64_t outstanding_deleters(void);

enum handle_kind { NO_HANDLE, BUFFER, VIEW, SAFETENSORS, TENSOR, VERSIONED_TENSOR };

/* One reference. Threads make handles, pass them to each other, check and release them. */
struct handle {
    enum handle_kind kind;
    union {
        wb_buffer *buffer;
        wb_view *view;
        wb_safetensors *file;
        DLManagedTensor *tensor;
        DLManagedTensorVersioned *versioned;
    } as;
    const unsigned char *data; /* host address; NULL if the accessor is the device */
    void *device_address;      /* NULL if not device-mapped */
    uint64_t bytes;
    uint64_t key, offset;      /* the content: that of `key`, from position `offset` */
};

extern const struct handle no_handle;

struct handle handle_of_buffer(wb_buffer *buffer, uint64_t key, uint64_t offset);
struct handle handle_of_view(wb_view *view, uint64_t key, uint64_t offset);
void handle_check(const struct handle *handle);
/* Returns another reference; no_handle of a DLPack tensor, which has one owner. */
struct handle handle_retain(const struct handle *handle);
/* Each checks the content, and leaves no handle. */
void handle_release(struct handle *handle);
void handle_release_after(struct handle *handle, void *stream);

/* worker.c: threads that make, use, pass on and release handles at random. */

enum { HELD = 16, INBOX = 32, READBACK_BYTES = 64 << 10 };

/* Handles that other threads passed to a worker. */
struct inbox {
    pthread_mutex_t lock;
    struct handle handles[INBOX];
    int count;
};

/* Shared by all threads of a round. */
struct round {
    wb_device *device;
    wb_quantizer *quantizer;
    const struct files *files;
    struct inbox *inboxes; /* one for each worker */
    int stop;
    uint64_t number;
};

static inline int stopped(const struct round *round)
{
    return __atomic_load_n(&round->stop, __ATOMIC_ACQUIRE) || failures() > 0;
}

struct worker {
    pthread_t thread;
    struct round *round;
    int index;
    struct random random;
    struct handle held[HELD];
    void *stream;
    wb_buffer *readback;
    struct handle in_flight; /* the content that `readback` must get; its reference may be released */
};

/* A thread's function: works until the round stops, then releases its handles. */
void *worker_run(void *worker);
/* Returns one handle of the inbox at random; no_handle if it is empty. */
struct handle inbox_take(struct inbox *inbox, struct random *random);

/* create.c: new handles, or no_handle. */

/* Files whose bytes are the content of one key. */
struct files {
    char plain[300], model[300];
    uint64_t plain_bytes;
    uint64_t key;
};

/* Writes a plain file and a safetensors file with unaligned tensors. Returns 0 if it fails. */
int files_write(struct files *files);
void files_remove(const struct files *files);

struct handle create_buffer(struct worker *worker);
struct handle create_registered(struct worker *worker);
struct handle create_mapped(struct worker *worker);
/* A safetensors file, or a view of one of its tensors. */
struct handle create_from_model_file(struct worker *worker);
struct handle create_copy(struct worker *worker);
struct handle create_imported(struct worker *worker);
/* A strided view of a part of a buffer or view. */
struct handle create_view(struct worker *worker, const struct handle *of);
struct handle create_exported(struct worker *worker, const struct handle *of);

/* offload.c: threads that step offloaders and change their weights. */

/* An offloader that exists in all rounds. The content of its weights changes, not their sizes. One of two
 * has its weights in pieces, which move while its budget changes. */
struct lasting_offloader {
    int in_pieces;
    wb_device *device;
    wb_offloader *offloader;
    struct weights weights;
    void *stream;
};

int lasting_begin(struct lasting_offloader *lasting, wb_device *device, int in_pieces);
void lasting_end(struct lasting_offloader *lasting);

struct offload_thread {
    pthread_t thread;
    struct round *round;
    struct lasting_offloader *lasting;
    int index;
};

/* Thread functions; each runs more threads and joins them. The first steps and changes a lasting
 * offloader until the round stops, the other one short-lived offloader after another. */
void *offload_lasting(void *offload_thread);
void *offload_short_lived(void *offload_thread);

/* baseline.c: the counts that must return to their baseline at the end of each round. */

struct process_counts {
    uint64_t threads, files, mappings;
    uint64_t locked_bytes;  /* by mlock */
    uint64_t private_bytes; /* after the C library returned its free memory to the kernel */
};

struct baseline {
    wb_device *device;
    wb_device_stats usage;           /* exact */
    long long driver[CHECK_KINDS];   /* objects of the driver double; exact */
    struct process_counts process;   /* of the end of the first round, once `warm` */
    int warm;
};

/* Starts the program again without the C library's caches of stacks and arenas: their number is not
 * deterministic, so mappings could not be compared. */
void restart_without_caches(char **argv);
void baseline_take(struct baseline *baseline, wb_device *device);
/* Drains the device and compares. Returns the counts of the process. */
struct process_counts baseline_check(struct baseline *baseline);
/* Compares the mean private bytes of the last sixth of the rounds with the second. Returns the
 * growth. */
int64_t check_growth(const uint64_t *bytes, int rounds);

#endif
