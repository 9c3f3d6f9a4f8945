/* What is broken by hand, to see that the soak finds it. */
#ifndef BROKEN_H
#define BROKEN_H

#include "soak.h"

/* Called before each round. */
void break_something(wb_device *device, uint64_t round);

#endif
