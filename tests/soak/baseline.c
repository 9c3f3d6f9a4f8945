/* The counts that must return to their baseline at the end of each round. */
#include <dirent.h>
#include <malloc.h>

#include "soak.h"

static uint64_t entries(const char *folder)
{
    uint64_t count = 0;
    DIR *open = opendir(folder);
    while (open != NULL && readdir(open) != NULL) count++;
    if (open != NULL) closedir(open);
    return count;
}

static uint64_t lines(const char *path)
{
    uint64_t count = 0;
    FILE *file = fopen(path, "r");
    for (int byte; file != NULL && (byte = fgetc(file)) != EOF;) count += byte == '\n';
    if (file != NULL) fclose(file);
    return count;
}

static void *return_at_once(void *user)
{
    return user;
}

static struct process_counts process_counts_now(void)
{
    struct process_counts now;
    pthread_t thread;
    /* A detached thread cannot free the stack that it ends on: the next thread that ends does. */
    if (pthread_create(&thread, NULL, return_at_once, NULL) == 0) pthread_join(thread, NULL);
    malloc_trim(0);
    now.threads = entries("/proc/self/task") - 2;
    now.files = entries("/proc/self/fd") - 2;
    now.mappings = lines("/proc/self/maps");
    now.locked_bytes = process_bytes("VmLck:");
    /* Shared pages are those of memory with fixed addresses, of which more or less is in use at the end
     * of a round: the device's statistics and the mappings count it. */
    now.private_bytes = process_bytes("RssAnon:");
    return now;
}

void restart_without_caches(char **argv)
{
    if (getenv("GLIBC_TUNABLES") == NULL) {
        setenv("GLIBC_TUNABLES", "glibc.pthread.stack_cache_size=0:glibc.malloc.arena_max=4:"
                                 "glibc.malloc.mmap_threshold=131072", 1);
        execv("/proc/self/exe", argv);
        perror("cannot restart");
        exit(2);
    }
}

/* How far above the baseline a count may be, because of other code in the process. A leak exceeds it in
 * the first second after the warm-up. */
struct slack {
    uint64_t threads, files, mappings;
    double private_bytes;
};

static struct slack slack(void)
{
#ifdef __SANITIZE_ADDRESS__
    /* AddressSanitizer keeps freed memory in quarantine. */
    return (struct slack){8, 32, 4096, 512 << 20};
#else
    /* A real driver has its own threads, files and mappings. */
    if (on_cuda() && !on_double()) return (struct slack){8, 32, 128, 16 << 20};
    /* The C library maps and unmaps a few arenas, depending on load, and its heap keeps some hundred KiB
     * between blocks in use. Eight bytes lost in each of a quarter of a million operations are found. */
    return (struct slack){0, 0, 16, 2 << 20};
#endif
}

void baseline_take(struct baseline *baseline, wb_device *device)
{
    memset(baseline, 0, sizeof *baseline);
    baseline->device = device;
    baseline->usage = device_stats(device);
    for (int kind = 0; kind < CHECK_KINDS; kind++) {
        baseline->driver[kind] = double_alive(check_kinds[kind]);
    }
    baseline->process = process_counts_now();
}

/* Detached threads get a moment to end. */
static struct process_counts settled_counts(const struct baseline *baseline)
{
    const struct process_counts *before = &baseline->process;
    if (!baseline->warm) sleep_ms(200);
    struct process_counts now = process_counts_now();
    for (int wait = 0; baseline->warm && wait < 200 &&
                       (now.threads > before->threads ||
                        now.mappings > before->mappings + slack().mappings); wait++) {
        sleep_ms(10);
        now = process_counts_now();
    }
    return now;
}

static void check_at_most(const char *what, uint64_t now, uint64_t before, uint64_t slack)
{
    char text[160];
    if (now <= before + slack) return;
    snprintf(text, sizeof text, "%s grew from %" PRIu64 " to %" PRIu64, what, before, now);
    check_failed(__FILE__, __LINE__, text);
}

struct process_counts baseline_check(struct baseline *baseline)
{
    CHECK_OK(wb_device_drain(baseline->device, 60000, &error));
    CHECK_SAME(outstanding_deleters(), 0);
    const wb_device_stats usage = device_stats(baseline->device);
    check_same_usage(__FILE__, __LINE__, usage, baseline->usage);
    CHECK_SAME(usage.errors_logged, baseline->usage.errors_logged);
    for (int kind = 0; kind < CHECK_KINDS; kind++) {
        /* The lasting offloader keeps events for each of the last streams that used it. */
        if (strcmp(check_kinds[kind], "events") == 0) continue;
        check_same(__FILE__, __LINE__, check_kinds[kind],
                   (uint64_t)double_alive(check_kinds[kind]), (uint64_t)baseline->driver[kind]);
    }
    const struct process_counts now = settled_counts(baseline), before = baseline->process;
    CHECK_SAME(now.locked_bytes, before.locked_bytes);
    if (baseline->warm) {
        check_at_most("threads", now.threads, before.threads, slack().threads);
        check_at_most("files", now.files, before.files, slack().files);
        check_at_most("mappings", now.mappings, before.mappings, slack().mappings);
    } else {
        baseline->process = now;
        baseline->warm = 1;
    }
    return now;
}

static double mean(const uint64_t *numbers, int count)
{
    double sum = 0;
    for (int at = 0; at < count; at++) sum += (double)numbers[at];
    return sum / count;
}

int64_t check_growth(const uint64_t *bytes, int rounds)
{
    const int sixth = rounds / 6;
    const double growth = mean(bytes + rounds - sixth, sixth) - mean(bytes + sixth, sixth);
    char text[120];
    if (growth > slack().private_bytes) {
        snprintf(text, sizeof text, "private memory grew by %.0f bytes", growth);
        check_failed(__FILE__, __LINE__, text);
    }
    return (int64_t)growth;
}
