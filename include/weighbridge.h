/*
 * weighbridge: carries model weights between host memory and an accelerator.
 * Generated from the Rust sources by cbindgen; change those and run `make header`.
 *
 * How to read it
 *   Ownership  *_open, *_alloc, *_register, *_map, *_new, *_load make one reference; *_retain adds
 *              one; *_release drops one, and NULL is let through. Children hold their parents, so any
 *              order of release is legal. Using a handle after its last release is undefined; a debug
 *              build answers WB_ERR_HANDLE.
 *   Threading  Every function may be called from any thread; a handle may be used by many at once.
 *   Errors     wb_status is WB_OK or a WB_ERR_*. The last argument, which may be NULL, receives the
 *              status, the driver's own code and a message. Outputs are written only on success.
 *   Structs    Begin with struct_size and have a WB_*_INIT. A smaller struct from an older header is
 *              accepted; reserved fields must be 0.
 *   NULL       is refused with WB_ERR_INVALID_ARGUMENT unless a comment says that it is allowed.
 *   Streams    are the engine's own: a CUstream as void*, or a host device's stream. NULL is the
 *              device's default stream.
 *   Callbacks  (progress, log sink, deleters, host functions) return: neither an exception nor longjmp
 *              nor pthread_exit may go through the library. pthread_cancel waits for a call's end.
 *   Forks      A forked child may look at what it inherited (views and plans can still be made) and
 *              release it, and leaves CUDA alone; what needs the device answers WB_ERR_FORKED. It may
 *              open devices of its own: the host, and CUDA's where nobody had initialised CUDA.
 *   Exit       Nothing has to be released before the process ends, nothing is waited for, and exit
 *              handlers may call everything. The library stays loaded after dlclose.
 *   Units      are bytes unless a name says otherwise; strides are counted in elements.
 *   Platform   Linux.
 * Everything here is there since 0.1.0 where its comment names no other version.
 */

#ifndef WEIGHBRIDGE_H
#define WEIGHBRIDGE_H

#include <stddef.h>
#include <stdint.h>

/** The version of this header; wb_version() is the library's. */
#define WB_VERSION_MAJOR 0
#define WB_VERSION_MINOR 1
#define WB_VERSION_PATCH 0
#define WB_VERSION ((WB_VERSION_MAJOR << 16) | (WB_VERSION_MINOR << 8) | WB_VERSION_PATCH)

struct DLManagedTensor;
struct DLManagedTensorVersioned;


/**
 * Downgrades WB_ERR_NOTHING_OFFLOADED to a warning.
 */
#define WB_ALLOW_NOTHING_OFFLOADED 1

/**
 * Downgrades WB_ERR_SELECTOR of a selector that matches nothing to a warning.
 */
#define WB_ALLOW_UNMATCHED_SELECTOR 2

/**
 * Downgrades WB_ERR_EVERYTHING_FITS to a warning.
 */
#define WB_ALLOW_EVERYTHING_FITS 4

/**
 * A range of host memory: allocated, registered, or mapped from a file.
 */
typedef struct wb_buffer wb_buffer;

/**
 * A place to compute: a CUDA device, or the host, which is always there.
 */
typedef struct wb_device wb_device;

/**
 * Parameters under a budget: where they are kept, and what carries them. How an engine uses it:
 *
 * 1. Describe. One wb_parameter for each weight: its name, its layout, where its bytes are now (host or
 *    device memory, or nowhere yet), and its group, which is what the engine uses together: a layer.
 *    Weights that share bytes are found by their addresses, or by `storage_id` where there are none.
 * 2. Plan. wb_plan_new takes one budget and decides what leaves the device and how it is carried; nothing
 *    is allocated. With `quantize` in its options matrices are planned, and kept, in 8 bits, with their
 *    scales as weights of their own. wb_plan_to_json prints it, with a reason for every weight. What cannot
 *    be meant (nothing leaves, a selector that matches nothing, slots that do not fit) is an error with
 *    a name.
 * 3. Commit. wb_offloader_new takes the host memory and the slots and copies the weights there. Then the
 *    engine drops its own copies of what is offloaded, and asks wb_offloader_get_parameter_info for each address,
 *    or wb_offloader_get_view for a tensor that keeps its memory.
 * 4. Step. Around the kernels of each layer, on the engine's own stream:
 *
 * ```c
 * for (uint64_t layer = 0; layer < layers; layer++) {
 *     wb_offloader_acquire_group(offloader, layer, stream, &error);
 *     launch_layer(layer, stream);
 *     wb_offloader_release_group(offloader, layer, stream, &error);
 * }
 * ```
 *
 * The host never waits in it. The next layers' copies run meanwhile, those of the next step's first
 * layers too. Any order of groups is legal and any stream: another than the plan's costs time only. A
 * step that fails half way ends with wb_offloader_reset.
 *
 * CUDA graphs. Capture the loop as it is, on one stream from the first group to the last; replay it as
 * often as is wanted, in turn with steps that are not captured. To capture a part of a step, end it with
 * wb_offloader_join. Addresses stay the same until a parameter is replaced, added or removed or
 * wb_offloader_compact is called: `generation` of wb_offloader_stats counts that, and graphs of an older
 * generation are captured again.
 *
 * Weights that change. wb_offloader_replace gives a weight new bytes, another type or shape; it stays
 * where the plan keeps it. Where quantization or a plugin has moved weights on its own,
 * wb_offloader_reconcile takes the whole list again and finds by address what lies elsewhere.
 *
 * Threads and memory. Every call may come from any thread. Views and the offloader itself may be
 * released in any order; wb_offloader_release waits for the copies that are queued. What holds memory
 * and what was carried is in wb_offloader_get_stats, and adds up.
 */
typedef struct wb_offloader wb_offloader;

/**
 * Which parameter goes where and why.
 */
typedef struct wb_plan wb_plan;

/**
 * Numbers to 8 bits and back, one tensor at a time, in staging memory of bounded size.
 */
typedef struct wb_quantizer wb_quantizer;

/**
 * An open safetensors file.
 */
typedef struct wb_safetensors wb_safetensors;

/**
 * A typed, shaped, strided window into a buffer, which it holds alive.
 */
typedef struct wb_view wb_view;

/**
 * The outcome of a call: `WB_OK` or one of `WB_ERR_*`.
 */
typedef int32_t wb_status;

/**
 * The numbering that `wb_error.code` belongs to.
 */
typedef int32_t wb_code_domain;

/**
 * Describes a failure. Begin with WB_ERROR_INIT. Written on failure only.
 */
typedef struct {
    /**
     * Bytes of the struct, by WB_ERROR_INIT.
     */
    uint32_t struct_size;
    /**
     * The status that the call gave.
     */
    wb_status status;
    /**
     * The code that the driver or the kernel returned; 0 if there is none.
     */
    int32_t code;
    /**
     * The numbering that `code` belongs to.
     */
    wb_code_domain code_domain;
    /**
     * What was asked, what was found, what to do. Ends in NUL.
     */
    char message[500];
} wb_error;

/**
 * Receives an error that no call could return: something failed while memory was given back.
 * Called on any thread, with locks of the library held: it must not call the library.
 */
typedef void (*wb_log_callback)(void *user, const wb_error *error);

/**
 * Yes, no, or as environment and platform have it.
 */
typedef int32_t wb_tristate;

/**
 * How to open a device. Begin with WB_DEVICE_OPTIONS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * Pin host memory? A wb_tristate; WEIGHBRIDGE_DISABLE_PIN_MEMORY=1 switches WB_TRISTATE_AUTO off.
     */
    wb_tristate pin;
    /**
     * Let the device read host memory in place? A wb_tristate; WEIGHBRIDGE_DISABLE_UVA=1 switches
     * WB_TRISTATE_AUTO off.
     */
    wb_tristate views;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * The caller's own CUcontext, which must outlive the device; NULL for the primary context.
     */
    void *context;
    /**
     * Bytes of device memory that the host device has; 0 for as much as the machine.
     */
    uint64_t capacity_bytes;
    /**
     * 0.
     */
    uint64_t reserved[4];
} wb_device_options;

/**
 * What a device is.
 */
typedef int32_t wb_device_kind;

/**
 * The platform's truth, and the policy decided from it. Begin with WB_DEVICE_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * A wb_device_kind.
     */
    wb_device_kind kind;
    /**
     * Ordinal among the devices of its kind.
     */
    int32_t ordinal;
    /**
     * CUDA's version of the driver, 13000 for 13.0; 0 for the host.
     */
    int32_t driver_version;
    /**
     * Compute capability times ten, 90 for 9.0; 0 for the host.
     */
    int32_t compute_capability;
    /**
     * 1 when host and device share one address space.
     */
    int32_t unified_addressing;
    /**
     * 1 when existing memory can be registered.
     */
    int32_t host_register;
    /**
     * 1 when registering a read-only page worked: what the library goes by.
     */
    int32_t read_only_register;
    /**
     * What the driver's attribute says of it.
     */
    int32_t read_only_register_attribute;
    /**
     * 1 when any pointer of the process is a device pointer.
     */
    int32_t pageable_access;
    /**
     * 1 when the device shares the host's memory.
     */
    int32_t integrated;
    /**
     * The NUMA node that the device hangs on; -1 when unknown.
     */
    int32_t numa_node;
    /**
     * 1 when the policy is to pin host memory.
     */
    int32_t pin;
    /**
     * 1 when the policy is to let the device read host memory in place.
     */
    int32_t views;
    /**
     * Bytes that this process may lock; UINT64_MAX without a limit.
     */
    uint64_t memlock_limit;
    /**
     * Bytes of device memory.
     */
    uint64_t total_bytes;
    /**
     * Bytes of device memory that are free now.
     */
    uint64_t free_bytes;
    /**
     * The device's own name.
     */
    char name[256];
    /**
     * Why the policy is to pin, or not to.
     */
    char pin_reason[256];
    /**
     * Why the policy is to use views, or not to.
     */
    char views_reason[256];
} wb_device_info;

/**
 * What lives on a device now. All but errors_logged return to 0. Begin with WB_DEVICE_STATS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Buffers alive.
     */
    uint64_t buffers;
    /**
     * Views alive.
     */
    uint64_t views;
    /**
     * References that wait for a stream or for the thread that gives memory back.
     */
    uint64_t deferred;
    /**
     * Bytes asked for by the buffers alive.
     */
    uint64_t asked_bytes;
    /**
     * Bytes of address space mapped for them.
     */
    uint64_t mapped_bytes;
    /**
     * Bytes pinned for them, as the driver or the kernel counts them.
     */
    uint64_t pinned_bytes;
    /**
     * Bytes of device memory from wb_device_alloc.
     */
    uint64_t device_bytes;
    /**
     * Errors that went to the log sink since the process began.
     */
    uint64_t errors_logged;
} wb_device_stats;

/**
 * Work of the host on a stream. It must not call this library or CUDA.
 */
typedef void (*wb_host_function)(void *user);

/**
 * Whether memory lies in huge pages.
 */
typedef int32_t wb_huge_pages;

/**
 * The NUMA node on which memory is allocated.
 */
typedef int32_t wb_numa_policy;

/**
 * How a file gets into memory.
 */
typedef int32_t wb_file_mode;

/**
 * What long work is doing.
 */
typedef int32_t wb_phase;

/**
 * Receives the bytes done and the bytes in all of a phase; a result other than 0 cancels. Called on
 * the thread that made the call.
 */
typedef int32_t (*wb_progress)(void *user, wb_phase phase, uint64_t done, uint64_t total);

/**
 * How to make a buffer. Begin with WB_BUFFER_OPTIONS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * A wb_huge_pages.
     */
    wb_huge_pages huge_pages;
    /**
     * Threads that fault, read and copy; 0 for as many as help.
     */
    uint32_t threads;
    /**
     * A wb_numa_policy.
     */
    wb_numa_policy numa_policy;
    /**
     * The NUMA node of WB_NUMA_NODE; not read with another policy.
     */
    uint32_t numa_node;
    /**
     * Pin this buffer? A wb_tristate; WB_TRISTATE_AUTO is the device's policy.
     */
    wb_tristate pin;
    /**
     * Bypass the processor's cache (WB_TRISTATE_ON): fast to write, very slow to read for the host. For memory
     * that exists already and for files WB_ERR_NOT_SUPPORTED.
     */
    wb_tristate write_combined;
    /**
     * Pinned for every context of the process; WB_TRISTATE_AUTO is yes.
     */
    wb_tristate portable;
    /**
     * A wb_file_mode, for files.
     */
    wb_file_mode file_mode;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Bytes registered at a time; 0 for all at once. Smaller chunks let neighbours use the device
     * in between, and progress be reported.
     */
    uint64_t chunk_bytes;
    /**
     * Told how far the work is; may cancel it. NULL for none.
     */
    wb_progress progress;
    /**
     * Handed to `progress`.
     */
    void *progress_user;
    /**
     * 0.
     */
    uint64_t reserved[4];
} wb_buffer_options;

/**
 * Called once when nothing uses the caller's memory any more, on any thread.
 */
typedef void (*wb_deleter)(void *owner);

/**
 * How a buffer came about.
 */
typedef int32_t wb_origin;

/**
 * How a buffer is pinned.
 */
typedef int32_t wb_pinning;

/**
 * What a buffer is. Begin with WB_BUFFER_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * A wb_origin.
     */
    wb_origin origin;
    /**
     * A wb_pinning.
     */
    wb_pinning pinning;
    /**
     * 1 when its bytes must not be written.
     */
    int32_t read_only;
    /**
     * The first byte; NULL in a buffer of no bytes.
     */
    void *data;
    /**
     * Where the device sees the first byte; NULL where it does not.
     */
    void *device_address;
    /**
     * Bytes asked for.
     */
    uint64_t asked_bytes;
    /**
     * Bytes of address space mapped for it; 0 for the caller's memory.
     */
    uint64_t mapped_bytes;
    /**
     * Bytes pinned, as the driver or the kernel counts them.
     */
    uint64_t pinned_bytes;
    /**
     * Registrations that pin it.
     */
    uint64_t chunks;
    /**
     * Reason for the fallback that was taken; empty if there is none.
     */
    char fallback_reason[256];
} wb_buffer_info;

/**
 * What the kernel counts for a buffer's pages now. Begin with WB_BUFFER_STATS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Bytes in memory (mincore).
     */
    uint64_t resident_bytes;
    /**
     * Bytes in huge pages (smaps of the mappings that it touches).
     */
    uint64_t huge_bytes;
    /**
     * Bytes in private anonymous pages (smaps): of a mapped file, what was silently copied.
     */
    uint64_t anonymous_bytes;
    /**
     * Bytes locked by mlock (smaps).
     */
    uint64_t locked_bytes;
} wb_buffer_stats;

/**
 * An element type: one of `WB_DTYPE_*`.
 */
typedef int32_t wb_dtype;

/**
 * Type, shape and strides of a tensor. Begin with WB_LAYOUT_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * A WB_DTYPE_*.
     */
    wb_dtype dtype;
    /**
     * Number of dimensions, at most 64; 0 for a scalar.
     */
    int32_t ndim;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * `ndim` sizes in elements.
     */
    const int64_t *shape;
    /**
     * `ndim` strides in elements, of any sign; NULL for contiguous in row-major order.
     */
    const int64_t *strides;
    /**
     * Bytes from the start of the memory to the first element.
     */
    uint64_t offset_bytes;
} wb_layout;

/**
 * Who looks through a view.
 */
typedef int32_t wb_accessor;

/**
 * What a view is. Begin with WB_VIEW_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * A WB_DTYPE_*.
     */
    wb_dtype dtype;
    /**
     * Number of dimensions.
     */
    int32_t ndim;
    /**
     * A wb_accessor.
     */
    wb_accessor accessor;
    /**
     * 1 when the elements must not be written.
     */
    int32_t read_only;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * The host's address of the first element; NULL in a buffer of no bytes, and in memory that only a
     * CUDA device sees.
     */
    void *data;
    /**
     * The device's address of the first element; NULL for a view of the host only.
     */
    void *device_address;
    /**
     * `ndim` sizes in elements; the view's own, alive as long as it.
     */
    const int64_t *shape;
    /**
     * `ndim` strides in elements; the view's own, alive as long as it.
     */
    const int64_t *strides;
    /**
     * Number of elements.
     */
    uint64_t elements;
    /**
     * Bytes from the lowest to the end of the highest element, gaps included.
     */
    uint64_t span_bytes;
} wb_view_info;

/**
 * CPython's PyCapsule_IsValid.
 */
typedef int (*wb_capsule_is_valid)(void *capsule, const char *name);

/**
 * CPython's PyCapsule_GetPointer.
 */
typedef void *(*wb_capsule_get_pointer)(void *capsule, const char *name);

/**
 * A tensor of a file. Begin with WB_SAFETENSORS_TENSOR_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * A WB_DTYPE_*; 0 for a type of the file that has none.
     */
    wb_dtype dtype;
    /**
     * Number of dimensions.
     */
    int32_t ndim;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Its name, ending in NUL; the file's own, alive as long as it.
     */
    const char *name;
    /**
     * `ndim` sizes in elements; the file's own, alive as long as it. NULL where dtype is 0.
     */
    const int64_t *shape;
    /**
     * Bytes from the beginning of the file, and so of its buffer.
     */
    uint64_t offset_bytes;
    /**
     * Bytes of its data.
     */
    uint64_t bytes;
} wb_safetensors_tensor_info;

/**
 * How a step reads a parameter.
 */
typedef int32_t wb_access_pattern;

/**
 * How an offloaded parameter is transferred to the kernels that read it.
 */
typedef int32_t wb_transfer_mode;

/**
 * Where a parameter is kept.
 */
typedef int32_t wb_placement;

/**
 * A parameter of a model. Begin with WB_PARAMETER_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct; in an array, the same in each.
     */
    uint32_t struct_size;
    /**
     * A wb_access_pattern.
     */
    wb_access_pattern access_pattern;
    /**
     * Its name, unique in the model; UTF-8 that ends in NUL.
     */
    const char *name;
    /**
     * What is acquired together with it: a layer's name.
     */
    const char *group;
    /**
     * Type, shape, strides, and where the first element is from `source`.
     */
    const wb_layout *layout;
    /**
     * Address in host or device memory; NULL while there are no bytes. Parameters whose bytes overlap are
     * tied: they are stored once.
     */
    const void *source;
    /**
     * Ties parameters that have no source: those of the same number, other than 0.
     */
    uint64_t storage_id;
    /**
     * A wb_transfer_mode; WB_TRANSFER_MODE_AUTO is the options'.
     */
    wb_transfer_mode transfer_mode;
    /**
     * WB_PLACEMENT_RESIDENT keeps it on the device; otherwise WB_PLACEMENT_AUTO.
     */
    wb_placement placement;
    /**
     * 0.
     */
    uint64_t reserved[2];
} wb_parameter;

/**
 * What `wb_plan_options.budget_bytes` limits. There is no default: a plan needs a budget.
 */
typedef int32_t wb_budget_kind;

/**
 * In which order parameters leave the device while the budget lasts.
 */
typedef int32_t wb_order;

/**
 * How to quantize. Begin with WB_QUANTIZE_OPTIONS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * WB_DTYPE_F8_E4M3FN or WB_DTYPE_F8_E5M2; 0 for the first.
     */
    wb_dtype format;
    /**
     * WB_DTYPE_F32, or WB_DTYPE_F8_E8M0 for powers of two; 0 for the first.
     */
    wb_dtype scale_dtype;
    /**
     * 1 if the caller gives the scales, 0 if they are computed and written.
     */
    int32_t use_given_scales;
    /**
     * Rows that share a scale, of the last but one dimension; 0 for all.
     */
    uint64_t block_rows;
    /**
     * Columns that share a scale, of the last dimension; 0 for all.
     */
    uint64_t block_cols;
    /**
     * 1 when NaN and infinities are to be an error.
     */
    int32_t reject_nonfinite;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Bytes that there are for scales, to be checked; 0 where the caller is sure.
     */
    uint64_t scale_bytes;
    /**
     * Told how far the work is; may cancel it. NULL for none.
     */
    wb_progress progress;
    /**
     * Handed to `progress`.
     */
    void *progress_user;
    /**
     * 0.
     */
    uint64_t reserved[4];
} wb_quantize_options;

/**
 * What a plan is made by. Begin with WB_PLAN_OPTIONS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * Groups in their slots at a time; 0 for as many as serve.
     */
    uint32_t depth;
    /**
     * A wb_budget_kind.
     */
    wb_budget_kind budget_kind;
    /**
     * A wb_transfer_mode, for parameters that name none.
     */
    wb_transfer_mode transfer_mode;
    /**
     * The budget.
     */
    uint64_t budget_bytes;
    /**
     * What is copied ahead takes at most so many bytes of slots; 0 for what two groups need.
     */
    uint64_t slot_bytes;
    /**
     * `select_count` selectors of what may leave the device; none for everything. A text means the
     * names that contain it as whole segments between dots, a glob (with any of `*?[`, and at most 64
     * `*`) whole names.
     */
    const char *const *select;
    /**
     * `exclude_count` selectors of what may not.
     */
    const char *const *exclude;
    /**
     * How many.
     */
    uint32_t select_count;
    /**
     * How many.
     */
    uint32_t exclude_count;
    /**
     * A wb_order.
     */
    wb_order order;
    /**
     * WB_ALLOW_* of the errors that are to be warnings.
     */
    uint32_t allow;
    /**
     * How matrices are quantized when the plan is committed; NULL for not at all. Each is planned as
     * two parameters: itself in 8 bits, and its scales by its name and `_scale`, or `_scale_inv` for
     * blocks of a matrix.
     */
    const wb_quantize_options *quantize;
    /**
     * `quantize_select_count` selectors of those; none for all of wide types.
     */
    const char *const *quantize_select;
    /**
     * How many.
     */
    uint32_t quantize_select_count;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * What the link carries, for the predicted time; 0 for what wb_device_measure_link found, if it
     * was called.
     */
    double link_bytes_per_second;
    /**
     * 0.
     */
    uint64_t reserved[4];
} wb_plan_options;

/**
 * A plan in numbers. Begin with WB_PLAN_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * Groups in their slots at a time.
     */
    uint32_t depth;
    /**
     * How many parameters there are.
     */
    uint64_t parameters;
    /**
     * How many groups.
     */
    uint64_t groups;
    /**
     * How many warnings.
     */
    uint64_t warnings;
    /**
     * Bytes of all parameters, ties counted once, here and below.
     */
    uint64_t payload_bytes;
    /**
     * Bytes of those that are offloaded.
     */
    uint64_t offloaded_bytes;
    /**
     * Bytes of host memory for them, in whole pages.
     */
    uint64_t arena_bytes;
    /**
     * Bytes of device memory for what stays, each parameter's rounded up to 256.
     */
    uint64_t resident_bytes;
    /**
     * Bytes of device memory for slots.
     */
    uint64_t slot_bytes;
    /**
     * Bytes of those for what is copied ahead.
     */
    uint64_t ring_bytes;
    /**
     * Bytes copied in every step.
     */
    uint64_t step_bytes;
    /**
     * Bytes that the device reads in place in every step, if it reads all of what is dense.
     */
    uint64_t view_bytes;
    /**
     * Seconds that the link needs for a step; 0 where its speed was not given.
     */
    double step_seconds;
    /**
     * 1 when the first groups of a step wait for the last ones of the step before.
     */
    int32_t wrap_stalls;
    /**
     * 0.
     */
    uint32_t reserved0;
} wb_plan_info;

/**
 * What becomes of a parameter. Begin with WB_PLAN_PARAMETER_INFO_INIT. The strings are the plan's.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED.
     */
    wb_placement placement;
    /**
     * How it is transferred; WB_TRANSFER_MODE_AUTO for a resident parameter.
     */
    wb_transfer_mode transfer_mode;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Its name.
     */
    const char *name;
    /**
     * Why it goes or stays, in words.
     */
    const char *reason;
    /**
     * Its group.
     */
    uint64_t group;
    /**
     * Bytes from its lowest to the end of its highest element.
     */
    uint64_t span_bytes;
    /**
     * The first parameter that it shares its bytes with, itself if with none.
     */
    uint64_t tied_to;
} wb_plan_parameter_info;

/**
 * A group of a plan. Begin with WB_PLAN_GROUP_INFO_INIT. The string is the plan's.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * Its turn among the groups that are copied ahead; -1 when it is none of them.
     */
    int32_t turn;
    /**
     * Its name.
     */
    const char *name;
    /**
     * Bytes of its parameters that are offloaded; what is tied counts in the first group.
     */
    uint64_t offloaded_bytes;
    /**
     * Bytes of its parameters that stay.
     */
    uint64_t resident_bytes;
} wb_plan_group_info;

/**
 * What an offloader holds and has done. Begin with WB_OFFLOADER_STATS_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Number of parameters: the indexes that wb_offloader_get_parameter_info takes are smaller.
     */
    uint64_t parameters;
    /**
     * Bytes of parameters that are offloaded, ties counted once.
     */
    uint64_t offloaded_bytes;
    /**
     * Bytes of host memory asked for them, padding and free room included.
     */
    uint64_t asked_bytes;
    /**
     * Bytes of address space taken for it.
     */
    uint64_t mapped_bytes;
    /**
     * Bytes of it that are pinned, as the driver or the kernel counts them.
     */
    uint64_t pinned_bytes;
    /**
     * Bytes of parameters that stay on the device, ties counted once.
     */
    uint64_t resident_bytes;
    /**
     * Bytes of device memory for slots.
     */
    uint64_t slot_bytes;
    /**
     * Bytes of offloaded parameters that the device reads in place.
     */
    uint64_t view_bytes;
    /**
     * Bytes of the pinned buffer that pageable memory is staged through; 0 where memory is pinned.
     */
    uint64_t staging_bytes;
    /**
     * The most of `mapped_bytes` at a time.
     */
    uint64_t peak_mapped_bytes;
    /**
     * The most of `slot_bytes` at a time.
     */
    uint64_t peak_slot_bytes;
    /**
     * Bytes copied into slots. What a replayed graph copies is not seen and not counted, here and below.
     */
    uint64_t moved_bytes;
    /**
     * Copies into slots.
     */
    uint64_t copies;
    /**
     * Groups acquired.
     */
    uint64_t acquires;
    /**
     * Copies that had not begun when their group was acquired, those on demand excepted.
     */
    uint64_t late_copies;
    /**
     * Seconds that streams of the engine have waited for copies.
     */
    double waited_seconds;
    /**
     * Grows whenever an address changed.
     */
    uint64_t generation;
} wb_offloader_stats;

/**
 * What a parameter of an offloader is. Begin with WB_OFFLOADER_PARAMETER_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED.
     */
    wb_placement placement;
    /**
     * How it is transferred; WB_TRANSFER_MODE_AUTO for a resident parameter.
     */
    wb_transfer_mode transfer_mode;
    /**
     * 1 if the memory at `device_address` belongs to the offloader, 0 if it is the engine's own.
     */
    int32_t owned;
    /**
     * Its name, ending in NUL; valid until the parameter is removed.
     */
    const char *name;
    /**
     * Index of its group.
     */
    uint64_t group;
    /**
     * Device address of the first element: of a zero-copy or a resident parameter always, of another
     * while its group is acquired. NULL for a parameter that has no bytes yet.
     */
    void *device_address;
    /**
     * Where the host finds the first element of what is offloaded; NULL for a resident parameter.
     */
    void *host_address;
    /**
     * Bytes from its lowest to the end of its highest element.
     */
    uint64_t span_bytes;
} wb_offloader_parameter_info;

/**
 * What wb_offloader_reconcile did. Begin with WB_OFFLOADER_RECONCILE_RESULT_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Parameters whose bytes lay elsewhere and were taken over.
     */
    uint64_t replaced;
    /**
     * Parameters of new names.
     */
    uint64_t added;
    /**
     * Names that are gone.
     */
    uint64_t removed;
    /**
     * Parameters that are where they were.
     */
    uint64_t kept;
} wb_offloader_reconcile_result;

/**
 * The scales of a tensor. Begin with WB_QUANTIZER_SCALES_INFO_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved0;
    /**
     * Matrices: the product of all dimensions but the last two.
     */
    uint64_t matrices;
    /**
     * Rows of scales of a matrix.
     */
    uint64_t rows;
    /**
     * Columns of scales of a matrix.
     */
    uint64_t cols;
    /**
     * Bytes of all scales, which lie in this order without gaps.
     */
    uint64_t bytes;
} wb_quantizer_scales_info;

/**
 * What was done. Begin with WB_QUANTIZER_RESULT_INIT.
 */
typedef struct {
    /**
     * Bytes of the struct.
     */
    uint32_t struct_size;
    /**
     * How often the source was read: 2 where blocks reach over more than the staging memory.
     */
    uint32_t passes;
    /**
     * Numbers that were NaN or infinite; not counted where scales were given.
     */
    uint64_t nonfinite;
    /**
     * Bytes of device memory that were taken for staging, never more than the limit.
     */
    uint64_t staging_bytes;
} wb_quantizer_result;

/**
 * The call succeeded.
 */
#define WB_OK 0

/**
 * A defect of the library (it caught a panic); please report it.
 */
#define WB_ERR_INTERNAL 1

/**
 * An argument is invalid: NULL where NULL is not allowed, an unknown constant, a reserved field that is
 * not zero, or another invalid value. The message names it.
 */
#define WB_ERR_INVALID_ARGUMENT 2

/**
 * The handle is not alive: it was released too often or never created (detected by debug builds only).
 */
#define WB_ERR_HANDLE 3

/**
 * `struct_size` is smaller than the smallest valid size or larger than this library knows.
 */
#define WB_ERR_STRUCT_SIZE 4

/**
 * A product or sum of sizes does not fit in 64 bits.
 */
#define WB_ERR_OVERFLOW 5

/**
 * An index or a range lies outside its bounds.
 */
#define WB_ERR_OUT_OF_RANGE 6

/**
 * The memory is not mapped for the device; use an explicit copy.
 */
#define WB_ERR_NOT_MAPPED 7

/**
 * The address does not have the required alignment.
 */
#define WB_ERR_UNALIGNED 8

/**
 * Part of the range is already registered.
 */
#define WB_ERR_ALREADY_REGISTERED 9

/**
 * Part of the range is not mapped in this process or is not readable.
 */
#define WB_ERR_UNMAPPED_RANGE 10

/**
 * Registering this memory would silently copy its pages.
 */
#define WB_ERR_WOULD_COPY 11

/**
 * The device does not exist.
 */
#define WB_ERR_NO_DEVICE 12

/**
 * No NVIDIA driver is installed.
 */
#define WB_ERR_NO_DRIVER 13

/**
 * The driver lacks a required function; the message names it.
 */
#define WB_ERR_DRIVER_TOO_OLD 14

/**
 * The driver reported an error; `code` holds its CUresult.
 */
#define WB_ERR_DRIVER 15

/**
 * The platform or this kind of device does not support the operation.
 */
#define WB_ERR_NOT_SUPPORTED 16

/**
 * Pinning exceeds RLIMIT_MEMLOCK.
 */
#define WB_ERR_MEMLOCK 17

/**
 * The allocation exceeds the memory limit of the control group.
 */
#define WB_ERR_CGROUP 18

/**
 * Not enough host memory.
 */
#define WB_ERR_OUT_OF_MEMORY 19

/**
 * Not enough device memory.
 */
#define WB_ERR_DEVICE_MEMORY 20

/**
 * Huge pages are required and not available.
 */
#define WB_ERR_HUGE_PAGES 21

/**
 * The file does not exist.
 */
#define WB_ERR_FILE_MISSING 22

/**
 * The file is not readable or not a regular file.
 */
#define WB_ERR_FILE_ACCESS 23

/**
 * The file is empty.
 */
#define WB_ERR_FILE_EMPTY 24

/**
 * The file is shorter than its mapping or than its own header says.
 */
#define WB_ERR_FILE_TRUNCATED 25

/**
 * Reading the file failed.
 */
#define WB_ERR_FILE_IO 26

/**
 * The file is not a well-formed safetensors file.
 */
#define WB_ERR_FORMAT 27

/**
 * No object has this name.
 */
#define WB_ERR_NOT_FOUND 28

/**
 * The progress callback cancelled the call.
 */
#define WB_ERR_CANCELLED 29

/**
 * The timeout expired before the work completed.
 */
#define WB_ERR_TIMEOUT 30

/**
 * The stream is being captured into a graph, where this call is not possible.
 */
#define WB_ERR_CAPTURING 31

/**
 * The device was opened before a fork, and this is the child process.
 */
#define WB_ERR_FORKED 32

/**
 * The DLPack tensor has an unsupported version, device or type.
 */
#define WB_ERR_DLPACK 33

/**
 * The plan offloads nothing.
 */
#define WB_ERR_NOTHING_OFFLOADED 34

/**
 * A selector is malformed or matches no parameter.
 */
#define WB_ERR_SELECTOR 35

/**
 * All parameters fit on the device.
 */
#define WB_ERR_EVERYTHING_FITS 36

/**
 * The budget cannot be met.
 */
#define WB_ERR_BUDGET 37

/**
 * The bytes allowed for slots do not hold one group.
 */
#define WB_ERR_SLOTS_BUDGET 38

/**
 * The object is in use; release it first.
 */
#define WB_ERR_BUSY 39

/**
 * The staging memory allowed does not hold one row.
 */
#define WB_ERR_STAGING 40

/**
 * The tensor contains NaN or infinity, and the options reject them.
 */
#define WB_ERR_NOT_FINITE 41

/**
 * Boolean, 1 byte.
 */
#define WB_DTYPE_BOOL 1

/**
 * Signed integer, 1 byte.
 */
#define WB_DTYPE_I8 2

/**
 * Signed integer, 2 bytes.
 */
#define WB_DTYPE_I16 3

/**
 * Signed integer, 4 bytes.
 */
#define WB_DTYPE_I32 4

/**
 * Signed integer, 8 bytes.
 */
#define WB_DTYPE_I64 5

/**
 * Unsigned integer, 1 byte.
 */
#define WB_DTYPE_U8 6

/**
 * Unsigned integer, 2 bytes.
 */
#define WB_DTYPE_U16 7

/**
 * Unsigned integer, 4 bytes.
 */
#define WB_DTYPE_U32 8

/**
 * Unsigned integer, 8 bytes.
 */
#define WB_DTYPE_U64 9

/**
 * IEEE half precision, 2 bytes.
 */
#define WB_DTYPE_F16 10

/**
 * bfloat16, 2 bytes.
 */
#define WB_DTYPE_BF16 11

/**
 * IEEE single precision, 4 bytes.
 */
#define WB_DTYPE_F32 12

/**
 * IEEE double precision, 8 bytes.
 */
#define WB_DTYPE_F64 13

/**
 * Two single-precision numbers, real and imaginary, 8 bytes.
 */
#define WB_DTYPE_C64 14

/**
 * 8-bit float, 4 exponent and 3 mantissa bits, finite with NaN, 1 byte.
 */
#define WB_DTYPE_F8_E4M3FN 15

/**
 * 8-bit float, 5 exponent and 2 mantissa bits, 1 byte.
 */
#define WB_DTYPE_F8_E5M2 16

/**
 * 8-bit power of two without sign (a scale), 1 byte.
 */
#define WB_DTYPE_F8_E8M0 17

/**
 * Two 4-bit floats (2 exponent bits, 1 mantissa bit) packed in 1 byte; shapes count bytes.
 */
#define WB_DTYPE_F4_E2M1X2 18

/**
 * There is no code.
 */
#define WB_CODE_NONE 0

/**
 * `errno` of a system call.
 */
#define WB_CODE_ERRNO 1

/**
 * `CUresult` of the CUDA driver.
 */
#define WB_CODE_CUDA 2

/**
 * As the environment and the platform have it; the default.
 */
#define WB_TRISTATE_AUTO 0

/**
 * Yes; wins over the environment.
 */
#define WB_TRISTATE_ON 1

/**
 * No; wins over the environment.
 */
#define WB_TRISTATE_OFF 2

/**
 * The host's processors and memory.
 */
#define WB_DEVICE_HOST 1

/**
 * A CUDA device.
 */
#define WB_DEVICE_CUDA 2

/**
 * Where the kernel gives them; the default.
 */
#define WB_HUGE_PAGES_TRY 0

/**
 * Small pages only.
 */
#define WB_HUGE_PAGES_OFF 1

/**
 * Every whole huge page of the range is one, or WB_ERR_HUGE_PAGES: also where a driver allocates, which
 * chooses its pages. For memory that exists already WB_ERR_NOT_SUPPORTED; files are read, not mapped.
 */
#define WB_HUGE_PAGES_REQUIRE 2

/**
 * The node nearest to the device; the default.
 */
#define WB_NUMA_DEVICE 0

/**
 * Any node.
 */
#define WB_NUMA_ANY 1

/**
 * The node that `numa_node` names. Fails with WB_ERR_NOT_SUPPORTED if a driver allocates and for existing
 * memory; files are read, not mapped.
 */
#define WB_NUMA_NODE 2

/**
 * Mapped where the platform can register a mapping, else read; the default.
 */
#define WB_FILE_MODE_AUTO 0

/**
 * Mapped, or an error.
 */
#define WB_FILE_MODE_MAP 1

/**
 * Read into exact memory.
 */
#define WB_FILE_MODE_READ 2

/**
 * Making pages present.
 */
#define WB_PHASE_FAULT 1

/**
 * Registering pages with the device.
 */
#define WB_PHASE_PIN 2

/**
 * Reading or copying.
 */
#define WB_PHASE_READ 3

/**
 * Numbers are quantized.
 */
#define WB_PHASE_QUANTIZE 4

/**
 * Allocated by wb_buffer_alloc.
 */
#define WB_ORIGIN_ALLOCATED 1

/**
 * The caller's memory, registered.
 */
#define WB_ORIGIN_REGISTERED 2

/**
 * A mapping of a file.
 */
#define WB_ORIGIN_FILE_MAPPED 3

/**
 * A file that was read into memory.
 */
#define WB_ORIGIN_FILE_READ 4

/**
 * Not at all.
 */
#define WB_PINNING_NONE 0

/**
 * Its pages are registered with the device (on the host device: locked).
 */
#define WB_PINNING_REGISTERED 1

/**
 * The driver allocated it pinned.
 */
#define WB_PINNING_DRIVER 2

/**
 * The device; the buffer must be mapped for it.
 */
#define WB_ACCESSOR_DEVICE 0

/**
 * The host only.
 */
#define WB_ACCESSOR_HOST 1

/**
 * All of it; the default.
 */
#define WB_ACCESS_PATTERN_DENSE 0

/**
 * Few rows of it: an embedding, experts.
 */
#define WB_ACCESS_PATTERN_SPARSE 1

/**
 * As the plan sees fit; the default.
 */
#define WB_TRANSFER_MODE_AUTO 0

/**
 * The device reads it in host memory.
 */
#define WB_TRANSFER_MODE_ZERO_COPY 1

/**
 * It is copied when its group is acquired.
 */
#define WB_TRANSFER_MODE_ON_DEMAND 2

/**
 * It is copied ahead of that.
 */
#define WB_TRANSFER_MODE_PREFETCH 3

/**
 * The plan decides; the default.
 */
#define WB_PLACEMENT_AUTO 0

/**
 * In device memory.
 */
#define WB_PLACEMENT_RESIDENT 1

/**
 * In host memory. An output only: whether a parameter can be offloaded depends on the budget.
 */
#define WB_PLACEMENT_OFFLOADED 2

/**
 * The host memory that offloaded parameters take.
 */
#define WB_BUDGET_OFFLOAD_BYTES 1

/**
 * The device memory that resident parameters and slots take.
 */
#define WB_BUDGET_DEVICE_BYTES 2

/**
 * Evenly over the groups, so that copies and kernels overlap best; the default.
 */
#define WB_ORDER_SPREAD 0

/**
 * As they were declared.
 */
#define WB_ORDER_DECLARED 1

/**
 * The largest first.
 */
#define WB_ORDER_LARGEST 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The library's version as `WB_VERSION` counts it. Any thread.
 */
uint32_t wb_version(void);

/**
 * The name of a status, such as "WB_ERR_INVALID_ARGUMENT"; NULL for a number that is none. Static.
 */
const char *wb_status_name(wb_status status);

/**
 * Installs the process's log sink, or takes it away with a NULL callback. Without one such errors
 * are only counted (wb_device_stats.errors_logged).
 *
 * Ownership: `user` stays the caller's and must live until the sink is replaced. Any thread.
 *
 * The caller promises:
 * `callback` may be called on any thread with `user` until it is replaced.
 */
wb_status wb_log_set_callback(wb_log_callback callback, void *user);

/**
 * How many CUDA devices there are.
 *
 * Any thread. Errors: WB_ERR_NO_DRIVER, WB_ERR_DRIVER_TOO_OLD, WB_ERR_DRIVER.
 *
 * The caller promises:
 * Pointers are NULL or valid.
 */
wb_status wb_device_get_cuda_count(int32_t *count, wb_error *error);

/**
 * Opens a device by its name: "host", or "cuda:N" by CUDA's ordinal. `options` may be NULL.
 *
 * Ownership: one reference, given back with wb_device_release. A CUDA device's primary context is
 * retained (or the caller's context used); it is never reset, and the calling thread's current
 * context is restored after every call. Any thread.
 * Errors: WB_ERR_NO_DEVICE, WB_ERR_NO_DRIVER, WB_ERR_DRIVER_TOO_OLD, WB_ERR_INVALID_ARGUMENT (also
 * for an environment variable that says neither yes nor no), WB_ERR_DRIVER.
 *
 * The caller promises:
 * Pointers are NULL or valid; `name` ends in NUL.
 */
wb_status wb_device_open(const char *name,
                         const wb_device_options *options,
                         wb_device **device,
                         wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `device` is NULL or alive.
 */
void wb_device_retain(const wb_device *device);

/**
 * Drops a reference. Buffers and views hold their device, so it may go first. Any thread.
 *
 * The caller promises:
 * `device` is NULL or alive, and this reference is not used again.
 */
void wb_device_release(wb_device *device);

/**
 * Answers what the platform is and what the policy is. Any thread. Errors: WB_ERR_DRIVER.
 *
 * The caller promises:
 * `device` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_device_get_info(const wb_device *device, wb_device_info *info, wb_error *error);

/**
 * Measures what the link carries: bytes a second from pinned host memory to the device, the fastest
 * of three runs of 64 MiB. Plans that are made for this device afterwards predict a step's time by it,
 * unless they are told another. Takes 8 MiB of pinned and of device memory while it runs.
 *
 * Stream order: on a stream of its own; the host waits. Any thread.
 * Errors: those of wb_buffer_alloc and wb_device_alloc, WB_ERR_DRIVER.
 *
 * The caller promises:
 * `device` is NULL or alive; `bytes_per_second` is NULL or valid.
 */
wb_status wb_device_measure_link(const wb_device *device,
                                 double *bytes_per_second,
                                 wb_error *error);

/**
 * Counts what lives on the device now, made through this handle. Any thread.
 *
 * The caller promises:
 * `device` is NULL or alive; `usage` is NULL or valid for the size that it begins with.
 */
wb_status wb_device_get_stats(const wb_device *device, wb_device_stats *usage, wb_error *error);

/**
 * Waits until every reference that was to go after a stream, or was let go by a DLPack consumer,
 * is gone; at most `timeout_ms` milliseconds.
 *
 * Any thread, but not from a callback of this library. Errors: WB_ERR_TIMEOUT, WB_ERR_FORKED.
 *
 * The caller promises:
 * `device` is NULL or alive.
 */
wb_status wb_device_drain(const wb_device *device, uint64_t timeout_ms, wb_error *error);

/**
 * Allocates device memory of exactly `bytes` bytes (the host device: rounded to pages).
 *
 * Ownership: given back with wb_device_free, or with the device's last reference. May block the
 * device: keep it off the hot path. Any thread.
 * Errors: WB_ERR_DEVICE_MEMORY, WB_ERR_INVALID_ARGUMENT, WB_ERR_FORKED, WB_ERR_DRIVER.
 *
 * The caller promises:
 * `device` is NULL or alive; `address` is NULL or valid.
 */
wb_status wb_device_alloc(const wb_device *device, uint64_t bytes, void **address, wb_error *error);

/**
 * Gives device memory of wb_device_alloc back; waits for the device as the driver does.
 *
 * Any thread. Errors: WB_ERR_INVALID_ARGUMENT for an address that is none.
 *
 * The caller promises:
 * `device` is NULL or alive.
 */
wb_status wb_device_free(const wb_device *device, void *address, wb_error *error);

/**
 * Queues a copy of `bytes` bytes between any two places: host memory or device memory, each by its
 * address. A copy across two registrations, which CUDA refuses, is split.
 *
 * Stream order: runs behind what is queued on `stream`; both places must stay until then. Where
 * one is pageable memory, or both are host memory, a driver may block the caller until the stream
 * gets there. Any thread. Capturable.
 * Errors: WB_ERR_DRIVER, WB_ERR_FORKED; WB_ERR_INVALID_ARGUMENT for a NULL address.
 *
 * The caller promises:
 * Both places are valid for `bytes` bytes until the stream has run the copy.
 */
wb_status wb_device_copy(const wb_device *device,
                         void *to,
                         const void *from,
                         uint64_t bytes,
                         void *stream,
                         wb_error *error);

/**
 * Makes a stream of the device: in order in itself, independent of others.
 *
 * Ownership: given back with wb_device_stream_release. Engines pass their own CUstream instead.
 * Any thread. Errors: WB_ERR_OUT_OF_MEMORY, WB_ERR_DRIVER, WB_ERR_FORKED.
 *
 * The caller promises:
 * `device` is NULL or alive; `stream` is NULL or valid.
 */
wb_status wb_device_stream_new(const wb_device *device, void **stream, wb_error *error);

/**
 * Gives a stream of wb_device_stream_new back; what is queued on it still runs. Any thread.
 * Errors: WB_ERR_INVALID_ARGUMENT, WB_ERR_DRIVER, WB_ERR_FORKED.
 *
 * The caller promises:
 * `device` is NULL or alive; `stream` is of wb_device_stream_new and not used again.
 */
wb_status wb_device_stream_release(const wb_device *device, void *stream, wb_error *error);

/**
 * Waits for what is queued on a stream. Any thread. Errors: WB_ERR_DRIVER, WB_ERR_FORKED.
 *
 * The caller promises:
 * `device` is NULL or alive; `stream` is NULL or alive.
 */
wb_status wb_device_stream_synchronize(const wb_device *device, void *stream, wb_error *error);

/**
 * Queues a function of the host on a stream.
 *
 * Ownership: `user` stays the caller's. Stream order: runs behind what is queued, on a thread of
 * the library's or the driver's. Any thread. Errors: WB_ERR_DRIVER, WB_ERR_FORKED.
 *
 * The caller promises:
 * `function` may be called with `user` on another thread, once, and does not unwind.
 */
wb_status wb_device_stream_call(const wb_device *device,
                                void *stream,
                                wb_host_function function,
                                void *user,
                                wb_error *error);

/**
 * Allocates exactly `bytes` bytes of zeroed host memory, pinned by the device's policy: mapped,
 * faulted in by many threads, registered once. Pinned bytes are the asked ones rounded up to pages.
 * 0 bytes give a buffer with no address. `options` may be NULL.
 *
 * Ownership: one reference; the buffer holds the device. Any thread; registering may block the
 * device, so keep it off the hot path.
 * Errors: WB_ERR_OUT_OF_MEMORY, WB_ERR_CGROUP, WB_ERR_MEMLOCK, WB_ERR_HUGE_PAGES,
 * WB_ERR_CANCELLED, WB_ERR_NOT_SUPPORTED, WB_ERR_INVALID_ARGUMENT, WB_ERR_FORKED, WB_ERR_DRIVER.
 *
 * The caller promises:
 * Pointers are NULL or valid.
 */
wb_status wb_buffer_alloc(const wb_device *device,
                          uint64_t bytes,
                          const wb_buffer_options *options,
                          wb_buffer **buffer,
                          wb_error *error);

/**
 * Registers memory that exists already, where it lies. What would be copied silently (a private
 * file mapping) is refused with WB_ERR_WOULD_COPY. `options` and `deleter` may be NULL.
 *
 * Ownership: the memory stays the caller's until `deleter(owner)` is called, once, with nothing left
 * that uses it; on failure it is never called. Any thread; a driver may wait for what is queued on
 * the device.
 * Errors: WB_ERR_INVALID_ARGUMENT, WB_ERR_UNMAPPED_RANGE, WB_ERR_WOULD_COPY, WB_ERR_ALREADY_REGISTERED
 * (with the range that it overlaps), WB_ERR_NOT_SUPPORTED, WB_ERR_MEMLOCK, WB_ERR_CGROUP,
 * WB_ERR_CANCELLED, WB_ERR_OVERFLOW, WB_ERR_FORKED, WB_ERR_DRIVER.
 *
 * The caller promises:
 * The memory stays mapped until the deleter is called, or without one until the last reference is
 * gone; the deleter may be called on any thread.
 */
wb_status wb_buffer_register(const wb_device *device,
                             void *data,
                             uint64_t bytes,
                             const wb_buffer_options *options,
                             wb_deleter deleter,
                             void *owner,
                             wb_buffer **buffer,
                             wb_error *error);

/**
 * Maps `bytes` bytes of a file from `offset`, read-only and shared; 0 bytes mean all that follow.
 * Registered without a copy where the platform can, else read in parallel into exact pinned memory:
 * wb_buffer_info.origin says which, and its fallback_reason why. `options` may be NULL.
 *
 * Ownership: one reference; the file stays open in it. Any thread; a driver may wait for what is
 * queued on the device.
 * Errors: WB_ERR_FILE_MISSING, WB_ERR_FILE_ACCESS, WB_ERR_FILE_EMPTY, WB_ERR_FILE_TRUNCATED,
 * WB_ERR_FILE_IO, WB_ERR_OUT_OF_RANGE, WB_ERR_MEMLOCK, WB_ERR_CGROUP, WB_ERR_CANCELLED,
 * WB_ERR_NOT_SUPPORTED, WB_ERR_FORKED, WB_ERR_DRIVER.
 *
 * The caller promises:
 * Pointers are NULL or valid; `path` ends in NUL.
 */
wb_status wb_buffer_map_file(const wb_device *device,
                             const char *path,
                             uint64_t offset,
                             uint64_t bytes,
                             const wb_buffer_options *options,
                             wb_buffer **buffer,
                             wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `buffer` is NULL or alive.
 */
void wb_buffer_retain(const wb_buffer *buffer);

/**
 * Drops a reference; with the last one (views hold one each) the memory goes back, at once and on
 * this thread. Any thread; a driver may wait for what is queued on the device. What a stream may still
 * use goes with wb_buffer_release_after.
 *
 * The caller promises:
 * `buffer` is NULL or alive, and this reference is not used again.
 */
void wb_buffer_release(wb_buffer *buffer);

/**
 * Drops a reference once what is queued on `stream` now has run; nobody waits for it. On failure
 * the reference is still the caller's.
 *
 * Stream order: behind what is queued. Any thread. Errors: WB_ERR_CAPTURING, WB_ERR_FORKED,
 * WB_ERR_DRIVER, WB_ERR_INVALID_ARGUMENT for a stream of the host device that is none.
 *
 * The caller promises:
 * `buffer` is NULL or alive, and after success this reference is not used again.
 */
wb_status wb_buffer_release_after(wb_buffer *buffer, void *stream, wb_error *error);

/**
 * Answers what a buffer is. Any thread.
 *
 * The caller promises:
 * `buffer` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_buffer_get_info(const wb_buffer *buffer, wb_buffer_info *info, wb_error *error);

/**
 * Asks the kernel what it counts for a buffer's pages; slower than wb_buffer_get_info. Any thread.
 *
 * The caller promises:
 * `buffer` is NULL or alive; `usage` is NULL or valid for the size that it begins with.
 */
wb_status wb_buffer_get_stats(const wb_buffer *buffer, wb_buffer_stats *usage, wb_error *error);

/**
 * Makes a view of a buffer. It aliases, or fails: it never copies.
 *
 * Ownership: one reference; the view holds the buffer. Any thread.
 * Errors: WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_MAPPED, WB_ERR_OVERFLOW, WB_ERR_INVALID_ARGUMENT,
 * WB_ERR_INVALID_ARGUMENT, WB_ERR_FILE_TRUNCATED.
 *
 * The caller promises:
 * Pointers are NULL or valid.
 */
wb_status wb_view_new(const wb_buffer *buffer,
                      const wb_layout *layout,
                      wb_accessor accessor,
                      wb_view **view,
                      wb_error *error);

/**
 * Copies a tensor of the caller, its strides and gaps included, into a new buffer and gives a view
 * of that. `data` is where the layout's offset counts from. `options` may be NULL.
 *
 * Ownership: one reference; the view holds the new buffer. The copy is done when the call returns.
 * Any thread. Errors: those of wb_buffer_alloc and wb_view_new.
 *
 * The caller promises:
 * The tensor's bytes may be read during the call.
 */
wb_status wb_view_copy_from(const wb_device *device,
                            const void *data,
                            const wb_layout *layout,
                            wb_accessor accessor,
                            const wb_buffer_options *options,
                            wb_view **view,
                            wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `view` is NULL or alive.
 */
void wb_view_retain(const wb_view *view);

/**
 * Drops a reference; the last of a buffer's views and references gives the memory back, at once and
 * on this thread. Any thread. What a stream may still use goes with wb_view_release_after.
 *
 * The caller promises:
 * `view` is NULL or alive, and this reference is not used again.
 */
void wb_view_release(wb_view *view);

/**
 * Drops a reference once what is queued on `stream` now has run; nobody waits for it. On failure
 * the reference is still the caller's.
 *
 * Stream order: behind what is queued. Any thread. Errors: WB_ERR_CAPTURING, WB_ERR_FORKED,
 * WB_ERR_DRIVER, WB_ERR_INVALID_ARGUMENT for a stream of the host device that is none.
 *
 * The caller promises:
 * `view` is NULL or alive, and after success this reference is not used again.
 */
wb_status wb_view_release_after(wb_view *view, void *stream, wb_error *error);

/**
 * Answers what a view is. Any thread.
 *
 * The caller promises:
 * `view` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_view_get_info(const wb_view *view, wb_view_info *info, wb_error *error);

/**
 * The buffer that a view looks into; WB_ERR_NOT_FOUND for a view of device memory.
 *
 * Ownership: adds a reference, given back with wb_buffer_release. Any thread.
 *
 * The caller promises:
 * `view` is NULL or alive; `buffer` is NULL or valid.
 */
wb_status wb_view_get_buffer(const wb_view *view, wb_buffer **buffer, wb_error *error);

/**
 * Exports a view as a DLManagedTensor: kDLCUDA for a view from a CUDA device, else kDLCPU.
 *
 * Ownership: the tensor holds a reference to the view until its deleter is called, on any thread.
 * No stream is waited for: the library queues no work on the memory itself. Any thread.
 *
 * The caller promises:
 * `view` is NULL or alive; `tensor` is NULL or valid.
 */
wb_status wb_view_to_dlpack(const wb_view *view, struct DLManagedTensor **tensor, wb_error *error);

/**
 * Exports a view as a DLManagedTensorVersioned, with the read-only flag where it is so; as
 * wb_view_to_dlpack otherwise.
 *
 * The caller promises:
 * `view` is NULL or alive; `tensor` is NULL or valid.
 */
wb_status wb_view_to_dlpack_versioned(const wb_view *view,
                                      struct DLManagedTensorVersioned **tensor,
                                      wb_error *error);

/**
 * Registers the host memory of a DLManagedTensor and gives a view of it. `options` may be NULL.
 *
 * Ownership: on success the tensor belongs to the view's buffer, which calls its deleter once when
 * nothing uses the memory any more, on any thread; on failure it is still the caller's. Any thread.
 * Errors: WB_ERR_DLPACK, those of wb_buffer_register and of wb_view_new.
 *
 * The caller promises:
 * Pointers are NULL or valid, and the tensor is well formed.
 */
wb_status wb_view_from_dlpack(const wb_device *device,
                              struct DLManagedTensor *tensor,
                              wb_accessor accessor,
                              const wb_buffer_options *options,
                              wb_view **view,
                              wb_error *error);

/**
 * As wb_view_from_dlpack, for a DLManagedTensorVersioned; its read-only flag is kept.
 *
 * The caller promises:
 * Pointers are NULL or valid, and the tensor is well formed.
 */
wb_status wb_view_from_dlpack_versioned(const wb_device *device,
                                        struct DLManagedTensorVersioned *tensor,
                                        wb_accessor accessor,
                                        const wb_buffer_options *options,
                                        wb_view **view,
                                        wb_error *error);

/**
 * Tells the library CPython's two functions that wb_python_capsule_destroy needs: the library is
 * not linked to Python. For Python bindings, once, before the first capsule. Any thread.
 *
 * The caller promises:
 * The functions are CPython's own.
 */
wb_status wb_python_capsule_setup(wb_capsule_is_valid is_valid,
                                  wb_capsule_get_pointer get_pointer,
                                  wb_error *error);

/**
 * The destructor of a "dltensor" or "dltensor_versioned" capsule: frees a tensor that no consumer
 * took. To be given to PyCapsule_New; called by CPython, with the interpreter's lock.
 *
 * The caller promises:
 * `capsule` is a PyCapsule, or NULL.
 */
void wb_python_capsule_destroy(void *capsule);

/**
 * Opens a safetensors file: reads and checks its header, then maps the whole file as wb_buffer_map_file
 * does. `options` may be NULL.
 *
 * Ownership: one reference. Any thread. Errors: WB_ERR_FORMAT, WB_ERR_FILE_TRUNCATED, those of
 * wb_buffer_map_file.
 *
 * The caller promises:
 * Pointers are NULL or valid; `path` ends in NUL.
 */
wb_status wb_safetensors_open(const wb_device *device,
                              const char *path,
                              const wb_buffer_options *options,
                              wb_safetensors **file,
                              wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `file` is NULL or alive.
 */
void wb_safetensors_retain(const wb_safetensors *file);

/**
 * Drops a reference. Views hold the file's buffer, so it may go before them. Any thread.
 *
 * The caller promises:
 * `file` is NULL or alive, and this reference is not used again.
 */
void wb_safetensors_release(wb_safetensors *file);

/**
 * Number of tensors; 0 for NULL. They are in the order of their data. Any thread.
 *
 * The caller promises:
 * `file` is NULL or alive.
 */
uint64_t wb_safetensors_get_tensor_count(const wb_safetensors *file);

/**
 * The header's JSON text, ending in NUL, with the file's own metadata; NULL for NULL. The file's
 * own, alive as long as it. Any thread.
 *
 * The caller promises:
 * `file` is NULL or alive.
 */
const char *wb_safetensors_get_header(const wb_safetensors *file);

/**
 * Answers what the tensor at an index is. Any thread. Errors: WB_ERR_OUT_OF_RANGE.
 *
 * The caller promises:
 * `file` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_safetensors_get_tensor_info(const wb_safetensors *file,
                                         uint64_t index,
                                         wb_safetensors_tensor_info *info,
                                         wb_error *error);

/**
 * The index of the tensor of a name. Any thread. Errors: WB_ERR_NOT_FOUND.
 *
 * The caller promises:
 * `file` is NULL or alive; `name` is NULL or ends in NUL; `index` is NULL or valid.
 */
wb_status wb_safetensors_find_tensor(const wb_safetensors *file,
                                     const char *name,
                                     uint64_t *index,
                                     wb_error *error);

/**
 * A view of a tensor where it lies in the file's buffer. It aliases, or fails; `alignment` is the
 * one in bytes that its address must have, 0 or 1 for any.
 *
 * Ownership: one reference; the view holds the buffer. Any thread. Errors: WB_ERR_UNALIGNED,
 * WB_ERR_NOT_SUPPORTED for a type without WB_DTYPE_*, those of wb_view_new.
 *
 * The caller promises:
 * `file` is NULL or alive; `view` is NULL or valid.
 */
wb_status wb_safetensors_get_view(const wb_safetensors *file,
                                  uint64_t index,
                                  wb_accessor accessor,
                                  uint64_t alignment,
                                  wb_view **view,
                                  wb_error *error);

/**
 * A view of a tensor where it lies if it is aligned, else of a copy in memory of its own; `copied`
 * receives 1 for a copy, else 0. `options`, for the copy, may be NULL.
 *
 * Ownership: one reference. Any thread. Errors: those of wb_safetensors_get_view but WB_ERR_UNALIGNED,
 * and of wb_buffer_alloc.
 *
 * The caller promises:
 * `file` is NULL or alive; other pointers are NULL or valid.
 */
wb_status wb_safetensors_load_view(const wb_safetensors *file,
                                   uint64_t index,
                                   wb_accessor accessor,
                                   uint64_t alignment,
                                   const wb_buffer_options *options,
                                   wb_view **view,
                                   int32_t *copied,
                                   wb_error *error);

/**
 * The buffer over the whole file.
 *
 * Ownership: adds a reference, given back with wb_buffer_release. Any thread.
 *
 * The caller promises:
 * `file` is NULL or alive; `buffer` is NULL or valid.
 */
wb_status wb_safetensors_get_buffer(const wb_safetensors *file,
                                    wb_buffer **buffer,
                                    wb_error *error);

/**
 * Plans: which of `count` parameters leave the device under the budget, and how they are carried.
 * Nothing is allocated and no source is read. `options` name exactly one budget.
 *
 * Ownership: one reference; names and options are copied; the plan holds the device. Any thread.
 * Errors: WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR, WB_ERR_EVERYTHING_FITS (each a warning where
 * allowed), WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET, WB_ERR_NOT_MAPPED where a view is wished and views are
 * off, WB_ERR_INVALID_ARGUMENT, WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW.
 *
 * The caller promises:
 * Pointers are NULL or valid for as much as is said of them.
 */
wb_status wb_plan_new(const wb_device *device,
                      const wb_parameter *parameters,
                      uint64_t count,
                      const wb_plan_options *options,
                      wb_plan **plan,
                      wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `plan` is NULL or alive.
 */
void wb_plan_retain(const wb_plan *plan);

/**
 * Drops a reference. Any thread.
 *
 * The caller promises:
 * `plan` is NULL or alive, and this reference is not used again.
 */
void wb_plan_release(wb_plan *plan);

/**
 * Answers a plan in numbers. Any thread.
 *
 * The caller promises:
 * `plan` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_plan_get_info(const wb_plan *plan, wb_plan_info *info, wb_error *error);

/**
 * The whole plan as JSON. The string is the plan's. Any thread.
 *
 * The caller promises:
 * `plan` is NULL or alive; `json` is NULL or valid.
 */
wb_status wb_plan_to_json(const wb_plan *plan, const char **json, wb_error *error);

/**
 * Finds a parameter by its name. Any thread. Errors: WB_ERR_NOT_FOUND.
 *
 * The caller promises:
 * `plan` is NULL or alive; `name` ends in NUL; `index` is NULL or valid.
 */
wb_status wb_plan_find_parameter(const wb_plan *plan,
                                 const char *name,
                                 uint64_t *index,
                                 wb_error *error);

/**
 * Answers what becomes of a parameter; they count in the order in which they were given. Any thread.
 * Errors: WB_ERR_OUT_OF_RANGE.
 *
 * The caller promises:
 * `plan` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_plan_get_parameter_info(const wb_plan *plan,
                                     uint64_t index,
                                     wb_plan_parameter_info *info,
                                     wb_error *error);

/**
 * Answers what a group is; they count in the order in which they were first named. Any thread.
 * Errors: WB_ERR_OUT_OF_RANGE.
 *
 * The caller promises:
 * `plan` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_plan_get_group_info(const wb_plan *plan,
                                 uint64_t index,
                                 wb_plan_group_info *info,
                                 wb_error *error);

/**
 * Answers a warning: what was allowed. The string is the plan's. Any thread. Errors: WB_ERR_OUT_OF_RANGE.
 *
 * The caller promises:
 * `plan` is NULL or alive; `warning` is NULL or valid.
 */
wb_status wb_plan_get_warning(const wb_plan *plan,
                              uint64_t index,
                              const char **warning,
                              wb_error *error);

/**
 * Commits a plan: takes host memory for what it offloads and device memory for its slots, and copies
 * every parameter that has a source to where it is kept. `options` say how the host memory is made
 * (pinning and progress, for instance), and may be NULL.
 *
 * Ownership: one reference; the offloader holds the plan and the device. The sources of offloaded
 * parameters, and of any that lie in host memory, are not needed any more when the call returns; a
 * resident parameter that lies in device memory stays there, the engine's own.
 * Stream order: waits for what is queued on `stream` first, on the host. Any thread.
 * Errors: those of wb_buffer_alloc and wb_device_alloc, WB_ERR_CANCELLED, WB_ERR_DRIVER.
 *
 * The caller promises:
 * `plan` is NULL or alive; the sources given to it may be read until the call returns, those that
 * stay on the device as long as the offloader lives.
 */
wb_status wb_offloader_new(const wb_plan *plan,
                           void *stream,
                           const wb_buffer_options *options,
                           wb_offloader **offloader,
                           wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `offloader` is NULL or alive.
 */
void wb_offloader_retain(const wb_offloader *offloader);

/**
 * Drops a reference. The last one waits for the copies that are queued and for the uses that were
 * released, then gives the memory back, except what views still hold. Any thread.
 *
 * The caller promises:
 * `offloader` is NULL or alive, and this reference is not used again. No graph that captured its
 * calls is launched any more.
 */
void wb_offloader_release(wb_offloader *offloader);

/**
 * Answers what an offloader holds and has done. Any thread.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `stats` is NULL or valid for the size that it begins with.
 */
wb_status wb_offloader_get_stats(const wb_offloader *offloader,
                                 wb_offloader_stats *stats,
                                 wb_error *error);

/**
 * The number of a group, by which it is acquired. Groups count from 0 in the order in which the
 * plan's parameters first named them. Any thread. Errors: WB_ERR_NOT_FOUND.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `name` ends in NUL; `group` is NULL or valid.
 */
wb_status wb_offloader_find_group(const wb_offloader *offloader,
                                  const char *name,
                                  uint64_t *group,
                                  wb_error *error);

/**
 * Makes `stream` wait until the group's parameters are where their addresses say, and keeps them there
 * until the group is released as often as it was acquired. What is not there yet is copied now: groups
 * out of order cost time and nothing else.
 *
 * Stream order: what is queued on `stream` afterwards finds the parameters. The host does not wait.
 * Any thread; in a capture, one at a time. Capturable.
 * Errors: WB_ERR_OUT_OF_RANGE, WB_ERR_BUSY where a group that is acquired holds the slot, WB_ERR_DRIVER,
 * WB_ERR_FORKED.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `stream` is NULL or alive.
 */
wb_status wb_offloader_acquire_group(const wb_offloader *offloader,
                                     uint64_t group,
                                     void *stream,
                                     wb_error *error);

/**
 * Says that what is queued on `stream` now is the group's last use, and begins the copies that waited
 * for its slot. In a capture, the release of the step's last group makes `stream` wait for every copy.
 *
 * Stream order: the copies run behind what is queued. The host does not wait. Any thread; in a
 * capture, one at a time. Capturable.
 * Errors: WB_ERR_INVALID_ARGUMENT for a group that is not acquired, WB_ERR_OUT_OF_RANGE, WB_ERR_DRIVER,
 * WB_ERR_FORKED.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `stream` is NULL or alive.
 */
wb_status wb_offloader_release_group(const wb_offloader *offloader,
                                     uint64_t group,
                                     void *stream,
                                     wb_error *error);

/**
 * Makes `stream` wait for every copy that was queued. A capture of a part of a step ends with it; its
 * graphs are then replayed in the order in which they were captured.
 *
 * Any thread. Capturable. Errors: WB_ERR_DRIVER, WB_ERR_FORKED.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `stream` is NULL or alive.
 */
wb_status wb_offloader_join(const wb_offloader *offloader,
                            void *stream,
                            wb_error *error);

/**
 * Ends a step that was abandoned: no group is acquired any more, as if each had been released on
 * `stream`, and the first groups are on their way to their slots. Before a captured step is replayed
 * after an abandoned one, this is called.
 *
 * Any thread. Errors: WB_ERR_CAPTURING, WB_ERR_DRIVER, WB_ERR_FORKED.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `stream` is NULL or alive.
 */
wb_status wb_offloader_reset(const wb_offloader *offloader,
                             void *stream,
                             wb_error *error);

/**
 * Gets the index of the parameter with a name. An index is valid until a parameter is removed.
 *
 * Fails with WB_ERR_NOT_FOUND if no parameter has this name.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `name` ends in NUL; `index` is NULL or valid.
 */
wb_status wb_offloader_find_parameter(const wb_offloader *offloader,
                                      const char *name,
                                      uint64_t *index,
                                      wb_error *error);

/**
 * Fills `info` with the properties of parameter `index`.
 *
 * Fails with WB_ERR_OUT_OF_RANGE if there is no such parameter.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `info` is NULL or valid for the size that it begins with.
 */
wb_status wb_offloader_get_parameter_info(const wb_offloader *offloader,
                                          uint64_t index,
                                          wb_offloader_parameter_info *info,
                                          wb_error *error);

/**
 * Fills `infos`, an array of `count` structs, with the properties of the parameters from index `first` on.
 * Every struct begins with the same struct_size.
 *
 * Fails with WB_ERR_OUT_OF_RANGE, with nothing filled, if there are fewer parameters.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `infos` is NULL or valid for `count` structs.
 */
wb_status wb_offloader_get_parameter_infos(const wb_offloader *offloader,
                                           uint64_t first,
                                           uint64_t count,
                                           wb_offloader_parameter_info *infos,
                                           wb_error *error);

/**
 * A view of a parameter from the device: of host memory that it reads in place, of the slot, or of
 * what the offloader keeps on the device. What a slot's view shows is the parameter while its group
 * is acquired.
 *
 * Ownership: one reference; the view holds the memory, not the offloader. Any thread.
 * Errors: WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED for a resident parameter in memory of the engine's.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `name` ends in NUL; `view` is NULL or valid.
 */
wb_status wb_offloader_get_view(const wb_offloader *offloader,
                                uint64_t index,
                                wb_view **view,
                                wb_error *error);

/**
 * A view of the host's bytes of an offloaded parameter, to read them or to save them.
 *
 * Ownership: one reference; the view holds the memory, not the offloader. Any thread.
 * Errors: WB_ERR_NOT_FOUND, also for a resident parameter, of which the host holds no bytes.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `name` ends in NUL; `view` is NULL or valid.
 */
wb_status wb_offloader_get_host_view(const wb_offloader *offloader,
                                     uint64_t index,
                                     wb_view **view,
                                     wb_error *error);

/**
 * Gives a parameter new bytes, and a new type, shape or strides where `layout` says so. Where it is
 * kept stays as planned: offloaded bytes go to the host's memory, wherever `source` lies; they take the
 * old room where they fit, and otherwise other room, for which the old is given up first. Parameters
 * that are tied to it follow when the bytes are as many, and keep the old ones when they are not; in
 * memory of the engine's own each has the address that was given for it.
 *
 * `source` is an address in host or device memory from which the layout's offset counts. It may be one that
 * this offloader gave: the parameter's own bytes in another layout stay where they are, those of others
 * are copied on the host first. Slots are a source for parameters of the group that they are for.
 *
 * Stream order: waits on the host for what is queued on `stream` and for every use of the group that
 * was released. The source is not needed any more when the call returns, unless the parameter is
 * resident and the source lies on the device: then it stays there. Any thread.
 * Errors: WB_ERR_NOT_FOUND, WB_ERR_BUSY with nothing changed while its group is acquired, or where
 * its bytes become more or fewer, any group; WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET, WB_ERR_OVERFLOW and
 * WB_ERR_INVALID_ARGUMENT with nothing changed, WB_ERR_CAPTURING, and those of wb_buffer_alloc and of
 * bringing the bytes: the parameter, and what is tied to it, then has none until it is replaced again,
 * which places it as planned; what is kept in 8 bits is not to be used until then. Where the plan refuses NaN and infinity, WB_ERR_NOT_FINITE with
 * nothing changed.
 *
 * The caller promises:
 * The source's bytes may be read until the call returns, or as long as the offloader lives (see above).
 */
wb_status wb_offloader_replace(const wb_offloader *offloader,
                               const char *name,
                               const void *source,
                               const wb_layout *layout,
                               void *stream,
                               wb_error *error);

/**
 * Adds parameters, offloaded where the plan's selectors and budgets allow it, resident otherwise.
 *
 * Stream order: as for wb_offloader_new; sources: as for wb_offloader_replace. Any thread.
 * Errors, with nothing added: WB_ERR_INVALID_ARGUMENT for a name that is there already or a group that
 * is not, WB_ERR_BUDGET where it has to stay on the device and there is no room, WB_ERR_OVERFLOW,
 * WB_ERR_NOT_MAPPED where it is to be a view and views are off, WB_ERR_BUSY, WB_ERR_CAPTURING, and those
 * of wb_buffer_alloc and wb_device_alloc.
 *
 * The caller promises:
 * `parameter` is NULL or valid as for wb_plan_new; its source may be read until the call returns, and
 * as long as the offloader lives where it stays on the device.
 */
wb_status wb_offloader_add(const wb_offloader *offloader,
                           const wb_parameter *parameter,
                           void *stream,
                           wb_error *error);

/**
 * Removes a parameter; its room is free for others.
 *
 * Stream order: waits on the host for what is queued on `stream` and for every use of the group that
 * was released. Any thread. Errors: WB_ERR_NOT_FOUND, WB_ERR_BUSY, WB_ERR_CAPTURING; WB_ERR_DEVICE_MEMORY
 * where slots that were lost before are still not to be had: it is removed all the same.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `name` ends in NUL; `stream` is NULL or alive.
 */
wb_status wb_offloader_remove(const wb_offloader *offloader,
                              const char *name,
                              void *stream,
                              wb_error *error);

/**
 * Makes the offloader hold what an engine's parameters are now: `parameters` are all of them, each with
 * the address that the engine uses. An address that is not the one that this offloader gave, or a
 * layout that differs, is a replacement; a new name is added, a name that is missing removed. Parameters
 * may have been renamed or exchanged: sources in memory of the offloader, as for wb_offloader_replace,
 * are judged and copied aside before anything is changed. An empty tensor needs no address. At the end the room that was freed is closed up, as by wb_offloader_compact.
 *
 * Stream order, sources and errors: as for wb_offloader_replace, _add and _remove. Any thread. After an
 * error what was done before it stays done, and may have moved other parameters: ask for the addresses
 * again, then make the call again.
 *
 * The caller promises:
 * As for wb_offloader_replace, of every parameter.
 */
wb_status wb_offloader_reconcile(const wb_offloader *offloader,
                                 const wb_parameter *parameters,
                                 uint64_t count,
                                 void *stream,
                                 wb_offloader_reconcile_result *result,
                                 wb_error *error);

/**
 * Closes up the room that replaced and removed parameters have left, so that a group again moves as
 * one copy of no more bytes than it has. Addresses change.
 *
 * Stream order: waits on the host for what is queued on `stream` and for every use that was released.
 * Any thread. Errors: WB_ERR_BUSY, WB_ERR_CAPTURING, WB_ERR_DRIVER.
 *
 * The caller promises:
 * `offloader` is NULL or alive; `stream` is NULL or alive.
 */
wb_status wb_offloader_compact(const wb_offloader *offloader,
                               void *stream,
                               wb_error *error);

/**
 * Makes a quantizer, which takes at most `staging_bytes` bytes of device memory while it works (0 for
 * 128 MiB), and keeps what it took for the next tensor. On the host device it takes none.
 *
 * Ownership: one reference; the quantizer holds the device. Any thread.
 * Errors: those of wb_buffer_alloc and wb_device_alloc, WB_ERR_DRIVER.
 *
 * The caller promises:
 * `device` is NULL or alive; `quantizer` is NULL or valid.
 */
wb_status wb_quantizer_new(const wb_device *device,
                           uint64_t staging_bytes,
                           wb_quantizer **quantizer,
                           wb_error *error);

/**
 * Adds a reference. Any thread.
 *
 * The caller promises:
 * `quantizer` is NULL or alive.
 */
void wb_quantizer_retain(const wb_quantizer *quantizer);

/**
 * Drops a reference. Any thread.
 *
 * The caller promises:
 * `quantizer` is NULL or alive, and this reference is not used again.
 */
void wb_quantizer_release(wb_quantizer *quantizer);

/**
 * Answers how many scales a tensor has. Any thread.
 * Errors: WB_ERR_OUT_OF_RANGE, WB_ERR_NOT_SUPPORTED.
 *
 * The caller promises:
 * Pointers are NULL or valid.
 */
wb_status wb_quantizer_get_scales_info(const wb_layout *layout,
                                       const wb_quantize_options *options,
                                       wb_quantizer_scales_info *info,
                                       wb_error *error);

/**
 * Quantizes a tensor: each number is divided by its block's scale and rounded to the nearest 8-bit
 * number, to even of two. What is too large becomes the largest number, infinity too; NaN becomes
 * 0x7f. A scale is the block's largest finite size over the format's largest number, but for powers
 * of two the next of these from there on; a block of zeros has scale 1. Number times the rounded
 * inverse of the scale is what is rounded, on every device to the same bits.
 *
 * `source` is the address from which the layout's offset counts; float32, float16 or bfloat16, any
 * strides. `target` takes as many bytes as there are elements, without gaps; `scales` what
 * wb_quantizer_get_scales_info says. Each may be in host memory, best pinned, or in device memory.
 *
 * Stream order: the host waits until all is where it goes; what is queued on other streams is not
 * waited for. Any thread; one tensor at a time.
 * Errors: WB_ERR_BUSY from the progress function of the same quantizer, WB_ERR_STAGING, WB_ERR_UNALIGNED for numbers in device memory that do not lie at a multiple of
 * their size, WB_ERR_NOT_SUPPORTED for types, WB_ERR_NOT_FINITE, WB_ERR_CANCELLED,
 * WB_ERR_OUT_OF_RANGE, WB_ERR_OVERFLOW, WB_ERR_DRIVER, and those of wb_device_alloc. What was written
 * before an error is not to be used.
 *
 * The caller promises:
 * Handles are NULL or alive; the source may be read, target and scales written (scales read where
 * they are given); `result` is NULL or valid for the size that it begins with.
 */
wb_status wb_quantizer_quantize(const wb_quantizer *quantizer,
                                const void *source,
                                const wb_layout *layout,
                                void *target,
                                void *scales,
                                const wb_quantize_options *options,
                                wb_quantizer_result *result,
                                wb_error *error);

/**
 * The way back: each 8-bit number times its block's scale, rounded to the layout's type.
 *
 * `source` and `scales` are what wb_quantizer_quantize has written; `target` is the address from
 * which the layout's offset counts, in device memory, or in host memory without gaps. Otherwise as
 * wb_quantizer_quantize.
 *
 * The caller promises:
 * As for wb_quantizer_quantize, the other way round.
 */
wb_status wb_quantizer_dequantize(const wb_quantizer *quantizer,
                                  const void *source,
                                  const void *scales,
                                  void *target,
                                  const wb_layout *layout,
                                  const wb_quantize_options *options,
                                  wb_quantizer_result *result,
                                  wb_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WEIGHBRIDGE_H */

/*
 * Initial values: `wb_error error = WB_ERROR_INIT;`. Fields that are not named in them are 0.
 */
#define WB_ERROR_INIT {sizeof(wb_error), 0, 0, 0, {0}}
#define WB_DEVICE_OPTIONS_INIT                                                                     \
    {sizeof(wb_device_options), 0, 0, 0, NULL, 0, {0}}
#define WB_DEVICE_INFO_INIT                                                                        \
    {sizeof(wb_device_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}, {0}}
#define WB_DEVICE_STATS_INIT {sizeof(wb_device_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0}
#define WB_BUFFER_OPTIONS_INIT                                                                     \
    {sizeof(wb_buffer_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, {0}}
#define WB_BUFFER_INFO_INIT {sizeof(wb_buffer_info), 0, 0, 0, NULL, NULL, 0, 0, 0, 0, {0}}
#define WB_BUFFER_STATS_INIT {sizeof(wb_buffer_stats), 0, 0, 0, 0, 0}
#define WB_LAYOUT_INIT {sizeof(wb_layout), 0, 0, 0, NULL, NULL, 0}
#define WB_VIEW_INFO_INIT {sizeof(wb_view_info), 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0}
#define WB_SAFETENSORS_TENSOR_INFO_INIT {sizeof(wb_safetensors_tensor_info), 0, 0, 0, NULL, NULL, 0, 0}
#define WB_PARAMETER_INIT {sizeof(wb_parameter), 0, NULL, NULL, NULL, NULL, 0, 0, 0, {0}}
#define WB_PLAN_OPTIONS_INIT                                                                       \
    {sizeof(wb_plan_options), 0, 0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0, NULL, NULL, 0, 0, 0.0, {0}}
#define WB_PLAN_INFO_INIT {sizeof(wb_plan_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0}
#define WB_PLAN_PARAMETER_INFO_INIT {sizeof(wb_plan_parameter_info), 0, 0, 0, NULL, NULL, 0, 0, 0}
#define WB_PLAN_GROUP_INFO_INIT {sizeof(wb_plan_group_info), 0, NULL, 0, 0}
#define WB_OFFLOADER_PARAMETER_INFO_INIT {sizeof(wb_offloader_parameter_info), 0, 0, 0, NULL, 0, NULL, NULL, 0}
#define WB_OFFLOADER_STATS_INIT                                                                    \
    {sizeof(wb_offloader_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0}
#define WB_QUANTIZE_OPTIONS_INIT                                                                   \
    {sizeof(wb_quantize_options), 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, {0}}
#define WB_QUANTIZER_SCALES_INFO_INIT {sizeof(wb_quantizer_scales_info), 0, 0, 0, 0, 0}
#define WB_QUANTIZER_RESULT_INIT {sizeof(wb_quantizer_result), 0, 0, 0}
#define WB_OFFLOADER_RECONCILE_RESULT_INIT {sizeof(wb_offloader_reconcile_result), 0, 0, 0, 0, 0}
