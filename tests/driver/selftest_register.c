/* Which mappings can be registered, and how a registration changes their pages. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "selftest.h"

#define PAGE ((size_t)4096)
#define PAGES ((size_t)16)
#define BYTES (PAGES * PAGE)
#define READ_ONLY CU_MEMHOSTREGISTER_READ_ONLY
#define TMPFS 0x01021994

static int file_of_data(int file)
{
    static char data[BYTES];
    memset(data, 7, BYTES);
    CHECK(file >= 0);
    CHECK_EQUAL(write(file, data, BYTES), BYTES);
    return file;
}

/* An unlinked file on a disk or on tmpfs. -1: there is no such folder. */
static int file_in_folder(int on_tmpfs)
{
    static const char *const folders[] = {".", "/var/tmp", "/tmp", "/dev/shm"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        struct statfs status;
        char path[64];
        if (statfs(folders[i], &status) != 0 || (status.f_type == TMPFS) != on_tmpfs) continue;
        snprintf(path, sizeof path, "%s/driver_selftest.XXXXXX", folders[i]);
        int file = mkstemp(path);
        if (file < 0) continue;
        unlink(path);
        return file_of_data(file);
    }
    printf("partly skipped: no folder is %s\n", on_tmpfs ? "on tmpfs" : "on a disk");
    return -1;
}

static int memory_file(void)
{
    return file_of_data(memfd_create("selftest", 0));
}

/* Inaccessible pages around the mapping keep the kernel from merging it with a neighbour. */
static char *map(int file, int protection, int flags)
{
    char *reserved = mmap(NULL, BYTES + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    flags |= MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
    CHECK((void *)reserved != MAP_FAILED);
    CHECK(mmap(reserved + PAGE, BYTES, protection, flags, file, 0) == (void *)(reserved + PAGE));
    return reserved + PAGE;
}

/* The KiB of the mapping that are private anonymous memory. */
static int anonymous_kib(const void *memory)
{
    FILE *maps = fopen("/proc/self/smaps", "r");
    char line[4096];
    int inside = 0, kib = -1;
    unsigned long start, end;
    while (kib < 0 && maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            inside = start <= (uintptr_t)memory && (uintptr_t)memory < end;
        }
        if (inside) sscanf(line, "Anonymous: %d", &kib);
    }
    if (maps != NULL) fclose(maps);
    return kib;
}

static void check(int file, int protection, int flags, unsigned register_flags, CUresult expected,
                  int expected_anonymous_kib)
{
    char *memory = map(file, protection, flags);
    CHECK_EQUAL(cuMemHostRegister_v2(memory, BYTES, register_flags), expected);
    CHECK_EQUAL(anonymous_kib(memory), expected_anonymous_kib);
    if (expected == CUDA_SUCCESS) OK(cuMemHostUnregister(memory));
    if (file >= 0 && (protection & PROT_READ)) CHECK_EQUAL(memory[BYTES - 1], 7);
    munmap(memory, BYTES);
}

#define KIB ((int)(BYTES / 1024))
#define REFUSED_UNCHANGED CUDA_ERROR_INVALID_VALUE, 0

static void check_common(int file)
{
    check(file, PROT_READ, MAP_SHARED, 0, REFUSED_UNCHANGED);
    check(file, PROT_READ, MAP_SHARED, READ_ONLY, CUDA_SUCCESS, 0);
    check(file, PROT_READ | PROT_WRITE, MAP_SHARED, READ_ONLY, CUDA_SUCCESS, 0);
    check(file, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, CUDA_SUCCESS, KIB);
    check(file, PROT_READ | PROT_WRITE, MAP_PRIVATE, READ_ONLY, CUDA_SUCCESS, KIB);
    check(file, PROT_READ, MAP_PRIVATE, 0, REFUSED_UNCHANGED);
    check(file, PROT_READ, MAP_PRIVATE, READ_ONLY, CUDA_SUCCESS, KIB);
    check(file, PROT_NONE, MAP_SHARED, READ_ONLY, REFUSED_UNCHANGED);
}

static void a_shared_writable_mapping_of_a_disk_file_is_refused(void)
{
    start();
    int file = file_in_folder(0);
    if (file < 0) return;
    check_common(file);
    check(file, PROT_READ | PROT_WRITE, MAP_SHARED, 0, REFUSED_UNCHANGED);
}

static void a_shared_writable_mapping_of_a_memory_file_is_registered(void)
{
    start();
    int file = memory_file();
    check_common(file);
    check(file, PROT_READ | PROT_WRITE, MAP_SHARED, 0, CUDA_SUCCESS, 0);
    file = file_in_folder(1);
    if (file < 0) return;
    check_common(file);
    check(file, PROT_READ | PROT_WRITE, MAP_SHARED, 0, CUDA_SUCCESS, 0);
}

static void anonymous_memory_is_registered_and_made_present(void)
{
    start();
    check(-1, PROT_READ | PROT_WRITE, MAP_SHARED, 0, CUDA_SUCCESS, 0);
    check(-1, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, CUDA_SUCCESS, KIB);
    check(-1, PROT_READ | PROT_WRITE, MAP_PRIVATE, READ_ONLY, CUDA_SUCCESS, KIB);
    check(-1, PROT_READ, MAP_PRIVATE, 0, REFUSED_UNCHANGED);
    check(-1, PROT_NONE, MAP_PRIVATE, 0, REFUSED_UNCHANGED);
}

static void registered_memory_that_is_unmapped_is_counted(void)
{
    start();
    char *memory = map(-1, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    OK(cuMemHostRegister_v2(memory, BYTES, 0));
    CHECK_EQUAL(double_live("unmapped_registrations"), 0);
    munmap(memory + 4 * PAGE, PAGE);
    CHECK_EQUAL(double_live("unmapped_registrations"), 1);
    OK(cuMemHostUnregister(memory));
    CHECK_EQUAL(double_live("unmapped_registrations"), 0);
    munmap(memory, BYTES);
}

static void a_range_with_a_gap_is_refused_and_left_unchanged(void)
{
    start();
    char *memory = map(-1, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    munmap(memory + 4 * PAGE, PAGE);
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(memory, BYTES, 0));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(memory + 4 * PAGE, PAGE, 0));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(memory + 3 * PAGE, PAGE + 1, 0));
    CHECK_EQUAL(anonymous_kib(memory), 0);
    OK(cuMemHostRegister_v2(memory, 4 * PAGE, 0));
    OK(cuMemHostRegister_v2(memory + 5 * PAGE, BYTES - 5 * PAGE, 0));
    CHECK_EQUAL(anonymous_kib(memory), 4 * PAGE / 1024);
}

static void one_invalid_mapping_fails_the_whole_range(void)
{
    start();
    char *memory = map(-1, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    mprotect(memory + 8 * PAGE, PAGE, PROT_READ);
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(memory, BYTES, 0));
    CHECK_EQUAL(anonymous_kib(memory), 0);
    OK(cuMemHostRegister_v2(memory, BYTES, READ_ONLY));
}

static void a_mapping_past_the_end_of_its_file_is_refused(void)
{
    start();
    int file = memory_file();
    char *memory = map(file, PROT_READ, MAP_SHARED);
    CHECK_EQUAL(ftruncate(file, BYTES / 2), 0);
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(memory, BYTES, READ_ONLY));
    OK(cuMemHostRegister_v2(memory, BYTES / 2, READ_ONLY));
}

static void pinned_private_pages_are_detached_from_their_file(void)
{
    start();
    int file = memory_file();
    char *private_mapping = map(file, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *shared_mapping = map(file, PROT_READ, MAP_SHARED);
    OK(cuMemHostRegister_v2(private_mapping, BYTES, 0));
    OK(cuMemHostRegister_v2(shared_mapping, BYTES, READ_ONLY));
    CHECK_EQUAL(pwrite(file, "\x09", 1, PAGE), 1);
    CHECK_EQUAL(private_mapping[PAGE], 7);
    CHECK_EQUAL(shared_mapping[PAGE], 9);
}

static void a_read_only_registration_cannot_be_written(void)
{
    char back[16] = "";
    start();
    char *memory = map(memory_file(), PROT_READ, MAP_SHARED);
    CUdeviceptr device = device_memory(PAGE);
    OK(cuMemHostRegister_v2(memory, BYTES, READ_ONLY));
    OK(cuMemcpyHtoDAsync_v2(device, memory, PAGE, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2(memory, device, PAGE, NULL));
    REFUSED(INVALID_VALUE, cuMemsetD8Async((uintptr_t)memory, 1, PAGE, NULL));
    OK(cuMemcpyDtoHAsync_v2(back, device, sizeof back, NULL));
    CHECK_EQUAL(back[15], 7);
}

const struct test register_tests[] = {
    TEST(a_shared_writable_mapping_of_a_disk_file_is_refused),
    TEST(a_shared_writable_mapping_of_a_memory_file_is_registered),
    TEST(anonymous_memory_is_registered_and_made_present),
    TEST(registered_memory_that_is_unmapped_is_counted),
    TEST(a_range_with_a_gap_is_refused_and_left_unchanged),
    TEST(one_invalid_mapping_fails_the_whole_range),
    TEST(a_mapping_past_the_end_of_its_file_is_refused),
    TEST(pinned_private_pages_are_detached_from_their_file),
    TEST(a_read_only_registration_cannot_be_written),
    {0},
};
