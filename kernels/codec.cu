/*
 * Lossless compression of weights on CUDA devices; docs/codec.md has the format. A warp handles a
 * tile. It reads and writes 16 bytes a lane wherever a plane has as many, never outside of the
 * compressed bytes that it is given, whatever these contain, and always the same decoded bytes.
 */
#include "codec.h"

#define WARPS 4
#define ALL_LANES 0xffffffffu
/* Words of shared memory for the 32 exponents of a lane: nine, so that lanes use different banks. */
#define STRIDE 9

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

/* Codes of two bits as nibbles, eight of them. */
static __device__ __forceinline__ uint32_t as_nibbles(uint32_t codes)
{
    codes = (codes | codes << 8) & 0x00ff00ffu;
    codes = (codes | codes << 4) & 0x0f0f0f0fu;
    return (codes | codes << 2) & 0x33333333u;
}

/* Four numbers of two bits, one bit, or four bits as bytes. */
static __device__ __forceinline__ uint32_t two_bits_as_bytes(uint32_t bits)
{
    bits = ((bits & 0xffu) | bits << 12) & 0x000f000fu;
    return (bits | bits << 6) & 0x03030303u;
}

static __device__ __forceinline__ uint32_t one_bit_as_bytes(uint32_t bits)
{
    return (bits & 15u) * 0x00204081u & 0x01010101u;
}

static __device__ __forceinline__ uint32_t four_bits_as_bytes(uint32_t bits)
{
    bits = ((bits & 0xffffu) | bits << 8) & 0x00ff00ffu;
    return (bits | bits << 4) & 0x0f0f0f0fu;
}

/* The bits at even places, next to each other. */
static __device__ __forceinline__ uint32_t even_bits(uint32_t bits)
{
    bits = (bits | bits >> 1) & 0x33333333u;
    bits = (bits | bits >> 2) & 0x0f0f0f0fu;
    bits = (bits | bits >> 4) & 0x00ff00ffu;
    return (bits | bits >> 8) & 0x0000ffffu;
}

/* 64 bits of a body from a bit on; past its last word they are undefined. */
static __device__ __forceinline__ uint64_t bits_at(const uint32_t *body, uint32_t bit,
                                                   uint32_t last_word)
{
    const uint32_t at = bit / 32;
    const uint32_t first = body[smaller(at, last_word)], second = body[smaller(at + 1, last_word)];
    const uint32_t third = body[smaller(at + 2, last_word)];
    return (uint64_t)__funnelshift_r(second, third, bit) << 32 |
           __funnelshift_r(first, second, bit);
}

/* Where an exponent is in the byte in which it is put together with other bits. */
template <uint32_t TYPE> static __device__ __forceinline__ uint32_t placed(uint32_t exponents)
{
    if (TYPE == WB_CODED_E4M3) return (exponents & 0x0f0f0f0fu) << 3;
    if (TYPE == WB_CODED_F16 || TYPE == WB_CODED_E5M2) return (exponents & 0x1f1f1f1fu) << 2;
    return exponents;
}

/* The planes of 32 slots: as many words for a plane as it has bits for a value. */
template <uint32_t TYPE> struct lane_planes {
    static const int SIZE = TYPE == WB_CODED_F32 ? 4 : TYPE <= WB_CODED_F16 ? 2 : 1;
    static const int FIRST = TYPE == WB_CODED_E4M3 ? 4 : TYPE == WB_CODED_E5M2 ? 2 : 8;
    static const int SECOND = TYPE == WB_CODED_F16 ? 2 : TYPE == WB_CODED_F32 ? 8
                              : TYPE == WB_CODED_E5M2 ? 1 : 0;
    static const int THIRD = TYPE == WB_CODED_F16 ? 1 : TYPE == WB_CODED_F32 ? 8 : 0;
    uint32_t words[FIRST + SECOND + THIRD];
};

/* Reads a plane of BITS bits of a round. */
template <uint32_t TYPE, int BITS>
static __device__ __forceinline__ void read_plane(const uint8_t *body, const wb_tile &tile,
                                                  uint32_t plane, uint32_t round, uint32_t *words)
{
    const uint32_t lane = lane_index();
    if (tile.constant >> plane & 1u) {
        /* As many bits as fill a byte. */
        uint32_t value = body[plane] & ((1u << BITS) - 1);
        for (int bits = BITS; bits < 8; bits *= 2) value |= value << bits;
#pragma unroll
        for (int at = 0; at < BITS; at++) words[at] = value * 0x01010101u;
        return;
    }
    const uint8_t *from = body + wb_planes_bytes(TYPE, tile.constant, plane);
    if (BITS < 8) {
        const uint32_t *mine = (const uint32_t *)from + (round * WB_LANES + lane) * BITS;
        if (BITS == 4) {
            *(uint4 *)words = *(const uint4 *)mine;
        } else if (BITS == 2) {
            *(uint2 *)words = *(const uint2 *)mine;
        } else {
            words[0] = mine[0];
        }
        return;
    }
    /* Bytes of values in their order; pieces are four or eight values. */
    from += round * WB_ROUND;
#pragma unroll
    for (int piece = 0; piece < (TYPE == WB_CODED_F32 ? 8 : 4); piece++) {
        if (TYPE == WB_CODED_F32) {
            words[piece] = ((const uint32_t *)from)[piece * WB_LANES + lane];
        } else {
            ((uint2 *)words)[piece] = ((const uint2 *)from)[piece * WB_LANES + lane];
        }
    }
}

/* Puts 32 slots together and writes them; `exponents` has those of four slots in each word. */
template <uint32_t TYPE>
static __device__ __forceinline__ void write_round(const uint32_t *exponents,
                                                   const lane_planes<TYPE> &planes, uint8_t *target,
                                                   uint32_t round)
{
    const uint32_t lane = lane_index();
    uint4 *to = (uint4 *)(target + round * WB_ROUND * wb_coded_bytes(TYPE)) + lane;
    const uint32_t *words = planes.words, *second = words + planes.FIRST;
    const uint32_t *third = second + planes.SECOND;
    if (TYPE == WB_CODED_F32) {
#pragma unroll
        for (int at = 0; at < 8; at++) {
            const uint32_t e = exponents[at], high = third[at];
            const uint32_t top = (high & 0x80808080u) | (e >> 1 & 0x7f7f7f7fu);
            const uint32_t below = (high & 0x7f7f7f7fu) | (e << 7 & 0x80808080u);
            const uint32_t low_even = __byte_perm(words[at], second[at], 0x5140);
            const uint32_t low_odd = __byte_perm(words[at], second[at], 0x7362);
            const uint32_t high_even = __byte_perm(below, top, 0x5140);
            const uint32_t high_odd = __byte_perm(below, top, 0x7362);
            to[at * WB_LANES] = make_uint4(__byte_perm(low_even, high_even, 0x5410),
                                           __byte_perm(low_even, high_even, 0x7632),
                                           __byte_perm(low_odd, high_odd, 0x5410),
                                           __byte_perm(low_odd, high_odd, 0x7632));
        }
        return;
    }
    uint32_t out[lane_planes<TYPE>::SIZE == 2 ? 16 : 8];
#pragma unroll
    for (int at = 0; at < 8; at++) {
        const uint32_t e = exponents[at];
        uint32_t low, high;
        if (TYPE == WB_CODED_BF16) {
            low = (words[at] & 0x7f7f7f7fu) | (e << 7 & 0x80808080u);
            high = (words[at] & 0x80808080u) | (e >> 1 & 0x7f7f7f7fu);
        } else if (TYPE == WB_CODED_F16) {
            low = words[at];
            high = one_bit_as_bytes(third[0] >> 4 * at) << 7 | e |
                   two_bits_as_bytes(second[at / 4] >> 8 * (at % 4));
        } else if (TYPE == WB_CODED_E4M3) {
            const uint32_t bits = four_bits_as_bytes(words[at / 2] >> 16 * (at % 2));
            low = (bits & 0x08080808u) << 4 | e | (bits & 0x07070707u);
        } else {
            low = one_bit_as_bytes(second[0] >> 4 * at) << 7 | e |
                  two_bits_as_bytes(words[at / 4] >> 8 * (at % 4));
        }
        if (wb_coded_bytes(TYPE) == 2) {
            out[2 * at] = __byte_perm(low, high, 0x5140);
            out[2 * at + 1] = __byte_perm(low, high, 0x7362);
        } else {
            out[at] = low;
        }
    }
#pragma unroll
    for (int piece = 0; piece < (int)(sizeof out / 16); piece++) {
        to[piece * WB_LANES] = make_uint4(out[4 * piece], out[4 * piece + 1], out[4 * piece + 2],
                                          out[4 * piece + 3]);
    }
}

/* Reads what a lane needs of a round: codes of the first level, and planes. */
template <uint32_t TYPE>
static __device__ __forceinline__ void read_round(const uint8_t *body, const wb_tile &tile,
                                                  const wb_sections &sections, uint32_t round,
                                                  uint2 &codes, lane_planes<TYPE> &planes)
{
    if (!(tile.constant >> WB_EXPONENT_PLANE & 1u)) {
        codes = ((const uint2 *)(body + sections.codes[0]))[round * WB_LANES + lane_index()];
    }
    typedef lane_planes<TYPE> of;
    read_plane<TYPE, of::FIRST>(body, tile, 0, round, planes.words);
    if (of::SECOND != 0) {
        read_plane<TYPE, of::SECOND>(body, tile, 1, round, planes.words + of::FIRST);
    }
    if (of::THIRD != 0) {
        read_plane<TYPE, of::THIRD>(body, tile, 2, round, planes.words + of::FIRST + of::SECOND);
    }
}

/* The exponents by rank, as the header has them. */
struct exponent_ranks {
    uint32_t words[3];
};

static __device__ __forceinline__ exponent_ranks read_ranks(const uint8_t *encoded)
{
    const uint32_t *header = (const uint32_t *)(encoded + WB_RANKS_AT);
    exponent_ranks ranks = {{header[0], header[1], header[2]}};
    return ranks;
}

/* Decodes a coded tile. `staged` is shared memory of the warp, for the exponents of a round. */
template <uint32_t TYPE>
static __device__ __forceinline__ void decode_coded(const exponent_ranks &header,
                                                    const uint8_t *body, const wb_tile &tile,
                                                    const wb_sections &sections, uint32_t *staged,
                                                    uint8_t *target)
{
    const uint32_t last_word = sections.end / 4 - 1;
    const uint32_t *words = (const uint32_t *)body;
    const uint32_t ranks[3] = {placed<TYPE>(header.words[0]), placed<TYPE>(header.words[1]),
                               placed<TYPE>(header.words[2])};
    /* The exponents of each level; the fourth byte is that of values of the next level. */
    const uint32_t tables[WB_LEVELS] = {
        ranks[0] & 0xffffffu, __funnelshift_r(ranks[0], ranks[1], 24) & 0xffffffu,
        __funnelshift_r(ranks[1], ranks[2], 16) & 0xffffffu, ranks[2] >> 8};
    const bool one_exponent = tile.constant >> WB_EXPONENT_PLANE & 1u;
    const uint32_t rounds = WB_TILE / wb_coded_bytes(TYPE) / WB_ROUND;
    uint32_t *mine = staged + lane_index() * STRIDE;
    uint8_t *bytes = (uint8_t *)mine;
    uint32_t used[WB_LEVELS] = {0, 0, 0, 0};
    lane_planes<TYPE> planes, next_planes;
    uint2 codes = make_uint2(0, 0), next_codes = codes;
    /* Memory is read for a round while the one before it is decoded. */
#pragma unroll 1
    for (uint32_t ahead = 0; ahead <= rounds; ahead++) {
        const uint32_t round = ahead - 1;
        codes = next_codes;
        planes = next_planes;
        if (ahead < rounds) {
            read_round<TYPE>(body, tile, sections, ahead, next_codes, next_planes);
        }
        if (ahead == 0) continue;
        if (one_exponent) {
            const uint32_t e = placed<TYPE>(body[WB_EXPONENT_PLANE]) * 0x01010101u;
#pragma unroll
            for (int at = 0; at < 8; at++) mine[at] = e;
            write_round<TYPE>(mine, planes, target, round);
            continue;
        }
#pragma unroll
        for (int at = 0; at < 4; at++) {
            const uint32_t word = at < 2 ? codes.x : codes.y;
            const uint32_t nibbles = as_nibbles(at % 2 == 0 ? word & 0xffffu : word >> 16);
            mine[2 * at] = __byte_perm(tables[0], 0, nibbles & 0xffffu);
            mine[2 * at + 1] = __byte_perm(tables[0], 0, nibbles >> 16);
        }
        /* Slots whose exponent is on the next level. Each lane takes its own from the last one on,
         * which costs an instruction less than from the first. */
        uint32_t marked = even_bits(codes.x & codes.x >> 1 & 0x55555555u) |
                          even_bits(codes.y & codes.y >> 1 & 0x55555555u) << 16;
#pragma unroll
        for (int level = 1; level < WB_LEVELS; level++) {
            uint32_t total;
            const uint32_t count = __popc(marked), before = sum_before(count, total);
            if (total == 0) break;
            const uint32_t first = 8 * sections.codes[level] + 2 * (used[level - 1] + before);
            uint64_t bits = 0;
            if (count != 0) bits = bits_at(words, first, last_word) << (64 - 2 * count);
            used[level - 1] += total;
            uint32_t next = 0;
            while (marked != 0) {
                const uint32_t slot = 31 - __clz(marked), bit = 1u << slot;
                const uint32_t code = (uint32_t)(bits >> 62);
                bytes[slot] = (uint8_t)__byte_perm(tables[level], 0, code);
                if (code == 3) next |= bit;
                marked ^= bit;
                bits <<= 2;
            }
            marked = next;
        }
        if (__any_sync(ALL_LANES, marked != 0)) {
            uint32_t total;
            const uint32_t count = __popc(marked), before = sum_before(count, total);
            uint32_t at = sections.raw + used[WB_LEVELS - 1] + before + count;
            used[WB_LEVELS - 1] += total;
            while (marked != 0) {
                const uint32_t slot = 31 - __clz(marked);
                at--;
                bytes[slot] = (uint8_t)placed<TYPE>(body[smaller(at, sections.end - 1)]);
                marked ^= 1u << slot;
            }
        }
        write_round<TYPE>(mine, planes, target, round);
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

static __device__ __forceinline__ void fill(uint32_t value, uint8_t *to, uint32_t bytes)
{
#pragma unroll 1
    for (uint32_t at = lane_index(); at < bytes / 16; at += WB_LANES) {
        ((uint4 *)to)[at] = make_uint4(value, value, value, value);
    }
#pragma unroll 1
    for (uint32_t at = bytes / 16 * 16 + lane_index(); at < bytes; at += WB_LANES) {
        to[at] = (uint8_t)(value >> 8 * (at % 4));
    }
}

static __device__ __forceinline__ wb_tile_entry entry_of(uint4 words)
{
    wb_tile_entry entry;
    entry.offset = words.x;
    entry.checksum = words.y;
    entry.low = words.z;
    entry.high = words.w;
    return entry;
}

/* The entry of a tile. False if the directory is not so long. */
static __device__ __forceinline__ bool read_entry(const uint8_t *encoded, uint64_t encoded_bytes,
                                                  uint64_t tile, wb_tile_entry &entry)
{
    const uint64_t at = WB_HEADER + tile * WB_ENTRY;
    if (at + WB_ENTRY > encoded_bytes) return false;
    entry = entry_of(*(const uint4 *)(encoded + at));
    return true;
}

/* Decodes a tile to `here` bytes, unless its entry cannot be right. `staged` is shared memory of the
 * warp. */
template <uint32_t TYPE>
static __device__ __forceinline__ void decode_tile(const uint8_t *encoded, uint64_t encoded_bytes,
                                                   const exponent_ranks &ranks,
                                                   const wb_codec_window &window,
                                                   const wb_tile_entry &entry, uint32_t here,
                                                   uint32_t *staged, uint8_t *to)
{
    const wb_tile tile = wb_read_entry(entry);
    const uint64_t offset = (uint64_t)entry.offset * WB_UNIT;
    if (tile.kind == WB_TILE_CONSTANT) {
        fill(tile.value, to, here);
    } else if (tile.kind == WB_TILE_RAW) {
        if (offset + here <= encoded_bytes) {
            copy_raw(wb_seen_through(&window, encoded, offset, here), to, here);
        }
    } else if (tile.kind == WB_TILE_CODED && here == WB_TILE) {
        const wb_sections sections = wb_find_sections(TYPE, &tile);
        if (offset + sections.end <= encoded_bytes) {
            const uint8_t *body = wb_seen_through(&window, encoded, offset, sections.end);
            decode_coded<TYPE>(ranks, body, tile, sections, staged, to);
        }
    }
}

/* Decodes `count` tiles from `first` on, one with each warp. */
template <uint32_t TYPE>
static __device__ __forceinline__ void decode(const uint8_t *encoded, uint64_t encoded_bytes,
                                              uint64_t bytes, uint64_t first, uint32_t count,
                                              uint8_t *target)
{
    __shared__ uint32_t staged[WARPS][STRIDE * WB_LANES];
    const uint32_t warp = threadIdx.x / WB_LANES, at = blockIdx.x * WARPS + warp;
    wb_tile_entry entry;
    if (at >= count || !read_entry(encoded, encoded_bytes, first + at, entry)) return;
    const wb_codec_window none = {0, 0, 0, 0};
    decode_tile<TYPE>(encoded, encoded_bytes, read_ranks(encoded), none, entry,
                      bytes_of_tile(bytes, first + at), staged[warp],
                      target + (uint64_t)at * WB_TILE);
}

/* The same with as many warps as there are, one tile after another, of the bytes that a link leads to, if
 * there is one, and of those that are seen through the window from there. */
template <uint32_t TYPE>
static __device__ __forceinline__ void carry(const uint8_t *encoded, uint64_t encoded_bytes,
                                             uint64_t bytes, uint64_t first, uint32_t count,
                                             uint8_t *target, const wb_codec_window &window)
{
    __shared__ uint32_t staged[WARPS][STRIDE * WB_LANES];
    /* Once a block, since reads over the link take long where copies fill it. */
    __shared__ struct {
        uint64_t offset, bytes;
        exponent_ranks ranks;
    } found;
    const uint32_t warp = threadIdx.x / WB_LANES;
    if (threadIdx.x == 0) {
        const wb_codec_link *link = (const wb_codec_link *)encoded;
        found.offset = 0;
        found.bytes = encoded_bytes;
        if (window.bytes == 0 && encoded_bytes >= sizeof *link &&
            link->magic == WB_CODEC_LINK_MAGIC) {
            found.bytes = link->bytes;
            /* As an offset, so that the compiler still knows in which memory it reads. */
            found.offset = link->address - (uint64_t)encoded;
        }
        found.ranks = read_ranks(encoded + found.offset);
    }
    __syncthreads();
    encoded += found.offset;
    encoded_bytes = found.bytes;
    const exponent_ranks ranks = found.ranks;
    const uint4 *entries = (const uint4 *)(encoded + (window.entries - (uint64_t)encoded));
#pragma unroll 1
    for (uint32_t at = blockIdx.x * WARPS + warp; at < count; at += gridDim.x * WARPS) {
        wb_tile_entry entry;
        if (window.entries != 0) {
            entry = entry_of(entries[at]);
        } else if (!read_entry(encoded, encoded_bytes, first + at, entry)) {
            return;
        }
        decode_tile<TYPE>(encoded, encoded_bytes, ranks, window, entry,
                          bytes_of_tile(bytes, first + at), staged[warp],
                          target + (uint64_t)at * WB_TILE);
        __syncwarp();
    }
}

/* Counts tiles whose checksum is not that of the directory. */
extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES)
    wb_codec_verify(const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes, uint64_t first,
                    uint32_t count, const uint8_t *decoded, counter *mismatches)
{
    const uint32_t at = blockIdx.x * WARPS + threadIdx.x / WB_LANES;
    if (at >= count) return;
    const uint8_t *from = decoded + (uint64_t)at * WB_TILE;
    const uint32_t here = bytes_of_tile(bytes, first + at);
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t word = lane_index(); word < here / 4; word += WB_LANES) {
        sum += (uint64_t)((const uint32_t *)from)[word] * wb_checksum_factor(word);
    }
    if (lane_index() == 0) {
#pragma unroll 1
        for (uint32_t byte = here / 4 * 4; byte < here; byte++) {
            sum += ((uint64_t)from[byte] << 8 * (byte % 4)) * wb_checksum_factor(byte / 4);
        }
    }
    sum = sum_of_lanes(sum);
    if (lane_index() != 0) return;
    wb_tile_entry entry;
    if (!read_entry(encoded, encoded_bytes, first + at, entry) ||
        entry.checksum != wb_checksum_of(sum)) {
        atomicAdd(mismatches, 1);
    }
}

/* The encoder has one kernel for all types, since it is to be faster than the link, not than memory. */

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

#define DECODE(name, TYPE)                                                                        \
    extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES) wb_codec_decode_##name(        \
        const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes, uint64_t first,           \
        uint32_t tiles, uint8_t *target)                                                          \
    {                                                                                             \
        decode<TYPE>(encoded, encoded_bytes, bytes, first, tiles, target);                        \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES) wb_codec_carry_##name(         \
        const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes, uint64_t first,           \
        uint32_t tiles, uint8_t *target, wb_codec_window window)                                  \
    {                                                                                             \
        carry<TYPE>(encoded, encoded_bytes, bytes, first, tiles, target, window);                 \
    }

DECODE(bf16, WB_CODED_BF16)
DECODE(f16, WB_CODED_F16)
DECODE(f32, WB_CODED_F32)
DECODE(e4m3, WB_CODED_E4M3)
DECODE(e5m2, WB_CODED_E5M2)
