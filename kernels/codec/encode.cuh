/* Encodes a tensor in five kernels, one after another. They are the same ones for all types, since they are to be
 * faster than the link, not than memory. */
#ifndef WEIGHBRIDGE_CODEC_ENCODE_CUH
#define WEIGHBRIDGE_CODEC_ENCODE_CUH

#include "codec/warp.cuh"

/* The bits of a value that are its exponent, or in a plane. */
static __device__ __forceinline__ uint32_t bits_of_plane(uint32_t type, uint32_t plane)
{
    switch (type) {
    case WB_CODED_BF16: return plane == 0 ? 0x807fu : plane == WB_EXPONENT_PLANE ? 0x7f80u : 0;
    case WB_CODED_F16:
        return plane == 0 ? 0xffu : plane == 1 ? 0x300u : plane == 2 ? 0x8000u : 0x7c00u;
    case WB_CODED_F32:
        return plane == 0 ? 0xffu : plane == 1 ? 0xff00u : plane == 2 ? 0x807f0000u : 0x7f800000u;
    case WB_CODED_E4M3: return plane == 0 ? 0x87u : plane == WB_EXPONENT_PLANE ? 0x78u : 0;
    default: return plane == 0 ? 3u : plane == 1 ? 0x80u : plane == 2 ? 0 : 0x7cu;
    }
}

static __device__ __forceinline__ uint32_t exponent_of(uint32_t type, uint32_t value)
{
    const uint32_t mask = (1u << wb_exponent_bits(type)) - 1;
    const uint32_t shift = type == WB_CODED_BF16   ? 7
                           : type == WB_CODED_F16  ? 10
                           : type == WB_CODED_F32  ? 23
                           : type == WB_CODED_E4M3 ? 3
                                                   : 2;
    return value >> shift & mask;
}

/* What a plane has of a value. */
static __device__ __forceinline__ uint32_t part_of(uint32_t type, uint32_t value, uint32_t plane)
{
    if (plane == WB_EXPONENT_PLANE) return exponent_of(type, value);
    switch (type) {
    case WB_CODED_BF16: return (value >> 8 & 0x80u) | (value & 0x7fu);
    case WB_CODED_F16: return plane == 0 ? value & 0xffu : plane == 1 ? value >> 8 & 3u : value >> 15;
    case WB_CODED_F32:
        return plane < 2 ? value >> 8 * plane & 0xffu
                         : (value >> 24 & 0x80u) | (value >> 16 & 0x7fu);
    case WB_CODED_E4M3: return (value >> 4 & 8u) | (value & 7u);
    default: return plane == 0 ? value & 3u : value >> 7;
    }
}

static __device__ __forceinline__ uint32_t value_at(uint32_t type, const uint8_t *values,
                                                    uint32_t index)
{
    switch (wb_coded_bytes(type)) {
    case 4: return ((const uint32_t *)values)[index];
    case 2: return ((const uint16_t *)values)[index];
    default: return values[index];
    }
}

/* Counts the exponents of the sampled tiles. */
extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES)
    wb_codec_count(uint32_t type, const uint8_t *source, uint64_t bytes, uint32_t *counts)
{
    __shared__ uint32_t counted[WB_BUCKETS];
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < WB_BUCKETS; e += blockDim.x) counted[e] = 0;
    __syncthreads();
    const uint64_t step = wb_sample_step(bytes);
#pragma unroll 1
    for (uint64_t tile = blockIdx.x * step; tile < bytes / WB_TILE; tile += gridDim.x * step) {
#pragma unroll 1
        for (uint32_t at = threadIdx.x; at < WB_ROUND; at += blockDim.x) {
            const uint32_t value = value_at(type, source + tile * WB_TILE, at);
            atomicAdd(&counted[exponent_of(type, value)], 1u);
        }
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < WB_BUCKETS; e += blockDim.x) {
        if (counted[e] != 0) atomicAdd(&counts[e], counted[e]);
    }
}

/* Writes the header, all but the bytes of the whole. One warp. `counts` is NULL if there are none. */
extern "C" __global__ void wb_codec_begin(uint32_t type, uint64_t bytes, const uint32_t *counts,
                                          uint8_t *target)
{
    const uint32_t lane = lane_index(), exponents = 1u << wb_exponent_bits(type);
    uint32_t *words = (uint32_t *)target;
    /* Counts are below 2^24. Here they are one more, and 0 for an exponent that has a rank. */
    uint32_t mine[WB_BUCKETS / WB_LANES];
#pragma unroll
    for (uint32_t at = 0; at < WB_BUCKETS / WB_LANES; at++) {
        const uint32_t e = at * WB_LANES + lane;
        mine[at] = e >= exponents ? 0 : counts == 0 ? 1 : counts[e] + 1;
    }
    if (lane < WB_HEADER / 4) words[lane] = 0;
    __syncwarp();
#pragma unroll 1
    for (uint32_t rank = 0; rank < WB_RANKS; rank++) {
        /* The largest count, and of equal ones the smallest exponent. */
        uint64_t best = 0;
#pragma unroll
        for (uint32_t at = 0; at < WB_BUCKETS / WB_LANES; at++) {
            const uint64_t one =
                (uint64_t)mine[at] << 32 | (WB_BUCKETS - 1 - (at * WB_LANES + lane));
            if (one > best) best = one;
        }
#pragma unroll
        for (int offset = WB_LANES / 2; offset > 0; offset /= 2) {
            const uint64_t other = __shfl_xor_sync(ALL_LANES, best, offset);
            if (other > best) best = other;
        }
        const uint32_t e = WB_BUCKETS - 1 - (uint32_t)best;
        if (lane == 0) target[WB_RANKS_AT + rank] = (uint8_t)e;
#pragma unroll
        for (uint32_t at = 0; at < WB_BUCKETS / WB_LANES; at++) {
            if (at * WB_LANES + lane == e) mine[at] = 0;
        }
    }
    if (lane != 0) return;
    words[0] = WB_CODEC_MAGIC;
    words[1] = WB_CODEC_VERSION | type << 8;
    words[2] = (uint32_t)bytes;
    words[3] = (uint32_t)(bytes >> 32);
}

/* The rank of each exponent: WB_RANKS for those without. For a whole block. */
static __device__ __forceinline__ void rank_exponents(const uint8_t *target, uint8_t *ranks)
{
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < WB_BUCKETS; e += blockDim.x) {
        uint32_t found = WB_RANKS;
#pragma unroll 1
        for (uint32_t rank = 0; rank < WB_RANKS; rank++) {
            if (target[WB_RANKS_AT + rank] == e) found = rank;
        }
        ranks[e] = (uint8_t)found;
    }
    __syncthreads();
}

/* Finds what each tile becomes, and writes its entry without the offset. */
extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES)
    wb_codec_measure(uint32_t type, const uint8_t *source, uint64_t bytes, uint8_t *target)
{
    __shared__ uint8_t ranks[WB_BUCKETS];
    rank_exponents(target, ranks);
    const uint64_t index = (uint64_t)blockIdx.x * WARPS + threadIdx.x / WB_LANES;
    if (index >= wb_tiles(bytes)) return;
    const uint32_t lane = lane_index(), size = wb_coded_bytes(type);
    const uint32_t here = bytes_of_tile(bytes, index);
    const uint8_t *from = source + index * WB_TILE;
    const uint32_t first = value_at(type, from, 0);
    const uint32_t repeated = size == 4 ? first : size == 2 ? first * 0x10001u : first * 0x1010101u;
    uint32_t different = 0;
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t word = lane; word < here / 4; word += WB_LANES) {
        const uint32_t bits = ((const uint32_t *)from)[word];
        sum += (uint64_t)bits * wb_checksum_factor(word);
        different |= bits ^ repeated;
    }
    if (lane == 0) {
#pragma unroll 1
        for (uint32_t byte = here / 4 * 4; byte < here; byte++) {
            sum += ((uint64_t)from[byte] << 8 * (byte % 4)) * wb_checksum_factor(byte / 4);
            different |= (uint32_t)(from[byte] ^ (uint8_t)(repeated >> 8 * (byte % 4)))
                         << 8 * (byte % 4);
        }
    }
    sum = sum_of_lanes(sum);
#pragma unroll
    for (int offset = WB_LANES / 2; offset > 0; offset /= 2) {
        different |= __shfl_xor_sync(ALL_LANES, different, offset);
    }
    wb_tile tile;
    tile.kind = different == 0 ? WB_TILE_CONSTANT : here == WB_TILE ? WB_TILE_CODED : WB_TILE_RAW;
    tile.value = repeated;
    tile.constant = 0;
    if (size < 4) different |= different >> 16;
    if (size < 2) different |= different >> 8;
#pragma unroll 1
    for (uint32_t plane = 0; plane <= WB_EXPONENT_PLANE; plane++) {
        const uint32_t bits = bits_of_plane(type, plane);
        if (bits != 0 && (different & bits) == 0) tile.constant |= 1u << plane;
    }
    uint32_t few = 0, fewer = 0;
    if (tile.kind == WB_TILE_CODED && !(tile.constant >> WB_EXPONENT_PLANE & 1u)) {
#pragma unroll 1
        for (uint32_t at = lane; at < WB_TILE / size; at += WB_LANES) {
            const uint32_t rank = ranks[exponent_of(type, value_at(type, from, at))];
            /* Two counts fit a word: a tile has 8192 values at most. */
            few += (rank >= 3 ? 1u : 0u) + (rank >= 6 ? 0x10000u : 0u);
            fewer += (rank >= 9 ? 1u : 0u) + (rank >= 12 ? 0x10000u : 0u);
        }
    }
    few = sum_of_lanes(few);
    fewer = sum_of_lanes(fewer);
    if (lane != 0) return;
    tile.counts[0] = few & 0xffffu;
    tile.counts[1] = few >> 16;
    tile.counts[2] = fewer & 0xffffu;
    tile.counts[3] = fewer >> 16;
    if (tile.kind == WB_TILE_CODED && wb_find_sections(type, &tile).end >= WB_TILE) {
        tile.kind = WB_TILE_RAW;
    }
    wb_tile_entry entry;
    wb_write_entry(&entry, &tile);
    *(uint4 *)(target + WB_HEADER + index * WB_ENTRY) =
        make_uint4(0, wb_checksum_of(sum), entry.low, entry.high);
}

/* Places the bodies without gaps, and completes the header. One block of 1024 threads. */
extern "C" __global__ void __launch_bounds__(1024) wb_codec_place(uint64_t bytes, uint8_t *target)
{
    __shared__ uint32_t sums[WB_LANES];
    const uint32_t type = target[5], lane = lane_index(), warp = threadIdx.x / WB_LANES;
    const uint64_t tiles = wb_tiles(bytes);
    uint64_t placed_before = WB_HEADER / WB_UNIT + tiles * (WB_ENTRY / WB_UNIT);
#pragma unroll 1
    for (uint64_t begin = 0; begin < tiles; begin += 1024) {
        const uint64_t at = begin + threadIdx.x;
        uint4 *place = (uint4 *)(target + WB_HEADER + at * WB_ENTRY);
        uint32_t units = 0;
        if (at < tiles) {
            const uint4 words = *place;
            wb_tile_entry entry;
            entry.low = words.z;
            entry.high = words.w;
            const wb_tile tile = wb_read_entry(entry);
            units = wb_body_bytes(type, &tile, bytes_of_tile(bytes, at)) / WB_UNIT;
        }
        uint32_t total, all;
        uint32_t before = sum_before(units, total);
        __syncthreads();
        if (lane == 0) sums[warp] = total;
        __syncthreads();
        const uint32_t warps_before = sum_before(sums[lane], all);
        before += __shfl_sync(ALL_LANES, warps_before, warp);
        if (at < tiles) place->x = (uint32_t)(placed_before + before);
        placed_before += all;
    }
    if (threadIdx.x == 0) *(uint64_t *)(target + 16) = placed_before * WB_UNIT;
}

/* Adds bits to shared memory from a bit on. */
static __device__ __forceinline__ void add_bits(uint32_t *words, uint32_t bit, uint64_t bits)
{
    const uint32_t at = bit / 32, shift = bit % 32;
    const uint32_t low = (uint32_t)bits, high = (uint32_t)(bits >> 32);
    const uint32_t parts[3] = {low << shift, shift == 0 ? high : low >> (32 - shift) | high << shift,
                               shift == 0 ? 0 : high >> (32 - shift)};
#pragma unroll
    for (int part = 0; part < 3; part++) {
        if (parts[part] != 0) atomicOr(&words[at + part], parts[part]);
    }
}

/* Writes the bodies of tiles, each put together in shared memory. */
extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES)
    wb_codec_write(uint32_t type, const uint8_t *source, uint64_t bytes, uint8_t *target)
{
    __shared__ uint8_t ranks[WB_BUCKETS];
    __shared__ uint4 staged[WARPS][WB_TILE / 16];
    rank_exponents(target, ranks);
    const uint32_t warp = threadIdx.x / WB_LANES, lane = lane_index();
    const uint64_t index = (uint64_t)blockIdx.x * WARPS + warp;
    if (index >= wb_tiles(bytes)) return;
    const uint4 entry_words = *(const uint4 *)(target + WB_HEADER + index * WB_ENTRY);
    wb_tile_entry entry;
    entry.low = entry_words.z;
    entry.high = entry_words.w;
    const wb_tile tile = wb_read_entry(entry);
    const uint8_t *from = source + index * WB_TILE;
    uint8_t *to = target + (uint64_t)entry_words.x * WB_UNIT;
    const uint32_t here = bytes_of_tile(bytes, index), over = here % WB_UNIT;
    if (tile.kind == WB_TILE_RAW) {
        copy_raw(from, to, here);
        if (over != 0 && lane >= over && lane < WB_UNIT) to[here - over + lane] = 0;
    }
    if (tile.kind != WB_TILE_CODED) return;
    const wb_sections sections = wb_find_sections(type, &tile);
    const bool one_exponent = tile.constant >> WB_EXPONENT_PLANE & 1u;
    const uint32_t piece = wb_coded_piece(type);
    uint4 *body = staged[warp];
    uint8_t *body_bytes = (uint8_t *)body;
    uint32_t *body_words = (uint32_t *)body;
#pragma unroll 1
    for (uint32_t at = lane; at < sections.end / 16; at += WB_LANES) {
        body[at] = make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
    if (lane <= WB_EXPONENT_PLANE && (tile.constant >> lane & 1u)) {
        body_bytes[lane] = (uint8_t)part_of(type, value_at(type, from, 0), lane);
    }
    uint32_t used[WB_LEVELS] = {0, 0, 0, 0};
#pragma unroll 1
    for (uint32_t round = 0; round < WB_TILE / wb_coded_bytes(type) / WB_ROUND; round++) {
        uint64_t codes[WB_LEVELS] = {0, 0, 0, 0};
        uint32_t counts[WB_LEVELS] = {0, 0, 0, 0}, raw = 0;
#pragma unroll 1
        for (uint32_t slot = 0; slot < WB_LANES; slot++) {
            const uint32_t at =
                round * WB_ROUND + (slot / piece * WB_LANES + lane) * piece + slot % piece;
            const uint32_t value = value_at(type, from, at);
            const uint32_t rank = ranks[exponent_of(type, value)];
            codes[0] |= (uint64_t)smaller(rank, 3) << 2 * slot;
#pragma unroll
            for (uint32_t level = 1; level < WB_LEVELS; level++) {
                if (rank < 3 * level) continue;
                codes[level] |= (uint64_t)smaller(rank - 3 * level, 3) << 2 * counts[level - 1];
                counts[level - 1]++;
            }
            if (rank == WB_RANKS) raw |= 1u << slot;
#pragma unroll 1
            for (uint32_t plane = 0; plane < 3; plane++) {
                const uint32_t bits = wb_plane_bits(type, plane);
                if (bits == 0 || (tile.constant >> plane & 1u)) continue;
                const uint32_t begin = wb_planes_bytes(type, tile.constant, plane);
                const uint32_t part = part_of(type, value, plane);
                const uint32_t bit = ((round * WB_LANES + lane) * WB_LANES + slot) * bits;
                if (bits == 8) {
                    body_bytes[begin + at] = (uint8_t)part;
                } else {
                    body_words[begin / 4 + bit / 32] |= part << bit % 32;
                }
            }
        }
        if (one_exponent) continue;
        counts[WB_LEVELS - 1] = __popc(raw);
        ((uint64_t *)(body_bytes + sections.codes[0]))[round * WB_LANES + lane] = codes[0];
        uint32_t total;
#pragma unroll
        for (uint32_t level = 1; level < WB_LEVELS; level++) {
            const uint32_t before = sum_before(counts[level - 1], total);
            add_bits(body_words, 8 * sections.codes[level] + 2 * (used[level - 1] + before),
                     codes[level]);
            used[level - 1] += total;
        }
        uint32_t at = sections.raw + used[WB_LEVELS - 1];
        at += sum_before(counts[WB_LEVELS - 1], total);
        used[WB_LEVELS - 1] += total;
        for (; raw != 0; raw &= raw - 1, at++) {
            const uint32_t slot = __ffs(raw) - 1;
            const uint32_t place =
                round * WB_ROUND + (slot / piece * WB_LANES + lane) * piece + slot % piece;
            atomicOr(&body_words[at / 4],
                     exponent_of(type, value_at(type, from, place)) << 8 * (at % 4));
        }
    }
    __syncwarp();
    for (uint32_t at = lane; at < sections.end / 16; at += WB_LANES) ((uint4 *)to)[at] = body[at];
}

#endif
