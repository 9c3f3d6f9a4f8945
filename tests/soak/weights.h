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

/* How a weight's versions differ: in content, in size, too, or the last weight of each group, besides,
 * in whether it is there. */
enum change { CONTENT_CHANGES, SIZES_CHANGE, WEIGHTS_COME_AND_GO };

struct weights {
    int groups, each;
    uint64_t most_bytes; /* of a weight */
    enum change change;
    uint64_t key;
    wb_plan_info planned; /* the last plan of them */
    struct weight all[MOST_WEIGHTS];
};

void weights_init(struct weights *weights, int groups, int each, uint64_t most_bytes,
                  enum change change, uint64_t key);

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
wb_offloader *weights_offload(struct weights *weights, wb_device *device, void *stream,
                              const wb_plan_options *plan, const wb_buffer_options *options,
                              wb_status *status);

#endif
