/* Threads around an offloader: some step, one changes the weights meanwhile. */
#ifndef TEAM_H
#define TEAM_H

#include "weights.h"
#include "worker.h"

enum { LASTING_STEPPERS = 2 };

/* An offloader that lives as long as the soak; its weights change, their sizes do not. */
struct lasting {
    wb_device *device;
    wb_offloader *offloader;
    struct weights weights;
    void *stream;
};

int lasting_begin(struct lasting *lasting, wb_device *device);
void lasting_end(struct lasting *lasting);

/* A round's threads of one team; each is run by a thread that waits for the others. */
struct team {
    pthread_t thread;
    struct round *round;
    struct lasting *lasting;
    int index;
};

/* Steps and changes the lasting offloader until the round stops. */
void *team_lasting(void *team);
/* Makes one offloader after another, steps and changes each for a while, and releases it. */
void *team_changing(void *team);

#endif
