/* Stream capture and graphs through the functions of the driver. */
#ifndef CAPTURES_H
#define CAPTURES_H

#include "memory.h"

/* The driver's functions for captures and graphs, with the primary context current in this thread. */
struct captures {
    int (*begin)(void *, int), (*end)(void *, void **), (*destroy)(void *);
    int (*instantiate)(void **, void *, unsigned long long), (*launch)(void *, void *);
    int (*destroy_exec)(void *), (*set_current)(void *), (*release)(int);
};

static inline int captures_begin(struct captures *captures)
{
    int (*retain)(void **, int) = NULL;
    void *context = NULL;
    return CHECK(driver_function("cuDevicePrimaryCtxRetain", &retain) &&
                 driver_function("cuDevicePrimaryCtxRelease_v2", &captures->release) &&
                 driver_function("cuCtxSetCurrent", &captures->set_current) &&
                 driver_function("cuStreamBeginCapture_v2", &captures->begin) &&
                 driver_function("cuStreamEndCapture", &captures->end) &&
                 driver_function("cuGraphDestroy", &captures->destroy) &&
                 driver_function("cuGraphInstantiateWithFlags", &captures->instantiate) &&
                 driver_function("cuGraphLaunch", &captures->launch) &&
                 driver_function("cuGraphExecDestroy", &captures->destroy_exec)) &&
           CHECK(retain(&context, 0) == 0 && captures->set_current(context) == 0);
}

static inline void captures_end(const struct captures *captures)
{
    CHECK(captures->set_current(NULL) == 0 && captures->release(0) == 0);
}

#endif
