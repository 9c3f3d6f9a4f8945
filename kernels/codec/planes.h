/* The parts of a tile's values, packed and taken apart, and its checksum. */
#ifndef WEIGHBRIDGE_CODEC_PLANES_H
#define WEIGHBRIDGE_CODEC_PLANES_H

#include <string.h>

#include "codec.h"

#if defined(__BMI2__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    MOST_VALUES = WB_TILE, /* of a tile: those of one byte */
    SLACK = 64             /* bytes behind arrays that vectors reach */
};

#define EACH_BYTE(value) (0x0101010101010101ull * (value))

typedef struct {
    uint8_t bytes[MOST_VALUES + SLACK];
} values;

ALWAYS_INLINE uint64_t load8(const uint8_t *from)
{
    uint64_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

ALWAYS_INLINE uint32_t load4(const uint8_t *from)
{
    uint32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

ALWAYS_INLINE void store(uint8_t *to, uint64_t bytes, unsigned count)
{
    memcpy(to, &bytes, count);
}

/* The low `bits` of each of eight bytes, next to each other, and the reverse. */
ALWAYS_INLINE uint64_t pack(uint64_t bytes, unsigned bits)
{
#ifdef __BMI2__
    return _pext_u64(bytes, EACH_BYTE((1u << bits) - 1));
#else
    bytes = (bytes | bytes >> (8 - bits)) & (0x0001000100010001ull * ((1u << 2 * bits) - 1));
    bytes = (bytes | bytes >> (16 - 2 * bits)) & (0x0000000100000001ull * ((1u << 4 * bits) - 1));
    return (bytes | bytes >> (32 - 4 * bits)) & ((1ull << 8 * bits) - 1);
#endif
}

ALWAYS_INLINE uint64_t unpack(uint64_t packed, unsigned bits)
{
#ifdef __BMI2__
    return _pdep_u64(packed, EACH_BYTE((1u << bits) - 1));
#else
    packed &= (1ull << 8 * bits) - 1;
    packed = (packed | packed << (32 - 4 * bits)) & (0x0000000100000001ull * ((1u << 4 * bits) - 1));
    packed = (packed | packed << (16 - 2 * bits)) & (0x0001000100010001ull * ((1u << 2 * bits) - 1));
    return (packed | packed << (8 - bits)) & EACH_BYTE((1u << bits) - 1);
#endif
}

/* The bytes that a mask of whole bytes selects, next to each other, and the reverse. */
ALWAYS_INLINE uint64_t select_bytes(uint64_t bytes, uint64_t mask)
{
#ifdef __BMI2__
    return _pext_u64(bytes, mask);
#else
    uint64_t selected = 0;
    for (unsigned at = 0, shift = 0; at < 64; at += 8) {
        selected |= (bytes >> at & mask >> at & 0xff) << (shift & 63);
        shift += (unsigned)(mask >> at & 8);
    }
    return selected;
#endif
}

ALWAYS_INLINE uint64_t place_bytes(uint64_t bytes, uint64_t mask)
{
#ifdef __BMI2__
    return _pdep_u64(bytes, mask);
#else
    uint64_t placed = 0;
    for (unsigned at = 0, shift = 0; at < 64; at += 8) {
        placed |= (bytes >> (shift & 63) & mask >> at & 0xff) << at;
        shift += (unsigned)(mask >> at & 8);
    }
    return placed;
#endif
}

/* Bytes of a mask. */
ALWAYS_INLINE uint32_t count_bytes(uint64_t mask)
{
#ifdef __BMI2__
    return (uint32_t)__builtin_popcountll(mask) >> 3;
#else
    return (uint32_t)((mask & EACH_BYTE(1)) * EACH_BYTE(1) >> 56);
#endif
}

/* Puts the bytes of a tile's values into the order of slots, and back. */
ALWAYS_INLINE void reorder(uint32_t type, const uint8_t *restrict from, uint8_t *restrict to,
                           int to_slots)
{
    const uint32_t piece = wb_coded_piece(type), count = WB_TILE / wb_coded_bytes(type);
    for (uint32_t round = 0; round < count; round += WB_ROUND) {
        for (uint32_t lane = 0; lane < WB_LANES; lane++) {
            for (uint32_t part = 0; part < WB_LANES / piece; part++) {
                const uint32_t value = round + (part * WB_LANES + lane) * piece;
                const uint32_t slot = round + lane * WB_LANES + part * piece;
                if (to_slots) memcpy(to + slot, from + value, piece);
                else memcpy(to + value, from + slot, piece);
            }
        }
    }
}

/* Packs a plane of less than a byte for each value, in the order of slots, or unpacks it. */
#define PLANE_OF(bits)                                                                            \
    for (uint32_t at = 0; at < count / 8; at++) {                                                 \
        uint64_t packed = 0;                                                                      \
        if (is_packing) {                                                                         \
            store(plane + at * (bits), pack(load8(slots + 8 * at), bits), bits);                  \
        } else {                                                                                  \
            memcpy(&packed, plane + at * (bits), bits);                                           \
            store(slots + 8 * at, unpack(packed, bits), 8);                                       \
        }                                                                                         \
    }                                                                                             \
    break

ALWAYS_INLINE void pack_plane(uint32_t bits, uint32_t count, uint8_t *restrict slots,
                              uint8_t *restrict plane, int is_packing)
{
    switch (bits) {
    case 1: PLANE_OF(1);
    case 2: PLANE_OF(2);
    default: PLANE_OF(4);
    }
}

/* The parts of a tile's values, a byte for each value. */
typedef struct {
    values exponents, planes[3];
} parts;

ALWAYS_INLINE void split(uint32_t type, const uint8_t *restrict source, parts *restrict to)
{
    typedef uint16_t stored16 __attribute__((aligned(1), may_alias));
    typedef uint32_t stored32 __attribute__((aligned(1), may_alias));
    const stored16 *halves = (const stored16 *)source;
    const stored32 *words = (const stored32 *)source;
    const uint32_t count = WB_TILE / wb_coded_bytes(type);
    uint8_t *restrict e = to->exponents.bytes, *restrict first = to->planes[0].bytes;
    uint8_t *restrict second = to->planes[1].bytes, *restrict third = to->planes[2].bytes;
    for (uint32_t i = 0; i < count; i++) {
        switch (type) {
        case WB_CODED_BF16:
            e[i] = (uint8_t)(halves[i] >> 7);
            first[i] = (uint8_t)((halves[i] >> 8 & 0x80) | (halves[i] & 0x7f));
            break;
        case WB_CODED_F16:
            e[i] = (uint8_t)(halves[i] >> 10 & 31);
            first[i] = (uint8_t)halves[i];
            second[i] = (uint8_t)(halves[i] >> 8 & 3);
            third[i] = (uint8_t)(halves[i] >> 15);
            break;
        case WB_CODED_F32:
            e[i] = (uint8_t)(words[i] >> 23);
            first[i] = (uint8_t)words[i];
            second[i] = (uint8_t)(words[i] >> 8);
            third[i] = (uint8_t)((words[i] >> 24 & 0x80) | (words[i] >> 16 & 0x7f));
            break;
        case WB_CODED_E4M3:
            e[i] = source[i] >> 3 & 15;
            first[i] = (uint8_t)((source[i] >> 4 & 8) | (source[i] & 7));
            break;
        default:
            e[i] = source[i] >> 2 & 31;
            first[i] = source[i] & 3;
            second[i] = source[i] >> 7;
            break;
        }
    }
}

ALWAYS_INLINE void merge(uint32_t type, const uint8_t *restrict e, const uint8_t *restrict first,
                         const uint8_t *restrict second, const uint8_t *restrict third,
                         uint8_t *restrict target)
{
    typedef uint16_t stored16 __attribute__((aligned(1), may_alias));
    typedef uint32_t stored32 __attribute__((aligned(1), may_alias));
    stored16 *restrict halves = (stored16 *)target;
    stored32 *restrict words = (stored32 *)target;
    const uint32_t count = WB_TILE / wb_coded_bytes(type);
    for (uint32_t i = 0; i < count; i++) {
        switch (type) {
        case WB_CODED_BF16:
            halves[i] = (uint16_t)((first[i] & 0x80) << 8 | e[i] << 7 | (first[i] & 0x7f));
            break;
        case WB_CODED_F16:
            halves[i] = (uint16_t)(third[i] << 15 | e[i] << 10 | second[i] << 8 | first[i]);
            break;
        case WB_CODED_F32:
            words[i] = (uint32_t)(third[i] & 0x80) << 24 | (uint32_t)e[i] << 23 |
                       (uint32_t)(third[i] & 0x7f) << 16 | (uint32_t)second[i] << 8 | first[i];
            break;
        case WB_CODED_E4M3:
            target[i] = (uint8_t)((first[i] & 8) << 4 | e[i] << 3 | (first[i] & 7));
            break;
        default: target[i] = (uint8_t)(second[i] << 7 | e[i] << 2 | first[i]); break;
        }
    }
}

static uint32_t checksum(const uint8_t *tile, uint32_t bytes)
{
    uint64_t sum = 0;
    uint32_t word = 0;
#ifdef __AVX2__
    /* Of four times two words, the even and the odd ones. */
    __m256i even = _mm256_setr_epi64x(1, 5, 9, 13), sums = _mm256_setzero_si256();
    for (; word + 8 <= bytes / 4; word += 8) {
        const __m256i words = _mm256_loadu_si256((const __m256i *)(tile + 4 * word));
        const __m256i odd = _mm256_add_epi64(even, _mm256_set1_epi64x(2));
        const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(words, 32), odd);
        sums = _mm256_add_epi64(sums, _mm256_add_epi64(_mm256_mul_epu32(words, even), high));
        even = _mm256_add_epi64(even, _mm256_set1_epi64x(16));
    }
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, sums);
    sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
#endif
    for (; word < bytes / 4; word++) {
        sum += (uint64_t)load4(tile + 4 * word) * wb_checksum_factor(word);
    }
    if (bytes % 4 != 0) {
        uint32_t last = 0;
        memcpy(&last, tile + 4 * word, bytes % 4);
        sum += (uint64_t)last * wb_checksum_factor(word);
    }
    return wb_checksum_of(sum);
}

/* Whether all bytes are equal. */
static int is_constant(const uint8_t *bytes, uint32_t count)
{
    uint8_t different = 0;
    for (uint32_t i = 0; i < count; i++) different |= bytes[i] ^ bytes[0];
    return different == 0;
}

#endif
