/* A model whose weights change. Each version of each weight has its own size and content, or does not
 * exist, so every thread can tell which bytes it must find. */
#ifndef SOAK_WEIGHTS_H
#define SOAK_WEIGHTS_H

#include "common.h"

enum { MOST_GROUPS = 24, MOST_EACH = 4, MOST_WEIGHTS = MOST_GROUPS * MOST_EACH };

struct weight {
    char name[32], group[24];
    /* Versions: the newest that a change was started to, and the newest that a change reached. */
    uint64_t attempted, current;
};

/* How the versions of a weight differ: in content; in size too; and, with WEIGHTS_COME_AND_GO, the
 * last weight of each group exists in some versions only. */
enum change { CONTENT_CHANGES, SIZES_CHANGE, WEIGHTS_COME_AND_GO };

struct weights {
    int groups, each;
    uint64_t most_bytes; /* of a weight */
    enum change change;
    int are_numbers; /* in FP8, most versions with few exponents, so that they can be compressed */
    int are_large;   /* each of nearly `most_bytes` */
    uint64_t key;
    wb_plan_info planned; /* of the last plan */
    struct weight all[MOST_WEIGHTS];
};

void weights_init(struct weights *weights, int groups, int each, uint64_t most_bytes,
                  enum change change, uint64_t key);

static inline int weights_count(const struct weights *weights)
{
    return weights->groups * weights->each;
}

/* Returns the bytes of a version of a weight; 0 if the weight does not exist in it. */
uint64_t weight_bytes(const struct weights *weights, int index, uint64_t version);

/* Returns the layout of `bytes[0]` bytes of a weight. */
wb_layout weight_layout(const struct weights *weights, const int64_t *bytes);

/* Returns the content of a version, in memory of malloc. */
unsigned char *weight_content(const struct weights *weights, int index, uint64_t version);

/* Returns 1 if memory holds the version. */
int has_weight(const struct weights *weights, int index, uint64_t version, const void *memory,
               uint64_t bytes);

/* Plans and commits the current versions. Returns NULL, and the reason in `status`, if either fails. */
wb_offloader *weights_offload(struct weights *weights, wb_device *device, void *stream,
                              const wb_plan_options *plan, const wb_buffer_options *buffers,
                              wb_status *status);

#endif
