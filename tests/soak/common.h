/* Shared by the programs soak and steps: options, failures, random numbers and known contents. */
#ifndef SOAK_COMMON_H
#define SOAK_COMMON_H

#define CHECK_FAILED_ELSEWHERE
#include "memory.h"

/* The defect that a run makes on purpose, which proves that the check for it works. */
enum defect {
    DEFECT_NONE,
    DEFECT_LEAK,    /* a buffer that is never released */
    DEFECT_FD,      /* a file that is never closed */
    DEFECT_MAP,     /* mappings that are never unmapped */
    DEFECT_THREAD,  /* a thread that never ends */
    DEFECT_STREAM,  /* a stream that is never released */
    DEFECT_MEMORY,  /* heap memory that grows in every round */
    DEFECT_BYTES,   /* one wrong byte in a buffer */
    DEFECT_WEIGHTS, /* one wrong byte in a weight */
    DEFECT_DELETER, /* a deleter that is called twice */
    DEFECTS
};

/* The options of a run. Written before the first thread starts. */
struct options {
    double seconds;
    int threads;
    uint64_t steps; /* of the program `steps` */
    int compressed; /* whether `steps` compresses all weights */
    uint64_t seed;
    enum defect defect;
};

extern struct options options;

/* Reads --seconds, --threads, --steps, --compressed, --seed and --break; exits with 2 on anything else. */
void options_read(int argc, char **argv);

/* The number of failed checks in all files and threads. */
int failures(void);

/* Prints the seed if a check failed. Returns the exit status. */
int exit_status(void);

double seconds_now(void);

/* "host", "double", or the device's name on a real driver. */
const char *device_kind(void);

struct random {
    uint64_t state;
};

static inline struct random random_of(uint64_t sequence)
{
    struct random random = {options.seed * 0x9e3779b97f4a7c15u + sequence * 0xd1342543de82ef95u};
    return random;
}

/* Returns a number below `below` (splitmix64). */
static inline uint64_t draw(struct random *random, uint64_t below)
{
    uint64_t mixed = random->state += 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return (mixed ^ mixed >> 31) % below;
}

/* Returns a size from 1 to 2^(bits + 1) - 1 bytes; every power of two is equally likely. */
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

/* Delays a stream, as a slow kernel would. The device keeps the pointer until then. */
void delay_stream(wb_device *device, void *stream, const long *microseconds);

enum { PIECE_BYTES = 2 << 20 };

/* Queues copies, none of which goes past the end of a piece of a parameter: the next may be in other
 * memory. */
void copy_pieces(wb_device *device, void *to, const void *from, uint64_t bytes, void *stream);

/* A content is a sequence of bytes that a key and their position determine. This is its word `at`. */
static inline uint64_t content_word(uint64_t key, uint64_t at)
{
    uint64_t mixed = (key + at * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return mixed ^ mixed >> 32;
}

/* Writes the first `bytes` bytes of the content. */
void content_fill(void *memory, uint64_t bytes, uint64_t key);

/* Returns memory of malloc that holds the first `bytes` bytes of the content. */
unsigned char *content_new(uint64_t bytes, uint64_t key);

/* Returns 1 if memory holds the content from position `offset`. */
int has_content(const void *memory, uint64_t offset, uint64_t bytes, uint64_t key);

/* Returns a checksum of all bytes. */
uint64_t checksum(const void *memory, uint64_t bytes);

#endif
