/* Decodes tiles, and compares checksums. */
#ifndef WEIGHBRIDGE_CODEC_DECODE_CUH
#define WEIGHBRIDGE_CODEC_DECODE_CUH

#include "codec/warp.cuh"

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

#endif
