/* What the kernel counts for this process. */
#ifndef PROCESS_H
#define PROCESS_H

#include "soak.h"

struct process {
    uint64_t threads, files, mappings;
    uint64_t locked_bytes;   /* by mlock */
    uint64_t resident_bytes; /* after free memory went back to the kernel */
};

struct process process_now(void);

/* Begins the program again without the C library's caches of stacks and arenas, whose number is
 * chance: with them a count of mappings says nothing. */
void process_without_caches(char **argv);

#endif
