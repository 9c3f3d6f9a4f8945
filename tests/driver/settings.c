/* The settings of the double, and their parser. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

/* Parses an integer that ends at a character of `ends` or at the end of the string. */
static int parse_number(const char **text, const char *ends, long long min, long long max,
                        long long *value)
{
    char *end;
    errno = 0;
    *value = strtoll(*text, &end, 10);
    if (end == *text || errno != 0 || *value < min || *value > max) return 0;
    if (*end != '\0' && strchr(ends, *end) == NULL) return 0;
    *text = end;
    return 1;
}

/* "99=0,113=0" */
static int read_attributes(const char *text)
{
    struct attribute_override overrides[SETTINGS_MAX];
    int count = 0;
    while (*text != '\0') {
        long long attribute, value;
        if (count == SETTINGS_MAX) return 0;
        if (!parse_number(&text, "=", 1, 10000, &attribute) || *text++ != '=') return 0;
        if (!parse_number(&text, ",", -1, 1LL << 30, &value)) return 0;
        if (*text == ',') text++;
        overrides[count++] = (struct attribute_override){(int)attribute, (int)value};
    }
    memcpy(driver.settings.overrides, overrides, sizeof overrides[0] * (size_t)count);
    driver.settings.override_count = count;
    return 1;
}

/* "cuMemAlloc_v2:3:2,*:1:999,*:4+:4,*:5:hang200" */
static int read_failures(const char *text)
{
    struct failure failures[SETTINGS_MAX];
    int count = 0;
    while (*text != '\0') {
        long long nth, code = 0, hang_ms = 0;
        size_t length = strcspn(text, ":");
        int any = length == 1 && *text == '*';
        int function = any ? FUNCTION_ANY : function_by_name(text, length);
        if (count == SETTINGS_MAX || function == FUNCTION_COUNT) return 0;
        text += length;
        if (*text++ != ':' || !parse_number(&text, ":+", 0, 1LL << 30, &nth)) return 0;
        int all_after = *text == '+';
        text += all_after;
        if (*text++ != ':') return 0;
        if (strncmp(text, "hang", 4) == 0) {
            text += 4;
            if (!parse_number(&text, ",", 1, 60000, &hang_ms)) return 0;
        } else if (!parse_number(&text, ",", 1, 10000, &code)) {
            return 0;
        }
        if (*text == ',') text++;
        failures[count++] = (struct failure){function, (unsigned long)nth, all_after, 0,
                                             (CUresult)code, (unsigned)hang_ms};
    }
    memcpy(driver.settings.failures, failures, sizeof failures[0] * (size_t)count);
    driver.settings.failure_count = count;
    failures_reset();
    return 1;
}

static int number_or_default(const char *text, long long min, long long max,
                             long long default_value, long long *value)
{
    *value = default_value;
    return *text == '\0' || parse_number(&text, "", min, max, value);
}

static int apply(const char *name, const char *value)
{
    struct settings *settings = &driver.settings;
    long long n;
    if (strcmp(name, "WB_DOUBLE_ATTRIBUTES") == 0) return read_attributes(value);
    if (strcmp(name, "WB_DOUBLE_FAIL") == 0) return read_failures(value);
    if (strcmp(name, "WB_DOUBLE_DEVICES") == 0) {
        if (!number_or_default(value, 0, DEVICES_MAX, 1, &n)) return 0;
        settings->devices = (int)n;
    } else if (strcmp(name, "WB_DOUBLE_CAPACITY") == 0) {
        if (!number_or_default(value, 0, 1LL << 46, 1LL << 30, &n)) return 0;
        settings->capacity = (size_t)n;
    } else if (strcmp(name, "WB_DOUBLE_VERSION") == 0) {
        if (!number_or_default(value, 1, 1 << 30, 13000, &n)) return 0;
        settings->version = (int)n;
    } else if (strcmp(name, "WB_DOUBLE_DELAY_US") == 0) {
        if (!number_or_default(value, 0, 1 << 30, 0, &n)) return 0;
        settings->delay_us = (unsigned)n;
    } else if (strcmp(name, "WB_DOUBLE_UNMAPPED") == 0) {
        if (!number_or_default(value, 0, 1, 0, &n)) return 0;
        settings->unmapped = (int)n;
    } else if (strcmp(name, "WB_DOUBLE_REUSE_STREAMS") == 0) {
        if (!number_or_default(value, 0, 1, 0, &n)) return 0;
        settings->reuse_streams = (int)n;
    } else {
        return 0;
    }
    return 1;
}

void settings_load(void)
{
    static const char *const names[] = {
        "WB_DOUBLE_DEVICES",    "WB_DOUBLE_CAPACITY", "WB_DOUBLE_VERSION",  "WB_DOUBLE_DELAY_US",
        "WB_DOUBLE_ATTRIBUTES", "WB_DOUBLE_FAIL",     "WB_DOUBLE_UNMAPPED", "WB_DOUBLE_REUSE_STREAMS",
    };
    if (driver.settings.loaded) return;
    driver.settings.loaded = 1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        apply(names[i], "");
        if (value != NULL && !apply(names[i], value)) {
            fprintf(stderr, "driver double: invalid setting %s=%s\n", names[i], value);
            driver.settings.malformed = 1;
        }
    }
}

int settings_change(const char *name, const char *value)
{
    settings_load();
    if (name == NULL) return 0;
    if (driver_is_initialized() && strcmp(name, "WB_DOUBLE_DEVICES") == 0) return 0;
    return apply(name, value != NULL ? value : "");
}
