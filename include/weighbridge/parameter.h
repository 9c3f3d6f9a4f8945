/* Parameters of a model, as plans and offloaders take them.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_PARAMETER_H
#define WEIGHBRIDGE_PARAMETER_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

/** How a step reads a parameter. */
typedef int32_t wb_access_pattern;
/** All of it; the default. */
#define WB_ACCESS_PATTERN_DENSE 0
/** A few rows of it, as of an embedding. */
#define WB_ACCESS_PATTERN_SPARSE 1
/**
 * Experts, of which a step reads a few: rows of a tensor whose first dimension counts them. They
 * leave the device for an expert cache, which wb_expert_cache_new_for_offloader makes and whose
 * device memory is `expert_bytes` of the plan. Without a cache the device reads them in place.
 */
#define WB_ACCESS_PATTERN_EXPERTS 2

/** How an offloaded parameter is transferred to the kernels that read it. */
typedef int32_t wb_transfer_mode;
/** Chosen by the plan; the default. */
#define WB_TRANSFER_MODE_AUTO 0
/** The device reads it in host memory. */
#define WB_TRANSFER_MODE_ZERO_COPY 1
/** It is copied when its group is acquired. */
#define WB_TRANSFER_MODE_ON_DEMAND 2
/** It is copied before its group is acquired. */
#define WB_TRANSFER_MODE_PREFETCH 3

/** Where a parameter is kept. */
typedef int32_t wb_placement;
/** Chosen by the plan; the default. */
#define WB_PLACEMENT_AUTO 0
/** In device memory. */
#define WB_PLACEMENT_RESIDENT 1
/** In host memory. Only an output: as an input it fails with WB_ERR_INVALID_ARGUMENT. */
#define WB_PLACEMENT_OFFLOADED 2

/** Describes one parameter of a model. */
typedef struct {
    /** Size of the struct; in an array, the same in each. */
    uint32_t struct_size;
    /** How a step reads it. */
    wb_access_pattern access_pattern;
    /** The name, unique in the model. */
    const char *name;
    /** The name of the group that it is acquired with: a layer. */
    const char *group;
    /** Type, shape and strides; its offset counts from `source`. */
    const wb_layout *layout;
    /**
     * Address in host or device memory; NULL if there are no bytes yet: offloaded, it is zeros
     * until it is replaced, or written through a host view; resident, it has no memory until then.
     * Parameters whose bytes overlap are tied: they are stored once.
     */
    const void *source;
    /** Ties parameters without a source that have the same number, except 0. */
    uint64_t storage_id;
    /** How it is transferred; WB_TRANSFER_MODE_AUTO takes the mode of the plan's options. */
    wb_transfer_mode transfer_mode;
    /**
     * WB_PLACEMENT_RESIDENT, with WB_TRANSFER_MODE_AUTO, keeps it on the device; otherwise
     * WB_PLACEMENT_AUTO.
     */
    wb_placement placement;
    /**
     * The buffer that `source` is in, or NULL: the plan keeps a reference to it until the plan is
     * released, so that the caller need not. Other calls use it during the call only.
     */
    const wb_buffer *buffer;
    /**
     * If not 0, `source` has the values compressed, as wb_codec_encode does, to this many bytes at
     * a multiple of 16 in host memory, and `layout` is that of the values, with the lowest element
     * first. A plan that carries the parameter compressed takes these bytes unchanged; for any
     * other they are decoded. wb_offloader_add and wb_offloader_reconcile decode them, verify
     * checksums, and compress the values again if the plan's `compress` takes them; a reconcile
     * leaves a parameter as it is whose bytes are still those in its source.
     */
    uint64_t encoded_bytes;
    /** Must be zero. */
    uint64_t reserved[1];
} wb_parameter;
#define WB_PARAMETER_INIT {sizeof(wb_parameter), 0, NULL, NULL, NULL, NULL, 0, 0, 0, NULL, 0, {0}}

#ifdef __cplusplus
}
#endif

#endif
