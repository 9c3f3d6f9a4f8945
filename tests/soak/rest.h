/* What must be as it was whenever all threads stand still. */
#ifndef REST_H
#define REST_H

#include "process.h"

struct rest {
    wb_device *device;
    wb_device_stats usage;           /* to the byte */
    long long driver[CHECK_KINDS];   /* what the driver double has alive */
    struct process process;
    int warm;                        /* `process` is from after the first round */
};

/* Takes what is there now as what must be there again. */
void rest_begin(struct rest *rest, wb_device *device);

/* Waits for what is on its way back, and compares; the process as it is. */
struct process rest_check(struct rest *rest);

/* Compares resident bytes of the second sixth of the rounds with those of the last; the growth. */
int64_t rest_growth(const uint64_t *resident, int rounds);

#endif
