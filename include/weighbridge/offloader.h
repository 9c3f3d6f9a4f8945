/* Offloaders: committed plans, which keep parameters and transfer them.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_OFFLOADER_H
#define WEIGHBRIDGE_OFFLOADER_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "dtype.h"
#include "error.h"
#include "parameter.h"
#include "plan.h"
#include "status.h"
#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * A committed plan: it keeps the parameters of a model within a budget and transfers them. An
 * engine uses it so:
 *
 * 1. Describe. One wb_parameter for each weight: its name, its layout, the address of its bytes,
 *    if there are any yet, and its group: the weights that the engine uses together, such as a
 *    layer. Weights that share bytes are found by their addresses, or by `storage_id` if they have
 *    none.
 * 2. Plan. wb_plan_new takes one budget and decides which weights leave the device and how they
 *    are transferred; nothing is allocated. With `quantize`, matrices are planned and kept as FP8
 *    values, with their scales as parameters of their own. wb_plan_to_json prints the plan, with a
 *    reason for every weight. A plan that is certainly a mistake (nothing is offloaded, a selector
 *    matches nothing, slots do not fit) is an error.
 * 3. Commit. wb_offloader_new allocates the host memory and the slots and copies the weights. The
 *    engine then frees its own copies of offloaded weights, and gets each address from
 *    wb_offloader_get_parameter_infos, or a tensor that holds its memory from
 *    wb_offloader_get_view.
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
 * The host never waits in this loop. Meanwhile the copies of the next layers run, and at the end
 * those of the next step's first layers. Groups may be acquired in any order and on any stream; an
 * order other than the plan's costs time only. Groups that share slots cannot be acquired at the
 * same time. Groups of prefetched parameters share none with the next `wb_plan_info.depth` - 1 in
 * the plan's order; all groups of on-demand parameters use the same slots. wb_offloader_reset ends
 * a step that failed half way.
 *
 * CUDA graphs. Capture the loop unchanged, on one stream from the first group to the last, and
 * replay it as often as needed, also between steps that are not captured. A step may also be made
 * of several graphs, between calls that are not captured or with the calls in them: see
 * wb_offloader_begin_step. Addresses are stable until a parameter is replaced, added or
 * removed or wb_offloader_compact is called. wb_offloader_get_generation tells whether they have
 * changed; graphs of an older generation must be captured again.
 *
 * Weights that change. wb_offloader_replace gives a weight new bytes, another type or another
 * shape, and keeps its placement. If quantization or a plugin replaced weights by itself,
 * wb_offloader_reconcile takes the whole list again and finds by address which ones differ.
 *
 * A budget that changes. With `fixed_addresses` in the plan's options every unit has an address
 * range for life, behind which its memory changes, so tensors, compiled code and graphs stay
 * valid:
 *
 * ```c
 * wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
 * to.budget_kind = WB_BUDGET_DEVICE_BYTES;
 * to.budget_bytes = 40ull << 30; // more or less than before; 0 to sleep
 * wb_offloader_resize(offloader, &to, stream, &progress, &error);
 * while (progress.pending_units > 0) { // or wb_offloader_resize_wait
 *     run_step(stream);
 *     wb_offloader_resize_advance(offloader, stream, &progress, &error);
 * }
 * ```
 *
 * Plan for the least that the model may need, so that all that may leave has slots, and resize
 * upwards after the commit. Resize before memory is given to a KV cache, and after it was freed:
 * units that leave do so before others return, and no budget, the old or the new one, is exceeded.
 * A unit moves when its groups are released and the work that used it is done; memory is free for
 * everyone when the resize is done. A unit that was resident when a graph was captured is read in
 * host memory after it has left, unless `graphs_dropped` says that no graph is launched any more.
 * A failed call is repeated, and goes on. A sleeping offloader holds no device memory, and wakes
 * by a resize. Compressed parameters are decoded at their addresses, in each step or, resident,
 * once. Offloaders of one device share a budget by wb_arbiter.
 */
typedef struct wb_offloader wb_offloader;

/**
 * Commits a plan: allocates host memory for offloaded parameters and device memory for slots, and
 * copies every parameter that has a source to where it is kept. `options` are for the host memory,
 * and receive the progress of the call.
 *
 * Parameters have the indexes of the plan. The sources of offloaded parameters, and all sources in
 * host memory, are not needed after the call; those that stay where they are, with
 * WB_HOST_STORE_SOURCE or WB_HOST_STORE_COMPRESSED, are in buffers that the offloader keeps. A
 * resident parameter in device memory is not copied: the memory stays the engine's and must
 * outlive the offloader.
 *
 * Stream order: waits on the host for the work queued on `stream`. Fails with WB_ERR_NOT_MAPPED if
 * the plan needs zero-copy and the host memory is not mapped, with WB_ERR_NOT_FINITE if the plan
 * rejects NaN and infinity, with WB_ERR_DAMAGED for a compressed source that is
 * (wb_plan_options.verify_compressed), and as wb_buffer_alloc and wb_device_alloc do.
 */
wb_status wb_offloader_new(const wb_plan *plan, void *stream, const wb_buffer_options *options,
                           wb_offloader **offloader, wb_error *error);

/** Adds a reference. */
void wb_offloader_retain(const wb_offloader *offloader);

/**
 * Drops a reference. The last one waits for the queued copies and for the uses of released groups,
 * then frees the memory, except what views hold. Graphs that captured calls of the offloader must
 * not be launched any more.
 */
void wb_offloader_release(wb_offloader *offloader);

/**
 * Gets the index of the group with a name: groups count from 0 in the order in which the plan's
 * parameters first name them. Fails with WB_ERR_NOT_FOUND.
 */
wb_status wb_offloader_find_group(const wb_offloader *offloader, const char *name, uint64_t *group,
                                  wb_error *error);

/**
 * Makes `stream` wait until the group's parameters are at their addresses, and keeps them there
 * until the group is released as often as it was acquired. Copies of parameters that are not in
 * place yet are queued now: an unexpected order of groups costs time only.
 *
 * A captured step can be replayed after any other step, since no step relies on a copy of another
 * once one was captured. Eager steps are then to begin with wb_offloader_begin_step: without it
 * they prefetch nothing, because a replay may come before each call. The stream of a replay must
 * be ordered after the eager steps of other streams.
 *
 * Stream order: work queued on `stream` after the call finds the parameters; the host does not
 * wait. Capturable; one thread at a time in a capture. Fails with WB_ERR_OUT_OF_RANGE, with
 * WB_ERR_BUSY if an acquired group occupies the slot, and, like every call of a step, with
 * WB_ERR_CAPTURING while a step is captured on another stream, before anything is queued, and with
 * WB_ERR_DEVICE_MEMORY if a failed change left no slots: see wb_offloader_compact. Outside of
 * captures it fails with WB_ERR_CAPTURING if this thread or `stream` has captured a step since its
 * eager step began, and the group is to be copied: replays could not repeat that between the parts
 * of a captured step. See wb_offloader_begin_step.
 */
wb_status wb_offloader_acquire_group(const wb_offloader *offloader, uint64_t group, void *stream,
                                     wb_error *error);

/**
 * As wb_offloader_acquire_group; but while an acquired group of another thread and another stream
 * occupies the slot, the host waits until it is released, for at most `timeout_ms` milliseconds.
 *
 * A thread never waits for what it has acquired itself, nor for what its stream has, nor in a
 * capture: these fail with WB_ERR_BUSY at once. Two threads that each keep a group which the other
 * waits for wait until a timeout: release before waiting, or acquire in the order of the plan.
 * Waiting threads are served in no particular order. Fails with WB_ERR_TIMEOUT, which names the
 * groups in the way.
 */
wb_status wb_offloader_acquire_group_within(const wb_offloader *offloader, uint64_t group,
                                            void *stream, uint64_t timeout_ms, wb_error *error);

/**
 * Ends a use of the group: the work queued on `stream` now is the last one, and the copies that
 * wait for its slot follow. In a capture, the release of the last group that a step is expected to
 * acquire makes `stream` wait for every copy. `stream` may be another one than that of the
 * acquire. A group that was acquired in a capture is released in one of the same step, and any
 * other outside of captures, since replays repeat captured calls and no others.
 *
 * Stream order: the copies run after the work queued on `stream`; the host does not wait.
 * Capturable; one thread at a time in a capture. Fails with WB_ERR_OUT_OF_RANGE, and with
 * WB_ERR_INVALID_ARGUMENT for a group that is not acquired, or not in this way.
 */
wb_status wb_offloader_release_group(const wb_offloader *offloader, uint64_t group, void *stream,
                                     wb_error *error);

/**
 * Tells which groups the coming steps acquire, in their order, each once, so that prefetching
 * follows it: a step that ends early, skips groups or runs backwards. Holds for every stream until
 * the next call; with a `count` of 0, steps acquire all groups in the order of the plan again. The
 * array is read before the call returns.
 *
 * A group that is acquired against it is copied when it is acquired. Call it between steps; a call
 * within one changes what is prefetched from then on. Groups that are more than the depth apart in
 * the plan may share a slot, and are then copied one after the other. Fails with
 * WB_ERR_OUT_OF_RANGE, and with WB_ERR_INVALID_ARGUMENT for a group that is named twice.
 */
wb_status wb_offloader_expect(const wb_offloader *offloader, const uint64_t *groups, uint64_t count,
                              wb_error *error);

/**
 * Makes `stream` wait for every queued copy. The capture of a part of a step ends with it: see
 * wb_offloader_begin_step. In a capture without other calls of a step it does nothing, so that an
 * engine may end each of its captures with it. Capturable.
 */
wb_status wb_offloader_join(const wb_offloader *offloader, void *stream, wb_error *error);

/**
 * Begins a step of `stream` that relies on no copy that was queued before: what the step acquires
 * is copied again, after the work queued on `stream`, so that it reads what was written to host
 * memory in the meantime. A group that is acquired keeps its copy. Steps of other streams go on.
 *
 * From the first call on, every step must begin with it, and the last groups of a step prefetch
 * nothing for the next. A step may use several streams; one that has begun no step takes part in
 * the one that was begun last. A replay is a step too: it may come before this call, and after the
 * step's last release.
 *
 * Capturable. A step that is captured in several parts begins with it before or in the first
 * capture, and each capture ends with wb_offloader_join. A part then relies on the copies of those
 * before it, so that each group is copied once, and a group may be acquired in one part and
 * released in a later one; kernels between the parts may use it as well. The next call of this
 * function begins another step, and so does, for the next capture, a copy that is queued outside
 * of captures, wb_offloader_reset, or a change of the parameters.
 *
 * The graphs of the parts must be replayed in the order in which they were captured, each once,
 * with no other step between them and streams ordered accordingly; any other step may follow the
 * last one. A part that is left out, repeated or replayed out of turn reads slots that hold other
 * groups, and nothing can notice it: let a part that is to be replayed by itself begin a step of
 * its own. After a capture that has failed, call wb_offloader_reset_all and capture all parts
 * again.
 */
wb_status wb_offloader_begin_step(const wb_offloader *offloader, void *stream, wb_error *error);

/**
 * Ends an abandoned step of `stream`: every group that was acquired on it counts as released on
 * it. Steps of other streams go on. Fails with WB_ERR_CAPTURING.
 */
wb_status wb_offloader_reset(const wb_offloader *offloader, void *stream, wb_error *error);

/**
 * Ends the steps of all streams: every group counts as released on `stream`, which must be
 * ordered after the work that uses them. Also releases groups of streams that are gone. Fails with
 * WB_ERR_CAPTURING.
 */
wb_status wb_offloader_reset_all(const wb_offloader *offloader, void *stream, wb_error *error);

/** Where wb_offloader_resize is to bring an offloader. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** What `budget_bytes` limits; required. */
    wb_budget_kind budget_kind;
    /**
     * With WB_BUDGET_DEVICE_BYTES, device memory that the offloader may hold; 0 puts it to sleep.
     * With WB_BUDGET_OFFLOAD_BYTES, bytes of parameters that are not resident, in whole pieces as
     * on the device.
     */
    uint64_t budget_bytes;
    /**
     * 1 if no graph that has captured a step is launched any more: units that leave the device may
     * then use slots, as after a commit. 0 keeps every graph right: a unit that a graph does not
     * copy, as it was resident when the graph was captured, is read by the device in host memory
     * from now on.
     */
    uint32_t graphs_dropped;
    /** Must be zero. */
    uint32_t reserved0;
    /** Must be zero. */
    uint64_t reserved[3];
} wb_offloader_resize_options;
#define WB_OFFLOADER_RESIZE_OPTIONS_INIT {sizeof(wb_offloader_resize_options), 0, 0, 0, 0, {0}}

/** How far a resize is, and what the offloader holds. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /**
     * Units that are not where they are to be, and expert caches without the slots that they are
     * to have; 0 once the resize is done.
     */
    uint64_t pending_units;
    /** Bytes that these take on the device when they are there. */
    uint64_t pending_bytes;
    /**
     * Bytes of device memory of resident parameters, of slots and of expert caches, in whole
     * pieces.
     */
    uint64_t device_bytes;
    /**
     * Bytes of host memory beside the offloader's own: of parameters that are read in place, in
     * pieces or since they left the device, and of copies that resident ones keep.
     */
    uint64_t host_bytes;
} wb_offloader_resize_progress;
#define WB_OFFLOADER_RESIZE_PROGRESS_INIT {sizeof(wb_offloader_resize_progress), 0, 0, 0, 0, 0}

/**
 * Begins to hold at most `budget_bytes` bytes of device memory, more or less than before, or to
 * offload at most that many. No address of a parameter changes, and every graph stays valid. Needs
 * a plan with `fixed_addresses`.
 *
 * An engine that may need memory back plans for the least that it can spare, so that all that may
 * leave has slots, and resizes upwards after the commit. Under the plan's own budget, parameters
 * that were resident in the plan leave, to host memory that the device reads in place. They leave
 * in whole units, spread evenly over the groups, and those without slots last; what is in pieces
 * (see wb_offloader_prefer) leaves and returns piece by piece, the coldest first and the hottest
 * first, so that a budget is met to the piece. Nothing returns before all has left that is to
 * leave, so that no budget, the old or the new, is exceeded. With 0 bytes of device memory the
 * offloader sleeps: slots are freed too, and calls of a step fail with WB_ERR_BUSY until a resize
 * to more has put memory behind every address: wait for it before the first step. No graph may be
 * launched meanwhile.
 *
 * Expert caches of the offloader share the budget, as in the plan: they get its `expert_bytes`, as
 * far as that fits, or else what all units and slots leave, but never less than slots for every
 * call that a graph has captured, for which units leave. Several caches share that by the bytes of
 * their experts, whatever they were created with; WB_BUDGET_OFFLOAD_BYTES leaves them what they
 * had. Slots keep their addresses, and calls see their number on the device, also in graphs.
 * Experts in slots that go are evicted first. That happens when the groups of the experts are
 * released, calls of the cache that were queued are done, and so is the work on `stream`, for
 * which the host waits: kernels that read slots are between the acquire and the release of their
 * group, or before the resize on its stream. In sleep the caches hold nothing, and calls of them
 * fail with WB_ERR_BUSY; afterwards they are empty.
 *
 * The call does what is possible at once and returns. A unit moves when none of its groups is
 * acquired and the work that used it is done: wb_offloader_resize_advance goes on, between steps,
 * or wb_offloader_resize_wait. A step may run in between. Where steps have been captured, the host
 * waits for the work queued on `stream`, and the caller guarantees that no graph is in flight on
 * another, since no one else knows of replays. To sleep, the host waits for all uses of released
 * groups. Freed memory is free for everyone at once.
 *
 * After an error the offloader holds what `wb_offloader_resize_advance` says, and a repeated call
 * goes on. If it failed while memory was exchanged, calls of a step fail with WB_ERR_BUSY, and no
 * graph may be launched, until one has succeeded. Fails with WB_ERR_NOT_SUPPORTED without fixed
 * addresses, WB_ERR_BUDGET if the slots, or what graphs need of caches, do not fit,
 * WB_ERR_CAPTURING in a capture, WB_ERR_BUSY if an arbiter shares its memory, and
 * WB_ERR_DEVICE_MEMORY or WB_ERR_OUT_OF_MEMORY if there is no memory to move to. Parameters cannot
 * be replaced while a resize is in progress.
 */
wb_status wb_offloader_resize(const wb_offloader *offloader,
                              const wb_offloader_resize_options *options, void *stream,
                              wb_offloader_resize_progress *progress, wb_error *error);

/**
 * Goes on with a resize as far as is possible at once, and fills `progress`; without one it only
 * does that. Stream order and errors are those of wb_offloader_resize.
 */
wb_status wb_offloader_resize_advance(const wb_offloader *offloader, void *stream,
                                      wb_offloader_resize_progress *progress, wb_error *error);

/**
 * Goes on with a resize on the host until it is done, for at most `timeout_ms` milliseconds. Other
 * threads may run steps meanwhile. Fails with WB_ERR_TIMEOUT, such as while a group stays
 * acquired: the resize can be continued. Other errors, and stream order, are those of
 * wb_offloader_resize.
 */
wb_status wb_offloader_resize_wait(const wb_offloader *offloader, void *stream, uint64_t timeout_ms,
                                   wb_offloader_resize_progress *progress, wb_error *error);

/** What wb_offloader_rebalance has done, and what is left to do. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Bytes whose copies the call has queued, to host memory and to the device. */
    uint64_t moved_bytes;
    /**
     * Bytes of pieces that are not where they are to be, copies in flight included; 0 once the
     * hottest pieces are on the device, and any resize is done.
     */
    uint64_t pending_bytes;
    /**
     * Bytes of device memory of resident parameters, of slots and of expert caches, in whole
     * pieces.
     */
    uint64_t device_bytes;
    /** Bytes of host memory beside the offloader's own, as in wb_offloader_resize_progress. */
    uint64_t host_bytes;
} wb_offloader_rebalance_progress;
#define WB_OFFLOADER_REBALANCE_PROGRESS_INIT \
    {sizeof(wb_offloader_rebalance_progress), 0, 0, 0, 0, 0}

/**
 * Notes how often a step reads `bytes` bytes of parameter `index`, from `offset` on, which counts
 * from its lowest byte. `weight` is that number, such as 0.1 for an expert that a tenth of the
 * steps use, or 3 for rows that a step looks up three times; 0 for bytes that are not read any
 * more. The last call for a byte counts; before any call, bytes of dense parameters count once and
 * others not at all.
 *
 * With fixed addresses, parameters that are read in place (transfer mode zero-copy), or would be
 * if they left the device, are in pieces of `wb_device_info.address_granularity` bytes, each on
 * the device or in host memory: all of those of a group that have at least one piece together. The
 * heat of a piece is the sum, over its bytes, of their weights. wb_offloader_rebalance and
 * wb_offloader_resize keep the hottest pieces; this call moves nothing, and costs the time of a
 * look-up for each piece of the range.
 *
 * Fails with WB_ERR_NOT_SUPPORTED for a parameter that is not in pieces, WB_ERR_OUT_OF_RANGE if
 * there is no such parameter or it has fewer bytes, and WB_ERR_INVALID_ARGUMENT for a weight that
 * is negative or not finite.
 */
wb_status wb_offloader_prefer(const wb_offloader *offloader, uint64_t index, uint64_t offset,
                              uint64_t bytes, double weight, wb_error *error);

/**
 * Moves the hottest pieces to the device and the coldest to host memory, as wb_offloader_prefer
 * has them, while the offloader holds as much device memory as before. For calls between steps:
 * each queues copies of at most `max_bytes` bytes, in both directions together, finishes those of
 * earlier calls that are made, and returns; of pieces that are as hot as one another none moves.
 * Cold pieces leave first, so that no more device memory is held at any moment; as many hot ones
 * come in a later call. `max_bytes` below one piece moves nothing, and only fills `progress`. A
 * resize that is in progress is continued first, within `max_bytes`.
 *
 * Addresses, views and graphs stay valid, and bytes are those of before. When a piece moves,
 * stream order and errors are as in wb_offloader_resize; wb_offloader_resize_wait ends what a call
 * has begun, and parameters are not replaced before. An offloader of an arbiter is rebalanced
 * likewise.
 */
wb_status wb_offloader_rebalance(const wb_offloader *offloader, uint64_t max_bytes, void *stream,
                                 wb_offloader_rebalance_progress *progress, wb_error *error);

/**
 * The parameter's bytes are behind its address at all times, not only while its group is acquired.
 * Steps copy nothing there, so what an engine changes there between steps counts.
 */
#define WB_ADDRESS_OWN 1
/**
 * A graph that was captured may copy the parameter's bytes from host memory to its address. With
 * WB_ADDRESS_OWN they are in both places, and change only by wb_offloader_replace.
 */
#define WB_ADDRESS_COPIED_BY_GRAPHS 2
/**
 * A resize or a rebalance that is not done moves the parameter, or some of it, by a copy of its
 * bytes that is being made or exists already. What is changed in place meanwhile is not where it
 * is afterwards.
 */
#define WB_ADDRESS_MOVING 4

/** Current state of a parameter. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** WB_PLACEMENT_RESIDENT or WB_PLACEMENT_OFFLOADED. */
    wb_placement placement;
    /** How it is transferred; WB_TRANSFER_MODE_AUTO if it is resident. */
    wb_transfer_mode transfer_mode;
    /** 1 if the memory at `device_address` belongs to the offloader, 0 if it is the engine's. */
    int32_t owned;
    /** The name; valid until the parameter is removed. */
    const char *name;
    /** Index of the group. */
    uint64_t group;
    /**
     * Device address of the first element. A prefetched or on-demand parameter is there while its
     * group is acquired. NULL if there are no bytes yet.
     */
    void *device_address;
    /**
     * Host address of the first element; NULL if it is resident, in pieces, or compressed in host
     * memory.
     */
    void *host_address;
    /** Bytes from the lowest element to the end of the highest. */
    uint64_t span_bytes;
    /** The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one that its layout gave. */
    const char *dtype_name;
    /**
     * `ndim` sizes in elements; the numbers stay valid while the offloader is, and are those of
     * the time of the call.
     */
    const int64_t *shape;
    /** `ndim` strides in elements, valid as `shape` is. */
    const int64_t *strides;
    /** The element type. */
    wb_dtype dtype;
    /** Number of dimensions. */
    int32_t ndim;
    /** Elements of a block of a WB_DTYPE_OPAQUE, otherwise 0. */
    uint32_t block_elements;
    /** Bytes of a block of a WB_DTYPE_OPAQUE, otherwise 0. */
    uint32_t block_bytes;
    /**
     * Why it could not be kept as the plan's `host_store` asks, in the buffer of its source or as
     * a file has it compressed; otherwise empty. Valid while the offloader is.
     */
    const char *host_store_reason;
    /** WB_HOST_STORE_SOURCE if its host memory is the buffer of its source. */
    wb_host_store host_store;
    /** WB_ADDRESS_* bits: what is behind `device_address`. */
    uint32_t address_state;
    /**
     * Bytes that it is compressed to in host memory, with those that it is tied to; 0 if it is
     * not.
     */
    uint64_t encoded_bytes;
    /**
     * Bytes of it that are on the device now, in memory of its own or of the engine, and not in a
     * slot. Of a parameter in pieces (wb_offloader_prefer) any number, at a placement that is
     * offloaded if there are fewer than `span_bytes`.
     */
    uint64_t resident_bytes;
    /**
     * Bytes of device memory in which the device keeps it compressed, a multiple of 256, with
     * those that it is tied to; 0 if it is decoded from host memory, or not compressed.
     */
    uint64_t device_encoded_bytes;
    /**
     * Why that is 0 though the plan has it otherwise: its compressed bytes, or those of a
     * replacement, are more than there is device memory for; otherwise empty. Valid as long as the
     * library is loaded.
     */
    const char *device_encoded_reason;
} wb_offloader_parameter_info;
#define WB_OFFLOADER_PARAMETER_INFO_INIT \
    {sizeof(wb_offloader_parameter_info), 0, 0, 0, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL, 0, 0, \
    0, 0, NULL, 0, 0, 0, 0, 0, NULL}

/** What wb_offloader_reconcile changed. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Parameters whose bytes were replaced. */
    uint64_t replaced;
    /** Parameters that were added. */
    uint64_t added;
    /** Parameters that were removed. */
    uint64_t removed;
    /** Parameters that did not change. */
    uint64_t kept;
} wb_offloader_reconcile_result;
#define WB_OFFLOADER_RECONCILE_RESULT_INIT {sizeof(wb_offloader_reconcile_result), 0, 0, 0, 0, 0}

/**
 * Gets the index of the parameter with a name, which is valid until a parameter is removed. Fails
 * with WB_ERR_NOT_FOUND.
 */
wb_status wb_offloader_find_parameter(const wb_offloader *offloader, const char *name,
                                      uint64_t *index, wb_error *error);

/** Fills `info` with the current state of parameter `index`. Fails with WB_ERR_OUT_OF_RANGE. */
wb_status wb_offloader_get_parameter_info(const wb_offloader *offloader, uint64_t index,
                                          wb_offloader_parameter_info *info, wb_error *error);

/**
 * Fills an array of `count` structs, each initialized, with the state of the parameters from index
 * `first` on, all of the same moment. Fails with WB_ERR_OUT_OF_RANGE, with nothing filled and no
 * struct but the first read, if there are fewer.
 */
wb_status wb_offloader_get_parameter_infos(const wb_offloader *offloader, uint64_t first,
                                           uint64_t count, wb_offloader_parameter_info *infos,
                                           wb_error *error);

/**
 * Creates a view of a parameter for the device: of host memory that it reads in place, of the
 * slot, or of the offloader's device memory. A slot holds the parameter while its group is
 * acquired. The view holds the memory, not the offloader.
 *
 * Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_NOT_SUPPORTED for a parameter in the engine's own
 * memory, and with WB_ERR_NOT_FOUND for one without bytes.
 */
wb_status wb_offloader_get_view(const wb_offloader *offloader, uint64_t index, wb_view **view,
                                wb_error *error);

/**
 * Creates a view of the host memory of an offloaded parameter, to read it or to save it. The view
 * holds the memory, not the offloader. Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_NOT_FOUND for a
 * resident parameter or one in pieces, and with WB_ERR_NOT_SUPPORTED for one that is compressed
 * there, which wb_offloader_read_parameter reads.
 */
wb_status wb_offloader_get_host_view(const wb_offloader *offloader, uint64_t index, wb_view **view,
                                     wb_error *error);

/**
 * Creates a view of the host memory of an offloaded parameter for the device, whatever its
 * transfer mode: kernels read the parameter over the link, whether or not its group is acquired.
 * The view holds the memory, not the offloader.
 *
 * Fails with WB_ERR_OUT_OF_RANGE, with WB_ERR_NOT_FOUND for a resident parameter or one in pieces,
 * with WB_ERR_NOT_SUPPORTED for one that is compressed, and with WB_ERR_NOT_MAPPED if the device
 * cannot access the memory.
 */
wb_status wb_offloader_get_zero_copy_view(const wb_offloader *offloader, uint64_t index,
                                          wb_view **view, wb_error *error);

/**
 * Copies the bytes of an offloaded parameter, from its lowest element to the end of its highest,
 * to `bytes` bytes of host memory at `target`: as they are in its slot, also if they are
 * compressed in host memory. `bytes` is its `span_bytes`.
 *
 * Fails with WB_ERR_OUT_OF_RANGE for another index or other `bytes`, with WB_ERR_NOT_FOUND for a
 * resident parameter or one without bytes, and with WB_ERR_DAMAGED if compressed bytes were
 * overwritten.
 *
 * It waits while another call changes parameters.
 */
wb_status wb_offloader_read_parameter(const wb_offloader *offloader, uint64_t index, void *target,
                                      uint64_t bytes, wb_error *error);

/**
 * Gives a parameter new bytes, and the type, shape and strides of `layout`, whose offset counts
 * from `source` in host or device memory. The planned placement stays: offloaded bytes are copied
 * to host memory, in place if they fit, otherwise into new memory, for which the old is freed
 * first. Parameters tied to it follow if the number of bytes is the same and otherwise keep their
 * bytes. A resident one in memory of the engine keeps its own address and bytes.
 *
 * `source` may be an address that this offloader gave: a new layout of the parameter's own bytes
 * does not move them, and bytes of other parameters are first copied on the host. A slot is a
 * source for parameters of its group only.
 *
 * Stream order: waits on the host for the work queued on `stream` and for every use of the group
 * that was released. The source is not needed after the call, unless the parameter is resident and
 * the source is device memory, which then must outlive the offloader.
 *
 * Fails, with nothing changed, with WB_ERR_NOT_FOUND, WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET,
 * WB_ERR_OVERFLOW, WB_ERR_CAPTURING, with WB_ERR_BUSY while its group is acquired (any group, if
 * the number of bytes changes), and with WB_ERR_NOT_FINITE if the plan rejects NaN and infinity.
 * Fails also as wb_buffer_alloc and copies do: then the parameter, and those tied to it, have no
 * bytes, and quantized values must not be used, until it is replaced again.
 */
wb_status wb_offloader_replace(const wb_offloader *offloader, const char *name, const void *source,
                               const wb_layout *layout, void *stream, wb_error *error);

/**
 * Adds a parameter to an existing group: offloaded if the group has an offloaded parameter that no
 * other group uses, and the plan's selectors and budget allow it; otherwise resident. It is not
 * quantized. The source, which may be NULL, and the stream are as for wb_offloader_replace; a
 * compressed one (wb_parameter.encoded_bytes) is decoded first.
 *
 * Fails, with nothing added, with WB_ERR_DAMAGED for a compressed source that is, with
 * WB_ERR_INVALID_ARGUMENT for an existing name or an unknown group, with WB_ERR_BUDGET if it must
 * stay on the device and does not fit, with WB_ERR_NOT_MAPPED for zero-copy without views, with
 * WB_ERR_OVERFLOW, WB_ERR_BUSY or WB_ERR_CAPTURING, and as wb_buffer_alloc and wb_device_alloc do.
 */
wb_status wb_offloader_add(const wb_offloader *offloader, const wb_parameter *parameter,
                           void *stream, wb_error *error);

/**
 * Removes a parameter; others can use its space.
 *
 * Stream order: as wb_offloader_replace. Fails with WB_ERR_NOT_FOUND, WB_ERR_BUSY or
 * WB_ERR_CAPTURING. The parameter is removed also if the call fails with WB_ERR_DEVICE_MEMORY:
 * slots that an earlier call lost are still missing.
 */
wb_status wb_offloader_remove(const wb_offloader *offloader, const char *name, void *stream,
                              wb_error *error);

/**
 * Makes the offloader follow an engine's parameters: `parameters` are all of them, each with the
 * address that the engine uses. One whose address is not the one that this offloader gave, or
 * whose layout differs, is replaced; a new name is added, a missing one removed. Parameters may be
 * renamed, or exchange their names: sources in memory of the offloader are checked, and copied,
 * before anything changes. One without a source keeps its bytes, and takes a layout of as many
 * bytes; a layout of none empties it. If something was replaced or removed, gaps are closed as by
 * wb_offloader_compact. All parameters get their slots at once, at the end.
 *
 * Threads: no other call changes parameters between the comparison and the last change.
 *
 * Sources, stream order and errors are those of wb_offloader_replace, _add and _remove. A
 * compressed source is that of its parameter still if the parameter stays in it; otherwise it is
 * decoded. Fails also, with nothing changed, with WB_ERR_DAMAGED for the header of such a source,
 * with WB_ERR_INVALID_ARGUMENT for a name that is given twice, for a group that the plan does not
 * have, and for another number of bytes without a source. After another error the changes made so
 * far stay, and other parameters may have moved: get the addresses again, and repeat the call.
 */
wb_status wb_offloader_reconcile(const wb_offloader *offloader, const wb_parameter *parameters,
                                 uint64_t count, void *stream,
                                 wb_offloader_reconcile_result *result, wb_error *error);

/**
 * Closes the gaps that replaced and removed parameters left, so that a group moves as one copy of
 * its own bytes again, and packs all slots again, in a deeper ring if one fits now. Addresses
 * change, unless there are no gaps and slots are packed like that already. Also gives an offloader
 * its slots again that lost them when a change failed with WB_ERR_DEVICE_MEMORY.
 *
 * Stream order: waits on the host for the work queued on `stream` and for every use that was
 * released. Fails with WB_ERR_BUSY, WB_ERR_CAPTURING or WB_ERR_DEVICE_MEMORY.
 */
wb_status wb_offloader_compact(const wb_offloader *offloader, void *stream, wb_error *error);

/**
 * Memory and transfers of an offloader. Tied parameters count once; replayed graphs do not count
 * as transfers.
 */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Number of parameters; their indexes are smaller. */
    uint64_t parameters;
    /**
     * Bytes of offloaded parameters in host memory, filled or not; none of a parameter whose
     * replacement failed.
     */
    uint64_t offloaded_bytes;
    /** Bytes of host memory asked for them, with padding and free space. */
    uint64_t asked_bytes;
    /** Bytes of address space mapped for that. */
    uint64_t mapped_bytes;
    /** Bytes of that pinned, as the driver or the kernel counts them. */
    uint64_t pinned_bytes;
    /**
     * Bytes of resident parameters, without those that were given no source yet; of parameters in
     * pieces those that are on the device. Together with `offloaded_bytes` it is the
     * `payload_bytes` of the plan once each has one.
     */
    uint64_t resident_bytes;
    /**
     * Bytes of device memory for slots, and for the windows through which compressed bytes pass to
     * them.
     */
    uint64_t slot_bytes;
    /** Bytes of offloaded parameters that the device reads in place. */
    uint64_t view_bytes;
    /**
     * Bytes of offloaded parameters that were given no source yet: zeros, or what was written
     * through a host view. Steps copy them like others, and `offloaded_bytes` counts them; a
     * replacement ends it.
     */
    uint64_t unfilled_bytes;
    /**
     * Bytes of staging memory: of the pinned buffer that pageable memory is staged through, and
     * of host and device memory that replacements of quantized parameters use.
     */
    uint64_t staging_bytes;
    /** Peak of `mapped_bytes`. */
    uint64_t peak_mapped_bytes;
    /** Peak of `slot_bytes`. */
    uint64_t peak_slot_bytes;
    /** Bytes that crossed the link to slots. */
    uint64_t moved_bytes;
    /** Copies into slots. */
    uint64_t copies;
    /** Groups acquired. */
    uint64_t acquires;
    /** Copies, except on demand, that had not begun when their group was acquired. */
    uint64_t late_copies;
    /** Seconds that the engine's streams waited for copies. */
    double waited_seconds;
    /** As wb_offloader_get_generation gives it. */
    uint64_t generation;
    /**
     * Bytes of offloaded parameters that are compressed in host memory, a part of
     * `offloaded_bytes`.
     */
    uint64_t decoded_bytes;
    /** What these are compressed to. */
    uint64_t encoded_bytes;
    /** Those of `moved_bytes` that were compressed. */
    uint64_t moved_encoded_bytes;
    /** Bytes in slots that these were decoded to. */
    uint64_t moved_decoded_bytes;
    /** Bytes of device memory of the expert caches that were made for it and are alive. */
    uint64_t expert_bytes;
    /**
     * Bytes of parameters that are on the device now, in memory of their own or of the engine:
     * what `resident_bytes` of their infos adds up to, tied ones once.
     */
    uint64_t device_parameter_bytes;
    /**
     * Bytes of device memory for parameters that the device keeps compressed. With
     * `resident_bytes`, each rounded up to 256, `slot_bytes` and the plan's `expert_bytes` it is
     * at most a budget of device memory. It is held until the offloader is released, also when a
     * parameter is removed or gets another size.
     */
    uint64_t device_encoded_bytes;
    /** Those of `decoded_bytes` that are decoded from there, and cross no link. */
    uint64_t device_decoded_bytes;
    /**
     * Bytes that the commit compressed by kernels of the device, before that;
     * wb_plan_options.encode_on_device says which.
     */
    uint64_t encoded_by_device_bytes;
    /** Bytes that it compressed by the host's cores. */
    uint64_t encoded_by_host_bytes;
} wb_offloader_stats;
#define WB_OFFLOADER_STATS_INIT \
    {sizeof(wb_offloader_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, \
    0, 0, 0, 0, 0, 0, 0, 0}

/** Fills `stats` with the memory and the transfers of the offloader. */
wb_status wb_offloader_get_stats(const wb_offloader *offloader, wb_offloader_stats *stats,
                                 wb_error *error);

/**
 * Transfers of a group. Units that several groups use count for the one that they were copied for;
 * replayed graphs do not count.
 */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Times that it was acquired. */
    uint64_t acquires;
    /** Bytes that crossed the link to slots. */
    uint64_t moved_bytes;
    /** Copies into slots. */
    uint64_t copies;
    /** Copies, except on demand, that had not begun when the group was acquired. */
    uint64_t late_copies;
    /** Times that the engine's stream waited for copies. */
    uint64_t waits;
    /** Seconds that it waited. */
    double waited_seconds;
    /** Those of `moved_bytes` that were compressed. */
    uint64_t moved_encoded_bytes;
    /** Bytes in slots that these were decoded to. */
    uint64_t moved_decoded_bytes;
} wb_offloader_group_stats;
#define WB_OFFLOADER_GROUP_STATS_INIT \
    {sizeof(wb_offloader_group_stats), 0, 0, 0, 0, 0, 0, 0.0, 0, 0}

/** Fills `stats` with the transfers of a group. Fails with WB_ERR_OUT_OF_RANGE. */
wb_status wb_offloader_get_group_stats(const wb_offloader *offloader, uint64_t group,
                                       wb_offloader_group_stats *stats, wb_error *error);

/**
 * Gets a number that increases whenever an address of a parameter changes, or is no longer its
 * own: while it is the same, every address that the offloader gave is still valid, and so is every
 * graph that captured its calls. Bytes of the same number that replace others in place do not
 * change it, nor do steps, nor an added parameter that moves no other. Costs no more than a lock,
 * for a call in every step.
 *
 * It waits while another call changes parameters.
 */
wb_status wb_offloader_get_generation(const wb_offloader *offloader, uint64_t *generation,
                                      wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
