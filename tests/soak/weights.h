/* A model whose weights change: each version of each weight has a size and a content of its own, or
 * is not there, so that every thread knows what it must find. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "soak.h"

enum { MOST_GROUPS = 24, MOST_EACH = 4, MOST_WEIGHTS = MOST_GROUPS * MOST_EACH };

struct weight {
    char name[32], group[24];
    /* Versions: the last that a change was begun to, and the last that one has succeeded with. */
    uint64_t begun, done;
};

struct weights {
    int groups, each;
    uint64_t most_bytes; /* of a weight */
    int sizes_change;    /* versions differ in size, and the last weight of each group comes and goes */
    uint64_t key;
    struct weight all[MOST_WEIGHTS];
};

void weights_init(struct weights *weights, int groups, int each, uint64_t most_bytes,
                  int sizes_change, uint64_t key);

static inline int weights_count(const struct weights *weights)
{
    return weights->groups * weights->each;
}

/* Bytes of a version of a weight; 0 where that version is not there. */
uint64_t weight_bytes(const struct weights *weights, int index, uint64_t version);

/* The content of a version, in memory of malloc. */
unsigned char *weight_content(const struct weights *weights, int index, uint64_t version);

/* Whether memory holds a version. */
int weight_is(const struct weights *weights, int index, uint64_t version, const void *memory,
              uint64_t bytes);

/* An offloader of the weights in their last versions, by the plan's options; `status` is why there is
 * none. */
wb_offloader *weights_offload(const struct weights *weights, wb_device *device, void *stream,
                              const wb_plan_options *plan, const wb_buffer_options *options,
                              wb_status *status);

#endif
