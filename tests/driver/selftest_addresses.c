/* Reserved addresses, physical memory and mappings. */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "selftest.h"

#define PIECE ((size_t)2 << 20)

static const CUmemAccessDesc access_of_device = {
    {CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

static unsigned long long physical(int location, size_t bytes)
{
    unsigned long long handle = 0;
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {location, 0}};
    OK(cuMemCreate(&handle, bytes, &properties, 0));
    return handle;
}

static CUdeviceptr reserved(size_t bytes)
{
    CUdeviceptr pointer = 0;
    OK(cuMemAddressReserve(&pointer, bytes, 0, 0, 0));
    return pointer;
}

static void map(CUdeviceptr at, unsigned long long handle, size_t bytes)
{
    OK(cuMemMap(at, bytes, 0, handle, 0));
    OK(cuMemSetAccess(at, bytes, &access_of_device, 1));
}

static void one_piece_of_memory_is_behind_two_addresses(void)
{
    start();
    CUdeviceptr one = reserved(PIECE), other = reserved(2 * PIECE);
    unsigned long long memory = physical(CU_MEM_LOCATION_TYPE_DEVICE, PIECE);
    map(one, memory, PIECE);
    map(other + PIECE, memory, PIECE);
    OK(cuMemsetD8Async(one, 7, PIECE, NULL));
    OK(cuStreamSynchronize(NULL));
    CHECK_EQUAL(((char *)(uintptr_t)(other + PIECE))[PIECE - 1], 7);
    /* The memory stays while it is mapped. */
    OK(cuMemRelease(memory));
    REFUSED(INVALID_VALUE, cuMemRelease(memory));
    OK(cuMemUnmap(one, PIECE));
    CHECK_EQUAL(double_live("physical_memory"), 1);
    CHECK_EQUAL(((char *)(uintptr_t)(other + PIECE))[0], 7);
    REFUSED(INVALID_VALUE, cuMemAddressFree(other, 2 * PIECE));
    OK(cuMemUnmap(other + PIECE, PIECE));
    CHECK_EQUAL(double_live("physical_memory"), 0);
    OK(cuMemAddressFree(one, PIECE));
    OK(cuMemAddressFree(other, 2 * PIECE));
    CHECK_EQUAL(double_live("reservations"), 0);
}

static void one_copy_crosses_pieces_and_none_crosses_a_gap(void)
{
    static char bytes[2 * PIECE];
    start();
    CUdeviceptr at = reserved(3 * PIECE);
    map(at, physical(CU_MEM_LOCATION_TYPE_DEVICE, PIECE), PIECE);
    map(at + PIECE, physical(CU_MEM_LOCATION_TYPE_HOST_NUMA, PIECE), PIECE);
    memset(bytes, 3, sizeof bytes);
    OK(cuMemcpyAsync(at, (uintptr_t)bytes, 2 * PIECE, NULL));
    OK(cuStreamSynchronize(NULL));
    CHECK_EQUAL(((char *)(uintptr_t)at)[2 * PIECE - 1], 3);
    REFUSED(INVALID_VALUE, cuMemcpyAsync(at, (uintptr_t)bytes, 2 * PIECE + 1, NULL));
    unsigned kind = 0;
    OK(cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at));
    CHECK_EQUAL(kind, CU_MEMORYTYPE_DEVICE);
    OK(cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at + PIECE));
    CHECK_EQUAL(kind, CU_MEMORYTYPE_HOST);
    /* Mapped, and not accessible yet. */
    OK(cuMemMap(at + 2 * PIECE, PIECE, 0, physical(CU_MEM_LOCATION_TYPE_DEVICE, PIECE), 0));
    REFUSED(INVALID_VALUE, cuMemcpyAsync(at, (uintptr_t)bytes, 2 * PIECE + 1, NULL));
}

static void physical_memory_counts_against_the_capacity(void)
{
    size_t free_bytes, total_bytes;
    CUdeviceptr pointer;
    unsigned long long handle;
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    configure("WB_DOUBLE_CAPACITY", "6291456");
    start();
    unsigned long long memory = physical(CU_MEM_LOCATION_TYPE_DEVICE, 2 * PIECE);
    physical(CU_MEM_LOCATION_TYPE_HOST_NUMA, 8 * PIECE);
    OK(cuMemGetInfo_v2(&free_bytes, &total_bytes));
    CHECK_EQUAL(free_bytes, PIECE);
    REFUSED(OUT_OF_MEMORY, cuMemCreate(&handle, 2 * PIECE, &properties, 0));
    REFUSED(OUT_OF_MEMORY, cuMemAlloc_v2(&pointer, PIECE + 1));
    OK(cuMemRelease(memory));
    OK(cuMemAlloc_v2(&pointer, 3 * PIECE));
    REFUSED(OUT_OF_MEMORY, cuMemCreate(&handle, PIECE, &properties, 0));
}

static void mappings_are_whole_and_granular(void)
{
    CUdeviceptr pointer;
    unsigned long long handle;
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    start();
    REFUSED(INVALID_VALUE, cuMemAddressReserve(&pointer, PIECE + 1, 0, 0, 0));
    REFUSED(INVALID_VALUE, cuMemCreate(&handle, 4096, &properties, 0));
    CUdeviceptr at = reserved(2 * PIECE);
    unsigned long long memory = physical(CU_MEM_LOCATION_TYPE_DEVICE, 2 * PIECE);
    REFUSED(NOT_SUPPORTED, cuMemMap(at, PIECE, 0, memory, 0));
    REFUSED(NOT_SUPPORTED, cuMemMap(at, PIECE, PIECE, memory, 0));
    REFUSED(INVALID_VALUE, cuMemMap(at + PIECE, 2 * PIECE, 0, memory, 0));
    map(at, memory, 2 * PIECE);
    REFUSED(INVALID_VALUE, cuMemMap(at, 2 * PIECE, 0, memory, 0));
    REFUSED(INVALID_VALUE, cuMemUnmap(at, PIECE));
    OK(cuMemUnmap(at, 2 * PIECE));
    REFUSED(INVALID_VALUE, cuMemUnmap(at, 2 * PIECE));
    properties.location.id = 5;
    REFUSED(INVALID_DEVICE, cuMemCreate(&handle, PIECE, &properties, 0));
}

static void a_stale_access_faults(void)
{
    start();
    CUdeviceptr at = reserved(PIECE);
    map(at, physical(CU_MEM_LOCATION_TYPE_DEVICE, PIECE), PIECE);
    *(volatile char *)(uintptr_t)at = 1;
    OK(cuMemUnmap(at, PIECE));
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile char *)(uintptr_t)at = 2;
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

static void a_replay_writes_to_what_is_behind_its_addresses(void)
{
    static char host[64];
    CUgraph graph;
    CUgraphExec exec;
    CUstream stream;
    start();
    OK(cuMemHostRegister_v2(host, sizeof host, 0));
    CUdeviceptr at = reserved(PIECE);
    unsigned long long one = physical(CU_MEM_LOCATION_TYPE_DEVICE, PIECE);
    unsigned long long two = physical(CU_MEM_LOCATION_TYPE_HOST_NUMA, PIECE);
    map(at, one, PIECE);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyAsync(at, (uintptr_t)host, sizeof host, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (char value = 1; value < 4; value++) {
        OK(cuMemUnmap(at, PIECE));
        map(at, value % 2 ? two : one, PIECE);
        memset(host, value, sizeof host);
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        CHECK_EQUAL(((char *)(uintptr_t)at)[63], value);
    }
}

const struct test address_tests[] = {
    TEST(one_piece_of_memory_is_behind_two_addresses),
    TEST(one_copy_crosses_pieces_and_none_crosses_a_gap),
    TEST(physical_memory_counts_against_the_capacity),
    TEST(mappings_are_whole_and_granular),
    TEST(a_stale_access_faults),
    TEST(a_replay_writes_to_what_is_behind_its_addresses),
    {0},
};
