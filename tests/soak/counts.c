/* How often what was done. */
#include "counts.h"

static uint64_t counts[OPERATIONS];

static const char *const names[OPERATIONS] = {
    "allocated", "registered", "mapped", "files opened", "tensors viewed", "viewed", "copied from",
    "exported", "imported", "retained", "handed over", "released", "released after a stream",
    "read by the device", "device memory", "quantized", "streams made", "devices opened",
    "refused as they must be", "plans committed", "groups acquired", "steps", "steps abandoned",
    "weights replaced", "weights added", "weights removed", "compacted", "changes refused"};

void count(enum operation operation)
{
    __atomic_fetch_add(&counts[operation], 1, __ATOMIC_RELAXED);
}

uint64_t counted(void)
{
    uint64_t sum = 0;
    for (int kind = 0; kind < OPERATIONS; kind++) {
        sum += __atomic_load_n(&counts[kind], __ATOMIC_RELAXED);
    }
    return sum;
}

int counted_all(void)
{
    int all = 1;
    for (int kind = 0; kind < OPERATIONS; kind++) {
        all &= __atomic_load_n(&counts[kind], __ATOMIC_RELAXED) > 0;
    }
    return all;
}

void counts_print(void)
{
    for (int kind = 0; kind < OPERATIONS; kind++) {
        printf("%12" PRIu64 "  %s\n", counts[kind], names[kind]);
    }
}
