/* The mappings of a range by /proc/thread-self/maps, and the kernel's rules for pinning them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "driver.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

struct mapping {
    uintptr_t start, end;
    int readable, writable, shared;
    unsigned long inode; /* 0: anonymous */
    dev_t device;
};

/* The kernel's struct procmap_query and its flags. */
struct query {
    uint64_t size, flags, address, start, end, found, page_bytes, offset, inode;
    uint32_t major_number, minor_number, name_bytes, build_id_bytes;
    uint64_t name, build_id;
};
#define PROCMAP_QUERY _IOWR('f', 17, struct query)
enum { READABLE = 1, WRITABLE = 2, SHARED = 8, COVERING_OR_NEXT = 16 };

static int read_mapping(FILE *maps, struct mapping *mapping)
{
    char line[8192], permissions[5];
    unsigned long start, end, inode;
    unsigned major_number, minor_number;
    if (fgets(line, sizeof line, maps) == NULL) return 0;
    if (strchr(line, '\n') == NULL) {
        for (int c = fgetc(maps); c != '\n' && c != EOF;) c = fgetc(maps);
    }
    if (sscanf(line, "%lx-%lx %4s %*x %x:%x %lu", &start, &end, permissions, &major_number,
               &minor_number, &inode) != 6) {
        return 0;
    }
    *mapping = (struct mapping){
        .start = start,
        .end = end,
        .readable = permissions[0] == 'r',
        .writable = permissions[1] == 'w',
        .shared = permissions[3] == 's',
        .inode = inode,
        .device = makedev(major_number, minor_number),
    };
    return 1;
}

/* Finds the first mapping that ends behind an address; for rising addresses of one opened file. A process with
 * PyTorch has a thousand mappings, so Linux 6.11 and later are queried for the one. */
static int next_mapping(FILE *maps, uintptr_t at, struct mapping *mapping)
{
    struct query query = {.size = sizeof query, .flags = COVERING_OR_NEXT, .address = at};
    if (ioctl(fileno(maps), PROCMAP_QUERY, &query) == 0) {
        *mapping = (struct mapping){
            .start = query.start,
            .end = query.end,
            .readable = (query.found & READABLE) != 0,
            .writable = (query.found & WRITABLE) != 0,
            .shared = (query.found & SHARED) != 0,
            .inode = query.inode,
            .device = makedev(query.major_number, query.minor_number),
        };
        return 1;
    }
    if (errno == ENOENT) return 0;
    while (read_mapping(maps, mapping)) {
        if (mapping->end > at) return 1;
    }
    return 0;
}

/* The device number of the unmounted file system that backs memfd, shared
 * anonymous and System V memory, read from a memfd. */
static dev_t memfd_device(void)
{
    struct stat status = {0};
    int file = memfd_create("driver double", MFD_CLOEXEC);
    if (file >= 0) {
        fstat(file, &status);
        close(file);
    }
    return status.st_dev;
}

/* By device number, not by path: a mapped file may be unlinked. */
static int is_memory_file_system(dev_t device)
{
    FILE *mounts = fopen("/proc/self/mountinfo", "r");
    char line[8192], type[32];
    unsigned major_number, minor_number;
    int found = 0;
    if (mounts == NULL) return 0;
    while (!found && fgets(line, sizeof line, mounts) != NULL) {
        const char *rest = strstr(line, " - ");
        if (rest == NULL || sscanf(rest, " - %31s", type) != 1) continue;
        if (sscanf(line, "%*u %*u %u:%u", &major_number, &minor_number) != 2) continue;
        found = makedev(major_number, minor_number) == device &&
                (strcmp(type, "tmpfs") == 0 || strcmp(type, "devtmpfs") == 0 ||
                 strcmp(type, "ramfs") == 0 || strcmp(type, "hugetlbfs") == 0);
    }
    fclose(mounts);
    return found;
}

/* The kernel refuses a long-term pin for writing on pages of a disk file: the
 * device's writes would bypass the file system. */
static int may_pin_for_writing(const struct mapping *mapping)
{
    if (!mapping->writable) return 0;
    if (!mapping->shared || mapping->inode == 0) return 1;
    return mapping->device == memfd_device() || is_memory_file_system(mapping->device);
}

/* Pinning copies the pages of a private mapping even if it is read-only. A
 * write through /proc/self/mem does the same. */
static int copy_read_only_pages(uintptr_t start, uintptr_t end, size_t page)
{
    int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    int copied = memory >= 0;
    for (uintptr_t at = start; copied && at < end; at += page) {
        char byte;
        copied = pread(memory, &byte, 1, (off_t)at) == 1 &&
                 pwrite(memory, &byte, 1, (off_t)at) == 1;
    }
    if (memory >= 0) close(memory);
    return copied;
}

static void access_pages(uintptr_t start, uintptr_t end, size_t page, int writing)
{
    for (uintptr_t at = start; at < end; at += page) {
        unsigned char *byte = (unsigned char *)at;
        if (writing) {
            __atomic_fetch_or(byte, 0, __ATOMIC_RELAXED); /* other threads may write this byte */
        } else {
            (void)__atomic_load_n(byte, __ATOMIC_RELAXED);
        }
    }
}

static CUresult fault_in(uintptr_t start, uintptr_t end, const struct mapping *mapping,
                         int read_only)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int writing = !mapping->shared || !read_only;
    start = start / page * page;
    end = (end + page - 1) / page * page;
    if (writing && !mapping->writable) {
        return copy_read_only_pages(start, end, page) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    int advice = writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    if (madvise((void *)start, end - start, advice) == 0) return CUDA_SUCCESS;
    if (errno == ENOMEM) return CUDA_ERROR_OUT_OF_MEMORY;
    if (errno != EINVAL) return CUDA_ERROR_INVALID_VALUE;
    access_pages(start, end, page, writing); /* before Linux 5.14 */
    return CUDA_SUCCESS;
}

static CUresult pin_mapping(uintptr_t start, uintptr_t end, const struct mapping *mapping,
                            int read_only, int fault)
{
    if (!mapping->readable) return CUDA_ERROR_INVALID_VALUE;
    if (!read_only && !may_pin_for_writing(mapping)) return CUDA_ERROR_INVALID_VALUE;
    return fault ? fault_in(start, end, mapping, read_only) : CUDA_SUCCESS;
}

/* Checks each mapping of the range, and with `fault` pins it; fails at a gap. */
static CUresult pin_range(uintptr_t start, uintptr_t end, int read_only, int fault)
{
    FILE *maps = fopen("/proc/thread-self/maps", "r");
    struct mapping mapping;
    CUresult result = CUDA_SUCCESS;
    if (maps == NULL) return CUDA_ERROR_UNKNOWN;
    while (result == CUDA_SUCCESS && start < end && next_mapping(maps, start, &mapping)) {
        if (mapping.start > start) break;
        uintptr_t until = mapping.end < end ? mapping.end : end;
        result = pin_mapping(start, until, &mapping, read_only, fault);
        start = until;
    }
    fclose(maps);
    return result == CUDA_SUCCESS && start < end ? CUDA_ERROR_INVALID_VALUE : result;
}

/* Checks the whole range before it faults any page: a refused range is left unchanged. */
CUresult mappings_pin(uintptr_t start, size_t bytes, int read_only)
{
    CUresult result = pin_range(start, start + bytes, read_only, 0);
    return result == CUDA_SUCCESS ? pin_range(start, start + bytes, read_only, 1) : result;
}

int mappings_permit(uintptr_t start, size_t bytes, int writing)
{
    FILE *maps = fopen("/proc/thread-self/maps", "r");
    struct mapping mapping;
    uintptr_t end = start + bytes;
    if (maps == NULL || end < start) return 0;
    while (start < end && next_mapping(maps, start, &mapping)) {
        if (mapping.start > start || !(writing ? mapping.writable : mapping.readable)) break;
        start = mapping.end;
    }
    fclose(maps);
    return start >= end;
}
