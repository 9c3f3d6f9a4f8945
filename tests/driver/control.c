/* The control functions of double.h. */
#include "double.h"

#include <string.h>

#include "driver.h"

static long long live_contexts(void)
{
    long long count = 0;
    for (struct context *each = driver.contexts; each != NULL; each = each->next) {
        count += each->alive;
    }
    return count;
}

static long long live_streams(void)
{
    long long count = 0;
    for (struct stream *each = driver.streams; each != NULL; each = each->next) {
        count += each->handle != NULL && !each->destroyed;
    }
    return count;
}

static long long live_events(void)
{
    long long count = 0;
    for (struct event *each = driver.events; each != NULL; each = each->next) count++;
    return count;
}

static long long live(const char *kind)
{
    static const struct {
        const char *count, *bytes;
        enum range_kind kind;
    } memory[] = {
        {"device_allocations", "device_bytes", RANGE_DEVICE},
        {"host_allocations", "host_bytes", RANGE_HOST},
        {"registrations", "registered_bytes", RANGE_REGISTERED},
    };
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        size_t bytes;
        size_t count = ranges_of_kind(memory[i].kind, &bytes);
        if (strcmp(kind, memory[i].count) == 0) return (long long)count;
        if (strcmp(kind, memory[i].bytes) == 0) return (long long)bytes;
    }
    if (strcmp(kind, "unmapped_registrations") == 0) return (long long)registrations_unmapped();
    if (strcmp(kind, "contexts") == 0) return live_contexts();
    if (strcmp(kind, "streams") == 0) return live_streams();
    if (strcmp(kind, "events") == 0) return live_events();
    if (strcmp(kind, "captures") == 0) return (long long)captures_live();
    if (strcmp(kind, "graphs") == 0) return (long long)graphs_live();
    if (strcmp(kind, "graph execs") == 0) return (long long)execs_live();
    if (strcmp(kind, "reservations") == 0) return (long long)reservations_live();
    if (strcmp(kind, "physical_memory") == 0) return (long long)physical_live();
    if (strcmp(kind, "physical_host_bytes") == 0) return (long long)physical_bytes(-1);
    if (strcmp(kind, "orphans") == 0) return (long long)driver.orphans;
    return -1;
}

int double_configure(const char *name, const char *value)
{
    if (process_is_forked_child()) return -1;
    pthread_mutex_lock(&driver.lock);
    int changed = settings_change(name, value);
    pthread_mutex_unlock(&driver.lock);
    return changed ? 0 : -1;
}

long long double_calls(const char *name)
{
    int function = name == NULL ? FUNCTION_ANY : function_by_name(name, strlen(name));
    if (function == FUNCTION_COUNT || process_is_forked_child()) return -1;
    pthread_mutex_lock(&driver.lock);
    long long calls = calls_of(function);
    pthread_mutex_unlock(&driver.lock);
    return calls;
}

long long double_live(const char *kind)
{
    if (kind == NULL || process_is_forked_child()) return -1;
    pthread_mutex_lock(&driver.lock);
    long long count = live(kind);
    pthread_mutex_unlock(&driver.lock);
    return count;
}

const char *double_function(int number)
{
    return function_name(number);
}

const char *double_failed(void)
{
    if (process_is_forked_child()) return NULL;
    pthread_mutex_lock(&driver.lock);
    const char *name = first_failed_function();
    pthread_mutex_unlock(&driver.lock);
    return name;
}

long long double_failures(const char *name)
{
    int function = name == NULL ? FUNCTION_COUNT : function_by_name(name, strlen(name));
    if (function == FUNCTION_COUNT || process_is_forked_child()) return -1;
    pthread_mutex_lock(&driver.lock);
    long long count = failures_of(function);
    pthread_mutex_unlock(&driver.lock);
    return count;
}

int double_failed_call_repeated(void)
{
    if (process_is_forked_child()) return -1;
    pthread_mutex_lock(&driver.lock);
    int repeated = first_failed_call_repeated();
    pthread_mutex_unlock(&driver.lock);
    return repeated;
}

int double_context_depth(void)
{
    return process_is_forked_child() ? -1 : context_depth();
}
