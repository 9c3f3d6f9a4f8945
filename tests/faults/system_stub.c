/* Replaces system.c under a sanitizer: no system call fails, and none is counted. */
#include "system.h"

#include <stddef.h>

int system_can_fail(void)
{
    return 0;
}

struct system_held system_held(void)
{
    struct system_held held = {0, 0};
    return held;
}

void system_fail(int kth, int code, int hints)
{
    (void)kth, (void)code, (void)hints;
}

const char *system_failed(void)
{
    return NULL;
}

int system_was_retried(void)
{
    return 0;
}

const char *system_failed_file(void)
{
    return "";
}

int system_is_hint(const char *path)
{
    (void)path;
    return 0;
}
