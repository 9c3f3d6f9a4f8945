/* Memory, files, buffers and views for tests. */
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

/* Whether memory contains the pattern from `offset` on. */
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

static inline wb_buffer_info buffer_info(const wb_buffer *buffer)
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

static inline wb_view_info view_info(const wb_view *view)
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

/* Copies memory from a device address to host memory, and waits. */
static inline int read_device(wb_device *device, void *to, const void *from, uint64_t bytes)
{
    return CHECK_OK(wb_device_copy(device, to, from, bytes, NULL, &error)) &&
           CHECK_OK(wb_device_stream_synchronize(device, NULL, &error));
}

/* Names a file of this process in TMPDIR, or /tmp. */
static inline void file_name(char *path, size_t capacity, const char *name)
{
    const char *folder = getenv("TMPDIR");
    snprintf(path, capacity, "%s/weighbridge-%d-%s", folder ? folder : "/tmp", (int)getpid(), name);
}

static inline int write_file(const char *path, const void *content, uint64_t bytes)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) return 0;
    int done = fwrite(content, 1, bytes, file) == bytes;
    return fclose(file) == 0 && done;
}

static inline int write_pattern(const char *path, uint64_t bytes)
{
    void *content = malloc(bytes > 0 ? bytes : 1);
    if (content == NULL) return 0;
    fill(content, bytes);
    int done = write_file(path, content, bytes);
    free(content);
    return done;
}

/* Names a file and fills it with the pattern. */
static inline int pattern_file(char *path, size_t capacity, const char *name, uint64_t bytes)
{
    file_name(path, capacity, name);
    return CHECK(write_pattern(path, bytes));
}

/* A value of /proc/self/status in bytes, such as "VmLck:". */
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

/* A pointer to any address, also to one that is not mapped. */
static inline void *to_pointer(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

/* A row of bytes. */
static inline wb_layout bytes_layout(const int64_t *count)
{
    return layout_of(WB_DTYPE_U8, 1, count, NULL, 0);
}

static inline wb_device *open_device(const char *name, const wb_device_options *options)
{
    wb_device *device = NULL;
    CHECK_OK(wb_device_open(name, options, &device, &error));
    return device;
}

static inline wb_buffer *new_buffer(wb_device *device, uint64_t bytes)
{
    wb_buffer *buffer = NULL;
    CHECK_OK(wb_buffer_alloc(device, bytes, NULL, &buffer, &error));
    return buffer;
}

static inline wb_buffer *map_file(wb_device *device, const char *path, uint64_t offset,
                                  uint64_t bytes, const wb_buffer_options *options)
{
    wb_buffer *buffer = NULL;
    CHECK_OK(wb_buffer_map_file(device, path, offset, bytes, options, &buffer, &error));
    return buffer;
}

static inline wb_view *new_view(wb_buffer *buffer, wb_layout layout, wb_accessor accessor)
{
    wb_view *view = NULL;
    CHECK_OK(wb_view_new(buffer, &layout, accessor, &view, &error));
    return view;
}

/* The buffer has host views, but device views fail with a message that contains `words`. */
static inline void check_only_host_views(wb_buffer *buffer, const char *words)
{
    const int64_t count = (int64_t)buffer_info(buffer).asked_bytes;
    const wb_layout layout = bytes_layout(&count);
    wb_view *view = NULL;
    CHECK(buffer_info(buffer).device_address == NULL);
    CHECK_ERROR(WB_ERR_NOT_MAPPED, wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error),
                words);
    CHECK(view == NULL);
    view = new_view(buffer, layout, WB_ACCESSOR_HOST);
    if (view == NULL) return;
    CHECK(view_info(view).data == buffer_info(buffer).data);
    CHECK(view_info(view).device_address == NULL);
    wb_view_release(view);
}

/* Memory that the driver allocates has no huge pages and no NUMA node; the errors give the reason
 * for the allocation by the driver. */
static inline void check_driver_memory(wb_device *device, wb_buffer_options options,
                                       const char *reason)
{
    wb_buffer *buffer = NULL;
    char words[200];
    options.huge_pages = WB_HUGE_PAGES_REQUIRE;
    snprintf(words, sizeof words, "huge pages were required|%s|WB_HUGE_PAGES_TRY", reason);
    CHECK_ERROR(WB_ERR_HUGE_PAGES, wb_buffer_alloc(device, 4 << 20, &options, &buffer, &error),
                words);
    options.huge_pages = WB_HUGE_PAGES_TRY;
    options.numa_policy = WB_NUMA_NODE;
    options.numa_node = 0;
    snprintf(words, sizeof words, "NUMA node 0|%s|WB_NUMA_DEVICE", reason);
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_buffer_alloc(device, 4096, &options, &buffer, &error),
                words);
    CHECK(buffer == NULL);
}

#endif
