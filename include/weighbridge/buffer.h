/* Buffers: host memory that is allocated, registered, or mapped from a file.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_BUFFER_H
#define WEIGHBRIDGE_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "error.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A range of host memory: allocated, registered, or mapped from a file. */
typedef struct wb_buffer wb_buffer;

/** A phase of long work. */
typedef int32_t wb_phase;
/** Faulting pages in. */
#define WB_PHASE_FAULT 1
/** Registering pages with the device. */
#define WB_PHASE_PIN 2
/** Reading or copying. */
#define WB_PHASE_READ 3
/** Quantizing. */
#define WB_PHASE_QUANTIZE 4
/** Compressing. */
#define WB_PHASE_COMPRESS 5

/**
 * Receives the bytes done and the total bytes of a phase, on the thread that made the call. A
 * result other than 0 cancels the call, which fails with WB_ERR_CANCELLED. It may call the
 * library, except wb_device_drain.
 */
typedef int32_t (*wb_progress)(void *user, wb_phase phase, uint64_t done, uint64_t total);

/** Whether memory uses huge pages. */
typedef int32_t wb_huge_pages;
/** Where the kernel provides them; the default. */
#define WB_HUGE_PAGES_TRY 0
/** Small pages only. */
#define WB_HUGE_PAGES_OFF 1
/**
 * Every whole huge page of the range is one. Fails with WB_ERR_HUGE_PAGES otherwise, or if a
 * driver allocates, and with WB_ERR_NOT_SUPPORTED for existing memory; files are read, not mapped.
 */
#define WB_HUGE_PAGES_REQUIRE 2

/** The NUMA node of memory. */
typedef int32_t wb_numa_policy;
/** The node nearest to the device; the default. */
#define WB_NUMA_DEVICE 0
/** Any node. */
#define WB_NUMA_ANY 1
/**
 * The node in `numa_node`. Fails with WB_ERR_NOT_SUPPORTED if a driver allocates, and for existing
 * memory; files are read, not mapped.
 */
#define WB_NUMA_NODE 2

/** How a file is loaded. */
typedef int32_t wb_file_mode;
/** Mapped if the platform can register a mapping, otherwise read; the default. */
#define WB_FILE_MODE_AUTO 0
/** Mapped, or an error. */
#define WB_FILE_MODE_MAP 1
/** Read into memory of the exact size. */
#define WB_FILE_MODE_READ 2
/**
 * As WB_FILE_MODE_AUTO, and never pinned: for a file that is only copied from, such as the sources
 * of an offloader, which would otherwise be pinned beside their copies. Fails with
 * WB_ERR_INVALID_ARGUMENT if `pin` is WB_TRISTATE_ON.
 */
#define WB_FILE_MODE_SOURCE 3

/** Options of a buffer. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Whether to use huge pages. */
    wb_huge_pages huge_pages;
    /** Threads that fault, read and copy; 0 to choose. */
    uint32_t threads;
    /** The NUMA node. */
    wb_numa_policy numa_policy;
    /** The node for WB_NUMA_NODE; otherwise not read. */
    uint32_t numa_node;
    /** Whether to pin; WB_TRISTATE_AUTO follows the device's policy. */
    wb_tristate pin;
    /**
     * WB_TRISTATE_ON bypasses the processor's cache: fast to write, very slow to read for the
     * host. Fails with WB_ERR_NOT_SUPPORTED for existing memory and files.
     */
    wb_tristate write_combined;
    /** Whether the memory is pinned for every context of the process; WB_TRISTATE_AUTO is on. */
    wb_tristate portable;
    /** How a file is loaded. */
    wb_file_mode file_mode;
    /** Must be zero. */
    uint32_t reserved0;
    /**
     * Bytes registered at a time; 0 for all at once. Between chunks others can use the device, and
     * progress is reported.
     */
    uint64_t chunk_bytes;
    /** Receives progress, and may cancel; may be NULL. */
    wb_progress progress;
    /** Argument of `progress`. */
    void *progress_user;
    /** Must be zero. */
    uint64_t reserved[4];
} wb_buffer_options;
#define WB_BUFFER_OPTIONS_INIT \
    {sizeof(wb_buffer_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, {0}}

/**
 * Called once, on any thread, when nothing uses the caller's memory any more: in the call that
 * dropped the last reference, or on a thread of the library. It may release handles of the
 * library, and must call nothing else of it: a function that waits could wait for the thread that
 * it is on.
 */
typedef void (*wb_deleter)(void *owner);

/**
 * Allocates exactly `bytes` bytes of zeroed host memory, pinned if the policy says so. Pinned
 * bytes are the asked ones rounded up to whole pages. 0 bytes give a buffer without an address.
 *
 * Registering may block the device: keep it off the hot path. Fails with WB_ERR_OUT_OF_MEMORY,
 * WB_ERR_CGROUP, WB_ERR_MEMLOCK, WB_ERR_HUGE_PAGES, WB_ERR_NOT_SUPPORTED or WB_ERR_CANCELLED.
 */
wb_status wb_buffer_alloc(const wb_device *device, uint64_t bytes, const wb_buffer_options *options,
                          wb_buffer **buffer, wb_error *error);

/**
 * Registers existing memory, at least 1 byte, without moving it. The buffer is read-only if
 * its pages are.
 *
 * The caller keeps ownership, and the memory must stay mapped until `deleter(owner)` is called;
 * without a deleter, which may be NULL, until the last reference is gone. After an error the
 * deleter is not called. A driver may wait for the work queued on the device. Fails with
 * WB_ERR_WOULD_COPY if registering would silently copy the pages (a private mapping of a file, or
 * private memory that may not be written), with WB_ERR_ALREADY_REGISTERED, naming the range that
 * it overlaps, and with WB_ERR_UNMAPPED_RANGE, WB_ERR_NOT_SUPPORTED, WB_ERR_MEMLOCK,
 * WB_ERR_CGROUP, WB_ERR_OVERFLOW or WB_ERR_CANCELLED.
 */
wb_status wb_buffer_register(const wb_device *device, void *data, uint64_t bytes,
                             const wb_buffer_options *options, wb_deleter deleter, void *owner,
                             wb_buffer **buffer, wb_error *error);

/**
 * Maps `bytes` bytes of a file from `offset` on, read-only and shared; 0 for all that follow. They
 * are registered without a copy if the platform can, and otherwise read in parallel into exact
 * pinned memory: `wb_buffer_info.origin` says which, and `fallback_reason` why. A mapped file
 * stays open and must not be truncated: to read a page past its end raises SIGBUS.
 *
 * A driver may wait for the work queued on the device. Fails with WB_ERR_FILE_MISSING,
 * WB_ERR_FILE_ACCESS, WB_ERR_FILE_EMPTY, WB_ERR_FILE_TRUNCATED, WB_ERR_FILE_IO or
 * WB_ERR_OUT_OF_RANGE, and as wb_buffer_alloc does.
 */
wb_status wb_buffer_map_file(const wb_device *device, const char *path, uint64_t offset,
                             uint64_t bytes, const wb_buffer_options *options, wb_buffer **buffer,
                             wb_error *error);

/** Adds a reference. */
void wb_buffer_retain(const wb_buffer *buffer);

/**
 * Drops a reference. The last one, those of views included, frees the memory at once and on this
 * thread; a driver may wait for the work queued on the device. Use wb_buffer_release_after for
 * memory that a stream may still use.
 */
void wb_buffer_release(wb_buffer *buffer);

/**
 * Drops a reference once the work queued on `stream` now has run, without waiting for it. After an
 * error the caller keeps the reference. Fails with WB_ERR_CAPTURING.
 */
wb_status wb_buffer_release_after(wb_buffer *buffer, void *stream, wb_error *error);

/** The origin of a buffer's memory. */
typedef int32_t wb_origin;
/** Allocated by wb_buffer_alloc. */
#define WB_ORIGIN_ALLOCATED 1
/** The caller's memory, registered. */
#define WB_ORIGIN_REGISTERED 2
/** A mapping of a file. */
#define WB_ORIGIN_FILE_MAPPED 3
/** A file that was read into memory. */
#define WB_ORIGIN_FILE_READ 4

/** How a buffer is pinned. */
typedef int32_t wb_pinning;
/** Not pinned. */
#define WB_PINNING_NONE 0
/** Its pages are registered with the device; on the host device, locked. */
#define WB_PINNING_REGISTERED 1
/** The driver allocated pinned memory. */
#define WB_PINNING_DRIVER 2

/** Properties of a buffer. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The origin of the memory. */
    wb_origin origin;
    /** How it is pinned. */
    wb_pinning pinning;
    /** 1 if the bytes must not be written. */
    int32_t read_only;
    /** Host address of the first byte; NULL in a buffer of 0 bytes. */
    void *data;
    /** Device address of the first byte; NULL if the memory is not mapped for the device. */
    void *device_address;
    /** Bytes asked for. */
    uint64_t asked_bytes;
    /** Bytes of address space mapped for the buffer; 0 for the caller's memory. */
    uint64_t mapped_bytes;
    /** Bytes pinned, as the driver or the kernel counts them. */
    uint64_t pinned_bytes;
    /** Registrations that pin it. */
    uint64_t chunks;
    /** Reason for the fallback; empty if there is none. */
    char fallback_reason[256];
} wb_buffer_info;
#define WB_BUFFER_INFO_INIT {sizeof(wb_buffer_info), 0, 0, 0, NULL, NULL, 0, 0, 0, 0, {0}}

/** What the kernel counts for the pages of a buffer now. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Bytes in memory (mincore). */
    uint64_t resident_bytes;
    /** Bytes in huge pages (smaps of the mappings that the buffer touches). */
    uint64_t huge_bytes;
    /**
     * Bytes in private anonymous pages (smaps); in a mapped file, pages that were silently copied.
     */
    uint64_t anonymous_bytes;
    /** Bytes locked by mlock (smaps). */
    uint64_t locked_bytes;
} wb_buffer_stats;
#define WB_BUFFER_STATS_INIT {sizeof(wb_buffer_stats), 0, 0, 0, 0, 0}

/** Fills `info` with the buffer's properties. */
wb_status wb_buffer_get_info(const wb_buffer *buffer, wb_buffer_info *info, wb_error *error);

/**
 * Fills `stats` with what the kernel counts for the buffer's pages; slower than
 * wb_buffer_get_info. Fails with WB_ERR_UNMAPPED_RANGE if the caller has unmapped registered
 * memory.
 */
wb_status wb_buffer_get_stats(const wb_buffer *buffer, wb_buffer_stats *stats, wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
