/* Offloaders of ring.h with fixed addresses, which are resized. */
#ifndef FIXED_H
#define FIXED_H

#include <pthread.h>

#include "ring.h"

#define PIECE ((uint64_t)2 << 20)
enum { OFFLOADED = 5, RESIDENT = GROUPS - OFFLOADED, MINUTE = 60000 };

static unsigned seed;

static inline unsigned random_below(unsigned count)
{
    seed = seed * 1103515245u + 12345u;
    return (seed >> 16) % count;
}

/* OFFLOADED groups with slots, of which `depth` are there at a time, and the others resident. */
static inline int fixed_begin(struct bench *b, wb_device *device, wb_transfer_mode mode, uint32_t depth,
                              uint32_t keep)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = (OFFLOADED * RING_CAPACITY + 4095) / 4096 * 4096; /* whole pages */
    options.transfer_mode = mode;
    options.depth = depth;
    options.fixed_addresses = WB_TRISTATE_ON;
    options.keep_host_copy = keep;
    if (!bench_begin_with(b, device, options)) return 0;
    const uint64_t compressed = RING_COMPRESS == WB_COMPRESS_OFF ? 0 : OFFLOADED * SIZE;
    return CHECK_SAME(stats_of(b).decoded_bytes, compressed);
}

static inline void check_addresses(struct bench *b)
{
    for (uint64_t at = 0; at < GROUPS; at++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(b->offloader, at, &info, &error));
        CHECK(info.device_address == b->slots[at]);
    }
    CHECK_SAME(stats_of(b).generation, 0);
}

static inline uint64_t free_bytes_of(const wb_device *device)
{
    wb_device_info info = WB_DEVICE_INFO_INIT;
    CHECK_OK(wb_device_get_info(device, &info, &error));
    return info.free_bytes;
}

/* The same once a driver has what it keeps for itself for an offloader, which is made and released. */
static inline uint64_t settled_free_bytes(wb_device *device)
{
    struct bench b;
    if (!fixed_begin(&b, device, WB_TRANSFER_MODE_PREFETCH, 2, 0)) return 0;
    bench_end(&b);
    CHECK_OK(wb_device_drain(device, MINUTE, &error));
    return free_bytes_of(device);
}

/* Opens a device with a capacity, so that its free bytes are known everywhere. */
static inline wb_device *device_with_capacity(void)
{
    wb_device *device = NULL;
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    if (!on_cuda()) options.capacity_bytes = 256 * PIECE;
    CHECK_OK(wb_device_open(test_device(), &options, &device, &error));
    return device;
}

/* A thread that compares the device memory in use with a limit, at any moment: by the library's count
 * and by the driver's. */
struct sampler {
    pthread_t thread;
    wb_device *device;
    uint64_t free_bytes; /* without the offloaders */
    uint64_t limit, samples;
    int over;
};

static inline void *sample(void *user)
{
    struct sampler *sampler = (struct sampler *)user;
    while (!__atomic_load_n(&sampler->over, __ATOMIC_ACQUIRE)) {
        const uint64_t limit = __atomic_load_n(&sampler->limit, __ATOMIC_ACQUIRE);
        const uint64_t held = device_stats(sampler->device).device_bytes;
        const uint64_t free_bytes = free_bytes_of(sampler->device);
        if (__atomic_load_n(&sampler->limit, __ATOMIC_ACQUIRE) != limit) continue;
        sampler->samples++;
        if (!CHECK(held <= limit) || !CHECK(sampler->free_bytes - free_bytes <= limit)) return NULL;
    }
    return NULL;
}

static inline void set_limit(struct sampler *sampler, uint64_t limit)
{
    __atomic_store_n(&sampler->limit, limit, __ATOMIC_RELEASE);
}

/* `free_bytes` were free before the offloaders were made. */
static inline int sampler_begin(struct sampler *sampler, wb_device *device, uint64_t free_bytes,
                                uint64_t limit)
{
    memset(sampler, 0, sizeof *sampler);
    sampler->device = device;
    sampler->free_bytes = free_bytes;
    sampler->limit = limit;
    return CHECK(pthread_create(&sampler->thread, NULL, sample, sampler) == 0);
}

static inline void sampler_end(struct sampler *sampler)
{
    __atomic_store_n(&sampler->over, 1, __ATOMIC_RELEASE);
    pthread_join(sampler->thread, NULL);
    CHECK(sampler->samples > 100);
}

#endif
