/* Memory and files that tests work on. */
#ifndef MEMORY_H
#define MEMORY_H

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "check.h"

static inline uint64_t page_bytes(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static inline uint64_t whole_pages(uint64_t bytes)
{
    return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

/* A byte that differs from page to page and within one. */
static inline unsigned char pattern(uint64_t at)
{
    return (unsigned char)(at * 131 + at / 4096 * 7 + 3);
}

static inline void fill(void *memory, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at++) ((unsigned char *)memory)[at] = pattern(at);
}

/* Whether memory holds the pattern from `offset`. */
static inline int holds_pattern(const void *memory, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at++) {
        if (((const unsigned char *)memory)[at] != pattern(offset + at)) return 0;
    }
    return 1;
}

static inline void *pages(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static inline wb_buffer_info describe(const wb_buffer *buffer)
{
    wb_buffer_info info = WB_BUFFER_INFO_INIT;
    CHECK_OK(wb_buffer_get_info(buffer, &info, &error));
    return info;
}

static inline wb_buffer_stats buffer_usage(const wb_buffer *buffer)
{
    wb_buffer_stats usage = WB_BUFFER_STATS_INIT;
    CHECK_OK(wb_buffer_get_stats(buffer, &usage, &error));
    return usage;
}

static inline wb_view_info describe_view(const wb_view *view)
{
    wb_view_info info = WB_VIEW_INFO_INIT;
    CHECK_OK(wb_view_get_info(view, &info, &error));
    return info;
}

static inline wb_device_info describe_device(const wb_device *device)
{
    wb_device_info info = WB_DEVICE_INFO_INIT;
    CHECK_OK(wb_device_get_info(device, &info, &error));
    return info;
}

static inline wb_layout layout_of(wb_dtype dtype, int32_t ndim, const int64_t *shape,
                                  const int64_t *strides, uint64_t offset)
{
    wb_layout layout = WB_LAYOUT_INIT;
    layout.dtype = dtype;
    layout.ndim = ndim;
    layout.shape = shape;
    layout.strides = strides;
    layout.offset_bytes = offset;
    return layout;
}

/* Copies what a device reads at an address into host memory, and waits. */
static inline int read_device(wb_device *device, void *to, const void *from, uint64_t bytes)
{
    return CHECK_OK(wb_device_copy(device, to, from, bytes, NULL, &error)) &&
           CHECK_OK(wb_device_stream_synchronize(device, NULL, &error));
}

/* The folder that a test's files lie in; /tmp where nothing else is said. */
static inline void file_name(char *path, size_t room, const char *name)
{
    const char *folder = getenv("TMPDIR");
    snprintf(path, room, "%s/weighbridge-%d-%s", folder ? folder : "/tmp", (int)getpid(), name);
}

static inline int write_file(const char *path, const void *content, uint64_t bytes)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) return 0;
    int done = fwrite(content, 1, bytes, file) == bytes;
    return fclose(file) == 0 && done;
}

/* A file of the pattern. */
static inline int write_pattern(const char *path, uint64_t bytes)
{
    void *content = malloc(bytes > 0 ? bytes : 1);
    if (content == NULL) return 0;
    fill(content, bytes);
    int done = write_file(path, content, bytes);
    free(content);
    return done;
}

/* A number of /proc/self/status in bytes, such as "VmLck:". */
static inline uint64_t process_bytes(const char *key)
{
    char line[256];
    uint64_t kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) kib = strtoull(line + strlen(key), NULL, 10);
    }
    if (status != NULL) fclose(status);
    return kib * 1024;
}

#endif
