/* Device memory, pinned host memory, and registrations. */
#include <string.h>
#include <sys/mman.h>

#include "driver.h"

/* A single registration of this many bytes fails on drivers since R580. */
#define REGISTRATION_LIMIT ((size_t)512 << 30)

static void memory_release(const struct range *range)
{
    if (range->kind == RANGE_DEVICE) arena_free(range->start, range->bytes);
    if (range->kind == RANGE_HOST) munmap((void *)range->start, range->bytes);
    range_remove(range->start);
}

size_t memory_release_all(struct context *context)
{
    size_t released = 0;
    for (struct range *range; (range = range_of_context(context)) != NULL; released++) {
        memory_release(range);
    }
    return released;
}

static struct range *range_starting_at(uintptr_t address, enum range_kind kind)
{
    struct range *range = range_containing(address);
    int found = range != NULL && range->start == address && range->kind == kind &&
                range->physical == NULL;
    return found ? range : NULL;
}

/* Waits for work in flight that may use the memory, as the driver does; the
 * wait releases the lock, so the range is looked up again. */
static CUresult release_when_idle(uintptr_t address, enum range_kind kind, CUresult not_found)
{
    struct range *range = range_starting_at(address, kind);
    if (range == NULL) return not_found;
    streams_drain(NULL, kind == RANGE_DEVICE ? range->context->device : -1);
    range = range_starting_at(address, kind);
    if (range == NULL) return not_found;
    memory_release(range);
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    ENTER(cuMemGetInfo_v2, NEEDS_CONTEXT);
    if (free_bytes == NULL || total_bytes == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    size_t used = device_bytes_used(context_current()->device);
    *total_bytes = driver.settings.capacity;
    *free_bytes = *total_bytes > used ? *total_bytes - used : 0;
    return leave(CUDA_SUCCESS);
}

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
    ENTER(cuMemAlloc_v2, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (pointer == NULL || bytes == 0) return leave(CUDA_ERROR_INVALID_VALUE);
    struct context *context = context_current();
    size_t used = device_bytes_used(context->device);
    if (used > driver.settings.capacity || bytes > driver.settings.capacity - used) {
        return leave(CUDA_ERROR_OUT_OF_MEMORY);
    }
    void *memory = arena_allocate(bytes);
    if (memory == NULL) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    *pointer = (uintptr_t)memory;
    range_add((struct range){
        .start = (uintptr_t)memory, .bytes = bytes, .kind = RANGE_DEVICE, .context = context});
    return leave(CUDA_SUCCESS);
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
    ENTER(cuMemFree_v2, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    return leave(release_when_idle((uintptr_t)pointer, RANGE_DEVICE, CUDA_ERROR_INVALID_VALUE));
}

CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags)
{
    ENTER(cuMemHostAlloc, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    unsigned known =
        CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
    if (pointer == NULL || bytes == 0 || (flags & ~known)) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    memset(memory, 0xa5, bytes); /* not zeroed: the driver does not promise it */
    *pointer = memory;
    range_add((struct range){.start = (uintptr_t)memory,
                             .bytes = bytes,
                             .kind = RANGE_HOST,
                             .flags = flags & CU_MEMHOSTALLOC_DEVICEMAP,
                             .context = context_current()});
    return leave(CUDA_SUCCESS);
}

CUresult cuMemFreeHost(void *pointer)
{
    ENTER(cuMemFreeHost, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    return leave(release_when_idle((uintptr_t)pointer, RANGE_HOST, CUDA_ERROR_INVALID_VALUE));
}

#ifndef WB_DOUBLE_OLD
static CUresult host_register(uintptr_t start, size_t bytes, unsigned flags)
{
    unsigned known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP |
                     CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY;
    int read_only = (flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
    CUdevice device = context_current()->device;
    if (bytes == 0 || (flags & ~known) || start + bytes < start) return CUDA_ERROR_INVALID_VALUE;
    if (!device_attribute(device, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (read_only &&
        !device_attribute(device, CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    /* Tests have only ordinary memory, never I/O memory. */
    if (flags & CU_MEMHOSTREGISTER_IOMEMORY) return CUDA_ERROR_INVALID_VALUE;
    if (bytes >= REGISTRATION_LIMIT || arena_contains(start) || arena_contains(start + bytes - 1)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (range_overlaps(start, bytes)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    CUresult result = mappings_pin(start, bytes, read_only);
    if (result != CUDA_SUCCESS) return result;
    int same_address = device_attribute(
        device, CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM);
    range_add((struct range){.start = start,
                             .bytes = bytes,
                             .kind = RANGE_REGISTERED,
                             .flags = flags,
                             .aliased = !same_address,
                             .context = context_current()});
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags)
{
    ENTER(cuMemHostRegister_v2, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    return leave(host_register((uintptr_t)pointer, bytes, flags));
}
#endif

CUresult cuMemHostUnregister(void *pointer)
{
    ENTER(cuMemHostUnregister, NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    return leave(release_when_idle((uintptr_t)pointer, RANGE_REGISTERED,
                                   CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED));
}

int range_is_mapped(const struct range *range)
{
    CUdevice device = range->context->device;
    if (range->kind == RANGE_DEVICE || driver.settings.unmapped) return 0;
    if (device_attribute(device, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING)) return 1;
    return (range->flags & CU_MEMHOSTREGISTER_DEVICEMAP) != 0;
}

static CUdeviceptr device_address(const struct range *range, uintptr_t host)
{
    return range->aliased ? host | DEVICE_ALIAS_BIT : host;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host, unsigned flags)
{
    ENTER(cuMemHostGetDevicePointer_v2, NEEDS_CONTEXT);
    struct range *range = range_containing((uintptr_t)host);
    if (device == NULL || flags != 0 || range == NULL || range->kind == RANGE_DEVICE) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    if (driver.settings.unmapped) return leave(CUDA_ERROR_NOT_SUPPORTED);
    if (!range_is_mapped(range)) return leave(CUDA_ERROR_INVALID_VALUE);
    *device = device_address(range, (uintptr_t)host);
    return leave(CUDA_SUCCESS);
}

static CUresult pointer_attribute(void *value, int attribute, const struct range *range,
                                  uintptr_t address)
{
    int on_device = range->kind == RANGE_DEVICE;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)value = range->context;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = on_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        if (!on_device && !range_is_mapped(range)) return CUDA_ERROR_INVALID_VALUE;
        *(CUdeviceptr *)value = device_address(range, address);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (on_device) return CUDA_ERROR_INVALID_VALUE;
        *(void **)value = (void *)address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)value = range->context->device;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)value = device_address(range, range->start);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)value = range->bytes;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr pointer)
{
    ENTER(cuPointerGetAttribute, NEEDS_INIT);
    uintptr_t address = (uintptr_t)pointer & ~DEVICE_ALIAS_BIT;
    struct range *range = range_containing(address);
    int known = range != NULL && (address == pointer || range->aliased);
    if (value == NULL || !known) return leave(CUDA_ERROR_INVALID_VALUE);
    return leave(pointer_attribute(value, attribute, range, address));
}
