/* Decodes a tile. */
#ifndef WEIGHBRIDGE_CODEC_DECODE_H
#define WEIGHBRIDGE_CODEC_DECODE_H

#include "codec/planes.h"

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
                       const uint8_t *ranks, const wb_codec_window *window,
                       const wb_tile_entry *entry, uint8_t *target, uint32_t bytes)
{
    const wb_tile tile = wb_read_entry(*entry);
    const uint64_t offset = (uint64_t)entry->offset * WB_UNIT;
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

#endif
