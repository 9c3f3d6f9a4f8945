/* How often what was done. */
#ifndef COUNTS_H
#define COUNTS_H

#include "soak.h"

enum operation {
    ALLOCATED, REGISTERED, MAPPED, OPENED, TENSOR_VIEWED, VIEWED, COPIED_FROM, EXPORTED, IMPORTED,
    RETAINED, HANDED_OVER, RELEASED, RELEASED_AFTER, READ_BY_DEVICE, DEVICE_MEMORY, QUANTIZED,
    STREAM_MADE, DEVICE_OPENED, REFUSED, PLANNED, ACQUIRED, STEPPED, ABANDONED, REPLACED, ADDED,
    REMOVED, COMPACTED, CHANGE_REFUSED, OPERATIONS
};

void count(enum operation operation);
uint64_t counted(void);
/* Whether everything was done at least once. */
int counted_all(void);
void counts_print(void);

#endif
