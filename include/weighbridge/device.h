/* Devices: CUDA devices, and the host. Their memory, copies and streams.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_DEVICE_H
#define WEIGHBRIDGE_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A device: a CUDA device, or the host, which is always available. */
typedef struct wb_device wb_device;

/** A setting that is on, off, or decided by the library. */
typedef int32_t wb_tristate;
/** Decided by the environment and the platform; the default. */
#define WB_TRISTATE_AUTO 0
/** On; overrides the environment. */
#define WB_TRISTATE_ON 1
/** Off; overrides the environment. */
#define WB_TRISTATE_OFF 2

/** Options of wb_device_open. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /**
     * Whether host memory is pinned; WEIGHBRIDGE_DISABLE_PIN_MEMORY=1 turns WB_TRISTATE_AUTO off.
     */
    wb_tristate pin;
    /**
     * Whether the device reads host memory in place; WEIGHBRIDGE_DISABLE_UVA=1 turns
     * WB_TRISTATE_AUTO off.
     */
    wb_tristate views;
    /** Must be zero. */
    uint32_t reserved0;
    /** The caller's CUcontext, which must outlive the device; NULL for the primary context. */
    void *context;
    /** Bytes of device memory of the host device; 0 for all memory of the machine. */
    uint64_t capacity_bytes;
    /** Must be zero. */
    uint64_t reserved[4];
} wb_device_options;
#define WB_DEVICE_OPTIONS_INIT {sizeof(wb_device_options), 0, 0, 0, NULL, 0, {0}}

/**
 * Counts the CUDA devices. Fails with WB_ERR_NO_DRIVER or WB_ERR_DRIVER_TOO_OLD without a usable
 * driver.
 */
wb_status wb_device_get_cuda_count(int32_t *count, wb_error *error);

/**
 * Opens a device by its name: "host", or "cuda:N" by CUDA's ordinal.
 *
 * A CUDA device retains the primary context, or uses the caller's, and never resets it; every call
 * restores the calling thread's current context. Fails with WB_ERR_NO_DEVICE, WB_ERR_NO_DRIVER or
 * WB_ERR_DRIVER_TOO_OLD, and with WB_ERR_INVALID_ARGUMENT for an environment variable that is
 * neither yes nor no.
 */
wb_status wb_device_open(const char *name, const wb_device_options *options, wb_device **device,
                         wb_error *error);

/** Adds a reference. */
void wb_device_retain(const wb_device *device);

/** Drops a reference. Buffers, views and other objects hold their device. */
void wb_device_release(wb_device *device);

/**
 * Waits until every reference that was released after a stream, or by a DLPack consumer, is gone,
 * and releases memory behind fixed addresses whose release has failed before. Must not be called
 * from a callback. Fails with WB_ERR_TIMEOUT after `timeout_ms` milliseconds.
 */
wb_status wb_device_drain(const wb_device *device, uint64_t timeout_ms, wb_error *error);

/** The kind of a device. */
typedef int32_t wb_device_kind;
/** The host's processors and memory. */
#define WB_DEVICE_HOST 1
/** A CUDA device. */
#define WB_DEVICE_CUDA 2

/** Device capabilities and effective policy. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The kind. */
    wb_device_kind kind;
    /** Ordinal among the devices of its kind. */
    int32_t ordinal;
    /** CUDA version of the driver, 13000 for 13.0; 0 for the host. */
    int32_t driver_version;
    /** Compute capability times ten, 90 for 9.0; 0 for the host. */
    int32_t compute_capability;
    /** 1 if host and device share one address space. */
    int32_t unified_addressing;
    /** 1 if existing memory can be registered. */
    int32_t host_register;
    /** 1 if a read-only page could be registered when the device was opened. */
    int32_t read_only_register;
    /** The driver's attribute for that; `read_only_register` is what the library uses. */
    int32_t read_only_register_attribute;
    /** 1 if the device can access any address of the process. */
    int32_t pageable_access;
    /** 1 if the device shares the host's memory. */
    int32_t integrated;
    /** The NUMA node nearest to the device; -1 if unknown. */
    int32_t numa_node;
    /** 1 if host memory is pinned. */
    int32_t pin;
    /** 1 if the device reads host memory in place. */
    int32_t views;
    /** Bytes that this process may lock; UINT64_MAX without a limit. */
    uint64_t memlock_limit;
    /** Bytes of device memory. */
    uint64_t total_bytes;
    /** Bytes of device memory that are free. */
    uint64_t free_bytes;
    /** Name of the device. */
    char name[256];
    /** Reason for `pin`. */
    char pin_reason[256];
    /** Reason for `views`. */
    char views_reason[256];
    /**
     * Bytes of which address ranges are multiples, behind which an offloader with fixed addresses
     * changes the memory; 0 if the device has none.
     */
    uint64_t address_granularity;
    /** Why there are none; empty otherwise. */
    char address_reason[256];
} wb_device_info;
#define WB_DEVICE_INFO_INIT \
    {sizeof(wb_device_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}, {0}, 0, \
    {0}}

/**
 * What was created through a device and is still alive. All counters but `errors_logged` return to
 * 0.
 */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved0;
    /** Buffers. */
    uint64_t buffers;
    /** Views. */
    uint64_t views;
    /** References that wait for a stream, or for the thread that frees memory. */
    uint64_t deferred;
    /** Bytes asked for by the buffers. */
    uint64_t asked_bytes;
    /** Bytes of address space mapped for the buffers. */
    uint64_t mapped_bytes;
    /** Bytes pinned for the buffers, as the driver or the kernel counts them. */
    uint64_t pinned_bytes;
    /** Bytes of device memory from wb_device_alloc. */
    uint64_t device_bytes;
    /** Errors of this process that no call could return. */
    uint64_t errors_logged;
} wb_device_stats;
#define WB_DEVICE_STATS_INIT {sizeof(wb_device_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0}

/** Fills `info` with the device's capabilities and the policy that follows from them. */
wb_status wb_device_get_info(const wb_device *device, wb_device_info *info, wb_error *error);

/** Fills `stats` with what was created through this handle and is still alive. */
wb_status wb_device_get_stats(const wb_device *device, wb_device_stats *stats, wb_error *error);

/**
 * Measures the bandwidth from pinned host memory to the device, in bytes per second: the fastest
 * of three copies of 64 MiB. Plans made for this device afterwards predict the time of a step from
 * it.
 *
 * Uses its own stream, 8 MiB of pinned memory and 8 MiB of device memory, and waits on the host.
 * Fails as wb_buffer_alloc and wb_device_alloc do.
 */
wb_status wb_device_measure_link(const wb_device *device, double *bytes_per_second,
                                 wb_error *error);

/**
 * Allocates exactly `bytes` bytes of device memory, at least 1; on the host device, whole pages.
 *
 * The memory is freed by wb_device_free, or with the device's last reference. The driver may block
 * the device: keep it off the hot path. Fails with WB_ERR_DEVICE_MEMORY.
 */
wb_status wb_device_alloc(const wb_device *device, uint64_t bytes, void **address,
                          wb_error *error);

/**
 * Frees device memory; waits for the device if the driver does. Fails with WB_ERR_INVALID_ARGUMENT
 * for an address that was not returned by wb_device_alloc.
 */
wb_status wb_device_free(const wb_device *device, void *address, wb_error *error);

/**
 * Queues a copy of `bytes` bytes between host memory, device memory or both. A copy across two
 * registrations, which CUDA rejects, is split.
 *
 * Stream order: runs after the work queued on `stream`; both ranges must stay valid until it has
 * run. The driver may block the caller if a range is pageable or both are host memory. Capturable.
 * On a device that reads pageable memory, 1 MiB or more of a mapped file that is not registered
 * pass through at most 32 MiB of pinned staging memory, because drivers copy them slowly: the call
 * returns when the copy is made.
 */
wb_status wb_device_copy(const wb_device *device, void *to, const void *from, uint64_t bytes,
                         void *stream, wb_error *error);

/** A host function on a stream. It must not call this library or CUDA. */
typedef void (*wb_host_function)(void *user);

/**
 * Creates a stream, which wb_device_stream_release releases. It does not synchronize with the
 * default stream.
 */
wb_status wb_device_stream_new(const wb_device *device, void **stream, wb_error *error);

/** Releases a stream of wb_device_stream_new; work queued on it still runs. */
wb_status wb_device_stream_release(const wb_device *device, void *stream, wb_error *error);

/** Waits for the work queued on a stream. */
wb_status wb_device_stream_synchronize(const wb_device *device, void *stream, wb_error *error);

/**
 * Queues a host function on a stream. It runs once, after the work queued before it, on a thread
 * of the library or the driver. Fails with WB_ERR_CAPTURING on a stream that is being captured.
 */
wb_status wb_device_stream_call(const wb_device *device, void *stream, wb_host_function function,
                                void *user, wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
