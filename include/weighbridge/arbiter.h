/* Arbiters: offloaders that share the memory of a device.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_ARBITER_H
#define WEIGHBRIDGE_ARBITER_H

#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "error.h"
#include "offloader.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Shares a budget of device memory among offloaders with fixed addresses, such as the text
 * encoder, the transformer and the decoder of a diffusion pipeline. What is used next gets memory,
 * and what is idle gives it: first what has the least priority, and of those what was used longest
 * ago. It acts in its calls only. An engine uses it so:
 *
 * 1. Commit each offloader with the least memory that it may need, and add it.
 * 2. Before the steps of one, use it, and wait until it holds its memory, or only until it is
 *    ready:
 *
 * ```c
 * wb_arbiter_use(arbiter, transformer, &progress, &error);
 * wb_arbiter_wait(arbiter, 10000, &progress, &error);
 * ```
 *
 * Others give memory first, so that the budget is never exceeded, and an offloader moves when its
 * groups are released and their work is done: steps of one run while another is evicted. What is
 * left less than its slots sleeps, and its next steps need wb_arbiter_use again. An offloader that
 * must run at any time, as on another thread, has a `min_bytes` that is not 0.
 */
typedef struct wb_arbiter wb_arbiter;

/** How an offloader shares. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Offloaders of a higher priority give memory later. */
    int32_t priority;
    /**
     * Bytes of device memory that the others leave it, once it has them: at least its slots,
     * unless this is 0, with which it may sleep.
     */
    uint64_t min_bytes;
    /** The stream of its steps and of graphs that have captured them. */
    void *stream;
    /** Must be zero. */
    uint64_t reserved[4];
} wb_arbiter_options;
#define WB_ARBITER_OPTIONS_INIT {sizeof(wb_arbiter_options), 0, 0, NULL, {0}}

/** How far the change is that was asked for last. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** 1 if the offloader that was used last may run steps; it may still be getting memory. */
    uint32_t ready;
    /** Offloaders that do not hold yet what they are to hold; 0 once the change is done. */
    uint64_t pending_offloaders;
    /**
     * Bytes of device memory of all offloaders: never more than the budget, or than before it was
     * lowered.
     */
    uint64_t device_bytes;
    /**
     * Bytes of host memory of all offloaders beside their own: see wb_offloader_resize_progress.
     */
    uint64_t host_bytes;
} wb_arbiter_progress;
#define WB_ARBITER_PROGRESS_INIT {sizeof(wb_arbiter_progress), 0, 0, 0, 0}

/** What an offloader of an arbiter holds, and is to hold. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** As it was added. */
    int32_t priority;
    /** As it was added. */
    uint64_t min_bytes;
    /** Bytes of its slots, without which it sleeps. */
    uint64_t slot_bytes;
    /** Bytes with all of its parameters on the device. */
    uint64_t whole_bytes;
    /** Bytes that it is to hold, at most. */
    uint64_t target_bytes;
    /** Bytes that it holds. */
    uint64_t device_bytes;
    /** 1 if it sleeps: steps are refused. */
    uint32_t asleep;
    /** Zero. */
    uint32_t reserved0;
} wb_arbiter_member_info;
#define WB_ARBITER_MEMBER_INFO_INIT {sizeof(wb_arbiter_member_info), 0, 0, 0, 0, 0, 0, 0, 0}

/** Creates an arbiter over `device_bytes` bytes of the memory of a device, without offloaders. */
wb_status wb_arbiter_new(const wb_device *device, uint64_t device_bytes, wb_arbiter **arbiter,
                         wb_error *error);

/** Adds a reference. */
void wb_arbiter_retain(const wb_arbiter *arbiter);

/** Drops a reference. The last one removes all offloaders, which keep what they hold. */
void wb_arbiter_release(wb_arbiter *arbiter);

/**
 * Adds an offloader with the memory that it holds, as if it was used now. The arbiter keeps a
 * reference to it until it is removed; meanwhile wb_offloader_resize fails for it with
 * WB_ERR_BUSY. `options` may be NULL.
 *
 * Fails with WB_ERR_BUDGET if its memory does not fit beside that of the others: lower it with
 * wb_offloader_resize before, or that of the others with wb_arbiter_resize. Fails with
 * WB_ERR_NOT_SUPPORTED without fixed addresses, WB_ERR_BUSY while it is resized or in an arbiter,
 * and WB_ERR_INVALID_ARGUMENT if it is of another device.
 */
wb_status wb_arbiter_add(const wb_arbiter *arbiter, const wb_offloader *offloader,
                         const wb_arbiter_options *options, wb_error *error);

/**
 * Removes an offloader, which keeps what it holds; its budget is then outside of the arbiter's.
 * Fails with WB_ERR_NOT_FOUND.
 */
wb_status wb_arbiter_remove(const wb_arbiter *arbiter, const wb_offloader *offloader,
                            wb_error *error);

/**
 * Begins to give the offloader that is used next as much memory as it can use, and lets the others
 * keep what is left. Does what is possible at once, and fills `progress`: the others are evicted
 * first, and this one gets its slots as soon as they fit, and the rest once all of it does.
 * wb_arbiter_advance goes on, between steps, or wb_arbiter_wait.
 *
 * Stream order: where steps of an offloader have been captured, the host waits for the work queued
 * on its stream when it is resized, as wb_offloader_resize does. Streams of others are not waited
 * for. After an error every offloader holds what wb_arbiter_get_member_info says, and any later
 * call goes on. Fails with WB_ERR_BUDGET, and changes nothing, if its slots do not fit beside what
 * the others keep, WB_ERR_NOT_FOUND, and as wb_offloader_resize does. The last call counts.
 */
wb_status wb_arbiter_use(const wb_arbiter *arbiter, const wb_offloader *offloader,
                         wb_arbiter_progress *progress, wb_error *error);

/**
 * Changes the budget. Offloaders keep what fits, and get more only when they are used. Otherwise
 * as wb_arbiter_use; memory is free once the change is done.
 */
wb_status wb_arbiter_resize(const wb_arbiter *arbiter, uint64_t device_bytes,
                            wb_arbiter_progress *progress, wb_error *error);

/** Goes on as far as is possible at once. Otherwise as wb_arbiter_use. */
wb_status wb_arbiter_advance(const wb_arbiter *arbiter, wb_arbiter_progress *progress,
                             wb_error *error);

/**
 * Goes on until every offloader holds what it is to hold, for at most `timeout_ms` milliseconds.
 * Other threads may run steps meanwhile. Fails with WB_ERR_TIMEOUT, such as while a group of an
 * idle one stays acquired: the change can be continued. Otherwise as wb_arbiter_use.
 */
wb_status wb_arbiter_wait(const wb_arbiter *arbiter, uint64_t timeout_ms,
                          wb_arbiter_progress *progress, wb_error *error);

/** Fills `info` with what an offloader of the arbiter holds. Fails with WB_ERR_NOT_FOUND. */
wb_status wb_arbiter_get_member_info(const wb_arbiter *arbiter, const wb_offloader *offloader,
                                     wb_arbiter_member_info *info, wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
