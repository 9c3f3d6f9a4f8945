/* Plans: the placement of every parameter, before anything is allocated.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_PLAN_H
#define WEIGHBRIDGE_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "dtype.h"
#include "error.h"
#include "parameter.h"
#include "quantizer.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** The placement of every parameter and the reason for it. */
typedef struct wb_plan wb_plan;

/** What a budget limits. There is no default: a plan needs a budget. */
typedef int32_t wb_budget_kind;
/** Host memory of offloaded parameters, in whole pages. */
#define WB_BUDGET_OFFLOAD_BYTES 1
/** Device memory of resident parameters and slots. */
#define WB_BUDGET_DEVICE_BYTES 2

/** The order in which parameters leave the device until the budget is met. */
typedef int32_t wb_order;
/** Evenly over the groups, so that copies and kernels overlap best; the default. */
#define WB_ORDER_SPREAD 0
/** In the order of the array. */
#define WB_ORDER_DECLARED 1
/** The largest first. */
#define WB_ORDER_LARGEST 2

/** Downgrades WB_ERR_NOTHING_OFFLOADED to a warning. */
#define WB_ALLOW_NOTHING_OFFLOADED 1
/**
 * Downgrades WB_ERR_SELECTOR for an entry of `select` or `exclude` that matches no parameter to a
 * warning.
 */
#define WB_ALLOW_UNMATCHED_SELECTOR 2
/** Downgrades WB_ERR_EVERYTHING_FITS to a warning. */
#define WB_ALLOW_EVERYTHING_FITS 4

/** Where offloaded parameters are kept in host memory. */
typedef int32_t wb_host_store;
/** In memory of the offloader, to which their sources are copied; the default. */
#define WB_HOST_STORE_COPY 0
/**
 * Where their sources are, in the buffers that wb_parameter.buffer names and that are pinned, such
 * as a mapped file: nothing is copied, and the offloader keeps the buffer. Possible for the
 * parameters that move as one, those of a group with one transfer mode, if they follow one another
 * in the buffer as in a copy: in the plan's order, with sizes that are multiples of 256 bytes, and
 * at a multiple of 64 if the device reads them in place. Others are copied, and
 * wb_offloader_parameter_info.host_store_reason says why. The buffer is never written: a
 * replacement, of any size, first moves the parameter into memory of the offloader, which changes
 * addresses, and fails while any group is acquired or if it would exceed the budget. A file must
 * not become shorter, or change, while the offloader lives.
 */
#define WB_HOST_STORE_SOURCE 1
/**
 * As WB_HOST_STORE_SOURCE for parameters that are carried as their sources have them compressed
 * (wb_parameter.encoded_bytes); all others are copied. So host views of these may be written.
 */
#define WB_HOST_STORE_COMPRESSED 2

/** Which offloaded parameters cross the link compressed, without loss. */
typedef int32_t wb_compress;
/** None; the default. */
#define WB_COMPRESS_OFF 0
/**
 * Those that reach their slots faster for it: of 256 KiB and more, in a type that wb_codec_encode
 * takes, of which a sample of the source becomes at most 7/8 as large. If `compress_select` has
 * selectors, only those that one of them matches.
 */
#define WB_COMPRESS_AUTO 1
/** Those that a selector of `compress_select` matches, as far as they become smaller. */
#define WB_COMPRESS_SELECTED 2

/** Options of a plan. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /**
     * Groups that have their slots at the same time. With 1, copies and kernels take turns. 0 for
     * the number with which the predicted step is fastest, up to 8. Another number is kept, or
     * the plan fails; only where fewer groups are prefetched at all, a warning says so.
     */
    uint32_t depth;
    /** What `budget_bytes` limits; required. */
    wb_budget_kind budget_kind;
    /** The mode of parameters with WB_TRANSFER_MODE_AUTO. */
    wb_transfer_mode transfer_mode;
    /**
     * The budget, which is never exceeded. With a budget of device memory the plan is the one with
     * the fastest predicted step.
     */
    uint64_t budget_bytes;
    /**
     * Bytes of slots for prefetched parameters, at most. 0 for no limit but a device budget; with
     * an offload budget, what `depth` groups need, or two if `depth` is 0. Within a limit the ring
     * is as deep as possible, with a device budget as deep as is fastest. With a limit there are
     * no windows for compressed bytes: kernels read these over the link.
     */
    uint64_t slot_bytes;
    /**
     * `select_count` selectors of parameters that may be offloaded; 0 for all. A selector matches
     * names that contain it as whole segments between dots; with any of `*?[` it is a glob for
     * whole names, with at most 64 `*`.
     */
    const char *const *select;
    /** `exclude_count` selectors of parameters that stay on the device. */
    const char *const *exclude;
    /** Number of selectors in `select`. */
    uint32_t select_count;
    /** Number of selectors in `exclude`. */
    uint32_t exclude_count;
    /** The order in which parameters leave the device. */
    wb_order order;
    /** WB_ALLOW_* bits: errors that are warnings. */
    uint32_t allow;
    /**
     * How matrices are quantized when the plan is committed; NULL if they are not. A quantized
     * matrix is planned as two parameters: its FP8 values, and behind it its scales, named with
     * the suffix `_scale`, or `_scale_inv` for two-dimensional blocks. `use_given_scales` must be
     * 0; `scale_bytes` and `progress` are not used.
     */
    const wb_quantize_options *quantize;
    /**
     * `quantize_select_count` selectors of the parameters to quantize; 0 for all. Only those of
     * float32, float16 and bfloat16 with two dimensions or more are quantized.
     */
    const char *const *quantize_select;
    /** Number of selectors in `quantize_select`. */
    uint32_t quantize_select_count;
    /** Where offloaded parameters are kept in host memory. */
    wb_host_store host_store;
    /**
     * Bandwidth of the link, to predict the time of a step; 0 for the one that
     * wb_device_measure_link measured.
     */
    double link_bytes_per_second;
    /**
     * Bytes of parameters that the kernels of a step go through in a second: the bytes of all
     * parameters over the seconds of a step without offloading. Then the time of a step is
     * predicted with kernels, and they determine the depth. 0 if it is not known, or with
     * `group_seconds`.
     */
    double compute_bytes_per_second;
    /**
     * `group_seconds_count` numbers: seconds of each group's kernels with all parameters on the
     * device, in the order in which parameters first name the groups. NULL if they are not known.
     */
    const double *group_seconds;
    /** Number of entries in `group_seconds`: 0, or the number of groups. */
    uint64_t group_seconds_count;
    /**
     * Rows (tokens) that a step multiplies with each dense parameter. Kernels read a parameter in
     * place again for every 128. 0 if they are not known: then dense parameters are read in place
     * only where they do not fit into slots, of which a warning tells.
     */
    uint64_t rows;
    /**
     * Whether every parameter that the offloader holds on the device, or copies there, has one
     * address for the offloader's life, while wb_offloader_resize moves it. Fails with
     * WB_ERR_NOT_SUPPORTED if it is on and wb_device_info.address_granularity is 0. Units, and the
     * resident parameters of each group, then take whole pieces of that many bytes, which the
     * budget counts; resident parameters are copied at the commit even if they are on the device
     * already, and each needs a source; what is read in place is in pieces (wb_offloader_prefer);
     * nothing can be added, removed or given another size. By default it is off.
     */
    wb_tristate fixed_addresses;
    /**
     * 1 if resident parameters have a copy in host memory from the commit on, with
     * `fixed_addresses`: freeing their memory then copies nothing. 0 if they get one when they
     * leave, and lose it when they return.
     */
    uint32_t keep_host_copy;
    /**
     * Which offloaded parameters are compressed in host memory: the device reads them there and
     * decodes them into their slots, so it must be able to read host memory in place
     * (wb_device_info.views). Not those that have the zero-copy mode. Under a budget of device
     * memory the device also keeps such parameters compressed in its own memory, as many as are
     * needed, before others cross the link, if a step is faster for that: prefetched ones of one
     * group, in as many bytes as they are compressed to. Not with `fixed_addresses`, where those
     * that become resident are decoded. They count as offloaded, since they have slots and a copy
     * in host memory. With a source, wb_plan_new reads a sample of it, by which it expects the
     * compressed bytes. In the arena and in its slot a compressed parameter has space for any
     * bytes that may replace it, 0.2 % more than its own.
     */
    wb_compress compress;
    /** Number of selectors in `compress_select`. */
    uint32_t compress_select_count;
    /** `compress_select_count` selectors; none with WB_COMPRESS_OFF. */
    const char *const *compress_select;
    /**
     * Bytes of device memory for expert caches, if parameters have WB_ACCESS_PATTERN_EXPERTS; a
     * part of a budget of device memory. 0 for what such a budget leaves beside all other
     * parameters, or for no limit with an offload budget. Under a budget of device memory experts
     * leave as a whole, unless everything fits.
     */
    uint64_t expert_bytes;
    /**
     * Whether kernels of the device compress what a commit compresses: raw bytes cross the link to
     * the device and compressed ones come back to the arena, both at the same time, or, of a
     * source in device memory, compressed ones alone. By default those parameters for which a CUDA
     * device has the memory, and the host's cores compress all others. The memory is that of the
     * slots, which nothing uses before the first step; where these are smaller than two
     * parameters, raw and compressed, up to 256 MiB of what a budget of device memory leaves
     * beside them, freed at the end of the commit. The arena must be pinned. If it is on, the host
     * device does so, too, and a commit fails with WB_ERR_NOT_SUPPORTED for a parameter that the
     * device cannot compress. All encoders write the same bytes; wb_offloader_stats says how many
     * each had.
     */
    wb_tristate encode_on_device;
    /**
     * 1 if a commit decodes what it carries as its source has it compressed, with all cores, and
     * fails with WB_ERR_DAMAGED if a checksum is wrong, before it takes memory. 0 if it checks
     * only headers and directories of these, so that no kernel leaves them: damage of other bytes
     * is then found by wb_offloader_read_parameter, not by steps. What a commit decodes or
     * quantizes is verified in any case.
     */
    uint32_t verify_compressed;
    /** Must be zero. */
    uint64_t reserved[1];
} wb_plan_options;
#define WB_PLAN_OPTIONS_INIT \
    {sizeof(wb_plan_options), 0, 0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0, NULL, NULL, 0, 0, 0.0, 0.0, \
    NULL, 0, 0, 0, 0, 0, 0, NULL, 0, 0, 0, {0}}

/**
 * Plans which of `count` parameters leave the device under the budget, and how they are
 * transferred. Nothing is allocated, and of sources only samples are read, with `compress`, and
 * the headers of compressed ones; the plan keeps copies of `parameters` and `options` and
 * references to the parameters' buffers, and the sources are read by wb_offloader_new. `options`
 * must give a budget.
 *
 * Fails with WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR or WB_ERR_EVERYTHING_FITS unless `allow`
 * says otherwise, with WB_ERR_DAMAGED for a compressed source that is not what its parameter says,
 * and with WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET or WB_ERR_OVERFLOW; with
 * WB_ERR_NOT_MAPPED if a parameter asks for zero-copy and the device's policy has no views.
 */
wb_status wb_plan_new(const wb_device *device, const wb_parameter *parameters, uint64_t count,
                      const wb_plan_options *options, wb_plan **plan, wb_error *error);

/** Adds a reference. */
void wb_plan_retain(const wb_plan *plan);

/** Drops a reference. */
void wb_plan_release(wb_plan *plan);

/** Figures of a plan. Tied parameters count once. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Groups that have their slots at the same time. */
    uint32_t depth;
    /** Number of parameters. */
    uint64_t parameters;
    /** Number of groups. */
    uint64_t groups;
    /** Number of warnings. */
    uint64_t warnings;
    /** Bytes of all parameters. */
    uint64_t payload_bytes;
    /** Bytes of offloaded parameters. */
    uint64_t offloaded_bytes;
    /**
     * Bytes of host memory for offloaded parameters, in whole pages, beside that of pieces
     * (wb_offloader_prefer).
     */
    uint64_t arena_bytes;
    /**
     * Bytes of device memory for resident parameters, each rounded up to 256, which
     * `wb_offloader_stats.resident_bytes` does not count.
     */
    uint64_t resident_bytes;
    /**
     * Bytes of device memory for slots, and for the windows through which compressed bytes pass to
     * them: 64 MiB where a parameter is expected to become 2 MiB or more, if options give no
     * `slot_bytes` and that is at most a sixteenth of a budget of device memory.
     */
    uint64_t slot_bytes;
    /** Bytes of slots for prefetched parameters. */
    uint64_t ring_bytes;
    /**
     * Bytes that cross the link to slots in every step; of compressed parameters, those that they
     * are expected to become.
     */
    uint64_t step_bytes;
    /**
     * Bytes that the device reads in place in every step if it reads all of every dense parameter.
     */
    uint64_t view_bytes;
    /**
     * Predicted seconds of a step, with dense parameters in place read once for every 128 rows, at
     * nine tenths of the rate of copies. Those that the link needs if the options do not give the
     * time of kernels; 0 if the bandwidth of the link is not known. `link_seconds` and
     * `kernel_seconds` say which of the two is longer.
     */
    double step_seconds;
    /** Predicted seconds of a step in which the link is busy; 0 if its bandwidth is not known. */
    double link_seconds;
    /**
     * Seconds of a step's kernels with all parameters on the device, which the options give; 0 if
     * they do not.
     */
    double kernel_seconds;
    /** 1 if the first groups of a step wait for the last groups of the step before. */
    int32_t wrap_stalls;
    /** Zero. */
    uint32_t reserved0;
    /** Bytes of offloaded parameters that are compressed. */
    uint64_t decoded_bytes;
    /** What these are expected to become: the sum of the parameters' `encoded_bytes`. */
    uint64_t encoded_bytes;
    /**
     * Predicted seconds of `link_seconds` in which kernels read compressed bytes over the link,
     * which pass through no windows, and decode them; 0 if the bandwidth of the link is not known.
     */
    double decode_seconds;
    /**
     * Bytes of device memory for expert caches. With `resident_bytes`, `slot_bytes` and
     * `device_encoded_bytes` it is at most a budget of device memory.
     */
    uint64_t expert_bytes;
    /**
     * Bytes of device memory for parameters that the device keeps compressed: the sum of the
     * parameters' `device_encoded_bytes`. What they need is known when they are compressed, at the
     * commit; those that do not fit in the budget then are decoded from host memory.
     */
    uint64_t device_encoded_bytes;
    /** Those of `decoded_bytes` that are decoded from there, and cross no link. */
    uint64_t device_decoded_bytes;
    /**
     * Predicted part of the experts of calls that caches of `expert_bytes` find in slots: the part
     * of the offloaded experts that have slots, as with a router that picks all equally often,
     * whatever it picked before. Routers repeat themselves, so counters show more. 0 without
     * experts, or if `expert_bytes` is 0.
     */
    double expert_hit_rate;
} wb_plan_info;
#define WB_PLAN_INFO_INIT \
    {sizeof(wb_plan_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0.0, 0, \
    0, 0, 0.0}

/** Planned placement of a parameter. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED. */
    wb_placement placement;
    /** How it is transferred; WB_TRANSFER_MODE_AUTO if it is resident. */
    wb_transfer_mode transfer_mode;
    /** The element type: of the values that are kept, not of their source. */
    wb_dtype dtype;
    /** The name. */
    const char *name;
    /** Reason for the placement. */
    const char *reason;
    /** Index of the group. */
    uint64_t group;
    /** Bytes from the lowest element to the end of the highest. */
    uint64_t span_bytes;
    /** Index of the first parameter that it is tied to; its own index if it is not tied. */
    uint64_t tied_to;
    /** The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one that its layout gave. */
    const char *dtype_name;
    /** `ndim` sizes in elements, valid while the plan is. */
    const int64_t *shape;
    /** `ndim` strides in elements, valid while the plan is. */
    const int64_t *strides;
    /** Number of dimensions. */
    int32_t ndim;
    /** Elements of a block of a WB_DTYPE_OPAQUE, otherwise 0. */
    uint32_t block_elements;
    /** Bytes of a block of a WB_DTYPE_OPAQUE, otherwise 0. */
    uint32_t block_bytes;
    /** Zero. */
    uint32_t reserved0;
    /**
     * Bytes that it is expected to be compressed to, with those that it is tied to; 0 if it is not
     * compressed, for which `reason` has the reason.
     */
    uint64_t encoded_bytes;
    /**
     * Bytes of it that are on the device in memory of their own: all or none, or of a parameter in
     * pieces (wb_offloader_prefer) any number.
     */
    uint64_t resident_bytes;
    /**
     * Bytes of device memory in which the device is to keep it compressed, with those that it is
     * tied to: `encoded_bytes` and one part in 256, rounded up to 256. 0 if it does not.
     */
    uint64_t device_encoded_bytes;
} wb_plan_parameter_info;
#define WB_PLAN_PARAMETER_INFO_INIT \
    {sizeof(wb_plan_parameter_info), 0, 0, 0, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, 0, 0, 0, 0, \
    0, 0, 0}

/** A group of a plan. A tied parameter counts in its first group. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Position among the groups with prefetched parameters; -1 if it has none. */
    int32_t turn;
    /** The name. */
    const char *name;
    /** Bytes of its offloaded parameters. */
    uint64_t offloaded_bytes;
    /** Bytes of its resident parameters. */
    uint64_t resident_bytes;
} wb_plan_group_info;
#define WB_PLAN_GROUP_INFO_INIT {sizeof(wb_plan_group_info), 0, NULL, 0, 0}

/** Fills `info` with the figures of the plan. */
wb_status wb_plan_get_info(const wb_plan *plan, wb_plan_info *info, wb_error *error);

/** Gets the whole plan as JSON. */
wb_status wb_plan_to_json(const wb_plan *plan, const char **json, wb_error *error);

/** Gets the index of the parameter with a name. Fails with WB_ERR_NOT_FOUND. */
wb_status wb_plan_find_parameter(const wb_plan *plan, const char *name, uint64_t *index,
                                 wb_error *error);

/**
 * Fills `info` with the planned placement of parameter `index`; parameters have the order of
 * wb_plan_new, where scales follow their quantized matrix. Fails with WB_ERR_OUT_OF_RANGE.
 */
wb_status wb_plan_get_parameter_info(const wb_plan *plan, uint64_t index,
                                     wb_plan_parameter_info *info, wb_error *error);

/**
 * Fills `info` with the properties of group `index`; groups have the order in which parameters
 * first name them. Fails with WB_ERR_OUT_OF_RANGE.
 */
wb_status wb_plan_get_group_info(const wb_plan *plan, uint64_t index, wb_plan_group_info *info,
                                 wb_error *error);

/**
 * Gets the text of warning `index`: an error that `allow` downgraded, or what the plan could not
 * do as well as was asked. Fails with WB_ERR_OUT_OF_RANGE.
 */
wb_status wb_plan_get_warning(const wb_plan *plan, uint64_t index, const char **warning,
                              wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
