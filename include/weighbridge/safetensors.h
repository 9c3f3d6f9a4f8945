/* Safetensors files: tensors by name and index over one buffer.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_SAFETENSORS_H
#define WEIGHBRIDGE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "device.h"
#include "dtype.h"
#include "error.h"
#include "parameter.h"
#include "status.h"
#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

/** An open safetensors file. */
typedef struct wb_safetensors wb_safetensors;

/** Properties of a tensor of a file. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /**
     * The element type; WB_DTYPE_OPAQUE for a type that has no other WB_DTYPE_*, and 0 if its rows
     * are not whole bytes.
     */
    wb_dtype dtype;
    /** Number of dimensions. */
    int32_t ndim;
    /** Zero. */
    uint32_t reserved0;
    /** The name. */
    const char *name;
    /** `ndim` sizes in elements; NULL if dtype is 0. */
    const int64_t *shape;
    /** Bytes from the start of the file, and of its buffer. */
    uint64_t offset_bytes;
    /** Bytes of the data. */
    uint64_t bytes;
    /**
     * The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one in the file. NULL if dtype
     * is 0.
     */
    const char *dtype_name;
    /** Elements of a block of a WB_DTYPE_OPAQUE, otherwise 0. */
    uint32_t block_elements;
    /** Bytes of a block of a WB_DTYPE_OPAQUE, otherwise 0. */
    uint32_t block_bytes;
    /**
     * `bytes` if they are the values compressed, as `python -m weighbridge compress` writes them;
     * type and shape are then those of the values. Otherwise 0.
     */
    uint64_t encoded_bytes;
} wb_safetensors_tensor_info;
#define WB_SAFETENSORS_TENSOR_INFO_INIT \
    {sizeof(wb_safetensors_tensor_info), 0, 0, 0, NULL, NULL, 0, 0, NULL, 0, 0, 0}

/** Which part of a tensor's name is the name of its group. */
typedef int32_t wb_grouping;
/**
 * Up to the first segment that is a number, as "model.layers.3"; without one, as
 * WB_GROUPING_MODULE. The default.
 */
#define WB_GROUPING_LAYER 0
/** All but the last segment, as "model.layers.3.mlp.up_proj". */
#define WB_GROUPING_MODULE 1

/**
 * Opens a safetensors file: checks its header and maps the whole file as wb_buffer_map_file does.
 * Fails with WB_ERR_FORMAT or WB_ERR_FILE_TRUNCATED, with WB_ERR_NOT_SUPPORTED for compressed
 * values in a later format, and as wb_buffer_map_file does.
 */
wb_status wb_safetensors_open(const wb_device *device, const char *path,
                              const wb_buffer_options *options, wb_safetensors **file,
                              wb_error *error);

/** Adds a reference. */
void wb_safetensors_retain(const wb_safetensors *file);

/** Drops a reference. Views hold the buffer, not the file. */
void wb_safetensors_release(wb_safetensors *file);

/** Returns the number of tensors, which are in the order of their data, or 0 if `file` is NULL. */
uint64_t wb_safetensors_get_tensor_count(const wb_safetensors *file);

/** Returns the JSON text of the header, with the file's metadata, or NULL if `file` is NULL. */
const char *wb_safetensors_get_header(const wb_safetensors *file);

/** Fills `info` with the properties of tensor `index`. Fails with WB_ERR_OUT_OF_RANGE. */
wb_status wb_safetensors_get_tensor_info(const wb_safetensors *file, uint64_t index,
                                         wb_safetensors_tensor_info *info, wb_error *error);

/**
 * Fills an array of `count` texts with the names of the tensors from index `first` on. They live
 * as long as the file. Fails with WB_ERR_OUT_OF_RANGE if there are fewer tensors.
 */
wb_status wb_safetensors_get_names(const wb_safetensors *file, uint64_t first, uint64_t count,
                                   const char **names, wb_error *error);

/** Gets the index of the tensor with a name. Fails with WB_ERR_NOT_FOUND. */
wb_status wb_safetensors_find_tensor(const wb_safetensors *file, const char *name, uint64_t *index,
                                     wb_error *error);

/**
 * Fills an array of `count` structs, each initialized, with the tensors from index `first` on as
 * parameters of a plan, of which the caller may then change fields: the group that `grouping`
 * gives, dense, with all choices left to the plan. A type without WB_DTYPE_* is opaque. Those of a
 * file that `python -m weighbridge compress` wrote have the type and shape of their values, and
 * `encoded_bytes`.
 *
 * What the structs point to lives as long as the file. wb_plan_new copies it and keeps the file's
 * buffer, where the sources are, so the file may be released then. Open a file that is only a
 * source with WB_FILE_MODE_SOURCE. Fails with WB_ERR_OUT_OF_RANGE if there are fewer tensors, with
 * WB_ERR_NOT_SUPPORTED for one whose rows are not whole bytes, and with WB_ERR_FILE_TRUNCATED.
 */
wb_status wb_safetensors_get_parameters(const wb_safetensors *file, wb_grouping grouping,
                                        uint64_t first, uint64_t count, wb_parameter *parameters,
                                        wb_error *error);

/**
 * Creates a view of a tensor in the file's buffer, without a copy. Fails with WB_ERR_UNALIGNED
 * unless its address is a multiple of `alignment` bytes (0 or 1 for any), with
 * WB_ERR_NOT_SUPPORTED for a type without WB_DTYPE_* and for compressed values, and as wb_view_new
 * does.
 */
wb_status wb_safetensors_get_view(const wb_safetensors *file, uint64_t index, wb_accessor accessor,
                                  uint64_t alignment, wb_view **view, wb_error *error);

/**
 * As wb_safetensors_get_view, but copies a tensor that is not aligned into memory of its own, for
 * which `options` are; `copied` receives 1 for a copy, otherwise 0.
 */
wb_status wb_safetensors_load_view(const wb_safetensors *file, uint64_t index, wb_accessor accessor,
                                   uint64_t alignment, const wb_buffer_options *options,
                                   wb_view **view, int32_t *copied, wb_error *error);

/** Gets the buffer over the whole file. */
wb_status wb_safetensors_get_buffer(const wb_safetensors *file, wb_buffer **buffer,
                                    wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
