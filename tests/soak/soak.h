/* What the files of the soak share: its settings, random numbers, and how a failure is told. */
#ifndef SOAK_H
#define SOAK_H

#define CHECK_FAILED_ELSEWHERE
#include "memory.h"

/* What the soak breaks by hand, to see that it is found. */
enum broken {
    BROKEN_NOTHING,
    BROKEN_LEAK,    /* a buffer that nobody releases */
    BROKEN_FD,      /* a file that nobody closes */
    BROKEN_MAP,     /* a mapping that nobody gives back */
    BROKEN_THREAD,  /* a thread that does not end */
    BROKEN_STREAM,  /* a stream of the device that nobody releases */
    BROKEN_MEMORY,  /* memory of the process that grows with every round */
    BROKEN_BYTES,   /* a byte of a buffer that changes */
    BROKEN_WEIGHTS, /* a byte of a weight that is another than the model's */
    BROKEN_DELETER, /* a deleter that is called twice */
    BROKEN_KINDS
};

/* How a run was asked for. Written before the first thread starts. */
struct settings {
    double seconds;
    int threads;
    uint64_t steps; /* of the program `steps` */
    uint64_t seed;
    enum broken broken;
};

extern struct settings settings;

/* Reads --seconds, --threads, --steps, --seed and --break; ends the program where it cannot. */
void settings_read(int argc, char **argv);

/* Failed checks of all files and threads so far. */
int failures(void);

double seconds_now(void);

/* "host", "double", or the device's name on a real driver. */
const char *device_kind(void);

struct random {
    uint64_t state;
};

static inline struct random random_of(uint64_t stream)
{
    struct random random = {settings.seed * 0x9e3779b97f4a7c15u + stream * 0xd1342543de82ef95u};
    return random;
}

/* A number below `below`, by splitmix64. */
static inline uint64_t draw(struct random *random, uint64_t below)
{
    uint64_t mixed = random->state += 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return (mixed ^ mixed >> 31) % below;
}

/* A size from 1 to below twice `2^bits` bytes: each power of two as likely as the next, and odd. */
static inline uint64_t draw_bytes(struct random *random, uint64_t bits)
{
    const uint64_t power = (uint64_t)1 << draw(random, bits + 1);
    return power + draw(random, power);
}

static inline void sleep_us(long microseconds)
{
    struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&pause, NULL);
}

static inline uint64_t number(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

#endif
