/* Device and host allocations, registrations, pointers and their attributes. */
#include <string.h>

#include "selftest.h"

#define PAGE 4096

static char arena[16 * PAGE] __attribute__((aligned(PAGE)));

static void device_memory_is_limited_by_the_capacity(void)
{
    size_t free_bytes, total_bytes;
    CUdeviceptr pointer;
    configure("WB_DOUBLE_CAPACITY", "1000000");
    start();
    CUdeviceptr first = device_memory(600000);
    OK(cuMemGetInfo_v2(&free_bytes, &total_bytes));
    CHECK_EQUAL(free_bytes, 400000);
    CHECK_EQUAL(total_bytes, 1000000);
    CHECK_EQUAL(double_live("device_bytes"), 600000);
    REFUSED(OUT_OF_MEMORY, cuMemAlloc_v2(&pointer, 400001));
    REFUSED(OUT_OF_MEMORY, cuMemAlloc_v2(&pointer, (size_t)-1));
    OK(cuMemFree_v2(first));
    OK(cuMemAlloc_v2(&pointer, 1000000));
    CHECK(pointer != first);
    CHECK_EQUAL(pointer % 256, 0);
    REFUSED(INVALID_VALUE, cuMemAlloc_v2(&pointer, 0));
}

static void each_device_has_its_own_capacity(void)
{
    size_t free_bytes, total_bytes;
    CUcontext context;
    configure("WB_DOUBLE_DEVICES", "2");
    configure("WB_DOUBLE_CAPACITY", "1000");
    start();
    device_memory(1000);
    OK(cuCtxCreate_v2(&context, 0, 1));
    OK(cuMemGetInfo_v2(&free_bytes, &total_bytes));
    CHECK_EQUAL(free_bytes, 1000);
    device_memory(1000);
}

static void only_allocations_can_be_freed(void)
{
    void *host;
    start();
    CUdeviceptr pointer = device_memory(PAGE);
    OK(cuMemHostAlloc(&host, PAGE, 0));
    OK(cuMemHostRegister_v2(arena, PAGE, 0));
    REFUSED(INVALID_VALUE, cuMemFree_v2(pointer + 1));
    REFUSED(INVALID_VALUE, cuMemFree_v2((uintptr_t)host));
    REFUSED(INVALID_VALUE, cuMemFreeHost((char *)host + 1));
    REFUSED(INVALID_VALUE, cuMemFreeHost(arena));
    REFUSED(HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(host));
    OK(cuMemFree_v2(pointer));
    REFUSED(INVALID_VALUE, cuMemFree_v2(pointer));
    OK(cuMemFreeHost(host));
    REFUSED(INVALID_VALUE, cuMemFreeHost(host));
    OK(cuMemHostUnregister(arena));
    REFUSED(HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(arena));
}

static void host_allocations_check_their_arguments(void)
{
    void *host;
    start();
    REFUSED(INVALID_VALUE, cuMemHostAlloc(&host, 0, 0));
    REFUSED(INVALID_VALUE, cuMemHostAlloc(&host, PAGE, 8));
    REFUSED(INVALID_VALUE, cuMemHostAlloc(NULL, PAGE, 0));
    REFUSED(OUT_OF_MEMORY, cuMemHostAlloc(&host, (size_t)1 << 60, 0));
    OK(cuMemHostAlloc(&host, PAGE, 7));
    memset(host, 1, PAGE);
    CHECK_EQUAL(double_live("host_allocations"), 1);
    CHECK_EQUAL(double_live("host_bytes"), PAGE);
    REFUSED(HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(host, PAGE, 0));
}

static void registrations_check_their_arguments(void)
{
    start();
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(arena, 0, 0));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(NULL, PAGE, 0));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(arena, PAGE, 16));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(arena, (size_t)-1, 0));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2(arena, PAGE, CU_MEMHOSTREGISTER_IOMEMORY));
    REFUSED(INVALID_VALUE, cuMemHostRegister_v2((void *)(uintptr_t)device_memory(PAGE), PAGE, 0));
    OK(cuMemHostRegister_v2(arena, PAGE, CU_MEMHOSTREGISTER_PORTABLE |
                                             CU_MEMHOSTREGISTER_DEVICEMAP));
    CHECK_EQUAL(double_live("registrations"), 1);
}

static void registrations_never_overlap(void)
{
    start();
    OK(cuMemHostRegister_v2(arena + PAGE, 2 * PAGE, 0));
    REFUSED(HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(arena + PAGE, 2 * PAGE, 0));
    REFUSED(HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(arena + 2 * PAGE, 1, 0));
    REFUSED(HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(arena, 8 * PAGE, 0));
    REFUSED(HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(arena, PAGE + 1, 0));
    OK(cuMemHostRegister_v2(arena, PAGE, 0)); /* adjacent ranges are valid */
    OK(cuMemHostRegister_v2(arena + 3 * PAGE, PAGE, 0));
    CHECK_EQUAL(double_live("registered_bytes"), 4 * PAGE);
    REFUSED(HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(arena + 2 * PAGE));
    OK(cuMemHostUnregister(arena + PAGE));
    OK(cuMemHostUnregister(arena));
    OK(cuMemHostUnregister(arena + 3 * PAGE));
    CHECK_EQUAL(double_live("registrations"), 0);
}

static void two_unaligned_registrations_share_a_page(void)
{
    start();
    OK(cuMemHostRegister_v2(arena + 10, 100, 0));
    OK(cuMemHostRegister_v2(arena + 110, 3000, 0));
    OK(cuMemHostUnregister(arena + 10));
    OK(cuMemHostUnregister(arena + 110));
}

static void many_registrations_stay_distinct(void)
{
    start();
    /* From both ends, so that insertions are in the middle of the table. */
    for (int i = 0; i < 500; i++) {
        OK(cuMemHostRegister_v2(arena + 16 * i, 16, 0));
        OK(cuMemHostRegister_v2(arena + 16 * (1999 - i), 16, 0));
    }
    CHECK_EQUAL(double_live("registrations"), 1000);
    REFUSED(HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(arena + 16 * 499 + 15, 2, 0));
    for (int i = 0; i < 500; i++) {
        OK(cuMemHostUnregister(arena + 16 * (1999 - i)));
        OK(cuMemHostUnregister(arena + 16 * i));
    }
    CHECK_EQUAL(double_live("registrations"), 0);
}

static void missing_capabilities_are_not_supported(void)
{
    start();
    configure("WB_DOUBLE_ATTRIBUTES", "113=0");
    REFUSED(NOT_SUPPORTED, cuMemHostRegister_v2(arena, PAGE, CU_MEMHOSTREGISTER_READ_ONLY));
    OK(cuMemHostRegister_v2(arena, PAGE, 0));
    configure("WB_DOUBLE_ATTRIBUTES", "99=0");
    REFUSED(NOT_SUPPORTED, cuMemHostRegister_v2(arena + PAGE, PAGE, 0));
}

static void only_pinned_memory_has_a_device_pointer(void)
{
    CUdeviceptr device = 0;
    void *host;
    start();
    OK(cuMemHostRegister_v2(arena, PAGE, 0));
    OK(cuMemHostGetDevicePointer_v2(&device, arena + 100, 0));
    CHECK_EQUAL(device, (uintptr_t)arena + 100);
    REFUSED(INVALID_VALUE, cuMemHostGetDevicePointer_v2(&device, arena + PAGE, 0));
    REFUSED(INVALID_VALUE, cuMemHostGetDevicePointer_v2(&device, arena, 1));
    OK(cuMemHostAlloc(&host, PAGE, 0));
    OK(cuMemHostGetDevicePointer_v2(&device, host, 0));
    CHECK_EQUAL(device, (uintptr_t)host);
    host = (void *)(uintptr_t)device_memory(PAGE);
    REFUSED(INVALID_VALUE, cuMemHostGetDevicePointer_v2(&device, host, 0));
    configure("WB_DOUBLE_UNMAPPED", "1");
    REFUSED(NOT_SUPPORTED, cuMemHostGetDevicePointer_v2(&device, arena, 0));
}

static void without_unified_addressing_only_mapped_memory_has_a_device_pointer(void)
{
    CUdeviceptr device;
    configure("WB_DOUBLE_ATTRIBUTES", "41=0");
    start();
    OK(cuMemHostRegister_v2(arena, PAGE, 0));
    OK(cuMemHostRegister_v2(arena + PAGE, PAGE, CU_MEMHOSTREGISTER_DEVICEMAP));
    REFUSED(INVALID_VALUE, cuMemHostGetDevicePointer_v2(&device, arena, 0));
    OK(cuMemHostGetDevicePointer_v2(&device, arena + PAGE, 0));
}

static void registered_memory_can_have_a_separate_device_address(void)
{
    CUdeviceptr device = 0, start_address = 0, memory;
    char back[8] = "";
    configure("WB_DOUBLE_ATTRIBUTES", "91=0");
    start();
    memory = device_memory(PAGE);
    OK(cuMemHostRegister_v2(arena, PAGE, 0));
    OK(cuMemHostGetDevicePointer_v2(&device, arena + 8, 0));
    CHECK(device != (uintptr_t)arena + 8);
    OK(cuPointerGetAttribute(&start_address, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, device));
    CHECK_EQUAL(start_address, device - 8);
    memcpy(arena + 8, "through", 8);
    OK(cuMemcpyAsync(memory, device, 8, NULL));
    REFUSED(INVALID_VALUE, cuMemcpyDtoHAsync_v2(back, (uintptr_t)arena + 8, 8, NULL));
    REFUSED(INVALID_VALUE, cuMemsetD8Async((uintptr_t)arena, 1, 8, NULL));
    OK(cuMemcpyDtoHAsync_v2(back, memory, 8, NULL));
    CHECK(strcmp(back, "through") == 0);
}

static void pointer_attributes_are_reported(void)
{
    unsigned type = 0;
    int ordinal = -1;
    size_t bytes = 0;
    void *host = NULL;
    CUdeviceptr address = 0;
    CUcontext context = start(), of_pointer = NULL;
    CUdeviceptr device = device_memory(1000);
    OK(cuMemHostRegister_v2(arena, PAGE, 0));
    CUdeviceptr registered = (uintptr_t)arena + 100;
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 10));
    CHECK_EQUAL(type, CU_MEMORYTYPE_DEVICE);
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, registered));
    CHECK_EQUAL(type, CU_MEMORYTYPE_HOST);
    OK(cuPointerGetAttribute(&of_pointer, CU_POINTER_ATTRIBUTE_CONTEXT, device));
    CHECK(of_pointer == context);
    OK(cuPointerGetAttribute(&address, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, registered));
    CHECK_EQUAL(address, registered);
    OK(cuPointerGetAttribute(&host, CU_POINTER_ATTRIBUTE_HOST_POINTER, registered));
    CHECK(host == arena + 100);
    REFUSED(INVALID_VALUE,
            cuPointerGetAttribute(&host, CU_POINTER_ATTRIBUTE_HOST_POINTER, device));
    OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, device));
    CHECK_EQUAL(ordinal, 0);
    OK(cuPointerGetAttribute(&address, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, device + 999));
    CHECK_EQUAL(address, device);
    OK(cuPointerGetAttribute(&bytes, CU_POINTER_ATTRIBUTE_RANGE_SIZE, device + 999));
    CHECK_EQUAL(bytes, 1000);
    REFUSED(INVALID_VALUE, cuPointerGetAttribute(&type, 2, device + 1000));
    REFUSED(INVALID_VALUE, cuPointerGetAttribute(&type, 2, (uintptr_t)arena + PAGE));
    REFUSED(INVALID_VALUE, cuPointerGetAttribute(&type, 99, device));
}

const struct test memory_tests[] = {
    TEST(device_memory_is_limited_by_the_capacity),
    TEST(each_device_has_its_own_capacity),
    TEST(only_allocations_can_be_freed),
    TEST(host_allocations_check_their_arguments),
    TEST(registrations_check_their_arguments),
    TEST(registrations_never_overlap),
    TEST(two_unaligned_registrations_share_a_page),
    TEST(many_registrations_stay_distinct),
    TEST(missing_capabilities_are_not_supported),
    TEST(only_pinned_memory_has_a_device_pointer),
    TEST(without_unified_addressing_only_mapped_memory_has_a_device_pointer),
    TEST(registered_memory_can_have_a_separate_device_address),
    TEST(pointer_attributes_are_reported),
    {0},
};
