/* Options, failures and known contents. */
#include "common.h"

struct options options = {600, 16, 100000, 0, 1, DEFECT_NONE};

static int failed;

static const char *const defect_names[DEFECTS] = {
    "nothing", "leak", "fd", "map", "thread", "stream", "memory", "bytes", "weights", "deleter"};

/* The first failures are the most useful, and a broken run would print without end. */
enum { MOST_PRINTED = 20 };

void check_failed(const char *file, int line, const char *what)
{
    if (__atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED) > MOST_PRINTED) return;
    fprintf(stderr, "seed %" PRIu64 ", %s: %s:%d: %s\n", options.seed, device_kind(), file, line,
            what);
}

int failures(void)
{
    return __atomic_load_n(&failed, __ATOMIC_RELAXED);
}

int exit_status(void)
{
    if (failures() > 0) printf("FAILED: seed %" PRIu64 ", %d checks\n", options.seed, failures());
    return failures() > 0;
}

double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const char *device_kind(void)
{
    return on_double() ? "double" : test_device();
}

static void sleep_on_stream(void *microseconds)
{
    sleep_us(*(const long *)microseconds);
}

void delay_stream(wb_device *device, void *stream, const long *microseconds)
{
    CHECK_OK(wb_device_stream_call(device, stream, sleep_on_stream, (void *)(uintptr_t)microseconds,
                                   &error));
}

void copy_pieces(wb_device *device, void *to, const void *from, uint64_t bytes, void *stream)
{
    for (uint64_t at = 0, part; at < bytes; at += part) {
        part = PIECE_BYTES - ((uintptr_t)from + at) % PIECE_BYTES;
        if (part > bytes - at) part = bytes - at;
        CHECK_OK(wb_device_copy(device, (char *)to + at, (const char *)from + at, part, stream, &error));
    }
}

static enum defect defect_of(const char *name)
{
    for (int defect = 0; defect < DEFECTS; defect++) {
        if (strcmp(name, defect_names[defect]) == 0) return (enum defect)defect;
    }
    fprintf(stderr, "--break=%s: no defect has this name\n", name);
    exit(2);
}

/* Returns the value of an argument `--name=value`; NULL if it is not this option. */
static const char *value_of(const char *argument, const char *name)
{
    const size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1
                                                                            : NULL;
}

void options_read(int argc, char **argv)
{
    const char *value;
    for (int at = 1; at < argc; at++) {
        if ((value = value_of(argv[at], "--seconds")) != NULL) {
            options.seconds = strtod(value, NULL);
        } else if ((value = value_of(argv[at], "--threads")) != NULL) {
            options.threads = (int)strtol(value, NULL, 10);
        } else if ((value = value_of(argv[at], "--steps")) != NULL) {
            options.steps = strtoull(value, NULL, 10);
        } else if (strcmp(argv[at], "--compressed") == 0) {
            options.compressed = 1;
        } else if ((value = value_of(argv[at], "--seed")) != NULL) {
            options.seed = strtoull(value, NULL, 10);
        } else if ((value = value_of(argv[at], "--break")) != NULL) {
            options.defect = defect_of(value);
        } else {
            fprintf(stderr, "usage: %s [--seconds=600] [--threads=16] [--steps=100000] [--compressed] "
                            "[--seed=1] [--break=leak]\n", argv[0]);
            exit(2);
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
}

void content_fill(void *memory, uint64_t bytes, uint64_t key)
{
    for (uint64_t at = 0; at < bytes; at += 8) {
        const uint64_t word = content_word(key, at / 8);
        memcpy((unsigned char *)memory + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

unsigned char *content_new(uint64_t bytes, uint64_t key)
{
    unsigned char *memory = (unsigned char *)malloc(bytes);
    if (memory == NULL) abort();
    content_fill(memory, bytes, key);
    return memory;
}

int has_content(const void *memory, uint64_t offset, uint64_t bytes, uint64_t key)
{
    const unsigned char *seen = (const unsigned char *)memory;
    for (uint64_t at = 0; at < bytes;) {
        const uint64_t word = content_word(key, (offset + at) / 8), skip = (offset + at) % 8;
        const uint64_t left = bytes - at, part = left < 8 - skip ? left : 8 - skip;
        if (memcmp(seen + at, (const unsigned char *)&word + skip, part) != 0) return 0;
        at += part;
    }
    return 1;
}

/* Four independent lanes let the processor overlap the multiplications. */
uint64_t checksum(const void *memory, uint64_t bytes)
{
    uint64_t lanes[4] = {bytes, 1, 2, 3};
    const unsigned char *from = (const unsigned char *)memory;
    for (uint64_t at = 0; at < bytes; at += 32) {
        uint64_t words[4] = {0, 0, 0, 0};
        memcpy(words, from + at, bytes - at < 32 ? bytes - at : 32);
        for (int lane = 0; lane < 4; lane++) {
            const uint64_t mixed = (lanes[lane] ^ words[lane]) * 0x9fb21c651e98df25u;
            lanes[lane] = mixed ^ mixed >> 29;
        }
    }
    uint64_t sum = lanes[0];
    for (int lane = 1; lane < 4; lane++) sum = (sum ^ lanes[lane]) * 0xd6e8feb86659fd93u;
    return sum ^ sum >> 32;
}
