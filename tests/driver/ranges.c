/* The table of all memory ranges that the driver knows, sorted by address. */
#include <stdlib.h>
#include <string.h>

#include "driver.h"

/* An array of pointers keeps insertion cheap with many thousands of ranges. */
static struct range **ranges;
static size_t count, capacity;

/* The index of the first range that ends after `address`. */
static size_t first_range_ending_after(uintptr_t address)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle]->start + ranges[middle]->bytes > address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

struct range *range_containing(uintptr_t address)
{
    size_t index = first_range_ending_after(address);
    return index < count && ranges[index]->start <= address ? ranges[index] : NULL;
}

int range_overlaps(uintptr_t start, size_t bytes)
{
    size_t index = first_range_ending_after(start);
    return index < count && ranges[index]->start < start + bytes;
}

void range_add(struct range range)
{
    if (count == capacity) {
        size_t larger = capacity == 0 ? 64 : capacity * 2;
        struct range **table = allocate(larger * sizeof *table);
        if (count > 0) memcpy(table, ranges, count * sizeof *table);
        free(ranges);
        ranges = table;
        capacity = larger;
    }
    size_t index = first_range_ending_after(range.start);
    memmove(ranges + index + 1, ranges + index, (count - index) * sizeof *ranges);
    ranges[index] = allocate(sizeof range);
    *ranges[index] = range;
    count++;
}

void range_remove(uintptr_t start)
{
    size_t index = first_range_ending_after(start);
    free(ranges[index]);
    count--;
    memmove(ranges + index, ranges + index + 1, (count - index) * sizeof *ranges);
}

size_t ranges_of_kind(enum range_kind kind, size_t *bytes)
{
    size_t found = 0;
    *bytes = 0;
    for (size_t i = 0; i < count; i++) {
        if (ranges[i]->kind != kind || ranges[i]->physical != NULL) continue;
        found++;
        *bytes += ranges[i]->bytes;
    }
    return found;
}

size_t registrations_unmapped(void)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        int registered = ranges[i]->kind == RANGE_REGISTERED;
        found += registered && !mappings_permit(ranges[i]->start, ranges[i]->bytes, 0);
    }
    return found;
}

size_t device_bytes_used(CUdevice device)
{
    size_t bytes = physical_bytes(device);
    for (size_t i = 0; i < count; i++) {
        int here = ranges[i]->kind == RANGE_DEVICE && ranges[i]->physical == NULL &&
                   ranges[i]->context->device == device;
        bytes += here ? ranges[i]->bytes : 0;
    }
    return bytes;
}

struct range *range_of_context(const struct context *context)
{
    for (size_t i = 0; i < count; i++) {
        if (ranges[i]->context == context && ranges[i]->physical == NULL) return ranges[i];
    }
    return NULL;
}
