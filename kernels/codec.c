/*
 * Lossless compression of weights on the host, each function for one thread. docs/codec.md has the
 * format. Compiled once for each supported instruction set, as host.c is: most loops are vectorized
 * by the compiler, but it knows no loop that packs bits, or that moves bytes together and apart.
 */
#include "codec/decode.h"
#include "codec/encode.h"

#define WB_JOIN2(name, suffix) name##suffix
#define WB_JOIN(name, suffix) WB_JOIN2(name, suffix)
#define KERNEL(name) WB_JOIN(wb_codec_##name, WB_KERNEL)

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
    const uint8_t *near_header = (const uint8_t *)(uintptr_t)window->header;
    const uint8_t *near_entries = (const uint8_t *)(uintptr_t)window->entries;
    const uint8_t *ranks = (near_header != NULL ? near_header : encoded) + WB_RANKS_AT;
    for (uint64_t at = first + count; at-- > first;) {
        const uint64_t place = WB_HEADER + at * WB_ENTRY;
        wb_tile_entry entry;
        if (place + WB_ENTRY > encoded_bytes) {
            damaged = at;
            continue;
        }
        memcpy(&entry,
               near_entries != NULL ? near_entries + (at - first) * WB_ENTRY : encoded + place,
               sizeof entry);
        if (!decode_tile(type, encoded, encoded_bytes, ranks, window, &entry,
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
