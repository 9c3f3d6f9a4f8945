/* Encodes a tile. */
#ifndef WEIGHBRIDGE_CODEC_ENCODE_H
#define WEIGHBRIDGE_CODEC_ENCODE_H

#include "codec/planes.h"

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

#endif
