/* What is broken by hand. A byte of a buffer and of a weight are broken where they are written. */
#include "broken.h"

#include <pthread.h>

#include "content.h"
#include "lent.h"

/* Blocks that lie in the heap, where no mapping tells of them. */
enum { AFTER_ROUNDS = 3, GROWS_BY = 1 << 20, BLOCK = 8 << 10, MAPPINGS = 64 };

/* What grows; a compiler would leave out memory that nobody can see. */
static void *volatile grown;

static void *endless(void *user)
{
    for (;;) pause();
    return user;
}

void break_something(wb_device *device, uint64_t round)
{
    wb_buffer *buffer = NULL;
    pthread_t thread;
    void *stream = NULL, *memory = NULL;
    for (int block = 0; settings.broken == BROKEN_MEMORY && block < GROWS_BY / BLOCK; block++) {
        grown = memory = malloc(BLOCK);
        if (memory != NULL) content_fill(memory, BLOCK, round);
    }
    if (round != AFTER_ROUNDS) return;
    switch (settings.broken) {
    case BROKEN_LEAK: CHECK_OK(wb_buffer_alloc(device, 1, NULL, &buffer, &error)); break;
    case BROKEN_FD: CHECK(open("/dev/null", O_RDONLY) >= 0); break;
    case BROKEN_MAP:
        for (int mapping = 0; mapping < MAPPINGS; mapping++) {
            memory = mmap(NULL, 1, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
            CHECK(memory != MAP_FAILED);
        }
        break;
    case BROKEN_THREAD: CHECK(pthread_create(&thread, NULL, endless, NULL) == 0); break;
    case BROKEN_STREAM:
        CHECK_OK(wb_device_stream_new(device, &stream, &error));
        break;
    case BROKEN_DELETER:
        lent_twice(lent_new(1, 1));
        break;
    default: break;
    }
}
