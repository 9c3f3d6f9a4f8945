/*
 * Lossless compression of weights on the host, each function for one thread. docs/codec.md has the
 * format. Compiled once for each supported instruction set, as host.c is: most loops are vectorized
 * by the compiler, but it knows no loop that packs bits, or that moves bytes together and apart.
 */
#include <string.h>

#include "codec.h"

#if defined(__BMI2__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define WB_JOIN2(name, suffix) name##suffix
#define WB_JOIN(name, suffix) WB_JOIN2(name, suffix)
#define KERNEL(name) WB_JOIN(wb_codec_##name, WB_KERNEL)
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

/* Packs the codes of a level for `count` exponents; those that the next level has go to `next`.
 * Returns how many these are. Writes up to SLACK bytes more. */
static uint32_t encode_level(const uint8_t *restrict exponents, uint32_t count,
                             const uint8_t *ranks, uint8_t *restrict packed, uint8_t *restrict next)
{
    uint32_t marked = 0;
#ifdef __AVX512VBMI2__
    const __m512i zero = _mm512_set1_epi8((char)ranks[0]), one = _mm512_set1_epi8((char)ranks[1]);
    const __m512i two = _mm512_set1_epi8((char)ranks[2]);
    for (uint32_t at = 0; at < count; at += 64) {
        const __mmask64 used = count - at < 64 ? (1ull << (count - at)) - 1 : ~0ull;
        const __m512i e = _mm512_loadu_si512(exponents + at);
        const __mmask64 not_zero = _mm512_mask_cmpneq_epi8_mask(used, e, zero);
        const __mmask64 not_one = _mm512_cmpneq_epi8_mask(e, one);
        const __mmask64 mask = _mm512_mask_cmpneq_epi8_mask(not_zero & not_one, e, two);
        const __m512i low = _mm512_maskz_set1_epi8((not_zero & ~not_one) | mask, 1);
        const __m512i codes = _mm512_mask_add_epi8(low, not_zero & not_one, low, _mm512_set1_epi8(2));
        const __m512i pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0401));
        const __m512i fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00100001));
        _mm_storeu_si128((__m128i *)(packed + at / 4), _mm512_cvtepi32_epi8(fours));
        _mm512_storeu_si512(next + marked, _mm512_maskz_compress_epi8(mask, e));
        marked += (uint32_t)__builtin_popcountll(mask);
    }
#else
    values codes, masks;
    const uint8_t zero = ranks[0], one = ranks[1], two = ranks[2];
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t e = exponents[i], not_zero = e == zero ? 0 : 255;
        const uint8_t not_one = e == one ? 0 : 255, not_two = e == two ? 0 : 255;
        masks.bytes[i] = not_zero & not_one & not_two;
        codes.bytes[i] = not_zero & ((not_one & 2) | ((uint8_t)~not_one & 1) | (masks.bytes[i] & 1));
    }
    memset(codes.bytes + count, 0, 8);
    memset(masks.bytes + count, 0, 8);
    for (uint32_t at = 0; at < count; at += 8) {
        const uint64_t mask = load8(masks.bytes + at);
        store(packed + at / 4, pack(load8(codes.bytes + at), 2), 2);
        store(next + marked, select_bytes(load8(exponents + at), mask), 8);
        marked += count_bytes(mask);
    }
#endif
    memset(next + marked, 0, SLACK);
    return marked;
}

/* Encodes a whole tile at `body`, which has WB_TILE bytes. Returns the bytes used, or more
 * than these. */
ALWAYS_INLINE uint32_t encode_whole(uint32_t type, const uint8_t *source, const uint8_t *ranks,
                                    uint8_t *body, wb_tile *tile)
{
    const uint32_t count = WB_TILE / wb_coded_bytes(type);
    parts split_values;
    split(type, source, &split_values);
    const uint8_t *exponents = split_values.exponents.bytes;
    *tile = (wb_tile){.kind = WB_TILE_CODED};
    uint8_t constants[WB_UNIT] = {0};
    for (uint32_t plane = 0; plane < 3; plane++) {
        const uint8_t *bytes = split_values.planes[plane].bytes;
        if (wb_plane_bits(type, plane) == 0 || !is_constant(bytes, count)) continue;
        tile->constant |= 1u << plane;
        constants[plane] = bytes[0];
    }
    if (is_constant(exponents, count)) {
        tile->constant |= 1u << WB_EXPONENT_PLANE;
        constants[WB_EXPONENT_PLANE] = exponents[0];
    }
    if (tile->constant != 0) memcpy(body, constants, sizeof constants);
    for (uint32_t plane = 0; plane < 3; plane++) {
        const uint32_t bits = wb_plane_bits(type, plane);
        const uint8_t *bytes = split_values.planes[plane].bytes;
        uint8_t *to = body + wb_planes_bytes(type, tile->constant, plane);
        if (bits == 0 || tile->constant >> plane & 1u) continue;
        if (bits == 8) {
            memcpy(to, bytes, count);
            continue;
        }
        values slots;
        reorder(type, bytes, slots.bytes, 1);
        pack_plane(bits, count, slots.bytes, to, 1);
    }
    wb_sections sections = wb_find_sections(type, tile);
    if (tile->constant >> WB_EXPONENT_PLANE & 1u) return sections.end;
    /* What the levels take is known when they are coded, and may not fit the body. */
    values level, next, packed[WB_LEVELS];
    reorder(type, exponents, level.bytes, 1);
    memset(level.bytes + count, 0, SLACK);
    for (uint32_t at = 0, left = count; at < WB_LEVELS; at += 2) {
        left = encode_level(level.bytes, left, ranks + 3 * at, packed[at].bytes, next.bytes);
        tile->counts[at] = left;
        left = encode_level(next.bytes, left, ranks + 3 * at + 3, packed[at + 1].bytes, level.bytes);
        tile->counts[at + 1] = left;
    }
    sections = wb_find_sections(type, tile);
    if (sections.end >= WB_TILE) return sections.end;
    for (uint32_t at = 0; at < WB_LEVELS; at++) {
        const uint32_t end = at + 1 < WB_LEVELS ? sections.codes[at + 1] : sections.raw;
        memcpy(body + sections.codes[at], packed[at].bytes, end - sections.codes[at]);
    }
    const uint32_t raw_end = sections.raw + tile->counts[WB_LEVELS - 1];
    memcpy(body + sections.raw, level.bytes, raw_end - sections.raw);
    memset(body + raw_end, 0, sections.end - raw_end);
    return sections.end;
}

/* Encodes a tile of `bytes` bytes at `body`, which has as many, rounded up to a unit.
 * Returns the bytes used. */
static uint32_t encode_tile(uint32_t type, const uint8_t *source, uint32_t bytes,
                            const uint8_t *ranks, uint8_t *body, wb_tile_entry *entry)
{
    const uint32_t size = wb_coded_bytes(type);
    wb_tile tile = {.kind = WB_TILE_CONSTANT};
    uint32_t used = 0;
    entry->checksum = checksum(source, bytes);
    if (bytes > 0 && memcmp(source, source + size, bytes - size) == 0) {
        for (uint32_t at = 0; at < 4; at++) tile.value |= (uint32_t)source[at % size] << 8 * at;
    } else {
        used = WB_TILE;
        if (bytes == WB_TILE) {
            switch (type) {
            case WB_CODED_BF16: used = encode_whole(WB_CODED_BF16, source, ranks, body, &tile); break;
            case WB_CODED_F16: used = encode_whole(WB_CODED_F16, source, ranks, body, &tile); break;
            case WB_CODED_F32: used = encode_whole(WB_CODED_F32, source, ranks, body, &tile); break;
            case WB_CODED_E4M3: used = encode_whole(WB_CODED_E4M3, source, ranks, body, &tile); break;
            default: used = encode_whole(WB_CODED_E5M2, source, ranks, body, &tile); break;
            }
        }
        if (used >= WB_TILE) {
            tile = (wb_tile){.kind = WB_TILE_RAW};
            used = wb_body_bytes(type, &tile, bytes);
            memcpy(body, source, bytes);
            memset(body + bytes, 0, used - bytes);
        }
    }
    wb_write_entry(entry, &tile);
    return used;
}

/* Decodes `count` codes of a level. `next` are the exponents of the next level. Returns how many of
 * these the codes ask for. Reads and writes up to SLACK bytes more, but no more of the codes. */
static uint32_t decode_level(const uint8_t *restrict packed, uint32_t count, const uint8_t *ranks,
                             const uint8_t *restrict next, uint8_t *restrict exponents)
{
    uint32_t at = 0, used = 0;
#ifdef __AVX512VBMI2__
    const __m512i table = _mm512_set1_epi32(ranks[0] | ranks[1] << 8 | ranks[2] << 16);
    const __m512i two_bits = _mm512_set1_epi8(3), shifts = _mm512_set1_epi64(0x0e0c0a0806040200);
    for (; at + 64 <= count; at += 64) {
        const __m128i sixteen = _mm_loadu_si128((const __m128i *)(packed + at / 4));
        const __m512i spread = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(sixteen));
        const __m512i codes = _mm512_and_si512(spread, two_bits);
        const __mmask64 mask = _mm512_cmpeq_epi8_mask(codes, two_bits);
        const __m512i ranked = _mm512_shuffle_epi8(table, codes);
        const __m512i marked = _mm512_loadu_si512(next + used);
        _mm512_storeu_si512(exponents + at, _mm512_mask_expand_epi8(ranked, mask, marked));
        used += (uint32_t)__builtin_popcountll(mask);
    }
#endif
    const uint64_t zero = EACH_BYTE(ranks[0]), one = zero ^ EACH_BYTE(ranks[1]);
    const uint64_t two = zero ^ EACH_BYTE(ranks[2]);
    for (; at < count; at += 8) {
        const uint32_t left = count - at, last = packed[at / 4 + (left > 4)];
        const uint32_t kept = left < 8 ? (1u << 2 * left) - 1 : 0xffffu;
        const uint64_t codes = unpack((packed[at / 4] | last << 8) & kept, 2);
        const uint64_t low = codes & EACH_BYTE(1), high = codes >> 1 & EACH_BYTE(1);
        const uint64_t marked = low & high, mask = (marked << 8) - marked;
        const uint64_t ranked =
            zero ^ (((low << 8) - low) & one) ^ (((high << 8) - high) & two);
        store(exponents + at, (ranked & ~mask) | place_bytes(load8(next + used), mask), 8);
        used += count_bytes(mask);
    }
    memset(exponents + (count + 7) / 8 * 8, 0, SLACK);
    return used;
}

/* Decodes a whole tile. Returns whether the counts are those of the codes. */
ALWAYS_INLINE int decode_whole(uint32_t type, const uint8_t *body, const wb_tile *tile,
                               const uint8_t *ranks, uint8_t *target)
{
    const uint32_t count = WB_TILE / wb_coded_bytes(type);
    const wb_sections sections = wb_find_sections(type, tile);
    values exponents, planes[3];
    const uint8_t *plane_bytes[3] = {planes[0].bytes, planes[1].bytes, planes[2].bytes};
    int is_whole = 1;
    for (uint32_t plane = 0; plane < 3; plane++) {
        const uint32_t bits = wb_plane_bits(type, plane);
        const uint8_t *from = body + wb_planes_bytes(type, tile->constant, plane);
        if (bits == 0) continue;
        if (tile->constant >> plane & 1u) {
            memset(planes[plane].bytes, body[plane], count);
        } else if (bits == 8) {
            plane_bytes[plane] = from;
        } else {
            values slots;
            pack_plane(bits, count, slots.bytes, (uint8_t *)(uintptr_t)from, 0);
            reorder(type, slots.bytes, planes[plane].bytes, 0);
        }
    }
    if (tile->constant >> WB_EXPONENT_PLANE & 1u) {
        memset(exponents.bytes, body[WB_EXPONENT_PLANE], count);
    } else {
        /* From the last level, whose marked values are raw, to the first. */
        values level, next;
        const uint32_t raw = tile->counts[WB_LEVELS - 1];
        memcpy(next.bytes, body + sections.raw, raw);
        memset(next.bytes + raw, 0, SLACK);
        for (uint32_t at = WB_LEVELS; at > 0; at -= 2) {
            const uint32_t of_last = at > 1 ? tile->counts[at - 2] : count;
            const uint32_t of_other = at > 2 ? tile->counts[at - 3] : count;
            is_whole &= tile->counts[at - 1] == decode_level(body + sections.codes[at - 1], of_last,
                                                             ranks + 3 * at - 3, next.bytes,
                                                             level.bytes);
            is_whole &= of_last == decode_level(body + sections.codes[at - 2], of_other,
                                                ranks + 3 * at - 6, level.bytes, next.bytes);
        }
        reorder(type, next.bytes, exponents.bytes, 0);
    }
    merge(type, exponents.bytes, plane_bytes[0], plane_bytes[1], plane_bytes[2], target);
    return is_whole;
}

/* Decodes a tile to `bytes` bytes. Returns whether it is whole. */
static int decode_tile(uint32_t type, const uint8_t *encoded, uint64_t encoded_bytes,
                       const wb_codec_window *window, const wb_tile_entry *entry, uint8_t *target,
                       uint32_t bytes)
{
    const wb_tile tile = wb_read_entry(*entry);
    const uint64_t offset = (uint64_t)entry->offset * WB_UNIT;
    const uint8_t *ranks = encoded + WB_RANKS_AT;
    if (tile.kind > WB_TILE_CONSTANT || (tile.kind == WB_TILE_CODED && bytes != WB_TILE)) return 0;
    const uint32_t most = WB_TILE / wb_coded_bytes(type);
    for (uint32_t level = 0; tile.kind == WB_TILE_CODED && level < WB_LEVELS; level++) {
        if (tile.counts[level] > most) return 0;
    }
    const uint32_t used = wb_body_bytes(type, &tile, bytes);
    if (offset > encoded_bytes || used > encoded_bytes - offset) return 0;
    const uint8_t *body = wb_seen_through(window, encoded, offset, used);
    if (tile.kind == WB_TILE_RAW) {
        memcpy(target, body, bytes);
        return 1;
    }
    if (tile.kind == WB_TILE_CONSTANT) {
        for (uint32_t at = 0; at < bytes; at++) target[at] = (uint8_t)(tile.value >> at % 4 * 8);
        return 1;
    }
    switch (type) {
    case WB_CODED_BF16: return decode_whole(WB_CODED_BF16, body, &tile, ranks, target);
    case WB_CODED_F16: return decode_whole(WB_CODED_F16, body, &tile, ranks, target);
    case WB_CODED_F32: return decode_whole(WB_CODED_F32, body, &tile, ranks, target);
    case WB_CODED_E4M3: return decode_whole(WB_CODED_E4M3, body, &tile, ranks, target);
    default: return decode_whole(WB_CODED_E5M2, body, &tile, ranks, target);
    }
}

ALWAYS_INLINE uint32_t smaller(uint64_t one, uint64_t other)
{
    return (uint32_t)(one < other ? one : other);
}

/* Counts the exponents of the first round of every `step`th whole tile. */
ALWAYS_INLINE void count_exponents(uint32_t type, const uint8_t *source, uint64_t bytes,
                                   uint64_t *counts)
{
    typedef uint16_t stored16 __attribute__((aligned(1), may_alias));
    typedef uint32_t stored32 __attribute__((aligned(1), may_alias));
    /* Several counters for each exponent: neighbours are often equal, and would wait. */
    uint32_t counters[4][WB_BUCKETS] = {{0}};
    for (uint64_t tile = 0; tile < bytes / WB_TILE; tile += wb_sample_step(bytes)) {
        const uint8_t *from = source + tile * WB_TILE;
        uint8_t e[WB_ROUND];
        for (uint32_t i = 0; i < WB_ROUND; i++) {
            switch (type) {
            case WB_CODED_BF16: e[i] = (uint8_t)(((const stored16 *)from)[i] >> 7); break;
            case WB_CODED_F16: e[i] = (uint8_t)(((const stored16 *)from)[i] >> 10 & 31); break;
            case WB_CODED_F32: e[i] = (uint8_t)(((const stored32 *)from)[i] >> 23); break;
            case WB_CODED_E4M3: e[i] = from[i] >> 3 & 15; break;
            default: e[i] = from[i] >> 2 & 31; break;
            }
        }
        for (uint32_t i = 0; i < WB_ROUND; i++) counters[i % 4][e[i]]++;
    }
    for (uint32_t e = 0; e < WB_BUCKETS; e++) {
        counts[e] = (uint64_t)counters[0][e] + counters[1][e] + counters[2][e] + counters[3][e];
    }
}

/* Writes the header, all but the bytes of the whole. */
void KERNEL(begin)(uint32_t type, const uint8_t *source, uint64_t bytes, uint8_t *target)
{
    const uint32_t magic = WB_CODEC_MAGIC;
    uint64_t counts[WB_BUCKETS];
    switch (type) {
    case WB_CODED_BF16: count_exponents(WB_CODED_BF16, source, bytes, counts); break;
    case WB_CODED_F16: count_exponents(WB_CODED_F16, source, bytes, counts); break;
    case WB_CODED_F32: count_exponents(WB_CODED_F32, source, bytes, counts); break;
    case WB_CODED_E4M3: count_exponents(WB_CODED_E4M3, source, bytes, counts); break;
    default: count_exponents(WB_CODED_E5M2, source, bytes, counts); break;
    }
    memset(target, 0, WB_HEADER);
    memcpy(target, &magic, sizeof magic);
    target[4] = WB_CODEC_VERSION;
    target[5] = (uint8_t)type;
    memcpy(target + 8, &bytes, sizeof bytes);
    for (uint32_t rank = 0; rank < WB_RANKS; rank++) {
        uint32_t most = 0;
        for (uint32_t e = 1; e < 1u << wb_exponent_bits(type); e++) {
            /* One more is 0 for an exponent that has a rank. */
            if (counts[e] + 1 > counts[most] + 1) most = e;
        }
        target[WB_RANKS_AT + rank] = (uint8_t)most;
        counts[most] = UINT64_MAX;
    }
}

/* Encodes `count` tiles from `first` on, with the header at `target`. Bodies go to `bodies`, and
 * their offsets count from `target` as if the first of them were at `offset`. Returns their bytes. */
uint64_t KERNEL(encode)(const uint8_t *source, uint64_t bytes, uint64_t first, uint64_t count,
                        uint8_t *target, uint8_t *bodies, uint64_t offset)
{
    uint64_t used = 0;
    for (uint64_t at = first; at < first + count; at++) {
        wb_tile_entry entry;
        const uint32_t here = smaller(WB_TILE, bytes - at * WB_TILE);
        entry.offset = (uint32_t)((offset + used) / WB_UNIT);
        used += encode_tile(target[5], source + at * WB_TILE, here, target + WB_RANKS_AT,
                            bodies + used, &entry);
        memcpy(target + WB_HEADER + at * WB_ENTRY, &entry, sizeof entry);
    }
    return used;
}

/* Decodes `count` tiles from `first` on, of a total of `bytes` decoded bytes, to `target`. Returns the
 * number of the first tile that is damaged, `first + count` if none is. Decodes the others, too. */
uint64_t KERNEL(decode)(uint32_t type, const uint8_t *encoded, uint64_t encoded_bytes,
                        uint64_t bytes, uint64_t first, uint64_t count, uint8_t *target,
                        const wb_codec_window *window)
{
    uint64_t damaged = first + count;
    for (uint64_t at = first + count; at-- > first;) {
        const uint64_t place = WB_HEADER + at * WB_ENTRY;
        wb_tile_entry entry;
        if (place + WB_ENTRY > encoded_bytes) {
            damaged = at;
            continue;
        }
        const uint8_t *nearer = (const uint8_t *)(uintptr_t)window->entries;
        memcpy(&entry, nearer != NULL ? nearer + (at - first) * WB_ENTRY : encoded + place,
               sizeof entry);
        if (!decode_tile(type, encoded, encoded_bytes, window, &entry,
                         target + (at - first) * WB_TILE, smaller(WB_TILE, bytes - at * WB_TILE))) {
            damaged = at;
        }
    }
    return damaged;
}

/* Compares the checksums of decoded tiles with those of the directory. Returns how many differ. */
uint64_t KERNEL(verify)(const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes,
                        uint64_t first, uint64_t count, const uint8_t *decoded)
{
    uint64_t wrong = 0;
    for (uint64_t at = first; at < first + count; at++) {
        const uint64_t place = WB_HEADER + at * WB_ENTRY;
        wb_tile_entry entry;
        if (place + WB_ENTRY > encoded_bytes) {
            wrong++;
            continue;
        }
        memcpy(&entry, encoded + place, sizeof entry);
        wrong += entry.checksum != checksum(decoded + (at - first) * WB_TILE,
                                            smaller(WB_TILE, bytes - at * WB_TILE));
    }
    return wrong;
}
