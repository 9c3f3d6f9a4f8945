/* A thread that changes an offloader's weights while others step. */
#ifndef CHANGER_H
#define CHANGER_H

#include "weights.h"

enum { KEPT_VIEWS = 8 };

struct changer {
    wb_device *device;
    wb_offloader *offloader;
    struct weights *weights;
    struct random random;
    void *stream;
    wb_view *views[KEPT_VIEWS]; /* of weights, older than some changes */
};

/* 0 when there is no stream to be had. */
int changer_begin(struct changer *changer);
/* Gives back all but what the offloader holds; before it or after it. */
void changer_end(struct changer *changer);

/* Brings a weight to its next version, or compacts, or makes a view. What is refused (a group is
 * acquired, a budget is met) has changed nothing. */
void changer_change(struct changer *changer);

#endif
