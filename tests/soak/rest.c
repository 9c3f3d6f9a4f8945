/* What must be as it was whenever all threads stand still. */
#include "rest.h"

#include "lent.h"

/* Bytes by which the mean of resident memory may differ between two sixths of the run: what the C
 * library's heap keeps between blocks that are in use differs by some hundred KiB from rest to rest.
 * Eight bytes lost in each operation are more than this after a quarter of a million of them. */
enum { GROWTH = 2 << 20 };

/* What others in the process may have more of, later. A leak is past it in the first second after the
 * warm-up. */
struct slack {
    uint64_t threads, files, mappings;
    double growth;
};

static struct slack slack(void)
{
#ifdef __SANITIZE_ADDRESS__
    /* It keeps freed memory for a while, to find its uses. */
    return (struct slack){8, 32, 4096, 512 << 20};
#elif defined __SANITIZE_THREAD__
    /* It remembers the accesses to all memory that was ever mapped. */
    return (struct slack){0, 0, 256, 256 << 20};
#else
    /* A real driver keeps threads, files and mappings of its own. */
    if (on_cuda() && !on_double()) return (struct slack){8, 32, 128, 16 << 20};
    /* The C library maps and unmaps its own, by the load of the machine: a few. */
    return (struct slack){0, 0, 16, GROWTH};
#endif
}

void rest_begin(struct rest *rest, wb_device *device)
{
    memset(rest, 0, sizeof *rest);
    rest->device = device;
    rest->usage = measure(device);
    for (int kind = 0; kind < CHECK_KINDS; kind++) rest->driver[kind] = double_alive(check_kinds[kind]);
    rest->process = process_now();
}

/* What ends on its own thread is given a moment. */
static struct process process_at_rest(const struct rest *rest)
{
    const struct process *before = &rest->process;
    if (!rest->warm) sleep_ms(200);
    struct process now = process_now();
    if (!rest->warm) return now;
    for (int wait = 0; wait < 200 && (now.threads > before->threads ||
                                      now.mappings > before->mappings + slack().mappings); wait++) {
        sleep_ms(10);
        now = process_now();
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

struct process rest_check(struct rest *rest)
{
    CHECK_OK(wb_device_drain(rest->device, 60000, &error));
    CHECK_SAME(lent_out(), 0);
    const wb_device_stats usage = measure(rest->device);
    check_same_usage(__FILE__, __LINE__, usage, rest->usage);
    CHECK_SAME(usage.errors_logged, rest->usage.errors_logged);
    for (int kind = 0; kind < CHECK_KINDS; kind++) {
        /* The lasting offloader keeps events for each of the last streams that it saw. */
        if (strcmp(check_kinds[kind], "events") == 0) continue;
        check_same(__FILE__, __LINE__, check_kinds[kind],
                   (uint64_t)double_alive(check_kinds[kind]), (uint64_t)rest->driver[kind]);
    }
    const struct process now = process_at_rest(rest);
    CHECK_SAME(now.locked_bytes, rest->process.locked_bytes);
    if (rest->warm) {
        const struct slack more = slack();
        check_at_most("threads", now.threads, rest->process.threads, more.threads);
        check_at_most("files", now.files, rest->process.files, more.files);
        check_at_most("mappings", now.mappings, rest->process.mappings, more.mappings);
    } else {
        rest->process = now;
        rest->warm = 1;
    }
    return now;
}

static double mean(const uint64_t *numbers, int count)
{
    double sum = 0;
    for (int at = 0; at < count; at++) sum += (double)numbers[at];
    return sum / count;
}

int64_t rest_growth(const uint64_t *resident, int rounds)
{
    const int sixth = rounds / 6;
    const double growth = mean(resident + rounds - sixth, sixth) - mean(resident + sixth, sixth);
    char text[120];
    if (growth > slack().growth) {
        snprintf(text, sizeof text, "resident memory grew by %.0f bytes", growth);
        check_failed(__FILE__, __LINE__, text);
    }
    return (int64_t)growth;
}
