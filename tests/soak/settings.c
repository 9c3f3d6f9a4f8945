/* How a run was asked for, and its failures. */
#include "soak.h"

struct settings settings = {600, 16, 100000, 1, BROKEN_NOTHING};

static int failed;

static const char *const broken_names[BROKEN_KINDS] = {
    "nothing", "leak", "fd", "map", "thread", "stream", "memory", "bytes", "weights", "deleter"};

/* The first failures tell most; a broken run would print without end. */
enum { MOST_PRINTED = 20 };

void check_failed(const char *file, int line, const char *what)
{
    if (__atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED) > MOST_PRINTED) return;
    fprintf(stderr, "seed %" PRIu64 ", %s: %s:%d: %s\n", settings.seed, device_kind(), file, line,
            what);
}

int failures(void)
{
    return __atomic_load_n(&failed, __ATOMIC_RELAXED);
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

static enum broken broken_of(const char *name)
{
    for (int kind = 0; kind < BROKEN_KINDS; kind++) {
        if (strcmp(name, broken_names[kind]) == 0) return (enum broken)kind;
    }
    fprintf(stderr, "--break=%s: nothing of that name can be broken\n", name);
    exit(2);
}

void settings_read(int argc, char **argv)
{
    for (int at = 1; at < argc; at++) {
        const char *value = strchr(argv[at], '=');
        const int length = value != NULL ? (int)(value - argv[at]) : 0;
        if (length == 9 && strncmp(argv[at], "--seconds", 9) == 0) {
            settings.seconds = strtod(value + 1, NULL);
        } else if (length == 9 && strncmp(argv[at], "--threads", 9) == 0) {
            settings.threads = (int)strtol(value + 1, NULL, 10);
        } else if (length == 7 && strncmp(argv[at], "--steps", 7) == 0) {
            settings.steps = strtoull(value + 1, NULL, 10);
        } else if (length == 6 && strncmp(argv[at], "--seed", 6) == 0) {
            settings.seed = strtoull(value + 1, NULL, 10);
        } else if (length == 7 && strncmp(argv[at], "--break", 7) == 0) {
            settings.broken = broken_of(value + 1);
        } else {
            fprintf(stderr, "usage: %s [--seconds=600] [--threads=16] [--steps=100000] [--seed=1] "
                            "[--break=leak]\n", argv[0]);
            exit(2);
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
}
