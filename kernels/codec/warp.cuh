/* What a warp that handles a tile is made of, sums over its lanes, and copies of tiles. */
#ifndef WEIGHBRIDGE_CODEC_WARP_CUH
#define WEIGHBRIDGE_CODEC_WARP_CUH

#include "codec.h"

#define WARPS 4
#define ALL_LANES 0xffffffffu
typedef unsigned long long counter;

static __device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % WB_LANES; }

/* The sum of the lanes before this one; `total` that of all. */
static __device__ __forceinline__ uint32_t sum_before(uint32_t number, uint32_t &total)
{
    uint32_t sum = number;
#pragma unroll
    for (int offset = 1; offset < WB_LANES; offset *= 2) {
#ifdef __CUDACC_RTC__
        /* The predicate says whether there is such a lane. */
        asm volatile("{ .reg .pred p; .reg .u32 r; shfl.sync.up.b32 r|p, %0, %1, 0, 0xffffffff; "
                     "@p add.u32 %0, %0, r; }"
                     : "+r"(sum)
                     : "r"(offset));
#else
        const uint32_t other = __shfl_up_sync(ALL_LANES, sum, offset);
        if (lane_index() >= offset) sum += other;
#endif
    }
    total = __shfl_sync(ALL_LANES, sum, WB_LANES - 1);
    return sum - number;
}

template <typename T> static __device__ __forceinline__ T sum_of_lanes(T number)
{
#pragma unroll
    for (int offset = WB_LANES / 2; offset > 0; offset /= 2) {
        number += __shfl_xor_sync(ALL_LANES, number, offset);
    }
    return number;
}

static __device__ __forceinline__ uint32_t smaller(uint32_t one, uint32_t other)
{
    return one < other ? one : other;
}

/* Decoded bytes of a tile. */
static __device__ __forceinline__ uint32_t bytes_of_tile(uint64_t bytes, uint64_t tile)
{
    const uint64_t left = bytes - tile * WB_TILE;
    return left < WB_TILE ? (uint32_t)left : (uint32_t)WB_TILE;
}

/* Has a cache fetch bytes that are read in small parts, which wait for each other. It costs what is bound by
 * memory, so other bytes are not to be among them. */
static __device__ __forceinline__ void prefetch(const uint8_t *from, uint32_t bytes)
{
#pragma unroll 1
    for (uint32_t at = 128 * lane_index(); at < bytes; at += 128 * WB_LANES) {
#ifdef __CUDACC_RTC__
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
#else
        __builtin_prefetch(from + at);
#endif
    }
}

/* Copies the bytes of a tile. */
static __device__ __forceinline__ void copy_raw(const uint8_t *from, uint8_t *to, uint32_t bytes)
{
#pragma unroll 4
    for (uint32_t at = lane_index(); at < bytes / 16; at += WB_LANES) {
        ((uint4 *)to)[at] = ((const uint4 *)from)[at];
    }
#pragma unroll 1
    for (uint32_t at = bytes / 16 * 16 + lane_index(); at < bytes; at += WB_LANES) to[at] = from[at];
}

#endif
