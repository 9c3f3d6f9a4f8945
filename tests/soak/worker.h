/* One of the threads that allocate, view, hand over and release at random. */
#ifndef WORKER_H
#define WORKER_H

#include <pthread.h>

#include "files.h"
#include "thing.h"

enum { HELD = 16, INBOX = 32, LANDING_BYTES = 64 << 10 };

/* What other threads hand to this one. */
struct inbox {
    pthread_mutex_t lock;
    struct thing things[INBOX];
    int count;
};

/* What all workers of a round share. */
struct round {
    wb_device *device;
    wb_quantizer *quantizer;
    const struct files *files;
    struct inbox *inboxes; /* one for each worker */
    int stop;
    uint64_t number;
};

struct worker {
    pthread_t thread;
    struct round *round;
    int index;
    struct random random;
    struct thing held[HELD];
    void *stream;
    wb_buffer *landing;     /* where the device's reads arrive */
    struct thing in_flight; /* what they are to show; its reference may be gone */
};

static inline int stopped(const struct round *round)
{
    return __atomic_load_n(&round->stop, __ATOMIC_ACQUIRE);
}

/* The thread's function: works until the round stops, then gives back what it holds. */
void *worker_run(void *worker);

/* 1 when the worker of the index took the thing; its inbox may be full. */
int inbox_put(struct inbox *inbox, const struct thing *thing);
/* One of the things in it, at random; NOTHING of an empty one. */
struct thing inbox_take(struct inbox *inbox, struct random *random);

/* make.c: something new, or NOTHING. */
struct thing make_buffer(struct worker *worker);
struct thing make_registered(struct worker *worker);
struct thing make_mapped(struct worker *worker);
struct thing make_of_model_file(struct worker *worker);
struct thing make_copy(struct worker *worker);
/* A view of what a thing shows, or of its buffer. */
struct thing make_view(struct worker *worker, const struct thing *of);

/* lend.c: memory over DLPack, in and out. */
struct thing make_imported(struct worker *worker);
struct thing make_exported(struct worker *worker, const struct thing *of);

/* compute.c: what streams and the device do. */
void read_by_device(struct worker *worker, const struct thing *thing);
void read_check(struct worker *worker);
void use_device_memory(struct worker *worker);
void quantize(struct worker *worker);
void renew_stream(struct worker *worker);

/* refuse.c: calls that must fail and leave nothing. */
void be_refused(struct worker *worker, const struct thing *thing);

#endif
