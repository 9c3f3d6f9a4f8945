/* Copies and fills: resolves and checks the memory, then queues the work in its stream. */
#include "driver.h"

/* Which pointers a parameter accepts: the driver decides by the address where it accepts both. */
enum pointer_kind { HOST_POINTER, DEVICE_POINTER, ANY_POINTER };

struct operand {
    void *memory;
    int pageable;
};

static int kind_fits_range(const struct range *range, enum pointer_kind kind, int aliased)
{
    if (aliased) return kind != HOST_POINTER && range->aliased && range_is_mapped(range);
    if (range->kind == RANGE_DEVICE) return kind != HOST_POINTER;
    return kind != DEVICE_POINTER || (range_is_mapped(range) && !range->aliased);
}

static CUresult check_pageable(uintptr_t address, size_t bytes, enum pointer_kind kind, int writing)
{
    int device_reads_pageable = device_attribute(context_current()->device,
                                                 CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS);
    if (kind == DEVICE_POINTER && !device_reads_pageable) return CUDA_ERROR_INVALID_VALUE;
    /* An arena address outside every allocation is a freed or overrun device pointer. */
    if (arena_contains(address) || range_overlaps(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return mappings_permit(address, bytes, writing) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Whether all bytes from an address in a range on are in it, or in mappings that follow one another. */
static int is_inside(const struct range *range, uintptr_t address, size_t bytes)
{
    size_t left = range->start + range->bytes - address;
    if (range->physical != NULL && !range->accessible) return 0;
    if (bytes <= left) return 1;
    struct range *next = range_containing(range->start + range->bytes);
    return range->physical != NULL && next != NULL && next->physical != NULL &&
           is_inside(next, next->start, bytes - left);
}

static CUresult resolve(CUdeviceptr pointer, size_t bytes, enum pointer_kind kind, int writing,
                        struct operand *operand)
{
    uintptr_t address = (uintptr_t)pointer & ~DEVICE_ALIAS_BIT;
    int aliased = address != pointer;
    struct range *range = range_containing(address);
    operand->memory = (void *)address;
    operand->pageable = range == NULL;
    if (range == NULL) {
        return aliased ? CUDA_ERROR_INVALID_VALUE
                      : check_pageable(address, bytes, kind, writing);
    }
    int read_only = range->kind == RANGE_REGISTERED &&
                    (range->flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
    return is_inside(range, address, bytes) && kind_fits_range(range, kind, aliased) && !(writing && read_only)
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

static CUresult copy(CUdeviceptr destination, enum pointer_kind to, CUdeviceptr source,
                     enum pointer_kind from, size_t bytes, CUstream handle)
{
    struct stream *stream;
    struct operand written, read;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS || bytes == 0) return result;
    result = resolve(destination, bytes, to, 1, &written);
    if (result != CUDA_SUCCESS) return result;
    result = resolve(source, bytes, from, 0, &read);
    if (result != CUDA_SUCCESS) return result;
    struct task task = {.kind = TASK_COPY,
                        .destination = written.memory,
                        .source = read.memory,
                        .bytes = bytes};
    return stream_submit(stream, task, written.pageable || read.pageable);
}

CUresult cuMemcpyAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream)
{
    ENTER(cuMemcpyAsync, NEEDS_CONTEXT);
    return leave(copy(destination, ANY_POINTER, source, ANY_POINTER, bytes, stream));
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr destination, const void *source, size_t bytes,
                              CUstream stream)
{
    ENTER(cuMemcpyHtoDAsync_v2, NEEDS_CONTEXT);
    return leave(copy(destination, DEVICE_POINTER, (uintptr_t)source, HOST_POINTER, bytes, stream));
}

CUresult cuMemcpyDtoHAsync_v2(void *destination, CUdeviceptr source, size_t bytes,
                              CUstream stream)
{
    ENTER(cuMemcpyDtoHAsync_v2, NEEDS_CONTEXT);
    return leave(copy((uintptr_t)destination, HOST_POINTER, source, DEVICE_POINTER, bytes, stream));
}

CUresult cuMemsetD8Async(CUdeviceptr destination, unsigned char value, size_t bytes,
                         CUstream handle)
{
    ENTER(cuMemsetD8Async, NEEDS_CONTEXT);
    struct stream *stream;
    struct operand written;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS || bytes == 0) return leave(result);
    result = resolve(destination, bytes, DEVICE_POINTER, 1, &written);
    if (result != CUDA_SUCCESS) return leave(result);
    struct task task = {
        .kind = TASK_FILL, .destination = written.memory, .bytes = bytes, .value = value};
    return leave(stream_submit(stream, task, written.pageable));
}
