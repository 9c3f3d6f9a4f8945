/* Virtual memory management: reserved addresses, physical memory, and mappings. Physical memory
 * is pages of a file in memory, so that one piece can be behind several addresses; addresses without
 * memory, and mapped ones without access, fault. None of it belongs to a context. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

#define GRANULARITY ((size_t)2 << 20)

struct reservation {
    struct reservation *next;
    uintptr_t start;
    size_t bytes;
};

struct physical {
    struct physical *next;
    unsigned long long handle;
    int file;
    size_t bytes;
    CUdevice device; /* -1: host memory */
    int released;    /* the handle is gone; the memory stays while it is mapped */
    unsigned mappings;
};

static struct reservation *reservations;
static struct physical *memory;

size_t reservations_live(void)
{
    size_t count = 0;
    for (struct reservation *each = reservations; each != NULL; each = each->next) count++;
    return count;
}

size_t physical_live(void)
{
    size_t count = 0;
    for (struct physical *each = memory; each != NULL; each = each->next) count++;
    return count;
}

size_t physical_bytes(CUdevice device)
{
    size_t bytes = 0;
    for (struct physical *each = memory; each != NULL; each = each->next) {
        bytes += each->device == device ? each->bytes : 0;
    }
    return bytes;
}

static struct reservation *reservation_of(uintptr_t start, size_t bytes)
{
    struct reservation *each = reservations;
    while (each != NULL && (start < each->start || start - each->start >= each->bytes)) {
        each = each->next;
    }
    return each != NULL && bytes <= each->bytes - (start - each->start) ? each : NULL;
}

static struct physical *physical_find(unsigned long long handle)
{
    struct physical *each = memory;
    while (each != NULL && (each->handle != handle || each->released)) each = each->next;
    return each;
}

static void physical_free_if_unused(struct physical *physical)
{
    if (!physical->released || physical->mappings > 0) return;
    struct physical **link = &memory;
    while (*link != physical) link = &(*link)->next;
    *link = physical->next;
    close(physical->file);
    free(physical);
}

static int is_granular(size_t bytes)
{
    return bytes > 0 && bytes % GRANULARITY == 0;
}

/* The device of the location, or -1 for the host; -2 if there is none. */
static CUdevice location_device(const CUmemLocation *location, int host_too)
{
    if (location->type == CU_MEM_LOCATION_TYPE_DEVICE && device_exists(location->id)) {
        return location->id;
    }
    return host_too && location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA && location->id == 0 ? -1 : -2;
}

static CUresult check_properties(const CUmemAllocationProp *properties, CUdevice *device)
{
    if (properties == NULL || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
        properties->requestedHandleTypes != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *device = location_device(&properties->location, 1);
    if (*device == -2) return CUDA_ERROR_INVALID_DEVICE;
    CUdevice asked = *device == -1 ? 0 : *device;
    int needed = *device == -1
                     ? CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
                     : CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
    return device_attribute(asked, needed) ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties,
                                       int option)
{
    ENTER(cuMemGetAllocationGranularity, NEEDS_INIT);
    CUdevice device;
    CUresult result = check_properties(properties, &device);
    if (result != CUDA_SUCCESS) return leave(result);
    if (bytes == NULL || (option != 0 && option != 1)) return leave(CUDA_ERROR_INVALID_VALUE);
    *bytes = GRANULARITY;
    return leave(CUDA_SUCCESS);
}

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment,
                             CUdeviceptr wanted, unsigned long long flags)
{
    ENTER(cuMemAddressReserve, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (pointer == NULL || !is_granular(bytes) || alignment != 0 || wanted != 0 || flags != 0) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    uintptr_t start = arena_reserve(bytes, GRANULARITY);
    if (start == 0) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    struct reservation *reservation = allocate(sizeof *reservation);
    *reservation = (struct reservation){reservations, start, bytes};
    reservations = reservation;
    *pointer = start;
    return leave(CUDA_SUCCESS);
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes)
{
    ENTER(cuMemAddressFree, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct reservation **link = &reservations;
    while (*link != NULL && (*link)->start != pointer) link = &(*link)->next;
    struct reservation *found = *link;
    if (found == NULL || found->bytes != bytes || range_overlaps(found->start, bytes)) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    *link = found->next;
    free(found);
    return leave(CUDA_SUCCESS);
}

CUresult cuMemCreate(unsigned long long *handle, size_t bytes,
                     const CUmemAllocationProp *properties, unsigned long long flags)
{
    ENTER(cuMemCreate, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    CUdevice device;
    CUresult result = check_properties(properties, &device);
    if (result != CUDA_SUCCESS) return leave(result);
    if (handle == NULL || !is_granular(bytes) || flags != 0) return leave(CUDA_ERROR_INVALID_VALUE);
    if (device >= 0) {
        size_t used = device_bytes_used(device), capacity = driver.settings.capacity;
        if (used > capacity || bytes > capacity - used) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    }
    int file = memfd_create("driver-double", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0) {
        if (file >= 0) close(file);
        return leave(CUDA_ERROR_OUT_OF_MEMORY);
    }
    struct physical *physical = allocate(sizeof *physical);
    *physical = (struct physical){.next = memory,
                                  .handle = (uintptr_t)handle_new(),
                                  .file = file,
                                  .bytes = bytes,
                                  .device = device};
    memory = physical;
    *handle = physical->handle;
    return leave(CUDA_SUCCESS);
}

CUresult cuMemRelease(unsigned long long handle)
{
    ENTER(cuMemRelease, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct physical *physical = physical_find(handle);
    if (physical == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    physical->released = 1;
    physical_free_if_unused(physical);
    return leave(CUDA_SUCCESS);
}

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, unsigned long long handle,
                  unsigned long long flags)
{
    ENTER(cuMemMap, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct physical *physical = physical_find(handle);
    uintptr_t start = (uintptr_t)pointer;
    if (physical == NULL || flags != 0 || start % GRANULARITY != 0 || !is_granular(bytes) ||
        reservation_of(start, bytes) == NULL || range_overlaps(start, bytes)) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    /* Measured: a part of a bigger handle is not supported. */
    if (offset != 0 || bytes != physical->bytes) return leave(CUDA_ERROR_NOT_SUPPORTED);
    physical->mappings++;
    range_add((struct range){.start = start,
                             .bytes = bytes,
                             .kind = physical->device < 0 ? RANGE_HOST : RANGE_DEVICE,
                             .flags = CU_MEMHOSTALLOC_DEVICEMAP,
                             .physical = physical,
                             .context = context_current()});
    return leave(CUDA_SUCCESS);
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc *access,
                        size_t count)
{
    ENTER(cuMemSetAccess, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct range *range = range_containing((uintptr_t)pointer);
    int whole = range != NULL && range->physical != NULL && range->start == pointer &&
                range->bytes == bytes;
    if (!whole || access == NULL || count != 1 ||
        access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    if (location_device(&access->location, 0) < 0) return leave(CUDA_ERROR_INVALID_DEVICE);
    void *mapped = mmap((void *)range->start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                        range->physical->file, 0);
    if (mapped == MAP_FAILED) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    range->accessible = 1;
    return leave(CUDA_SUCCESS);
}

/* Does not wait for work in flight, which then faults: as measured. */
CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes)
{
    ENTER(cuMemUnmap, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    struct range *range = range_containing((uintptr_t)pointer);
    if (range == NULL || range->physical == NULL || range->start != pointer ||
        range->bytes != bytes) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    struct physical *physical = range->physical;
    arena_free(range->start, bytes);
    range_remove(range->start);
    physical->mappings--;
    physical_free_if_unused(physical);
    return leave(CUDA_SUCCESS);
}
