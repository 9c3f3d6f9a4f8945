/* Live objects and memory, by the counters of the library, the driver double and the kernel. */
#ifndef OBSERVED_H
#define OBSERVED_H

#include "memory.h"
#include "system.h"

enum { LIVE_KINDS = 5 };

static const char *const live_kinds[LIVE_KINDS] = {
    "registrations", "host_allocations", "device_allocations", "streams", "contexts"};

struct observed {
    wb_device_stats usage;
    long long live[LIVE_KINDS];
    /* Memory that a failed call leaks may never be in the counters above. */
    struct system_held held;
    uint64_t locked_bytes;
};

static struct observed observe(const wb_device *device)
{
    struct observed now = {WB_DEVICE_STATS_INIT, {0}, system_held(), process_bytes("VmLck:")};
    if (device != NULL) now.usage = device_stats(device);
    for (int kind = 0; kind < LIVE_KINDS; kind++) now.live[kind] = double_alive(live_kinds[kind]);
    return now;
}

/* Returns 1 if no count grew; a cache may have been freed. Events are cached, so they are compared at the
 * end of the scenario. A driver that has `ended` frees nothing. */
static int no_more(const struct observed *now, const struct observed *before, int ended)
{
    for (int kind = 0; kind < LIVE_KINDS && !ended; kind++) {
        if (now->live[kind] > before->live[kind]) return 0;
    }
    return now->usage.buffers <= before->usage.buffers &&
           now->usage.views <= before->usage.views &&
           now->usage.deferred <= before->usage.deferred &&
           now->usage.asked_bytes <= before->usage.asked_bytes &&
           now->usage.mapped_bytes <= before->usage.mapped_bytes &&
           now->usage.pinned_bytes <= before->usage.pinned_bytes &&
           now->usage.device_bytes <= before->usage.device_bytes &&
           now->held.mapped_bytes <= before->held.mapped_bytes &&
           now->held.open_files <= before->held.open_files &&
           now->locked_bytes <= before->locked_bytes;
}

static void print_observed(const struct observed *now, const struct observed *before)
{
    for (int kind = 0; kind < LIVE_KINDS; kind++) {
        fprintf(stderr, "  %s: %lld, before %lld\n", live_kinds[kind], now->live[kind],
                before->live[kind]);
    }
    fprintf(stderr, "  mapped %lld, before %lld; files %lld, before %lld; locked %" PRIu64
            ", before %" PRIu64 "\n", now->held.mapped_bytes, before->held.mapped_bytes,
            now->held.open_files, before->held.open_files, now->locked_bytes,
            before->locked_bytes);
    check_same_usage(__FILE__, __LINE__, now->usage, before->usage);
}

/* Returns the number of driver objects made since. */
static long long leaked_objects(const long long before[CHECK_KINDS])
{
    long long count = 0;
    for (int kind = 0; kind < CHECK_KINDS; kind++) {
        int is_object = strstr(check_kinds[kind], "bytes") == NULL &&
                        strcmp(check_kinds[kind], "orphans") != 0;
        if (is_object) count += double_alive(check_kinds[kind]) - before[kind];
    }
    return count;
}

/* Checks that the library has closed its files and unmapped its memory. If a release failed and was
 * `logged`, memory that the driver still uses stays mapped. */
static void check_system(const struct observed *before, int logged)
{
    struct system_held now = system_held();
    CHECK_SAME(now.open_files, before->held.open_files);
    if (logged) return;
    CHECK_SAME(now.mapped_bytes, before->held.mapped_bytes);
    CHECK_SAME(process_bytes("VmLck:"), before->locked_bytes);
}

#endif
