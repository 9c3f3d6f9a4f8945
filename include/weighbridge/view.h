/* Views: typed, shaped, strided windows into memory.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_VIEW_H
#define WEIGHBRIDGE_VIEW_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "device.h"
#include "dtype.h"
#include "error.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A typed, shaped, strided window into memory, which it holds alive. */
typedef struct wb_view wb_view;

/** Who accesses the memory of a view. */
typedef int32_t wb_accessor;
/** The device; the memory must be mapped for it. */
#define WB_ACCESSOR_DEVICE 0
/** The host only. */
#define WB_ACCESSOR_HOST 1

/** Type, shape and strides of a tensor. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The element type. */
    wb_dtype dtype;
    /** Number of dimensions, at most 64; 0 for a scalar. */
    int32_t ndim;
    /** Must be zero. */
    uint32_t reserved0;
    /** `ndim` sizes in elements. */
    const int64_t *shape;
    /** `ndim` strides in elements, of any sign; NULL for contiguous in row-major order. */
    const int64_t *strides;
    /** Bytes from the start of the memory to the first element. */
    uint64_t offset_bytes;
    /**
     * The name of a WB_DTYPE_OPAQUE, such as "q4_K": 1 to 63 bytes, not one of a WB_DTYPE_*; NULL
     * for all other types.
     */
    const char *dtype_name;
    /**
     * Elements of the last dimension that a block of a WB_DTYPE_OPAQUE holds, such as 256. The
     * last dimension must be a multiple. 0 for all other types.
     */
    uint32_t block_elements;
    /** Bytes of such a block, such as 144; 0 for all other types. */
    uint32_t block_bytes;
} wb_layout;
#define WB_LAYOUT_INIT {sizeof(wb_layout), 0, 0, 0, NULL, NULL, 0, NULL, 0, 0}

/**
 * Creates a view of a buffer, without a copy. The layout's offset counts from the start of the
 * buffer.
 *
 * Fails with WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_MAPPED, WB_ERR_OVERFLOW or WB_ERR_FILE_TRUNCATED.
 */
wb_status wb_view_new(const wb_buffer *buffer, const wb_layout *layout, wb_accessor accessor,
                      wb_view **view, wb_error *error);

/**
 * Copies a tensor in host memory, with its strides and gaps, into a new buffer and creates a view
 * of that. The layout's offset counts from `data`, which is not needed after the call. Fails as
 * wb_buffer_alloc and wb_view_new do.
 */
wb_status wb_view_copy_from(const wb_device *device, const void *data, const wb_layout *layout,
                            wb_accessor accessor, const wb_buffer_options *options, wb_view **view,
                            wb_error *error);

/** Adds a reference. */
void wb_view_retain(const wb_view *view);

/**
 * Drops a reference. If it was the last one to the view and to its buffer, the memory is freed as
 * by wb_buffer_release.
 */
void wb_view_release(wb_view *view);

/** Drops a reference once the work queued on `stream` now has run; as wb_buffer_release_after. */
wb_status wb_view_release_after(wb_view *view, void *stream, wb_error *error);

/** Properties of a view. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The element type. */
    wb_dtype dtype;
    /** Number of dimensions. */
    int32_t ndim;
    /** Who accesses the memory. */
    wb_accessor accessor;
    /** 1 if the elements must not be written. */
    int32_t read_only;
    /** Zero. */
    uint32_t reserved0;
    /**
     * Host address of the first element; NULL in a buffer of 0 bytes and in memory of a CUDA
     * device.
     */
    void *data;
    /** Device address of the first element; NULL for WB_ACCESSOR_HOST. */
    void *device_address;
    /** `ndim` sizes in elements. */
    const int64_t *shape;
    /** `ndim` strides in elements. */
    const int64_t *strides;
    /** Number of elements. */
    uint64_t elements;
    /** Bytes from the lowest element to the end of the highest, gaps included. */
    uint64_t span_bytes;
} wb_view_info;
#define WB_VIEW_INFO_INIT {sizeof(wb_view_info), 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0}

/** Fills `info` with the view's properties. */
wb_status wb_view_get_info(const wb_view *view, wb_view_info *info, wb_error *error);

/** Gets the buffer that the view is of. Fails with WB_ERR_NOT_FOUND for a view of device memory. */
wb_status wb_view_get_buffer(const wb_view *view, wb_buffer **buffer, wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
