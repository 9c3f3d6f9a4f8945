/* Allocates device addresses. No address is reused: freed memory stays reserved
 * and inaccessible, so a stale device pointer is never valid again. */
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

#define CHUNKS_MAX 1024
#define CHUNK_BYTES ((size_t)1 << 34)

static struct {
    uintptr_t start;
    size_t bytes, used;
} chunks[CHUNKS_MAX];
static size_t chunk_count;

static size_t round_to_pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void *reserve(void *at, size_t bytes, int fixed)
{
    return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
}

/* Takes addresses of the last chunk, or of a new one. */
static uintptr_t take(size_t with_guard)
{
    size_t last = chunk_count - 1;
    if (chunk_count == 0 || chunks[last].bytes - chunks[last].used < with_guard) {
        size_t wanted = with_guard > CHUNK_BYTES ? with_guard : CHUNK_BYTES;
        if (chunk_count == CHUNKS_MAX) return 0;
        void *start = reserve(NULL, wanted, 0);
        if (start == MAP_FAILED) return 0;
        last = chunk_count++;
        chunks[last].start = (uintptr_t)start;
        chunks[last].bytes = wanted;
    }
    chunks[last].used += with_guard;
    return chunks[last].start + chunks[last].used - with_guard;
}

void *arena_allocate(size_t bytes)
{
    /* The page behind each allocation stays inaccessible: an overrunning copy faults. */
    void *memory = (void *)take(round_to_pages(bytes) + round_to_pages(1));
    if (memory == NULL) return NULL;
    return mprotect(memory, round_to_pages(bytes), PROT_READ | PROT_WRITE) == 0 ? memory : NULL;
}

uintptr_t arena_reserve(size_t bytes, size_t alignment)
{
    uintptr_t start = take(bytes + 2 * alignment);
    return start == 0 ? 0 : (start + alignment - 1) / alignment * alignment;
}

void arena_free(uintptr_t start, size_t bytes)
{
    reserve((void *)start, round_to_pages(bytes), MAP_FIXED);
}

int arena_contains(uintptr_t address)
{
    for (size_t i = 0; i < chunk_count; i++) {
        if (address - chunks[i].start < chunks[i].bytes) return 1;
    }
    return 0;
}
