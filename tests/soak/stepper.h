/* A thread that runs the steps of an engine, and sees that every weight of every group is one that it
 * may be: no older than before the group was acquired, no newer than after. */
#ifndef STEPPER_H
#define STEPPER_H

#include "weights.h"

struct stepper {
    wb_device *device;
    wb_offloader *offloader;
    struct weights *weights;
    int alone; /* no other thread acquires groups */
    struct random random;
    void *stream;
    wb_buffer *landing;
};

/* 0 when the stream or the memory is not to be had. */
int stepper_begin(struct stepper *stepper);
void stepper_end(struct stepper *stepper);

/* One step; a stepper that is alone takes other orders of groups at times, and abandons steps. */
void stepper_step(struct stepper *stepper);

#endif
