/* The compressed format of docs/codec.md, as far as C and CUDA share it. */
#ifndef WB_CODEC_H
#define WB_CODEC_H

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#ifdef __CUDACC__
#define WB_CODEC_INLINE static __host__ __device__ __forceinline__
#else
#define WB_CODEC_INLINE static inline __attribute__((always_inline))
#endif

enum {
    WB_TILE = 8192,       /* decoded bytes of a tile */
    WB_HEADER = 64,       /* bytes before the directory */
    WB_ENTRY = 16,        /* bytes of the directory for each tile */
    WB_UNIT = 16,         /* bodies begin at multiples of it, and offsets count it */
    WB_RANKS_AT = 24,     /* where the header has the exponents by rank */
    WB_LEVELS = 4,        /* of codes, each for three exponents */
    WB_RANKS = 3 * WB_LEVELS,
    WB_ROUND = 1024,      /* values of a round: 32 lanes of 32 slots */
    WB_LANES = 32,
    WB_SAMPLED = 1024,    /* limit of the tiles that are sampled for the ranks */
    WB_BUCKETS = 256,     /* exponents that are counted */
    WB_EXPONENT_PLANE = 3 /* its flag among the constant planes */
};

#define WB_CODEC_MAGIC 0x31434257u /* "WBC1" */
#define WB_CODEC_VERSION 1u

/* The types, as the header names them. */
enum wb_coded { WB_CODED_BF16 = 1, WB_CODED_F16, WB_CODED_F32, WB_CODED_E4M3, WB_CODED_E5M2 };

/* Kinds of tiles. */
enum wb_tile_kind { WB_TILE_CODED, WB_TILE_RAW, WB_TILE_CONSTANT };

/* An entry of the directory. */
typedef struct {
    uint32_t offset; /* of the body from the start of the header, in units */
    uint32_t checksum;
    uint32_t low, high; /* kind, counts and constant planes, or the value of a constant tile */
} wb_tile_entry;

/* What an entry says. */
typedef struct {
    uint32_t kind;
    uint32_t counts[WB_LEVELS]; /* values that are not on the first level, the first two, ... */
    uint32_t constant;          /* a bit for each constant plane */
    uint32_t value;             /* four bytes of a constant tile */
} wb_tile;

#define WB_CODEC_LINK_MAGIC 0x314c4257u /* "WBL1" */

/* Stands in place of a header where the compressed bytes do not fit: they are elsewhere. Only the library
 * writes it, in memory of its own, and only kernels that fill slots follow it, where no header is given. */
typedef struct {
    uint32_t magic, zero;
    uint64_t address; /* of the compressed bytes, for the device */
    uint64_t bytes;   /* that may be read there */
} wb_codec_link;

/* Compressed bytes from `begin` on that were copied to memory that is nearer, where they are read instead,
 * and copies of the header and of the entries of the tiles that a call decodes; 0 if there are none. */
typedef struct {
    uint64_t memory, begin, bytes, header, entries;
} wb_codec_window;

/* Where `bytes` bytes at `offset` of the compressed ones are read. */
WB_CODEC_INLINE const uint8_t *wb_seen_through(const wb_codec_window *window, const uint8_t *encoded,
                                               uint64_t offset, uint64_t bytes)
{
    const uint64_t from = offset - window->begin;
    const int covered =
        offset >= window->begin && bytes <= window->bytes && from <= window->bytes - bytes;
#ifdef __CUDACC__
    /* As an offset, so that the compiler still knows in which memory it reads. */
    return encoded + (covered ? window->memory + from - (uint64_t)encoded : offset);
#else
    return covered ? (const uint8_t *)(uintptr_t)(window->memory + from) : encoded + offset;
#endif
}

WB_CODEC_INLINE uint32_t wb_coded_bytes(uint32_t type)
{
    return type == WB_CODED_F32 ? 4u : type <= WB_CODED_F16 ? 2u : 1u;
}

/* Consecutive values of a lane: 16 bytes. */
WB_CODEC_INLINE uint32_t wb_coded_piece(uint32_t type)
{
    return 16u / wb_coded_bytes(type);
}

/* Bits of a value in a plane of signs and mantissas; 0 if the type has fewer planes. */
WB_CODEC_INLINE uint32_t wb_plane_bits(uint32_t type, uint32_t plane)
{
    switch (type) {
    case WB_CODED_BF16: return plane == 0 ? 8u : 0u;
    case WB_CODED_F16: return plane == 0 ? 8u : plane == 1 ? 2u : 1u;
    case WB_CODED_F32: return 8u;
    case WB_CODED_E4M3: return plane == 0 ? 4u : 0u;
    default: return plane == 0 ? 2u : plane == 1 ? 1u : 0u;
    }
}

/* Bits by which an exponent is placed in its byte when values are put together; see merge. */
WB_CODEC_INLINE uint32_t wb_exponent_bits(uint32_t type)
{
    return type == WB_CODED_BF16 || type == WB_CODED_F32 ? 8u : type == WB_CODED_E4M3 ? 4u : 5u;
}

WB_CODEC_INLINE uint64_t wb_tiles(uint64_t bytes)
{
    return bytes / WB_TILE + (bytes % WB_TILE != 0);
}

/* From one counted tile to the next. */
WB_CODEC_INLINE uint64_t wb_sample_step(uint64_t bytes)
{
    const uint64_t whole = bytes / WB_TILE, step = (whole + WB_SAMPLED - 1) / WB_SAMPLED;
    return step == 0 ? 1 : step;
}

WB_CODEC_INLINE wb_tile wb_read_entry(wb_tile_entry entry)
{
    const uint64_t bits = (uint64_t)entry.high << 32 | entry.low;
    wb_tile tile;
    for (uint32_t level = 0; level < WB_LEVELS; level++) {
        tile.counts[level] = (uint32_t)(bits >> 14 * level) & 0x3fffu;
    }
    tile.constant = entry.high >> 24 & 15u;
    tile.kind = entry.high >> 28 & 15u;
    tile.value = entry.low;
    return tile;
}

WB_CODEC_INLINE void wb_write_entry(wb_tile_entry *entry, const wb_tile *tile)
{
    uint64_t bits = (uint64_t)tile->kind << 60;
    if (tile->kind == WB_TILE_CONSTANT) bits |= tile->value;
    if (tile->kind == WB_TILE_CODED) {
        bits |= (uint64_t)tile->constant << 56;
        for (uint32_t level = 0; level < WB_LEVELS; level++) {
            bits |= (uint64_t)tile->counts[level] << 14 * level;
        }
    }
    entry->low = (uint32_t)bits;
    entry->high = (uint32_t)(bits >> 32);
}

/* Bytes of the planes of signs and mantissas in front of plane `end`, with the values of constant
 * planes. */
WB_CODEC_INLINE uint32_t wb_planes_bytes(uint32_t type, uint32_t constant, uint32_t end)
{
    const uint32_t values = WB_TILE / wb_coded_bytes(type);
    uint32_t bytes = constant != 0 ? WB_UNIT : 0;
    for (uint32_t plane = 0; plane < end; plane++) {
        if (!(constant >> plane & 1u)) bytes += values * wb_plane_bits(type, plane) / 8;
    }
    return bytes;
}

/* Offsets in the body of a coded tile: the codes of each level, the raw exponents, the end. */
typedef struct {
    uint32_t codes[WB_LEVELS], raw, end;
} wb_sections;

WB_CODEC_INLINE wb_sections wb_find_sections(uint32_t type, const wb_tile *tile)
{
    const uint32_t has_codes = !(tile->constant >> WB_EXPONENT_PLANE & 1u);
    wb_sections at;
    at.codes[0] = wb_planes_bytes(type, tile->constant, 3);
    at.codes[1] = at.codes[0] + has_codes * (WB_TILE / 4) / wb_coded_bytes(type);
    at.codes[2] = at.codes[1] + (tile->counts[0] + 3) / 4;
    at.codes[3] = at.codes[2] + (tile->counts[1] + 3) / 4;
    at.raw = at.codes[3] + (tile->counts[2] + 3) / 4;
    at.end = (at.raw + tile->counts[3] + WB_UNIT - 1) / WB_UNIT * WB_UNIT;
    return at;
}

/* Bytes of a tile's body, of which `bytes` are decoded. */
WB_CODEC_INLINE uint32_t wb_body_bytes(uint32_t type, const wb_tile *tile, uint32_t bytes)
{
    if (tile->kind == WB_TILE_CODED) return wb_find_sections(type, tile).end;
    if (tile->kind == WB_TILE_RAW) return (bytes + WB_UNIT - 1) / WB_UNIT * WB_UNIT;
    return 0;
}

/* The factor of a 32-bit word in a tile's sum, and the checksum of the sum. */
WB_CODEC_INLINE uint32_t wb_checksum_factor(uint32_t word)
{
    return 2 * word + 1;
}

WB_CODEC_INLINE uint32_t wb_checksum_of(uint64_t sum)
{
    return (uint32_t)(sum * 0x9e3779b97f4a7c15ull >> 32);
}

#endif
