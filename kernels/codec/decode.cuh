/* Decodes tiles, and compares checksums. */
#ifndef WEIGHBRIDGE_CODEC_DECODE_CUH
#define WEIGHBRIDGE_CODEC_DECODE_CUH

#include "codec/levels.cuh"

/* The planes of 32 slots: as many words for a plane as it has bits for a value. */
template <uint32_t TYPE> struct lane_planes {
    static const int SIZE = TYPE == WB_CODED_F32 ? 4 : TYPE <= WB_CODED_F16 ? 2 : 1;
    static const int FIRST = TYPE == WB_CODED_E4M3 ? 4 : TYPE == WB_CODED_E5M2 ? 2 : 8;
    static const int SECOND = TYPE == WB_CODED_F16 ? 2 : TYPE == WB_CODED_F32 ? 8
                              : TYPE == WB_CODED_E5M2 ? 1 : 0;
    static const int THIRD = TYPE == WB_CODED_F16 ? 1 : TYPE == WB_CODED_F32 ? 8 : 0;
    uint32_t words[FIRST + SECOND + THIRD];
};

/* Where a lane reads the first round: codes and planes, each 0 if it is constant. */
struct lane_sources {
    const uint8_t *codes, *planes[3];
};

/* Where a lane reads a plane of BITS bits. Fills the words of a constant one, for all rounds. */
template <uint32_t TYPE, int BITS>
static __device__ __forceinline__ const uint8_t *
find_plane(const uint8_t *body, const wb_tile &tile, uint32_t plane, uint32_t *words)
{
    if (tile.constant >> plane & 1u) {
        /* As many bits as fill a byte. */
        uint32_t value = body[plane] & ((1u << BITS) - 1);
        for (int bits = BITS; bits < 8; bits *= 2) value |= value << bits;
#pragma unroll
        for (int at = 0; at < BITS; at++) words[at] = value * 0x01010101u;
        return 0;
    }
    /* Bytes of values are in the order of values, in pieces of four or eight. */
    const uint32_t each = BITS < 8 ? 4 * BITS : TYPE == WB_CODED_F32 ? 4 : 8;
    return body + wb_planes_bytes(TYPE, tile.constant, plane) + each * lane_index();
}

template <uint32_t TYPE>
static __device__ __forceinline__ lane_sources find_sources(const uint8_t *body,
                                                            const wb_tile &tile,
                                                            const wb_sections &sections,
                                                            lane_planes<TYPE> &planes)
{
    typedef lane_planes<TYPE> of;
    lane_sources from = {0, {0, 0, 0}};
    if (!(tile.constant >> WB_EXPONENT_PLANE & 1u)) {
        from.codes = body + sections.codes[0] + 8 * lane_index();
    }
    from.planes[0] = find_plane<TYPE, of::FIRST>(body, tile, 0, planes.words);
    if (of::SECOND != 0) {
        from.planes[1] = find_plane<TYPE, of::SECOND>(body, tile, 1, planes.words + of::FIRST);
    }
    if (of::THIRD != 0) {
        from.planes[2] =
            find_plane<TYPE, of::THIRD>(body, tile, 2, planes.words + of::FIRST + of::SECOND);
    }
    return from;
}

/* Reads a plane of BITS bits of a round. */
template <uint32_t TYPE, int BITS>
static __device__ __forceinline__ void read_plane(const uint8_t *from, uint32_t round,
                                                  uint32_t *words)
{
    if (from == 0) return;
    from += round * (WB_ROUND / 8 * BITS);
    if (BITS == 4) {
        *(uint4 *)words = *(const uint4 *)from;
    } else if (BITS == 2) {
        *(uint2 *)words = *(const uint2 *)from;
    } else if (BITS == 1) {
        words[0] = *(const uint32_t *)from;
    } else {
#pragma unroll
        for (int piece = 0; piece < (TYPE == WB_CODED_F32 ? 8 : 4); piece++) {
            if (TYPE == WB_CODED_F32) {
                words[piece] = ((const uint32_t *)from)[piece * WB_LANES];
            } else {
                ((uint2 *)words)[piece] = ((const uint2 *)from)[piece * WB_LANES];
            }
        }
    }
}

template <uint32_t TYPE>
static __device__ __forceinline__ void read_planes(const lane_sources &from, uint32_t round,
                                                   lane_planes<TYPE> &planes)
{
    typedef lane_planes<TYPE> of;
    read_plane<TYPE, of::FIRST>(from.planes[0], round, planes.words);
    if (of::SECOND != 0) {
        read_plane<TYPE, of::SECOND>(from.planes[1], round, planes.words + of::FIRST);
    }
    if (of::THIRD != 0) {
        read_plane<TYPE, of::THIRD>(from.planes[2], round, planes.words + of::FIRST + of::SECOND);
    }
}

/* Bits 0, 2, 4 and 6 of a byte, whose others are 0, as the highest bits of bytes. */
static __device__ __forceinline__ uint32_t signs_as_bytes(uint32_t signs, uint32_t byte)
{
    /* Each by its own power; what is added besides does not carry into these bits. */
    return __byte_perm(signs, 0, 0x4440 + byte) * (1u << 7 | 1u << 13 | 1u << 19 | 1u << 25) &
           0x80808080u;
}

/* Adds the signs and mantissas that are in planes of fewer than 8 bits to exponents. */
template <uint32_t TYPE>
static __device__ __forceinline__ void complete(lane_bytes &bytes, const lane_planes<TYPE> &planes)
{
    typedef lane_planes<TYPE> of;
    if (TYPE == WB_CODED_E4M3) {
#pragma unroll
        for (int at = 0; at < 4; at++) {
            const uint32_t both = planes.words[at], higher = both << 4, lower = both >> 4;
            bytes.even[at] |= both & 0x07070707u;
            bytes.even[at] |= higher & 0x80808080u;
            bytes.odd[at] |= lower & 0x07070707u;
            bytes.odd[at] |= both & 0x80808080u;
        }
    } else if (TYPE == WB_CODED_F16 || TYPE == WB_CODED_E5M2) {
        const uint32_t *mantissas = planes.words + (TYPE == WB_CODED_F16 ? of::FIRST : 0);
        const uint32_t even_signs = mantissas[2] & 0x55555555u;
        const uint32_t odd_signs = mantissas[2] >> 1 & 0x55555555u;
#pragma unroll
        for (int at = 0; at < 4; at++) {
            const uint32_t even = mantissas[at / 2] & 0x33333333u;
            const uint32_t odd = mantissas[at / 2] >> 2 & 0x33333333u;
            /* Added, to bits that are 0, since adders are less busy. */
            bytes.even[at] += select_bytes(0x03020100u, 0, even >> 16 * (at % 2));
            bytes.odd[at] += select_bytes(0x03020100u, 0, odd >> 16 * (at % 2));
            bytes.even[at] |= signs_as_bytes(even_signs, at);
            bytes.odd[at] |= signs_as_bytes(odd_signs, at);
        }
    }
}

/* Puts 32 slots together, whose exponents are `exponents`, and writes them. */
template <uint32_t TYPE>
static __device__ __forceinline__ void write_round(lane_bytes &exponents,
                                                   const lane_planes<TYPE> &planes, uint8_t *target)
{
    uint4 *to = (uint4 *)target;
    const uint32_t *words = planes.words, *second = words + planes.FIRST;
    const uint32_t *third = second + planes.SECOND;
    complete<TYPE>(exponents, planes);
    uint32_t in_order[8];
#pragma unroll
    for (int at = 0; at < 4; at++) {
        in_order[2 * at] = __byte_perm(exponents.even[at], exponents.odd[at], 0x5140);
        in_order[2 * at + 1] = __byte_perm(exponents.even[at], exponents.odd[at], 0x7362);
    }
    if (TYPE == WB_CODED_F32) {
#pragma unroll
        for (int at = 0; at < 8; at++) {
            const uint32_t e = in_order[at], high = third[at];
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
        const uint32_t e = in_order[at];
        if (wb_coded_bytes(TYPE) == 1) {
            out[at] = e;
            continue;
        }
        uint32_t low = words[at], high = e;
        if (TYPE == WB_CODED_BF16) {
            low = (words[at] & 0x7f7f7f7fu) | (e << 7 & 0x80808080u);
            high = (words[at] & 0x80808080u) | (e >> 1 & 0x7f7f7f7fu);
        }
        out[2 * at] = __byte_perm(low, high, 0x5140);
        out[2 * at + 1] = __byte_perm(low, high, 0x7362);
    }
#pragma unroll
    for (int piece = 0; piece < (int)(sizeof out / 16); piece++) {
        to[piece * WB_LANES] = make_uint4(out[4 * piece], out[4 * piece + 1], out[4 * piece + 2],
                                          out[4 * piece + 3]);
    }
}

/* Decodes a coded tile. `staged` is shared memory of the warp. */
template <uint32_t TYPE>
static __device__ __forceinline__ void decode_coded(const exponent_ranks &header,
                                                    const uint8_t *body, const wb_tile &tile,
                                                    const wb_sections &sections, uint32_t *staged,
                                                    uint8_t *target)
{
    tile_levels levels = find_levels<TYPE>(header, body, sections);
    const uint32_t rounds = WB_TILE / wb_coded_bytes(TYPE) / WB_ROUND;
    const lane_memory mine(staged);
    lane_planes<TYPE> planes;
    const lane_sources from = find_sources<TYPE>(body, tile, sections, planes);
    uint2 next_codes = make_uint2(0, 0);
    if (from.codes != 0) next_codes = *(const uint2 *)from.codes;
    uint8_t *to = target + 16 * lane_index();
    /* Planes are read while codes are looked up, and codes while those before them are. */
#pragma unroll 1
    for (uint32_t round = 0; round < rounds; round++) {
        const uint2 codes = next_codes;
        read_planes<TYPE>(from, round, planes);
        if (from.codes != 0 && round + 1 < rounds) {
            next_codes = *(const uint2 *)(from.codes + (round + 1) * (WB_ROUND / 4));
        }
        lane_bytes exponents;
        if (from.codes != 0) {
            look_up_round<TYPE>(levels, mine, codes, exponents);
        } else {
            const uint32_t e = placed<TYPE>(body[WB_EXPONENT_PLANE]) * 0x01010101u;
#pragma unroll
            for (int at = 0; at < 4; at++) exponents.even[at] = exponents.odd[at] = e;
        }
        write_round<TYPE>(exponents, planes, to + round * WB_ROUND * wb_coded_bytes(TYPE));
    }
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
            /* Codes of the first level are read a round ahead, and planes while codes are looked up. */
            prefetch(body + sections.codes[1], sections.end - sections.codes[1]);
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
    __shared__ uint32_t staged[WARPS][STAGED * WB_LANES];
    const uint32_t warp = threadIdx.x / WB_LANES, at = blockIdx.x * WARPS + warp;
    wb_tile_entry entry;
    if (at >= count || !read_entry(encoded, encoded_bytes, first + at, entry)) return;
    const wb_codec_window none = {0, 0, 0, 0, 0};
    decode_tile<TYPE>(encoded, encoded_bytes, read_ranks(encoded), none, entry,
                      bytes_of_tile(bytes, first + at), staged[warp],
                      target + (uint64_t)at * WB_TILE);
}

/* The same with as many warps as there are, one tile after another, of the bytes that a link leads to, if
 * there is one and no header is given, and of those that are seen through the window from there. */
template <uint32_t TYPE>
static __device__ __forceinline__ void carry(const uint8_t *encoded, uint64_t encoded_bytes,
                                             uint64_t bytes, uint64_t first, uint32_t count,
                                             uint8_t *target, const wb_codec_window &window)
{
    __shared__ uint32_t staged[WARPS][STAGED * WB_LANES];
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
        if (window.header == 0 && encoded_bytes >= sizeof *link &&
            link->magic == WB_CODEC_LINK_MAGIC) {
            found.bytes = link->bytes;
            /* As an offset, so that the compiler still knows in which memory it reads. */
            found.offset = link->address - (uint64_t)encoded;
        }
        const uint64_t header =
            window.header != 0 ? window.header - (uint64_t)encoded : found.offset;
        found.ranks = read_ranks(encoded + header);
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

#endif
