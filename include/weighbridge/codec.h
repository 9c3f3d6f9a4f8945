/* The codec: values compressed without loss.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_CODEC_H
#define WEIGHBRIDGE_CODEC_H

#include <stdint.h>

#include "device.h"
#include "dtype.h"
#include "error.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Bytes of decoded values that are compressed together: ranges are decoded in multiples of it. */
#define WB_CODEC_TILE_BYTES 8192

/** What compressed bytes hold. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Type of the values. */
    wb_dtype dtype;
    /** Bytes of the values. */
    uint64_t decoded_bytes;
    /** Compressed bytes; estimated by wb_codec_measure if it looks at a part of the tiles. */
    uint64_t encoded_bytes;
    /** Number of tiles. */
    uint64_t tiles;
    /** Tiles that are stored unchanged, since compressed they would be larger. */
    uint64_t raw_tiles;
    /** Tiles of one value, which take no bytes. */
    uint64_t constant_tiles;
} wb_codec_info;
#define WB_CODEC_INFO_INIT {sizeof(wb_codec_info), 0, 0, 0, 0, 0, 0}

/**
 * Gets the largest size that `decoded_bytes` bytes of values can be compressed to: 0.2 % and 95
 * bytes more, if no value can be compressed. Memory for compressed bytes must have as many.
 *
 * `dtype` is WB_DTYPE_BF16, WB_DTYPE_F16, WB_DTYPE_F32, WB_DTYPE_F8_E4M3FN or WB_DTYPE_F8_E5M2,
 * for this function and all others. Fails with WB_ERR_NOT_SUPPORTED for other types, with
 * WB_ERR_INVALID_ARGUMENT for a part of a value, and with WB_ERR_OUT_OF_RANGE for more than 2^36
 * bytes. Takes no lock.
 */
wb_status wb_codec_get_max_bytes(wb_dtype dtype, uint64_t decoded_bytes, uint64_t *max_bytes,
                                 wb_error *error);

/**
 * Fills `info` with what the compressed bytes at `encoded`, in host memory, hold. Checks header
 * and directory: what a device may then be given. `available_bytes` may be more than there are
 * compressed bytes. Fails with WB_ERR_DAMAGED.
 */
wb_status wb_codec_get_info(const void *encoded, uint64_t available_bytes, wb_codec_info *info,
                            wb_error *error);

/**
 * Fills `info` with what `bytes` bytes of values at `source`, in host memory, would be compressed
 * to. Looks at `most_tiles` tiles, evenly spread, and estimates the others; 0 looks at all and is
 * exact. Uses memory for twice as many bytes as it looks at. Fails as wb_codec_get_max_bytes does,
 * and with WB_ERR_OUT_OF_MEMORY.
 */
wb_status wb_codec_measure(wb_dtype dtype, const void *source, uint64_t bytes, uint64_t most_tiles,
                           wb_codec_info *info, wb_error *error);

/**
 * Compresses `bytes` bytes of values at `source` to `target`, both in host memory and at any
 * address. `target_bytes` must be what wb_codec_get_max_bytes says, or more. All encoders of
 * the library write the same bytes.
 *
 * Works on `threads` threads, the calling one included; 0 for as many as there are processors, at
 * most 32. The memory must not overlap. `info` may be NULL. Fails as wb_codec_get_max_bytes does,
 * and with WB_ERR_OUT_OF_RANGE if the target is too small.
 */
wb_status wb_codec_encode(wb_dtype dtype, const void *source, uint64_t bytes, void *target,
                          uint64_t target_bytes, uint32_t threads, wb_codec_info *info,
                          wb_error *error);

/**
 * Decompresses `bytes` bytes of values from byte `offset` on, from `encoded` to `target`, both in
 * host memory and at any address. Range and memory are whole tiles of WB_CODEC_TILE_BYTES, except
 * that a range may end with the values. `available_bytes` may be more than there are compressed
 * bytes. With `verify`, checksums are compared.
 *
 * Threads are those of wb_codec_encode. `info` may be NULL, and is that of all values. Whatever
 * the compressed bytes contain, nothing outside of them is read. Fails with WB_ERR_DAMAGED, after
 * which the contents of `target` are undefined, and for other ranges with WB_ERR_INVALID_ARGUMENT
 * or WB_ERR_UNALIGNED.
 */
wb_status wb_codec_decode(const void *encoded, uint64_t available_bytes, uint64_t offset,
                          void *target, uint64_t bytes, int32_t verify, uint32_t threads,
                          wb_codec_info *info, wb_error *error);

/**
 * Queues compressing values, as wb_codec_encode does, on a device. `source` and `target` are
 * addresses of the device, such as of mapped host memory, at multiples of 16. The number of
 * compressed bytes is then in the header, which wb_codec_get_info reads.
 *
 * Stream order: runs after the work queued on `stream`; the memory must stay valid until it has
 * run. Allocates nothing and waits for nothing, except that the first call of a device loads the
 * kernels. Capturable. Fails as wb_codec_encode does, and with WB_ERR_UNALIGNED.
 */
wb_status wb_codec_queue_encode(const wb_device *device, wb_dtype dtype, const void *source,
                                uint64_t bytes, void *target, uint64_t target_bytes, void *stream,
                                wb_error *error);

/**
 * Queues decompressing `bytes` bytes of values from byte `offset` on, as wb_codec_decode does, on
 * a device. `encoded` and `target` are addresses of the device, such as of mapped host memory, at
 * multiples of 16. `available_bytes` is the memory at `encoded`, and `decoded_bytes` the bytes of
 * all values.
 *
 * The kernel reads the header when it runs, so that a captured call decodes the bytes of the time
 * of the replay, with the same type and the same number of values. It reads within
 * `available_bytes` and writes within `bytes`, whatever the compressed bytes contain; of damaged
 * ones the contents of `target` are undefined, which wb_codec_queue_verify finds. Stream order as
 * for wb_codec_queue_encode. Capturable. Fails with WB_ERR_INVALID_ARGUMENT, WB_ERR_UNALIGNED,
 * WB_ERR_NOT_SUPPORTED or WB_ERR_OUT_OF_RANGE.
 */
wb_status wb_codec_queue_decode(const wb_device *device, wb_dtype dtype, const void *encoded,
                                uint64_t available_bytes, uint64_t decoded_bytes, uint64_t offset,
                                void *target, uint64_t bytes, void *stream, wb_error *error);

/**
 * Queues comparing the checksums of `bytes` bytes of decoded values, which begin at byte `offset`
 * of all, with those of the compressed bytes. The number of tiles that differ is added to the
 * 64-bit integer at `mismatches`, which the caller has set, in memory of the device. Otherwise as
 * wb_codec_queue_decode.
 */
wb_status wb_codec_queue_verify(const wb_device *device, const void *encoded,
                                uint64_t available_bytes, uint64_t decoded_bytes, uint64_t offset,
                                const void *decoded, uint64_t bytes, void *mismatches, void *stream,
                                wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
