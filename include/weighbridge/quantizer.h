/* Quantizers: tensors to FP8 and back.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_QUANTIZER_H
#define WEIGHBRIDGE_QUANTIZER_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "device.h"
#include "dtype.h"
#include "error.h"
#include "status.h"
#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Quantizes tensors to FP8 and dequantizes them, one at a time, in staging memory of bounded size.
 */
typedef struct wb_quantizer wb_quantizer;

/** Options of quantization. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** WB_DTYPE_F8_E4M3FN or WB_DTYPE_F8_E5M2; 0 for WB_DTYPE_F8_E4M3FN. */
    wb_dtype format;
    /** WB_DTYPE_F32, or WB_DTYPE_F8_E8M0 for powers of two; 0 for WB_DTYPE_F32. */
    wb_dtype scale_dtype;
    /** 1 if the caller gives the scales; 0 if they are computed. */
    int32_t use_given_scales;
    /** Rows of the last dimension but one that share a scale; 0 for all. */
    uint64_t block_rows;
    /** Columns of the last dimension that share a scale; 0 for all. */
    uint64_t block_cols;
    /** 1 if NaN and infinity fail with WB_ERR_NOT_FINITE. */
    int32_t reject_nonfinite;
    /** Must be zero. */
    uint32_t reserved0;
    /** Bytes available for scales, to be checked; 0 for no check. */
    uint64_t scale_bytes;
    /** Receives progress, and may cancel; may be NULL. */
    wb_progress progress;
    /** Argument of `progress`. */
    void *progress_user;
    /** Must be zero. */
    uint64_t reserved[4];
} wb_quantize_options;
#define WB_QUANTIZE_OPTIONS_INIT \
    {sizeof(wb_quantize_options), 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, {0}}

/**
 * Creates a quantizer that uses at most `staging_bytes` bytes of device memory (0 for 128 MiB),
 * which it keeps for the next tensor; none on the host device. Fails as wb_buffer_alloc and
 * wb_device_alloc do.
 */
wb_status wb_quantizer_new(const wb_device *device, uint64_t staging_bytes,
                           wb_quantizer **quantizer, wb_error *error);

/** Adds a reference. */
void wb_quantizer_retain(const wb_quantizer *quantizer);

/** Drops a reference. */
void wb_quantizer_release(wb_quantizer *quantizer);

/** The scales of a tensor: for each matrix `rows` by `cols`, contiguous. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Number of matrices: the product of all dimensions but the last two. */
    uint64_t matrices;
    /** Rows of scales of a matrix. */
    uint64_t rows;
    /** Columns of scales of a matrix. */
    uint64_t cols;
    /** Bytes of all scales. */
    uint64_t bytes;
} wb_quantizer_scales_info;
#define WB_QUANTIZER_SCALES_INFO_INIT {sizeof(wb_quantizer_scales_info), 0, 0, 0, 0, 0}

/** What wb_quantizer_quantize or wb_quantizer_dequantize did. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** How often the source was read: 2 if a block is larger than the staging memory. */
    uint32_t passes;
    /** Number of NaN and infinite values; not counted with given scales. */
    uint64_t nonfinite;
    /** Bytes of device memory used for staging. */
    uint64_t staging_bytes;
} wb_quantizer_result;
#define WB_QUANTIZER_RESULT_INIT {sizeof(wb_quantizer_result), 0, 0, 0}

/**
 * Fills `info` with the shape and the bytes of a tensor's scales. Fails with WB_ERR_OUT_OF_RANGE
 * or WB_ERR_NOT_SUPPORTED.
 */
wb_status wb_quantizer_get_scales_info(const wb_layout *layout, const wb_quantize_options *options,
                                       wb_quantizer_scales_info *info, wb_error *error);

/**
 * Quantizes a tensor: each value is multiplied by the rounded inverse of its block's scale and
 * rounded to the nearest FP8 value, ties to even, with the same bits on every device. Values out
 * of range, infinity included, become the largest FP8 value; NaN becomes 0x7f. A scale is the
 * largest finite magnitude of the block divided by the format's largest value, rounded up to a
 * power of two for WB_DTYPE_F8_E8M0; a block of zeros has scale 1.
 *
 * `source` is a float32, float16 or bfloat16 tensor of any strides, from which the layout's offset
 * counts. `target` receives one byte for each element, contiguous, and `scales` what
 * wb_quantizer_get_scales_info says, unless `use_given_scales` is set. Each may be in host memory,
 * best pinned, or in device memory. `result` may be NULL.
 *
 * Stream order: the host waits until everything is written, and not for work queued on other
 * streams: synchronize the one that writes a source, or given scales, in device memory first. One
 * tensor at a time: other threads wait, and a progress callback of the same quantizer fails with
 * WB_ERR_BUSY. Fails with WB_ERR_STAGING, WB_ERR_UNALIGNED (for values in device memory),
 * WB_ERR_NOT_SUPPORTED, WB_ERR_NOT_FINITE, WB_ERR_CANCELLED, WB_ERR_OUT_OF_RANGE or
 * WB_ERR_OVERFLOW, and as wb_device_alloc does. After an error the contents of `target` and
 * `scales` are undefined.
 */
wb_status wb_quantizer_quantize(const wb_quantizer *quantizer, const void *source,
                                const wb_layout *layout, void *target, void *scales,
                                const wb_quantize_options *options, wb_quantizer_result *result,
                                wb_error *error);

/**
 * Dequantizes a tensor: each FP8 value is multiplied by its block's scale and rounded to the
 * layout's type.
 *
 * `source` and `scales` are as wb_quantizer_quantize wrote them. `target` is the address from
 * which the layout's offset counts; in host memory the layout must be contiguous. Otherwise as
 * wb_quantizer_quantize.
 */
wb_status wb_quantizer_dequantize(const wb_quantizer *quantizer, const void *source,
                                  const void *scales, void *target, const wb_layout *layout,
                                  const wb_quantize_options *options, wb_quantizer_result *result,
                                  wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
