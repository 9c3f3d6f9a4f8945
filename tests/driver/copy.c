/* Copies and fills: whose memory is it, may it be done, and then in its turn. */
#include "driver.h"

/* How a call names its memory: by host pointer, by device pointer, or by either
 * and the driver finds out. */
enum naming { BY_HOST, BY_DEVICE, BY_EITHER };

struct side {
    void *memory;
    int pageable;
};

static int names_range(const struct range *range, enum naming naming, int marked)
{
    if (marked) return naming != BY_HOST && range->marked && range_is_mapped(range);
    if (range->kind == RANGE_DEVICE) return naming != BY_HOST;
    return naming != BY_DEVICE || (range_is_mapped(range) && !range->marked);
}

static CUresult find_pageable(uintptr_t address, size_t bytes, enum naming naming, int writing)
{
    int by_device = device_attribute(context_current()->device,
                                     CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS);
    if (naming == BY_DEVICE && !by_device) return CUDA_ERROR_INVALID_VALUE;
    /* An arena address outside its allocations is a freed or overrun pointer. */
    if (arena_holds(address) || range_overlaps(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return maps_allow(address, bytes, writing) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult find_side(CUdeviceptr pointer, size_t bytes, enum naming naming, int writing,
                          struct side *side)
{
    uintptr_t address = (uintptr_t)pointer & ~DEVICE_ADDRESS_MARK;
    int marked = address != pointer;
    struct range *range = range_holding(address);
    side->memory = (void *)address;
    side->pageable = range == NULL;
    if (range == NULL) {
        return marked ? CUDA_ERROR_INVALID_VALUE
                      : find_pageable(address, bytes, naming, writing);
    }
    int read_only = range->kind == RANGE_REGISTERED &&
                    (range->flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
    int inside = bytes <= range->start + range->bytes - address;
    return inside && names_range(range, naming, marked) && !(writing && read_only)
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

static CUresult copy(CUdeviceptr destination, enum naming to, CUdeviceptr source,
                     enum naming from, size_t bytes, CUstream handle)
{
    struct stream *stream;
    struct side written, read;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS || bytes == 0) return result;
    result = find_side(destination, bytes, to, 1, &written);
    if (result != CUDA_SUCCESS) return result;
    result = find_side(source, bytes, from, 0, &read);
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
    return leave(copy(destination, BY_EITHER, source, BY_EITHER, bytes, stream));
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr destination, const void *source, size_t bytes,
                              CUstream stream)
{
    ENTER(cuMemcpyHtoDAsync_v2, NEEDS_CONTEXT);
    return leave(copy(destination, BY_DEVICE, (uintptr_t)source, BY_HOST, bytes, stream));
}

CUresult cuMemcpyDtoHAsync_v2(void *destination, CUdeviceptr source, size_t bytes,
                              CUstream stream)
{
    ENTER(cuMemcpyDtoHAsync_v2, NEEDS_CONTEXT);
    return leave(copy((uintptr_t)destination, BY_HOST, source, BY_DEVICE, bytes, stream));
}

CUresult cuMemsetD8Async(CUdeviceptr destination, unsigned char value, size_t bytes,
                         CUstream handle)
{
    ENTER(cuMemsetD8Async, NEEDS_CONTEXT);
    struct stream *stream;
    struct side written;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS || bytes == 0) return leave(result);
    result = find_side(destination, bytes, BY_DEVICE, 1, &written);
    if (result != CUDA_SUCCESS) return leave(result);
    struct task task = {
        .kind = TASK_FILL, .destination = written.memory, .bytes = bytes, .value = value};
    return leave(stream_submit(stream, task, written.pageable));
}
