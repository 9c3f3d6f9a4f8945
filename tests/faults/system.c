/* The library calls the C library through its procedure linkage table, so a function of the same name in
 * the program replaces the C library's. */
#include "system.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { FILE_CAPACITY = 256 };

static uintptr_t library_start, library_end;

static atomic_int counted, kth_fails;
static int fails_with, hints_fail;
static const char *_Atomic failed;
static char failed_file[FILE_CAPACITY];
static pthread_t failed_in;
static atomic_int called_since, was_retried;

static atomic_llong mapped_bytes, open_files;

static int find_library(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size, (void)data;
    if (strstr(info->dlpi_name, "libweighbridge") == NULL) return 0;
    library_start = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t end = info->dlpi_addr + part->p_vaddr + part->p_memsz;
        if (part->p_type == PT_LOAD && end > library_end) library_end = end;
    }
    return 1;
}

/* Before the library's first call, so that everything it opens is counted. */
__attribute__((constructor)) static void find_library_range(void)
{
    dl_iterate_phdr(find_library, NULL);
}

static int from_library(uintptr_t caller)
{
    return caller >= library_start && caller < library_end;
}

int system_can_fail(void)
{
    return 1;
}

struct system_held system_held(void)
{
    struct system_held held = {mapped_bytes, open_files};
    return held;
}

void system_fail(int kth, int code, int hints)
{
    counted = 0;
    fails_with = code;
    hints_fail = hints;
    kth_fails = kth;
}

const char *system_failed(void)
{
    return failed;
}

const char *system_failed_file(void)
{
    return failed_file;
}

int system_was_retried(void)
{
    return was_retried;
}

int system_is_hint(const char *path)
{
    static const char *const hints[] = {"/cpuinfo", "/meminfo", "/status", "/cgroup", "/user",
                                        "/uid_map"};
    const char *name = strrchr(path, '/');
    if (strncmp(path, "/sys/", 5) == 0) return 1;
    for (size_t i = 0; name != NULL && i < sizeof hints / sizeof hints[0]; i++) {
        if (strncmp(path, "/proc/", 6) == 0 && strcmp(name, hints[i]) == 0) return 1;
    }
    return 0;
}

static void name_file(char file[FILE_CAPACITY], const char *path, int descriptor)
{
    char link[64];
    file[0] = '\0';
    if (path != NULL && path[0] != '\0') {
        snprintf(file, FILE_CAPACITY, "%s", path);
    } else if (descriptor >= 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(link, file, FILE_CAPACITY - 1);
        file[length < 0 ? 0 : length] = '\0';
    }
}

static int fails(const char *name, const char *path, int descriptor, uintptr_t caller)
{
    char file[FILE_CAPACITY];
    if (kth_fails == 0 || !from_library(caller)) return 0;
    if (failed != NULL && pthread_equal(failed_in, pthread_self()) && called_since++ == 0) {
        was_retried = strcmp(name, failed) == 0;
    }
    name_file(file, path, descriptor);
    if (!hints_fail && system_is_hint(file)) return 0;
    if (atomic_fetch_add(&counted, 1) + 1 != kth_fails) return 0;
    memcpy(failed_file, file, FILE_CAPACITY);
    failed_in = pthread_self();
    failed = name;
    errno = fails_with;
    return 1;
}

/* Macros, since only the function that the library calls has the library's return address. */
#define FAILS(name, path, descriptor)                                                \
    fails(name, path, descriptor, (uintptr_t)__builtin_return_address(0))

#define FROM_LIBRARY() from_library((uintptr_t)__builtin_return_address(0))

static long long whole_pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (long long)((bytes + page - 1) / page * page);
}

/* The C library's function of the same name. */
#define REAL(name)                                                                   \
    static __typeof__(&name) real;                                                   \
    if (real == NULL) {                                                              \
        void *found = dlsym(RTLD_NEXT, #name);                                       \
        memcpy(&real, &found, sizeof real);                                          \
    }

void *mmap(void *address, size_t bytes, int protection, int flags, int descriptor, off_t offset)
{
    REAL(mmap)
    if (FAILS("mmap", NULL, descriptor)) return MAP_FAILED;
    void *memory = real(address, bytes, protection, flags, descriptor, offset);
    /* MAP_FIXED replaces pages that were counted. */
    if (memory != MAP_FAILED && FROM_LIBRARY() && !(flags & MAP_FIXED)) mapped_bytes += whole_pages(bytes);
    return memory;
}

int mprotect(void *address, size_t bytes, int protection)
{
    REAL(mprotect)
    return FAILS("mprotect", NULL, -1) ? -1 : real(address, bytes, protection);
}

int madvise(void *address, size_t bytes, int advice)
{
    REAL(madvise)
    /* Huge pages are advice; populating pages must succeed. */
    const char *name = advice == MADV_POPULATE_READ ? "madvise" : "madvise(huge pages)";
    return FAILS(name, NULL, -1) ? -1 : real(address, bytes, advice);
}

int mlock(const void *address, size_t bytes)
{
    REAL(mlock)
    return FAILS("mlock", NULL, -1) ? -1 : real(address, bytes);
}

int munlock(const void *address, size_t bytes)
{
    REAL(munlock)
    return FAILS("munlock", NULL, -1) ? -1 : real(address, bytes);
}

int munmap(void *address, size_t bytes)
{
    REAL(munmap)
    int result = FAILS("munmap", NULL, -1) ? -1 : real(address, bytes);
    if (result == 0 && FROM_LIBRARY()) mapped_bytes -= whole_pages(bytes);
    return result;
}

int mincore(void *address, size_t bytes, unsigned char *present)
{
    REAL(mincore)
    return FAILS("mincore", NULL, -1) ? -1 : real(address, bytes, present);
}

int open64(const char *path, int flags, ...)
{
    REAL(open64)
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int descriptor = FAILS("open", path, -1) ? -1 : real(path, flags, mode);
    if (descriptor >= 0 && FROM_LIBRARY()) open_files++;
    return descriptor;
}

int close(int descriptor)
{
    REAL(close)
    int result = real(descriptor);
    if (result == 0 && FROM_LIBRARY()) open_files--;
    return result;
}

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *status)
{
    REAL(statx)
    return FAILS("stat", path, folder) ? -1 : real(folder, path, flags, mask, status);
}

ssize_t read(int descriptor, void *to, size_t bytes)
{
    REAL(read)
    return FAILS("read", NULL, descriptor) ? -1 : real(descriptor, to, bytes);
}

ssize_t pread64(int descriptor, void *to, size_t bytes, off64_t offset)
{
    REAL(pread64)
    return FAILS("pread", NULL, descriptor) ? -1 : real(descriptor, to, bytes, offset);
}

int memfd_create(const char *name, unsigned flags)
{
    REAL(memfd_create)
    int descriptor = FAILS("memfd_create", NULL, -1) ? -1 : real(name, flags);
    if (descriptor >= 0 && FROM_LIBRARY()) open_files++;
    return descriptor;
}

int ftruncate64(int descriptor, off64_t bytes)
{
    REAL(ftruncate64)
    return FAILS("ftruncate", NULL, descriptor) ? -1 : real(descriptor, bytes);
}

int fallocate(int descriptor, int mode, off_t offset, off_t bytes)
{
    REAL(fallocate)
    return FAILS("fallocate", NULL, descriptor) ? -1 : real(descriptor, mode, offset, bytes);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *argument)
{
    REAL(pthread_create)
    /* It returns the code and does not set errno. */
    return FAILS("pthread_create", NULL, -1) ? fails_with
                                                : real(thread, attributes, run, argument);
}
